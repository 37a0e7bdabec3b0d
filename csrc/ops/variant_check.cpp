#include "ops/variant.h"

namespace pykernels {

const char* VariantContract::name() const {
    switch (kind) {
        case RecurrentKind::lstm:
            return "lstm_variant";
        case RecurrentKind::gru:
            return "gru_variant";
        default:
            return "rnn_variant";
    }
}

size_t VariantContract::per_direction() const {
    const size_t norm = !flags.layer_norm ? 0 : cell_states() ? 3 : 1;
    return 1 + flags.bias + flags.projection + flags.peephole + norm;
}

VariantParameters VariantContract::parameters(at::TensorList weights, int64_t direction) const {
    size_t next = direction * per_direction();
    VariantParameters p;
    p.hidden = weights[next++];
    if (flags.bias) p.bias = weights[next++];
    if (flags.projection) p.projection = weights[next++];
    if (flags.peephole) p.peephole = weights[next++];
    if (flags.layer_norm) p.gain = weights[next++];
    if (flags.layer_norm && cell_states()) {
        p.cell_gain = weights[next++];
        p.cell_shift = weights[next++];
    }
    return p;
}

RecurrentSizes VariantContract::check(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                                      const OptionalTensor& c0, at::TensorList weights,
                                      const VariantNoiseTensors& noise) const {
    const std::string_view op = name();
    auto s = check_sequences(op, input, batch_sizes, weights, per_direction(), flags.bidirectional);
    TORCH_CHECK(!flags.layer_norm || kind != RecurrentKind::gru || flags.form, "[", op,
                "] layer_norm needs reset_after");
    const auto first = parameters(weights, 0);
    TORCH_CHECK(first.hidden.dim() == 2 && first.hidden.size(0) % gates() == 0 && first.hidden.size(0) > 0, "[", op,
                "] expected weight_hh of shape [", gates() > 1 ? std::to_string(gates()) + " * " : "",
                "hidden, state], got ", first.hidden.sizes());
    s.hidden = first.hidden.size(0) / gates();
    s.input = gates() * s.hidden;
    if (flags.projection) {
        TORCH_CHECK(first.projection.dim() == 2 && first.projection.size(0) > 0, "[", op,
                    "] expected weight_hr of shape [projection, hidden], got ", first.projection.sizes());
        s.projection = first.projection.size(0);
    }
    TORCH_CHECK(input.size(-1) == s.directions * s.input, "[", op, "] expected input parts of width ",
                s.directions * s.input, ", got ", input.size(-1));
    for (const auto d : c10::irange(s.directions)) {
        const auto p = parameters(weights, d);
        check_shape(op, "weight_hh", p.hidden, {s.input, s.output()});
        if (flags.bias) check_shape(op, "bias_hh", p.bias, {s.input});
        if (flags.projection) check_shape(op, "weight_hr", p.projection, {s.projection, s.hidden});
        if (flags.peephole) check_shape(op, "weight_peephole", p.peephole, {3, s.hidden});
        if (flags.layer_norm) check_shape(op, "weight_ln_hh", p.gain, {s.input});
        if (flags.layer_norm && cell_states()) {
            check_shape(op, "weight_ln_c", p.cell_gain, {s.hidden});
            check_shape(op, "bias_ln_c", p.cell_shift, {s.hidden});
        }
    }
    check_states(op, s, input, h0, c0, weights);
    if (noise.state_scale)
        check_given(op, "state_scale", *noise.state_scale, {s.directions, s.batch, s.output()}, input);
    const auto check_stay = [&](std::string_view name, const OptionalTensor& stay, int64_t width) {
        if (!stay) return;
        check_shape(op, name, *stay, {s.directions, s.rows, width});
        TORCH_CHECK(stay->scalar_type() == at::kByte && stay->device() == input.device(), "[", op, "] expected ", name,
                    " of dtype Byte on ", input.device(), ", got ", stay->scalar_type(), " on ", stay->device());
    };
    check_stay("stay", noise.stay, s.output());
    check_stay("stay_cell", noise.stay_cell, s.hidden);
    return s;
}

void check_variant_backward(const VariantContract& contract, const RecurrentSizes& s, const Tensor& input,
                            const VariantGiven& given) {
    const std::string_view op = contract.name();
    check_recurrent_backward(op, s, input, given.grad_output, given.grad_h_n, given.output);
    check_given(op, "gates", given.saved.gates, {s.directions, s.rows, contract.saved_gates() * s.hidden}, input);
    if (contract.cell_states()) {
        check_given(op, "cells", given.saved.cells, {s.directions, s.rows, s.hidden}, input);
        if (given.grad_c_n) check_given(op, "grad_c_n", *given.grad_c_n, {s.directions, s.batch, s.hidden}, input);
    }
    if (contract.flags.layer_norm) {
        check_given(op, "normalized", given.saved.normalized, {s.directions, s.rows, s.input}, input);
        check_given(op, "stats", given.saved.stats, {s.directions, s.rows, contract.stats()}, input);
    }
}

}  // namespace pykernels
