#include "ops/layer_norm.h"

namespace pykernels {
namespace {

constexpr std::string_view op = "layer_norm";

LayerNormSizes sizes_of(const Tensor& rows, std::string_view name) {
    check_floating(op, name, rows);
    TORCH_CHECK(rows.dim() == 2, "[", op, "] expected ", name, " of 2 dimensions, got ", rows.dim());
    TORCH_CHECK(rows.size(0) <= UINT32_MAX, "[", op, "] expected fewer than 2^32 rows, got ", rows.size(0));
    return {rows.size(0), rows.size(1), rows.scalar_type() == at::kDouble ? at::kDouble : at::kFloat, false, {}};
}

void check_parameter(std::string_view name, const OptionalTensor& parameter, const Tensor& rows,
                     const LayerNormSizes& s) {
    if (!parameter) return;
    check_shape(op, name, *parameter, {s.columns});
    const auto type = parameter->scalar_type();
    TORCH_CHECK(type == rows.scalar_type() || type == s.sums, "[", op, "] expected ", name, " of dtype ",
                rows.scalar_type(), " like the input, or ", s.sums, ", got ", type);
    TORCH_CHECK(parameter->device() == rows.device(), "[", op, "] expected ", name, " on ", rows.device(),
                " like the input, got ", parameter->device());
}

}  // namespace

LayerNormSizes check_layer_norm(const LayerNormArguments& args) {
    auto s = sizes_of(args.input, "input");
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
    auto s = sizes_of(given.total, "total");
    for (const auto& [name, grad] : {std::pair<std::string_view, const OptionalTensor&>{"grad_out", given.grad_out},
                                     {"grad_total", given.grad_total}}) {
        if (!grad) continue;
        check_shape(op, name, *grad, given.total.sizes());
        check_like(op, name, *grad, given.total);
    }
    check_shape(op, "stats", given.stats, {s.rows, 2});
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
