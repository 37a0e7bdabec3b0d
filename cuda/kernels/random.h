// Launch contract of the random masks: which elements are chosen, csrc/ops/random.h says.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/core/types.h"

namespace pykernels::cuda {

struct RandomMask {
    uint64_t key;
    uint32_t stream;
    uint64_t threshold;  // numbers below it are chosen
    double value;        // of what is chosen; the rest is 0
    int64_t count;
    bool bytes;   // the mask is of uint8
    DType dtype;  // of the mask otherwise
    void* mask;   // [count] out
};
cudaError_t random_mask(const RandomMask& args, cudaStream_t stream);

}  // namespace pykernels::cuda
