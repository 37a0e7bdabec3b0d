// Launch contract of convolution, bias, ReLU and max-pooling of small planar images at once: csrc/ops/conv_pool.h says
// what it computes. Tensors as those of conv_forward and max_pool_forward (cuda/kernels/conv.h, cuda/kernels/pool.h).
//
// A block has some filters and rows of windows of an image. What these windows hold is computed in shared memory, and
// pooled from there: nothing but the result is written.
#pragma once

#include <cuda_runtime_api.h>

#include "csrc/core/conv_shape.h"
#include "csrc/core/pool_window.h"
#include "cuda/core/types.h"

namespace pykernels::cuda {

struct ConvPool {
    DType dtype;
    ConvShape shape;              // of two dimensions, the last ones, and not channels-last
    PoolDimension rows, columns;  // of windows of the convolution's places
    const void *input, *weight;
    const void* bias;  // [groups * out_channels], or null
    void* out;         // [batch, groups * out_channels, rows.out, columns.out]
};

// Whether there is a kernel for it: a filter has at most kConvPoolValues values (with more of them the products of
// conv_forward are worth their results' way through the memory), a row of windows of four filters fits into 48 KB of
// shared memory, and the convolution is not depthwise.
constexpr int64_t kConvPoolValues = 256;
bool has_conv_pool(const ConvPool& args);

// Results do not depend on the device: each is one chain of multiply-adds, over channels and their taps.
cudaError_t conv_relu_max_pool(const ConvPool& args, cudaStream_t stream);

}  // namespace pykernels::cuda
