// The only check helpers: an operator's one check_<op>() uses these, and everything after it relies on what it
// returned.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <optional>
#include <string_view>

#include "core/dropout.h"

namespace pykernels {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline void check_shape(std::string_view op, std::string_view name, const Tensor& tensor, at::IntArrayRef expected) {
    TORCH_CHECK(tensor.sizes() == expected, "[", op, "] expected ", name, " of shape ", expected, ", got ",
                tensor.sizes());
}

inline void check_like(std::string_view op, std::string_view name, const Tensor& tensor, const Tensor& like) {
    TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), "[", op, "] expected ", name, " of dtype ",
                like.scalar_type(), " like the input, got ", tensor.scalar_type());
    TORCH_CHECK(tensor.device() == like.device(), "[", op, "] expected ", name, " on ", like.device(),
                " like the input, got ", tensor.device());
}

inline void check_floating(std::string_view op, std::string_view name, const Tensor& tensor) {
    const auto type = tensor.scalar_type();
    TORCH_CHECK(type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf, "[", op,
                "] expected ", name, " of dtype float32, float64, bfloat16 or float16, got ", type);
}

// What is dropped, and that it can be: `seed` is none where nothing is.
inline DropoutRule check_dropout(std::string_view op, const OptionalTensor& seed, double p) {
    TORCH_CHECK(p >= 0 && p <= 1, "[", op, "] expected a probability dropout, got ", p);
    TORCH_CHECK(!seed || (seed->scalar_type() == at::kLong && seed->numel() == 1 && seed->is_cpu()), "[", op,
                "] expected seed as one int64 on the CPU");
    TORCH_CHECK(seed || p == 0, "[", op, "] expected a seed, as dropout is ", p);
    return seed ? dropout_rule(*seed->const_data_ptr<int64_t>(), p) : DropoutRule{};
}

}  // namespace pykernels
