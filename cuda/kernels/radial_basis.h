// Launch contract of the radial basis layer: exp(-gamma |x - t|^2) of every sample and every centre. Rows have their
// features beside each other.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/core/types.h"

namespace pykernels::cuda {

struct RadialBasis {
    DType dtype;
    int64_t samples, centers, features;
    double gamma;
    const void *input, *center;  // [samples, features], [centers, features]
    int64_t input_stride, center_stride;
    void* out;  // [samples, centers]
};
cudaError_t radial_basis(const RadialBasis& args, cudaStream_t stream);

}  // namespace pykernels::cuda
