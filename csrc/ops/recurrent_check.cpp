#include "ops/recurrent.h"

namespace pykernels {
namespace {

std::vector<int64_t> packed_offsets(std::string_view op, const Tensor& batch_sizes, int64_t rows) {
    TORCH_CHECK(batch_sizes.scalar_type() == at::kLong && batch_sizes.dim() == 1 && batch_sizes.is_cpu(), "[", op,
                "] expected batch_sizes as a 1-D int64 tensor on the CPU, got ", batch_sizes.dim(), "-D ",
                batch_sizes.scalar_type(), " on ", batch_sizes.device());
    TORCH_CHECK(batch_sizes.numel() > 0, "[", op, "] expected at least one step in batch_sizes, got none");
    const Tensor dense = batch_sizes.contiguous();
    const int64_t* sizes = dense.const_data_ptr<int64_t>();
    std::vector<int64_t> offsets{0};
    offsets.reserve(dense.numel() + 1);
    for (const auto t : c10::irange(dense.numel())) {
        TORCH_CHECK(sizes[t] > 0 && (t == 0 || sizes[t] <= sizes[t - 1]), "[", op,
                    "] expected batch_sizes to be positive and never to increase, got ", sizes[t], " at step ", t,
                    t ? " after " : "", t ? std::to_string(sizes[t - 1]) : "");
        // Compared before adding, so that no sum overflows.
        TORCH_CHECK(sizes[t] <= rows - offsets.back(), "[", op, "] expected batch_sizes to add up to the ", rows,
                    " rows of the input, got more");
        offsets.push_back(offsets.back() + sizes[t]);
    }
    TORCH_CHECK(offsets.back() == rows, "[", op, "] expected batch_sizes to add up to the ", rows,
                " rows of the input, got ", offsets.back());
    return offsets;
}

}  // namespace

RecurrentParameters recurrent_parameters(at::TensorList weights, const RecurrentFlags& flags, int64_t direction) {
    size_t next = direction * flags.per_direction();
    RecurrentParameters p;
    p.input = weights[next++];
    p.hidden = weights[next++];
    if (flags.bias) {
        p.bias_input = weights[next++];
        p.bias_hidden = weights[next++];
    }
    if (flags.projection) p.projection = weights[next++];
    if (flags.bias_projection) p.bias_projection = weights[next++];
    if (flags.peephole) p.peephole = weights[next++];
    return p;
}

RecurrentSizes check_sequences(std::string_view op, const Tensor& input, const OptionalTensor& batch_sizes,
                               at::TensorList weights, size_t per_direction, bool bidirectional) {
    RecurrentSizes s{};
    s.packed = batch_sizes.has_value();
    s.directions = bidirectional ? 2 : 1;
    check_floating(op, "input", input);
    const int64_t rank = s.packed ? 2 : 3;
    TORCH_CHECK(input.dim() == rank, "[", op, "] expected a ", rank, "-D ", s.packed ? "packed" : "padded",
                " input, got ", input.dim(), "-D");
    const size_t expected = per_direction * s.directions;
    TORCH_CHECK(weights.size() == expected, "[", op, "] expected ", expected, " weights, got ", weights.size());
    s.input = input.size(-1);
    if (s.packed) {
        s.rows = input.size(0);
        s.offsets = packed_offsets(op, *batch_sizes, s.rows);
        s.steps = static_cast<int64_t>(s.offsets.size()) - 1;
        s.batch = s.offsets[1];
    } else {
        s.steps = input.size(0);
        s.batch = input.size(1);
        s.rows = s.steps * s.batch;
        TORCH_CHECK(s.steps > 0, "Expected sequence length to be larger than 0 in RNN");
        s.offsets.resize(s.steps + 1);
        for (const auto t : c10::irange(s.steps + 1)) s.offsets[t] = t * s.batch;
    }
    return s;
}

void check_states(std::string_view op, const RecurrentSizes& s, const Tensor& input, const OptionalTensor& h0,
                  const OptionalTensor& c0, at::TensorList weights) {
    for (const auto& weight : weights) check_like(op, "every weight", weight, input);
    if (h0) check_given(op, "h0", *h0, {s.directions, s.batch, s.output()}, input);
    if (c0) check_given(op, "c0", *c0, {s.directions, s.batch, s.hidden}, input);
}

RecurrentSizes check_recurrent(std::string_view op, int64_t gates, std::string_view projection_name,
                               const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                               const OptionalTensor& c0, at::TensorList weights, const RecurrentFlags& flags) {
    auto s = check_sequences(op, input, batch_sizes, weights, flags.per_direction(), flags.bidirectional);
    const auto first = recurrent_parameters(weights, flags, 0);
    TORCH_CHECK(first.input.dim() == 2 && first.input.size(0) % gates == 0 && first.input.size(0) > 0, "[", op,
                "] expected weight_ih of shape [", gates > 1 ? std::to_string(gates) + " * " : "",
                "hidden, input], got ", first.input.sizes());
    s.hidden = first.input.size(0) / gates;
    if (flags.projection) {
        TORCH_CHECK(first.projection.dim() == 2 && first.projection.size(0) > 0, "[", op, "] expected ",
                    projection_name, " of shape [projection, hidden], got ", first.projection.sizes());
        s.projection = first.projection.size(0);
    }
    const int64_t gate_rows = gates * s.hidden;
    for (const auto d : c10::irange(s.directions)) {
        const auto p = recurrent_parameters(weights, flags, d);
        check_shape(op, "weight_ih", p.input, {gate_rows, s.input});
        check_shape(op, "weight_hh", p.hidden, {gate_rows, s.output()});
        if (flags.bias) {
            check_shape(op, "bias_ih", p.bias_input, {gate_rows});
            check_shape(op, "bias_hh", p.bias_hidden, {gate_rows});
        }
        if (flags.projection) check_shape(op, projection_name, p.projection, {s.projection, s.hidden});
        if (flags.bias_projection) check_shape(op, "bias_ho", p.bias_projection, {s.projection});
        if (flags.peephole) check_shape(op, "weight_peephole", p.peephole, {3, s.hidden});
    }
    check_states(op, s, input, h0, c0, weights);
    return s;
}

std::vector<int64_t> recurrent_output_shape(const RecurrentSizes& s) {
    const int64_t width = s.directions * s.output();
    if (s.packed) return {s.rows, width};
    return {s.steps, s.batch, width};
}

void check_recurrent_backward(std::string_view op, const RecurrentSizes& s, const Tensor& input,
                              const OptionalTensor& grad_output, const OptionalTensor& grad_h_n, const Tensor& output) {
    check_given(op, "output", output, recurrent_output_shape(s), input);
    if (grad_output) check_given(op, "grad_output", *grad_output, recurrent_output_shape(s), input);
    if (grad_h_n) check_given(op, "grad_h_n", *grad_h_n, {s.directions, s.batch, s.output()}, input);
}

}  // namespace pykernels
