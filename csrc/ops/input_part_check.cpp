#include "ops/input_part.h"

namespace pykernels {

InputPartSizes check_input_part(const Tensor& input, const OptionalTensor& batch_sizes, at::TensorList weights,
                                bool bias, bool layer_norm, bool bidirectional) {
    constexpr std::string_view op = "input_part";
    InputPartSizes s{0, 0, 0, bidirectional ? 2 : 1, bias, layer_norm};
    check_floating(op, "input", input);
    const int64_t rank = batch_sizes.has_value() ? 2 : 3;
    TORCH_CHECK(input.dim() == rank, "[", op, "] expected a ", rank, "-D input, got ", input.dim(), "-D");
    const size_t expected = s.per_direction() * s.directions;
    TORCH_CHECK(weights.size() == expected, "[", op, "] expected ", expected, " weights, got ", weights.size());
    s.inputs = input.size(-1);
    s.rows = rank == 2 ? input.size(0) : input.size(0) * input.size(1);
    const auto first = input_part_parameters(weights, s, 0);
    TORCH_CHECK(first.weight.dim() == 2 && first.weight.size(0) > 0, "[", op,
                "] expected weight_ih of shape [gates * hidden, input], got ", first.weight.sizes());
    s.columns = first.weight.size(0);
    for (const auto d : c10::irange(s.directions)) {
        const auto p = input_part_parameters(weights, s, d);
        check_shape(op, "weight_ih", p.weight, {s.columns, s.inputs});
        if (bias) check_shape(op, "bias_ih", p.bias, {s.columns});
        if (layer_norm) check_shape(op, "weight_ln_ih", p.gain, {s.columns});
    }
    for (const auto& weight : weights) check_like(op, "every weight", weight, input);
    return s;
}

void check_input_part_backward(const InputPartSizes& s, const Tensor& input, const OptionalTensor& grad_output,
                               const Tensor& normalized, const Tensor& stats) {
    constexpr std::string_view op = "input_part";
    if (grad_output) check_given(op, "grad_output", *grad_output, s.output_shape(input), input);
    if (!s.layer_norm) return;
    check_given(op, "normalized", normalized, {s.directions, s.rows, s.columns}, input);
    check_given(op, "stats", stats, {s.directions, s.rows, 1}, input);
}

}  // namespace pykernels
