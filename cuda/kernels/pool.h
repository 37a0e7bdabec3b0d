// Launch contract of pooling: what it computes, csrc/ops/pool.h and csrc/kernels/pool.h say. Tensors are dense, in the
// shape's layout; no buffer overlaps another. Nothing is added up by atomics: each gradient is one thread's.
#pragma once

#include <cuda_runtime_api.h>

#include "csrc/core/pool_window.h"
#include "cuda/core/types.h"

namespace pykernels::cuda {

struct MaxPoolForward {
    DType dtype;
    PoolShape shape;
    const void* input;
    void* out;
    PoolPlaces places;  // null where they are not wanted
};
cudaError_t max_pool_forward(const MaxPoolForward& args, cudaStream_t stream);

struct MaxPoolBackward {
    DType dtype;
    PoolShape shape;
    const void* grad_out;
    PoolPlaces places;  // (only read)
    void* grad_input;
};
cudaError_t max_pool_backward(const MaxPoolBackward& args, cudaStream_t stream);

struct AvgPoolForward {
    DType dtype;
    PoolShape shape;
    PoolDivisor divisor;
    const void* input;
    void* out;
};
cudaError_t avg_pool_forward(const AvgPoolForward& args, cudaStream_t stream);

struct AvgPoolBackward {
    DType dtype;
    PoolShape shape;
    PoolDivisor divisor;
    const void* grad_out;
    void* grad_input;
};
cudaError_t avg_pool_backward(const AvgPoolBackward& args, cudaStream_t stream);

struct MaxPoolGather {
    DType dtype;
    PoolShape shape;
    PoolPlaces places;  // (only read)
    const void* input;
    void* out;
};
cudaError_t max_pool_gather(const MaxPoolGather& args, cudaStream_t stream);

struct MaxPoolIndices {
    PoolShape shape;
    PoolPlaces places;  // (only read)
    int64_t* indices;
};
cudaError_t max_pool_indices(const MaxPoolIndices& args, cudaStream_t stream);

}  // namespace pykernels::cuda
