// Launch contract of unfold and fold: what they compute, csrc/ops/unfold.h says. Tensors are dense; of the shape,
// in_channels are the image's, and groups, out_channels and the padding's mode are not looked at. No buffer overlaps
// another.
#pragma once

#include <cuda_runtime_api.h>

#include "csrc/core/conv_shape.h"
#include "cuda/core/types.h"

namespace pykernels::cuda {

struct Unfold {
    DType dtype;
    ConvShape shape;
    const void* image;  // [batch, channels, pixels]
    void* columns;      // [batch, channels, taps, places]
};
cudaError_t unfold(const Unfold& args, cudaStream_t stream);

struct Fold {
    DType dtype;
    ConvShape shape;
    const void* columns;  // [batch, channels, taps, places]
    void* image;          // [batch, channels, pixels]
};
cudaError_t fold(const Fold& args, cudaStream_t stream);

}  // namespace pykernels::cuda
