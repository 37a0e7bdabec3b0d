// The operators of the recurrent variants over a backend's forward and backward: their signatures, the same everywhere.
#pragma once

#include <torch/library.h>

#include "ops/registry.h"
#include "ops/variant.h"

namespace pykernels {

struct VariantArguments {
    const VariantContract& contract;
    const RecurrentSizes& sizes;
    const Tensor& input;
    const OptionalTensor &h0, &c0;
    at::TensorList weights;
    const VariantNoiseTensors& noise;
};

// Undefined where a kind has none of it; of what is saved, [0] where there is none or nothing is to be saved.
struct VariantOutputs {
    Tensor output, h_n, c_n;
    VariantSaved saved;
};

// [0] where none is wanted.
struct VariantGrads {
    Tensor input, h0, c0;
    std::vector<Tensor> weights;
};

using VariantForwardFunction = VariantOutputs(const VariantArguments&, bool save);
using VariantBackwardFunction = VariantGrads(const VariantArguments&, const VariantGiven&);

// The two-state kind.
template <VariantForwardFunction Forward, VariantBackwardFunction Backward>
struct LstmVariant {
    static VariantContract contract(bool bias, bool projection, bool peephole, bool layer_norm, bool bidirectional) {
        return {RecurrentKind::lstm, {bias, projection, peephole, false, layer_norm, bidirectional}};
    }
    static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> forward(
        const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0, const OptionalTensor& c0,
        at::TensorList weights, const OptionalTensor& state_scale, const OptionalTensor& stay,
        const OptionalTensor& stay_cell, double zoneout, double zoneout_cell, bool bias, bool projection, bool peephole,
        bool layer_norm, bool bidirectional, bool save) {
        const auto about = contract(bias, projection, peephole, layer_norm, bidirectional);
        const VariantNoiseTensors noise{state_scale, stay, stay_cell, zoneout, zoneout_cell};
        const auto sizes = about.check(input, batch_sizes, h0, c0, weights, noise);
        auto out = Forward({about, sizes, input, h0, c0, weights, noise}, save);
        return {out.output, out.h_n, out.c_n, out.saved.gates, out.saved.cells, out.saved.normalized, out.saved.stats};
    }
    static std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> backward(
        const OptionalTensor& grad_output, const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
        const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0, const OptionalTensor& c0,
        at::TensorList weights, const Tensor& output, const Tensor& gates, const Tensor& cells,
        const Tensor& normalized, const Tensor& stats, const OptionalTensor& state_scale, const OptionalTensor& stay,
        const OptionalTensor& stay_cell, double zoneout, double zoneout_cell, bool bias, bool projection, bool peephole,
        bool layer_norm, bool bidirectional, bool need_input, bool need_states, bool need_weights) {
        const auto about = contract(bias, projection, peephole, layer_norm, bidirectional);
        const VariantNoiseTensors noise{state_scale, stay, stay_cell, zoneout, zoneout_cell};
        const auto sizes = about.check(input, batch_sizes, h0, c0, weights, noise);
        const VariantGiven given{grad_output, grad_h_n,    grad_c_n,    output, {gates, cells, normalized, stats},
                                 need_input,  need_states, need_weights};
        check_variant_backward(about, sizes, input, given);
        auto grads = Backward({about, sizes, input, h0, c0, weights, noise}, given);
        return {grads.input, grads.h0, grads.c0, std::move(grads.weights)};
    }
};

// The kinds with one state; `form` is the flag that the kind has of its own.
template <RecurrentKind kKind, VariantForwardFunction Forward, VariantBackwardFunction Backward>
struct OneStateVariant {
    static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(
        const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0, at::TensorList weights,
        const OptionalTensor& state_scale, const OptionalTensor& stay, double zoneout, bool bias, bool form,
        bool layer_norm, bool bidirectional, bool save) {
        const VariantContract about{kKind, {bias, false, false, form, layer_norm, bidirectional}};
        const OptionalTensor none;
        const VariantNoiseTensors noise{state_scale, stay, none, zoneout, 0.0};
        const auto sizes = about.check(input, batch_sizes, h0, none, weights, noise);
        auto out = Forward({about, sizes, input, h0, none, weights, noise}, save);
        return {out.output, out.h_n, out.saved.gates, out.saved.normalized, out.saved.stats};
    }
    static std::tuple<Tensor, Tensor, std::vector<Tensor>> backward(
        const OptionalTensor& grad_output, const OptionalTensor& grad_h_n, const Tensor& input,
        const OptionalTensor& batch_sizes, const OptionalTensor& h0, at::TensorList weights, const Tensor& output,
        const Tensor& gates, const Tensor& normalized, const Tensor& stats, const OptionalTensor& state_scale,
        const OptionalTensor& stay, double zoneout, bool bias, bool form, bool layer_norm, bool bidirectional,
        bool need_input, bool need_states, bool need_weights) {
        const VariantContract about{kKind, {bias, false, false, form, layer_norm, bidirectional}};
        const OptionalTensor none;
        const VariantNoiseTensors noise{state_scale, stay, none, zoneout, 0.0};
        const auto sizes = about.check(input, batch_sizes, h0, none, weights, noise);
        const VariantGiven given{grad_output, grad_h_n,    none,        output, {gates, Tensor(), normalized, stats},
                                 need_input,  need_states, need_weights};
        check_variant_backward(about, sizes, input, given);
        auto grads = Backward({about, sizes, input, h0, none, weights, noise}, given);
        return {grads.input, grads.h0, std::move(grads.weights)};
    }
};

// All operators of a backend.
template <VariantForwardFunction Forward, VariantBackwardFunction Backward>
struct Variants {
    using Lstm = LstmVariant<Forward, Backward>;
    using Gru = OneStateVariant<RecurrentKind::gru, Forward, Backward>;
    using Rnn = OneStateVariant<RecurrentKind::rnn, Forward, Backward>;

    static void implement(torch::Library& m) {
        m.impl("lstm_variant_forward", Lstm::forward);
        m.impl("lstm_variant_backward", Lstm::backward);
        m.impl("gru_variant_forward", Gru::forward);
        m.impl("gru_variant_backward", Gru::backward);
        m.impl("rnn_variant_forward", Rnn::forward);
        m.impl("rnn_variant_backward", Rnn::backward);
    }
    static std::vector<RawKernel> raw() {
        return {{"lstm_variant_forward", Lstm::forward}, {"lstm_variant_backward", Lstm::backward},
                {"gru_variant_forward", Gru::forward},   {"gru_variant_backward", Gru::backward},
                {"rnn_variant_forward", Rnn::forward},   {"rnn_variant_backward", Rnn::backward}};
    }
};

}  // namespace pykernels
