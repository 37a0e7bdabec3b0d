// Launch contract of the radial basis layer on the CPU: exp(-gamma |x - t|^2) of every sample and every centre. Rows
// have their features beside each other. Results do not depend on the number of threads.
#pragma once

#include <type_traits>

#include "core/types.h"

namespace pykernels {

template <typename Storage_>
struct RadialBasis {
    using Storage = Storage_;
    using Acc = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

    int64_t samples, centers, features;
    double gamma;
    const Storage* input;   // [samples, features]
    const Storage* center;  // [centers, features]
    int64_t input_stride, center_stride;
    Storage* out;  // [samples, centers]
};

void radial_basis(const RadialBasis<float>& call);
void radial_basis(const RadialBasis<double>& call);
void radial_basis(const RadialBasis<c10::BFloat16>& call);
void radial_basis(const RadialBasis<c10::Half>& call);

}  // namespace pykernels
