// The operators of the recurrent variants on the CPU: allocate and call the kernel. Low precisions are computed in
// float32.
#include "ops/run.h"
#include "ops/variant_ops.h"

namespace pykernels {
namespace {

template <typename T>
void fill_call(VariantCall<T>& call, Held& held, const VariantArguments& args) {
    call.shape = kernel_shape(args.sizes);
    call.form = args.contract.flags.form;
    for (const auto d : c10::irange(args.sizes.directions)) {
        const auto p = args.contract.parameters(args.weights, d);
        call.weights[d] = {held.data<T>(p.hidden),    held.data<T>(p.bias), held.data<T>(p.projection),
                           held.data<T>(p.peephole),  held.data<T>(p.gain), held.data<T>(p.cell_gain),
                           held.data<T>(p.cell_shift)};
    }
    call.noise = {held.data<T>(args.noise.state_scale), held.data<std::uint8_t>(args.noise.stay),
                  held.data<std::uint8_t>(args.noise.stay_cell), static_cast<T>(args.noise.zoneout),
                  static_cast<T>(args.noise.zoneout_cell)};
    call.h0 = held.data<T>(args.h0);
    call.c0 = held.data<T>(args.c0);
}

VariantOutputs forward(const VariantArguments& args, bool save) {
    return in_its_precision(args.input, [&]<typename T>(T) {
        const auto& s = args.sizes;
        const auto& about = args.contract;
        const auto options = args.input.options().dtype(c10::CppTypeToScalarType<T>::value);
        const auto empty = [&](bool there, at::IntArrayRef shape) { return empty_kept(there, shape, options); };
        const bool cells = about.cell_states(), norm = about.flags.layer_norm;
        VariantOutputs out{at::empty(recurrent_output_shape(s), options),
                           at::empty({s.directions, s.batch, s.output()}, options),
                           cells ? at::empty({s.directions, s.batch, s.hidden}, options) : Tensor(),
                           {empty(save, {s.directions, s.rows, about.saved_gates() * s.hidden}),
                            empty(save && cells, {s.directions, s.rows, s.hidden}),
                            empty(save && norm, {s.directions, s.rows, s.input}),
                            empty(save && norm, {s.directions, s.rows, about.stats()})}};
        Held held;
        VariantForward<T> call{};
        fill_call(call, held, args);
        call.parts = held.rows<T>(args.input, s);
        call.y = pointer<T>(out.output);
        call.h_n = pointer<T>(out.h_n);
        call.c_n = pointer<T>(out.c_n);
        call.gates = pointer<T>(out.saved.gates);
        call.cells = pointer<T>(out.saved.cells);
        call.normalized = pointer<T>(out.saved.normalized);
        call.stats = pointer<T>(out.saved.stats);
        if (s.batch > 0) {
            if (about.kind == RecurrentKind::lstm) {
                lstm_variant_forward(call);
            } else {
                about.kind == RecurrentKind::gru ? gru_variant_forward(call) : rnn_variant_forward(call);
            }
        }
        for (Tensor* tensor : {&out.output, &out.h_n, &out.c_n, &out.saved.gates, &out.saved.cells,
                               &out.saved.normalized, &out.saved.stats})
            if (tensor->defined()) *tensor = tensor->to(args.input.scalar_type());
        return out;
    });
}

VariantGrads backward(const VariantArguments& args, const VariantGiven& given) {
    return in_its_precision(args.input, [&]<typename T>(T) {
        const auto& s = args.sizes;
        const auto& about = args.contract;
        const auto type = args.input.scalar_type();
        const auto options = args.input.options().dtype(c10::CppTypeToScalarType<T>::value);
        const bool cells = about.cell_states();
        const auto wanted = [&](bool want, at::IntArrayRef shape) {
            return want ? at::empty(shape, options) : at::empty({0}, options);
        };
        const Tensor grad_parts = empty_kept(true, args.input.sizes(), options);
        VariantGrads grads{given.need_input ? grad_parts : at::empty({0}, options),
                           wanted(given.need_states, {s.directions, s.batch, s.output()}),
                           wanted(given.need_states && cells, {s.directions, s.batch, s.hidden}),
                           {}};
        for (const auto& weight : args.weights) grads.weights.push_back(wanted(given.need_weights, weight.sizes()));
        Held held;
        VariantBackward<T> call{};
        fill_call(call, held, args);
        call.y = held.data<T>(given.output);
        call.gates = held.data<T>(given.saved.gates);
        call.cells = cells ? held.data<T>(given.saved.cells) : nullptr;
        call.normalized = held.data<T>(given.saved.normalized);
        call.stats = held.data<T>(given.saved.stats);
        call.grad_y = held.data<T>(given.grad_output);
        call.grad_h_n = held.data<T>(given.grad_h_n);
        call.grad_c_n = held.data<T>(given.grad_c_n);
        call.grad_parts = pointer<T>(grad_parts);
        call.grad_h0 = given.need_states ? pointer<T>(grads.h0) : nullptr;
        call.grad_c0 = given.need_states && cells ? pointer<T>(grads.c0) : nullptr;
        call.want_weights = given.need_weights;
        for (const auto d : c10::irange(given.need_weights ? s.directions : 0)) {
            const auto p = about.parameters(grads.weights, d);
            call.gradients[d] = {pointer<T>(p.hidden),    pointer<T>(p.bias), pointer<T>(p.projection),
                                 pointer<T>(p.peephole),  pointer<T>(p.gain), pointer<T>(p.cell_gain),
                                 pointer<T>(p.cell_shift)};
        }
        if (s.batch == 0) {
            for (auto& grad : grads.weights) grad.zero_();
        } else if (about.kind == RecurrentKind::lstm) {
            lstm_variant_backward(call);
        } else {
            about.kind == RecurrentKind::gru ? gru_variant_backward(call) : rnn_variant_backward(call);
        }
        for (auto& grad : grads.weights) grad = grad.to(type);
        return VariantGrads{grads.input.to(type), grads.h0.to(type), grads.c0.to(type), std::move(grads.weights)};
    });
}

using Operators = Variants<forward, backward>;

}  // namespace

TORCH_LIBRARY_FRAGMENT(pykernels, m) {
    m.def(
        "lstm_variant_forward(Tensor input, Tensor? batch_sizes, Tensor? h0, Tensor? c0, Tensor[] weights, "
        "Tensor? state_scale, Tensor? stay, Tensor? stay_cell, float zoneout, float zoneout_cell, bool bias, "
        "bool projection, bool peephole, bool layer_norm, bool bidirectional, bool save) -> (Tensor output, "
        "Tensor h_n, Tensor c_n, Tensor gates, Tensor cells, Tensor normalized, Tensor stats)",
        {at::Tag::pt2_compliant_tag});
    m.def(
        "lstm_variant_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor input, "
        "Tensor? batch_sizes, Tensor? h0, Tensor? c0, Tensor[] weights, Tensor output, Tensor gates, Tensor cells, "
        "Tensor normalized, Tensor stats, Tensor? state_scale, Tensor? stay, Tensor? stay_cell, float zoneout, "
        "float zoneout_cell, bool bias, bool projection, bool peephole, bool layer_norm, bool bidirectional, "
        "bool need_input, bool need_states, bool need_weights) -> (Tensor grad_input, Tensor grad_h0, Tensor grad_c0, "
        "Tensor[] grad_weights)",
        {at::Tag::pt2_compliant_tag});
    for (const auto& [kind, form] : {std::pair{"gru", "reset_after"}, std::pair{"rnn", "relu"}}) {
        const std::string flags = std::string("Tensor? state_scale, Tensor? stay, float zoneout, bool bias, bool ") +
                                  form + ", bool layer_norm, bool bidirectional";
        const auto forward = kind +
                             ("_variant_forward(Tensor input, Tensor? batch_sizes, Tensor? h0, "
                              "Tensor[] weights, " +
                              flags) +
                             ", bool save) -> (Tensor output, Tensor h_n, Tensor gates, Tensor normalized, "
                             "Tensor stats)";
        const auto backward = kind +
                              ("_variant_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor input, "
                               "Tensor? batch_sizes, Tensor? h0, Tensor[] weights, Tensor output, "
                               "Tensor gates, Tensor normalized, Tensor stats, " +
                               flags) +
                              ", bool need_input, bool need_states, bool need_weights) -> (Tensor grad_input, "
                              "Tensor grad_h0, Tensor[] grad_weights)";
        m.def(forward.c_str(), {at::Tag::pt2_compliant_tag});
        m.def(backward.c_str(), {at::Tag::pt2_compliant_tag});
    }
}

TORCH_LIBRARY_IMPL(pykernels, CPU, m) { Operators::implement(m); }

static const std::vector<RawKernel> raw_kernels = Operators::raw();

}  // namespace pykernels
