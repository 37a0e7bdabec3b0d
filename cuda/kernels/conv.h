// Launch contract of convolution: what it computes, csrc/ops/conv.h says, and csrc/kernels/conv.h in which layouts.
//
// All tensors are dense and of one dtype; sums are of the accumulator's type (double for f64, else float). No buffer
// overlaps another. Extents of a dimension with its padding, pixels between neighbours of any dimension, places of an
// image, and channels times taps are below kMostPlaces.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "csrc/core/conv_shape.h"
#include "cuda/core/types.h"

namespace pykernels::cuda {

constexpr int64_t kMostPlaces = (int64_t{1} << 31) - (1 << 16);

// What one block computes at one time: results do not depend on it.
enum class ConvTile : int32_t { automatic, wide, tall, small };

struct ConvForward {
    DType dtype;
    ConvShape shape;
    const void *input, *weight;
    const void* bias;  // [groups * out_channels], or null
    bool relu;
    void* out;
    void* workspace;  // of conv_workspace() bytes and 16 bytes' alignment; null where that is 0
    ConvTile tile = ConvTile::automatic;
};

struct ConvInputGradient {
    DType dtype;
    ConvShape shape;
    const void *grad, *weight;  // grad like the output
    void* grad_input;
    void* workspace;
    ConvTile tile = ConvTile::automatic;
};

struct ConvWeightGradient {
    DType dtype;
    ConvShape shape;
    const void *input, *grad;
    void *grad_weight, *grad_bias;  // grad_bias [groups * out_channels], or null
    void* workspace;
};

// Bounded whatever the batch; the workspaces themselves are not looked at.
int64_t conv_workspace(const ConvForward& args);
int64_t conv_workspace(const ConvInputGradient& args);
int64_t conv_workspace(const ConvWeightGradient& args);

cudaError_t conv_forward(const ConvForward& args, cudaStream_t stream);
cudaError_t conv_input_gradient(const ConvInputGradient& args, cudaStream_t stream);
cudaError_t conv_weight_gradient(const ConvWeightGradient& args, cudaStream_t stream);

}  // namespace pykernels::cuda
