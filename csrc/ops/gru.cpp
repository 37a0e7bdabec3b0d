// The GRU operators on the CPU: allocate and call the kernel.
#include "ops/gru.h"

#include <torch/library.h>

#include "ops/cell.h"
#include "ops/registry.h"
#include "ops/run.h"

namespace pykernels {
namespace {

GruForwardResult forward(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                         at::TensorList weights, bool bias, bool reset_after, bool bidirectional, bool save) {
    const auto flags = gru_flags(bias, bidirectional);
    const auto s = check_gru(input, batch_sizes, h0, weights, flags);
    const auto options = input.options();
    const GruForwardResult out{at::empty(recurrent_output_shape(s), options),
                               at::empty({s.directions, s.batch, s.hidden}, options),
                               empty_kept(save, {s.directions, s.rows, kGruSaved * s.hidden}, options)};
    const auto& [y, h_n, gates] = out;
    run_forward({s, input, h0, std::nullopt, weights, flags}, {y, h_n, {}, gates, {}},
                [&](const auto& call) { gru_forward(call, reset_after); });
    return out;
}

GruBackwardResult backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n, const Tensor& input,
                           const OptionalTensor& batch_sizes, const OptionalTensor& h0, at::TensorList weights,
                           const Tensor& output, const Tensor& gates, bool bias, bool reset_after, bool bidirectional,
                           bool need_input, bool need_states, bool need_weights) {
    const auto flags = gru_flags(bias, bidirectional);
    const auto s = check_gru(input, batch_sizes, h0, weights, flags);
    check_gru_backward(s, input, grad_output, grad_h_n, output, gates);
    auto grads = run_backward({s, input, h0, std::nullopt, weights, flags},
                              {.grad_output = grad_output,
                               .grad_h_n = grad_h_n,
                               .grad_c_n = std::nullopt,
                               .output = output,
                               .gates = gates,
                               .cells = {},
                               .grad_gates = gru_grad_gates(s.hidden),
                               .cell_states = false,
                               .bias_apart = reset_after ? 1 : 0,
                               .need_input = need_input,
                               .need_states = need_states,
                               .need_weights = need_weights},
                              [&](const auto& call) { gru_backward(call, reset_after); });
    return {grads.input, grads.h0, std::move(grads.weights)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pykernels, m) {
    m.def(
        "gru_forward(Tensor input, Tensor? batch_sizes, Tensor? h0, Tensor[] weights, bool bias, bool reset_after, "
        "bool bidirectional, bool save) -> (Tensor output, Tensor h_n, Tensor gates)",
        {at::Tag::pt2_compliant_tag});
    m.def(
        "gru_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor input, Tensor? batch_sizes, Tensor? h0, "
        "Tensor[] weights, Tensor output, Tensor gates, bool bias, bool reset_after, bool bidirectional, "
        "bool need_input, bool need_states, bool need_weights) "
        "-> (Tensor grad_input, Tensor grad_h0, Tensor[] grad_weights)",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
    m.impl("gru_forward", forward);
    m.impl("gru_backward", backward);
}

static const RawKernel raw_kernels[] = {{"gru_forward", forward},
                                        {"gru_backward", backward},
                                        {"gru_cell_forward", gru_cell_forward<forward>},
                                        {"gru_cell_backward", gru_cell_backward<backward>}};

}  // namespace pykernels
