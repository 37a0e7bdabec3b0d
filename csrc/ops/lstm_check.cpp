#include "ops/lstm.h"

namespace pykernels {
namespace {

constexpr std::string_view kOp = "lstm";

std::vector<int64_t> packed_offsets(const Tensor& batch_sizes, int64_t rows) {
    TORCH_CHECK(batch_sizes.scalar_type() == at::kLong && batch_sizes.dim() == 1 && batch_sizes.is_cpu(),
                "[lstm] expected batch_sizes as a 1-D int64 tensor on the CPU, got ", batch_sizes.dim(), "-D ",
                batch_sizes.scalar_type(), " on ", batch_sizes.device());
    TORCH_CHECK(batch_sizes.numel() > 0, "[lstm] expected at least one step in batch_sizes, got none");
    const Tensor dense = batch_sizes.contiguous();
    const int64_t* sizes = dense.const_data_ptr<int64_t>();
    std::vector<int64_t> offsets{0};
    offsets.reserve(dense.numel() + 1);
    for (const auto t : c10::irange(dense.numel())) {
        TORCH_CHECK(sizes[t] > 0 && (t == 0 || sizes[t] <= sizes[t - 1]),
                    "[lstm] expected batch_sizes to be positive and never to increase, got ", sizes[t], " at step ", t,
                    t ? " after " : "", t ? std::to_string(sizes[t - 1]) : "");
        // Compared before adding, so that no sum overflows.
        TORCH_CHECK(sizes[t] <= rows - offsets.back(), "[lstm] expected batch_sizes to add up to the ", rows,
                    " rows of the input, got more");
        offsets.push_back(offsets.back() + sizes[t]);
    }
    TORCH_CHECK(offsets.back() == rows, "[lstm] expected batch_sizes to add up to the ", rows,
                " rows of the input, got ", offsets.back());
    return offsets;
}

}  // namespace

LstmParameters lstm_parameters(at::TensorList weights, const LstmFlags& flags, int64_t direction) {
    size_t next = direction * flags.per_direction();
    LstmParameters p;
    p.input = weights[next++];
    p.hidden = weights[next++];
    if (flags.bias) {
        p.bias_input = weights[next++];
        p.bias_hidden = weights[next++];
    }
    if (flags.projection) p.projection = weights[next++];
    if (flags.peephole) p.peephole = weights[next++];
    return p;
}

LstmSizes check_lstm(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                     const OptionalTensor& c0, at::TensorList weights, const LstmFlags& flags) {
    LstmSizes s{};
    s.packed = batch_sizes.has_value();
    s.directions = flags.directions();
    check_floating(kOp, "input", input);
    const int64_t rank = s.packed ? 2 : 3;
    TORCH_CHECK(input.dim() == rank, "[lstm] expected a ", rank, "-D ", s.packed ? "packed" : "padded", " input, got ",
                input.dim(), "-D");
    const size_t expected = flags.per_direction() * s.directions;
    TORCH_CHECK(weights.size() == expected, "[lstm] expected ", expected, " weights, got ", weights.size());
    s.input = input.size(-1);
    if (s.packed) {
        s.rows = input.size(0);
        s.offsets = packed_offsets(*batch_sizes, s.rows);
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

    const auto first = lstm_parameters(weights, flags, 0);
    TORCH_CHECK(first.input.dim() == 2 && first.input.size(0) % 4 == 0 && first.input.size(0) > 0,
                "[lstm] expected weight_ih of shape [4 * hidden, input], got ", first.input.sizes());
    s.hidden = first.input.size(0) / 4;
    if (flags.projection) {
        TORCH_CHECK(first.projection.dim() == 2 && first.projection.size(0) > 0,
                    "[lstm] expected weight_hr of shape [projection, hidden], got ", first.projection.sizes());
        s.projection = first.projection.size(0);
    }
    const int64_t gates = 4 * s.hidden;
    for (const auto d : c10::irange(s.directions)) {
        const auto p = lstm_parameters(weights, flags, d);
        check_shape(kOp, "weight_ih", p.input, {gates, s.input});
        check_shape(kOp, "weight_hh", p.hidden, {gates, s.output()});
        if (flags.bias) {
            check_shape(kOp, "bias_ih", p.bias_input, {gates});
            check_shape(kOp, "bias_hh", p.bias_hidden, {gates});
        }
        if (flags.projection) check_shape(kOp, "weight_hr", p.projection, {s.projection, s.hidden});
        if (flags.peephole) check_shape(kOp, "weight_peephole", p.peephole, {3, s.hidden});
    }
    for (const auto& weight : weights) check_like(kOp, "every weight", weight, input);
    if (h0) {
        check_shape(kOp, "h0", *h0, {s.directions, s.batch, s.output()});
        check_like(kOp, "h0", *h0, input);
    }
    if (c0) {
        check_shape(kOp, "c0", *c0, {s.directions, s.batch, s.hidden});
        check_like(kOp, "c0", *c0, input);
    }
    return s;
}

std::vector<int64_t> lstm_output_shape(const LstmSizes& s) {
    const int64_t width = s.directions * s.output();
    if (s.packed) return {s.rows, width};
    return {s.steps, s.batch, width};
}

void check_lstm_backward(const LstmSizes& s, const Tensor& input, const OptionalTensor& grad_output,
                         const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n, const Tensor& output,
                         const Tensor& gates, const Tensor& cells) {
    const auto check = [&](std::string_view name, const Tensor& tensor, at::IntArrayRef shape) {
        check_shape(kOp, name, tensor, shape);
        check_like(kOp, name, tensor, input);
    };
    check("output", output, lstm_output_shape(s));
    check("gates", gates, {s.directions, s.rows, 4 * s.hidden});
    check("cells", cells, {s.directions, s.rows, s.hidden});
    if (grad_output) check("grad_output", *grad_output, lstm_output_shape(s));
    if (grad_h_n) check("grad_h_n", *grad_h_n, {s.directions, s.batch, s.output()});
    if (grad_c_n) check("grad_c_n", *grad_c_n, {s.directions, s.batch, s.hidden});
}

}  // namespace pykernels
