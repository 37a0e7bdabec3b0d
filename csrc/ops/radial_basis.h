// Contract of the radial basis layer, for every backend.
//
// input      [N, D], centers [K, D], of one dtype and device, any strides
// gamma      0 or more
//
// out        [N, K] of the input's dtype: exp(-gamma |x - t|^2); sums are float32 for low precision
#pragma once

#include "core/checks.h"

namespace pykernels {

struct RadialBasisSizes {
    int64_t samples, centers, features;
};

RadialBasisSizes check_radial_basis(const Tensor& input, const Tensor& centers, double gamma);

using RadialBasisFunction = Tensor (*)(const Tensor& input, const Tensor& centers, double gamma,
                                       const RadialBasisSizes& sizes);

// The operator's signature, for every backend.
template <RadialBasisFunction Apply>
struct RadialBasisOperators {
    static Tensor radial_basis(const Tensor& input, const Tensor& centers, double gamma) {
        return Apply(input, centers, gamma, check_radial_basis(input, centers, gamma));
    }
};

}  // namespace pykernels
