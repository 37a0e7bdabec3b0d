// Launch contract of the LSTM recurrence: one layer, all steps, one or both directions, on one stream.
//
//   i = s(x_i + W_i h' + p_i c')   f = s(x_f + W_f h' + p_f c')   g = tanh(x_g + W_g h')     (' = step before)
//   c = f c' + i g                 o = s(x_o + W_o h' + p_o c)    h = o tanh(c), then W_hr h with a projection
//
// D directions, T steps, B sequences, N rows (steps.h), H cells, S = P with a projection, else H. x = W_ih input + both
// biases comes from the caller's matrix product, as do the weight gradients from what the backward writes.
// All buffers are device memory in the dtype, contiguous unless said, and do not alias unless said. The cell state
// between steps, and every sum, is in the accumulator's type; what crosses the memory as h is in the dtype.
// No floating-point atomics: the bits are the same in every run and in every launch form.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "cuda/core/types.h"
#include "cuda/kernels/steps.h"

namespace pykernels::cuda {

struct LstmLayer {
    DType dtype;
    LaunchForm form;
    Steps steps;
    int64_t directions;  // D, 1 or 2
    int64_t hidden;      // H
    int64_t state;       // S
    bool projection;
    const void* weight_hh[2];  // per direction [4H, S], gates i, f, g, o
    const void* weight_hr[2];  // per direction [P, H], with a projection
    const void* peephole[2];   // per direction [3, H], rows i, f, o; or null
    const void* h0;            // [D, B, S] or null for zeros
    const void* c0;            // [D, B, H] or null for zeros
};

struct LstmForward {
    LstmLayer layer;
    void* gates;      // [D, N, 4H] in: x; out where `save`: the activated i, f, g, o (in place)
    void* cells;      // [D, N, H] out where `save`: c; else unused
    void* output;     // [N, D*S] out: h
    void* h_n;        // [D, B, S] out: h of each sequence's own last step
    void* c_n;        // [D, B, H] out: c of it
    void* workspace;  // lstm_forward_workspace() bytes, aligned to 256; contents need not be kept
    bool save;        // keep what the backward needs: gates, cells (and the caller's output)
};
size_t lstm_forward_workspace(const LstmLayer& layer);
cudaError_t lstm_forward(const LstmForward& args, cudaStream_t stream);

struct LstmBackward {
    LstmLayer layer;
    const void* gates;        // [D, N, 4H] as saved
    const void* cells;        // [D, N, H] as saved
    const void* grad_output;  // [N, D*S] or null for zeros
    const void* grad_h_n;     // [D, B, S] or null for zeros
    const void* grad_c_n;     // [D, B, H] or null for zeros
    void* grad_gates;         // [D, N, 4H] out: gradient of x
    void* grad_projected;     // [D, N, P] out with a projection: the whole gradient of h, for the one of W_hr
    void* grad_h0;            // [D, B, S] out, or null together with grad_c0
    void* grad_c0;            // [D, B, H] out, or null together with grad_h0
    void* workspace;          // lstm_backward_workspace() bytes, aligned to 256; contents need not be kept
};
size_t lstm_backward_workspace(const LstmLayer& layer);
cudaError_t lstm_backward(const LstmBackward& args, cudaStream_t stream);

}  // namespace pykernels::cuda
