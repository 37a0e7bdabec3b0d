// Launch contract of the recurrence of Elman's RNN, and of Jordan's, which is the one with a projection: one layer, all
// steps, one or both directions, on one stream.
//
//   h = f(x + W_hh s'), f = tanh or ReLU   s = h, with a projection s = W_ho h + b_ho                (' = step before)
//
// Sizes and buffers as in recurrent.h, whose state h is s here. x = W_ih input + both biases comes from the caller's
// matrix product, as do the weight gradients from what the backward writes.
#pragma once

#include "cuda/kernels/recurrent.h"

namespace pykernels::cuda {

struct RnnLayer : RecurrentLayer {
    bool relu;                       // f
    const void* bias_projection[2];  // per direction [P], with a projection; or null
};

struct RnnForward {
    RnnLayer layer;
    RecurrentStates states;  // out; without a projection the output holds x at first, in the place of h
    void* hidden;            // [D, N, H] with a projection, in: x, out: h; else unused
    void* workspace;         // rnn_forward_workspace() bytes, aligned to 256; contents need not be kept
};
size_t rnn_forward_workspace(const RnnLayer& layer);
cudaError_t rnn_forward(const RnnForward& args, cudaStream_t stream);

struct RnnBackward {
    RnnLayer layer;
    RecurrentGradients gradients;
    const void* output;  // [N, D*S] the forward's; unused with a projection
    const void* hidden;  // [D, N, H] the forward's, with a projection
    void* grad_gates;    // [D, N, H] out: gradient of x
    void* workspace;     // rnn_backward_workspace() bytes, aligned to 256; contents need not be kept
};
size_t rnn_backward_workspace(const RnnLayer& layer);
cudaError_t rnn_backward(const RnnBackward& args, cudaStream_t stream);

}  // namespace pykernels::cuda
