// The choice of the storage type.
#pragma once

#include <ATen/core/Tensor.h>

namespace pykernels {

// run(T()) with the type in which a floating tensor is stored.
template <typename Run>
auto by_type(const at::Tensor& tensor, const Run& run) {
    switch (tensor.scalar_type()) {
        case at::kDouble:
            return run(double());
        case at::kFloat:
            return run(float());
        case at::kHalf:
            return run(c10::Half());
        default:
            return run(c10::BFloat16());
    }
}

}  // namespace pykernels
