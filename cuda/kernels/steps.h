// Launch contract of what every recurrent layer needs beside its recurrence: where the rows of each step lie.
//
// A layer sees N rows. Padded input [T, B, ...] has row t*B + b for sequence b at step t. Packed input has
// offsets[t] + b, b < offsets[t+1] - offsets[t] = the number of sequences that are still running at step t
// (never more than at step t-1). Direction 1 walks the steps down from T-1: there a sequence starts at its own last
// step.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/core/types.h"

namespace pykernels::cuda {

struct Steps {
    const int64_t* offsets;  // [T + 1] on the device, or null when padded
    int64_t count;           // T >= 1
    int64_t batch;           // B, the number of sequences at step 0
    int64_t rows;            // N
};

// Copies values [count] from the host to offsets [count] on the device. They travel as kernel parameters, so the call
// can be captured in a CUDA graph and values may be freed at once.
cudaError_t write_offsets(int64_t* offsets, const int64_t* values, int64_t count, cudaStream_t stream);

// The state each row started from: previous[d, n, :] = states of the same sequence one step before row n in the
// order of direction d, or initial[d, b, :] (zeros where null) for the first step of a sequence.
struct PreviousStates {
    DType dtype;
    Steps steps;
    int64_t directions;
    int64_t width;             // W
    const void* states;        // row n of direction d at states + d*direction_stride + n*row_stride
    int64_t direction_stride;  // in elements
    int64_t row_stride;        // in elements
    const void* initial;       // [D, B, W] contiguous, or null
    void* previous;            // [D, N, W] contiguous, written whole; no alias
};
cudaError_t gather_previous_states(const PreviousStates& args, cudaStream_t stream);

}  // namespace pykernels::cuda
