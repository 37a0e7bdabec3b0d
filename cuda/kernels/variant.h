// Launch contract of the recurrent variants: one layer from its input parts on, all steps, one or both directions, on
// one stream. The equations: pykernels/reference/variants.py; what is saved: csrc/ops/variant.h.
//
// Sizes and buffers as in recurrent.h; G gates (LSTM i, f, g, o; GRU r, z, n; RNN 1). s is state_scale, h' and c' are
// the states of the step before, q what h' adds to the gates: W_hh (s h'), normalised where there is a gain, + b.
#pragma once

#include "csrc/kernels/recurrent_kind.h"
#include "cuda/kernels/recurrent.h"

namespace pykernels::cuda {

// What becomes of a state: where `stay` is not 0 it stays as it is; without `stay`, `share` of it stays, everywhere.
struct Zoneout {
    const uint8_t* stay;  // [D, N, width] or null
    double share;
};

struct VariantLayer : RecurrentLayer {
    RecurrentKind kind;
    bool form;        // GRU: the reset comes after the product; RNN: relu
    bool layer_norm;  // not of a GRU with the reset before
    // Per direction; null where there is none.
    const void* bias[2];        // [G*H]
    const void* peephole[2];    // [3, H], rows i, f, o
    const void* gain[2];        // [G*H]
    const void* cell_gain[2];   // [H]
    const void* cell_shift[2];  // [H]

    const void* c0;           // [D, B, H] or null for zeros
    const void* state_scale;  // [D, B, S] or null for ones
    Zoneout zoneout, zoneout_cell;
};

struct VariantForward {
    VariantLayer layer;
    const void* input;       // [N, D*G*H]
    const void* fed0;        // [D, B, S] s h0 where there are both, else null
    RecurrentStates states;  // out
    void* c_n;               // [D, B, H] out; LSTM
    // Saved, or null: [D, N, 4H] (RNN H), [D, N, H], [D, N, G*H], [D, N, 3] (GRU and RNN 1).
    void *gates, *cells, *normalized, *stats;
    void* workspace;  // variant_forward_workspace() bytes, aligned to 256; contents need not be kept
};
size_t variant_forward_workspace(const VariantLayer& layer);
cudaError_t variant_forward(const VariantForward& args, cudaStream_t stream);

struct VariantBackward {
    VariantLayer layer;
    RecurrentGradients gradients;                             // grad_projected: that of what the projection puts out
    const void* grad_c_n;                                     // [D, B, H] or null for zeros
    const void *gates, *cells, *normalized, *stats, *output;  // as saved
    void* grad_input;                                         // [N, D*G*H] out
    void*
        grad_recurrent;  // [D, N, 3H] out, of a GRU with the reset after: gradient of q. Else null: grad_input is that
    void* grad_sums;     // [D, N, G*H] out with layer_norm: gradient of W_hh (s h'). Else null: that of q is that
    void* fed;           // [D, N, S] out where not null: s h'; with state_scale
    void* cell_new;      // [D, N, H] out where not null: c before zoneout
    void* grad_seen;     // [D, N, H] out where not null: gradient of the normalised cell
    void* grad_c0;       // [D, B, H] out, or null together with grad_h0
    void* workspace;     // variant_backward_workspace() bytes, aligned to 256; contents need not be kept
};
size_t variant_backward_workspace(const VariantLayer& layer);
cudaError_t variant_backward(const VariantBackward& args, cudaStream_t stream);

// Of one kind each; the above choose.
cudaError_t lstm_variant_forward(const VariantForward& args, cudaStream_t stream);
cudaError_t lstm_variant_backward(const VariantBackward& args, cudaStream_t stream);
cudaError_t gru_variant_forward(const VariantForward& args, cudaStream_t stream);
cudaError_t gru_variant_backward(const VariantBackward& args, cudaStream_t stream);
cudaError_t rnn_variant_forward(const VariantForward& args, cudaStream_t stream);
cudaError_t rnn_variant_backward(const VariantBackward& args, cudaStream_t stream);

}  // namespace pykernels::cuda
