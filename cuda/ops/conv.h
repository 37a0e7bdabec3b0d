// What other operators on CUDA take of convolution.
#pragma once

#include "csrc/ops/conv.h"

namespace pykernels::cuda {

// What the kernels count in 32 bits.
void check_extents(const ConvSizes& sizes);

Tensor convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const ConvSizes& sizes,
                   bool relu);

}  // namespace pykernels::cuda
