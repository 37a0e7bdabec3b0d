// Launch contract of the LSTM recurrence: one layer, all steps, one or both directions, on one stream.
//
//   i = s(x_i + W_i h' + p_i c')   f = s(x_f + W_f h' + p_f c')   g = tanh(x_g + W_g h')     (' = step before)
//   c = f c' + i g                 o = s(x_o + W_o h' + p_o c)    h = o tanh(c), then W_hr h with a projection
//
// Sizes and buffers as in recurrent.h. x = W_ih input + both biases comes from the caller's matrix product, as do the
// weight gradients from what the backward writes. Between steps the cell state stays in the accumulator's type.
#pragma once

#include "cuda/kernels/recurrent.h"

namespace pykernels::cuda {

// weight_hh: gates i, f, g, o.
struct LstmLayer : RecurrentLayer {
    const void* peephole[2];  // per direction [3, H], rows i, f, o; or null
    const void* c0;           // [D, B, H] or null for zeros
};

struct LstmForward {
    LstmLayer layer;
    RecurrentStates states;  // out
    void* gates;             // [D, N, 4H] in: x; out where `save`: the activated i, f, g, o (in place)
    void* cells;             // [D, N, H] out where `save`: c; else unused
    void* c_n;               // [D, B, H] out: c of each sequence's own last step
    void* workspace;         // lstm_forward_workspace() bytes, aligned to 256; contents need not be kept
    bool save;               // keep what the backward needs: gates, cells (and the caller's output)
};
size_t lstm_forward_workspace(const LstmLayer& layer);
cudaError_t lstm_forward(const LstmForward& args, cudaStream_t stream);

struct LstmBackward {
    LstmLayer layer;
    RecurrentGradients gradients;
    const void* gates;     // [D, N, 4H] as saved
    const void* cells;     // [D, N, H] as saved
    const void* grad_c_n;  // [D, B, H] or null for zeros
    void* grad_gates;      // [D, N, 4H] out: gradient of x
    void* grad_c0;         // [D, B, H] out, or null together with grad_h0
    void* workspace;       // lstm_backward_workspace() bytes, aligned to 256; contents need not be kept
};
size_t lstm_backward_workspace(const LstmLayer& layer);
cudaError_t lstm_backward(const LstmBackward& args, cudaStream_t stream);

}  // namespace pykernels::cuda
