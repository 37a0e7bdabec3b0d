// Launch contract of the GRU recurrence: one layer, all steps, one or both directions, on one stream.
//
//   r = s(x_r + W_r h')   z = s(x_z + W_z h')   h = n + z (h' - n)                                   (' = step before)
//   reset after the product:    m = W_n h' + b_hn   n = tanh(x_n + r m)
//   reset before the product:   m = r h'            n = tanh(x_n + W_n m)
//
// Sizes and buffers as in recurrent.h. x = W_ih input + both biases (of n only b_in where the reset comes after) comes
// from the caller's matrix product, as do the weight gradients from what the backward writes. Between steps h stays in
// the accumulator's type for the sum, and crosses the memory in the dtype for the products.
#pragma once

#include "cuda/kernels/recurrent.h"

namespace pykernels::cuda {

// weight_hh: gates r, z, n. No projection.
struct GruLayer : RecurrentLayer {
    bool reset_after;
    const void* bias_hn[2];  // per direction [H], where the reset comes after; or null
};

struct GruForward {
    GruLayer layer;
    RecurrentStates states;  // out
    void* gates;      // [D, N, G] in: x in the first 3H columns. With `save` G = 4H, out: r, z, n, m; else G = 3H,
                      // overwritten
    void* workspace;  // gru_forward_workspace() bytes, aligned to 256; contents need not be kept
    bool save;        // keep what the backward needs: gates (and the caller's output)
};
size_t gru_forward_workspace(const GruLayer& layer);
cudaError_t gru_forward(const GruForward& args, cudaStream_t stream);

struct GruBackward {
    GruLayer layer;
    RecurrentGradients gradients;
    const void* gates;   // [D, N, 4H] as saved
    const void* output;  // [N, D*H] the forward's
    void* grad_gates;    // [D, N, G] out: gradient of m (only where the reset comes after: G = 4H, else 3H), then of x
    void* workspace;     // gru_backward_workspace() bytes, aligned to 256; contents need not be kept
};
size_t gru_backward_workspace(const GruLayer& layer);
cudaError_t gru_backward(const GruBackward& args, cudaStream_t stream);

}  // namespace pykernels::cuda
