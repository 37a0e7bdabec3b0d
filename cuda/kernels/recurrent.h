// Launch contract of what every recurrent layer tells its kernels: sizes, the state's weights, the state's gradients.
//
// D directions, T steps, B sequences, N rows (steps.h), H units, S = P with a projection, else H. All buffers are
// device memory in the dtype, contiguous unless said, and do not alias unless said. Every sum is in the accumulator's
// type; what crosses the memory as a state is in the dtype. No floating-point atomics: the bits are the same in every
// run and in every launch form.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "cuda/core/types.h"
#include "cuda/kernels/steps.h"

namespace pykernels::cuda {

struct RecurrentLayer {
    DType dtype;
    LaunchForm form;
    Steps steps;
    int64_t directions;  // D, 1 or 2
    int64_t hidden;      // H
    int64_t state;       // S
    bool projection;
    const void* weight_hh[2];          // per direction [gates*H, S]
    const void* weight_projection[2];  // per direction [P, H], with a projection
    const void* h0;                    // [D, B, S] or null for zeros
};

// What a layer puts out.
struct RecurrentStates {
    void* output;  // [N, D*S] h
    void* h_n;     // [D, B, S] h of each sequence's own last step
};

// The gradients that meet in the state.
struct RecurrentGradients {
    const void* grad_output;  // [N, D*S] or null for zeros
    const void* grad_h_n;     // [D, B, S] or null for zeros
    void* grad_projected;     // [D, N, P] out with a projection: the whole gradient of h, for the one of its weight
    void* grad_h0;            // [D, B, S] out, or null
};

}  // namespace pykernels::cuda
