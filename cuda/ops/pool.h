// What other operators on CUDA take of pooling.
#pragma once

#include "csrc/ops/pool.h"

namespace pykernels::cuda {

// The maxima, and their places if they are to be kept.
MaxPoolForwardResult max_pool(const Tensor& input, bool keep, const PoolSizes& sizes);

}  // namespace pykernels::cuda
