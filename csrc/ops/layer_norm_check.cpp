#include "ops/layer_norm.h"

namespace pykernels {
namespace {

constexpr std::string_view op = "layer_norm";

// (torch's messages, where it has one)
LayerNormSizes sizes_of(const Tensor& input, std::string_view name, const OptionalTensor& weight,
                        const OptionalTensor& bias, at::IntArrayRef shape) {
    TORCH_CHECK(
        !shape.empty(),
        "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one element, but got "
        "normalized_shape = ",
        shape);
    for (const auto& [which, parameter] :
         {std::pair<std::string_view, const OptionalTensor&>{"weight", weight}, {"bias", bias}})
        TORCH_CHECK(!parameter || parameter->sizes() == shape, "Expected ", which,
                    " to be of same shape as normalized_shape, but got ", which, " of shape ", parameter->sizes(),
                    " and normalized_shape = ", shape);
    check_floating(op, name, input);
    const auto outer = input.dim() - static_cast<int64_t>(shape.size());
    if (outer < 0 || input.sizes().slice(outer) != shape) {
        std::string expected;
        for (const auto size : shape) expected += ", " + std::to_string(size);
        TORCH_CHECK(false, "Given normalized_shape=", shape, ", expected input with shape [*", expected,
                    "], but got input of size", input.sizes());
    }
    const int64_t rows = c10::multiply_integers(input.sizes().slice(0, outer)), columns = c10::multiply_integers(shape);
    TORCH_CHECK(rows <= UINT32_MAX, "[", op, "] expected fewer than 2^32 rows, got ", rows);
    return {rows, columns, input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat, false, {}};
}

void check_parameter(std::string_view name, const OptionalTensor& parameter, const Tensor& input,
                     const LayerNormSizes& s) {
    if (!parameter) return;
    const auto type = parameter->scalar_type();
    TORCH_CHECK(type == input.scalar_type() || type == s.sums, "[", op, "] expected ", name, " of dtype ",
                input.scalar_type(), " like the input, or ", s.sums, ", got ", type);
    TORCH_CHECK(parameter->device() == input.device(), "[", op, "] expected ", name, " on ", input.device(),
                " like the input, got ", parameter->device());
}

}  // namespace

LayerNormSizes check_layer_norm(const LayerNormArguments& args) {
    auto s = sizes_of(args.input, "input", args.weight, args.bias, args.normalized_shape);
    if (args.residual) {
        check_shape(op, "residual", *args.residual, args.input.sizes());
        check_like(op, "residual", *args.residual, args.input);
    }
    check_parameter("weight", args.weight, args.input, s);
    check_parameter("bias", args.bias, args.input, s);
    s.dropout = check_dropout(op, args.seed, args.dropout);
    s.adds = args.residual || args.seed;
    return s;
}

LayerNormSizes check_layer_norm_backward(const LayerNormGiven& given) {
    auto s = sizes_of(given.total, "total", given.weight, given.bias, given.normalized_shape);
    for (const auto& [name, grad] : {std::pair<std::string_view, const OptionalTensor&>{"grad_out", given.grad_out},
                                     {"grad_total", given.grad_total}}) {
        if (!grad) continue;
        check_shape(op, name, *grad, given.total.sizes());
        check_like(op, name, *grad, given.total);
    }
    TORCH_CHECK(given.stats.numel() == 2 * s.rows, "[", op, "] expected two stats of each of ", s.rows, " rows, got ",
                given.stats.numel());
    TORCH_CHECK(given.stats.scalar_type() == s.sums && given.stats.device() == given.total.device(), "[", op,
                "] expected stats of dtype ", s.sums, " on ", given.total.device(), ", got ", given.stats.scalar_type(),
                " on ", given.stats.device());
    check_parameter("weight", given.weight, given.total, s);
    check_parameter("bias", given.bias, given.total, s);
    s.dropout = check_dropout(op, given.seed, given.dropout);
    s.adds = given.seed.has_value();
    return s;
}

}  // namespace pykernels
