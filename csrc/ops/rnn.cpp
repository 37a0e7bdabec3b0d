// The RNN operators on the CPU: allocate and call the kernel.
#include "ops/rnn.h"

#include <torch/library.h>

#include "ops/cell.h"
#include "ops/registry.h"
#include "ops/run.h"

namespace pykernels {
namespace {

RnnForwardResult forward(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                         at::TensorList weights, bool bias, bool projection, bool relu, bool bidirectional, bool save) {
    const auto flags = rnn_flags(bias, projection, bidirectional);
    const auto s = check_rnn(input, batch_sizes, h0, weights, flags);
    const auto options = input.options();
    const RnnForwardResult out{at::empty(recurrent_output_shape(s), options),
                               at::empty({s.directions, s.batch, s.output()}, options),
                               empty_kept(save && projection, {s.directions, s.rows, s.hidden}, options)};
    const auto& [y, h_n, hidden] = out;
    run_forward({s, input, h0, std::nullopt, weights, flags}, {y, h_n, {}, {}, hidden},
                [&](const auto& call) { rnn_forward(call, relu); });
    return out;
}

RnnBackwardResult backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n, const Tensor& input,
                           const OptionalTensor& batch_sizes, const OptionalTensor& h0, at::TensorList weights,
                           const Tensor& output, const Tensor& hidden, bool bias, bool projection, bool relu,
                           bool bidirectional, bool need_input, bool need_states, bool need_weights) {
    const auto flags = rnn_flags(bias, projection, bidirectional);
    const auto s = check_rnn(input, batch_sizes, h0, weights, flags);
    check_rnn_backward(s, input, grad_output, grad_h_n, output, hidden);
    auto grads = run_backward({s, input, h0, std::nullopt, weights, flags},
                              {.grad_output = grad_output,
                               .grad_h_n = grad_h_n,
                               .grad_c_n = std::nullopt,
                               .output = output,
                               .gates = {},
                               .cells = projection ? hidden : Tensor(),
                               .grad_gates = rnn_grad_gates(s.hidden),
                               .cell_states = false,
                               .bias_apart = 0,
                               .need_input = need_input,
                               .need_states = need_states,
                               .need_weights = need_weights},
                              [&](const auto& call) { rnn_backward(call, relu); });
    return {grads.input, grads.h0, std::move(grads.weights)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pykernels, m) {
    m.def(
        "rnn_forward(Tensor input, Tensor? batch_sizes, Tensor? h0, Tensor[] weights, bool bias, bool projection, "
        "bool relu, bool bidirectional, bool save) -> (Tensor output, Tensor h_n, Tensor hidden)",
        {at::Tag::pt2_compliant_tag});
    m.def(
        "rnn_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor input, Tensor? batch_sizes, Tensor? h0, "
        "Tensor[] weights, Tensor output, Tensor hidden, bool bias, bool projection, bool relu, bool bidirectional, "
        "bool need_input, bool need_states, bool need_weights) "
        "-> (Tensor grad_input, Tensor grad_h0, Tensor[] grad_weights)",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
    m.impl("rnn_forward", forward);
    m.impl("rnn_backward", backward);
}

static const RawKernel raw_kernels[] = {{"rnn_forward", forward},
                                        {"rnn_backward", backward},
                                        {"rnn_cell_forward", rnn_cell_forward<forward>},
                                        {"rnn_cell_backward", rnn_cell_backward<backward>}};

}  // namespace pykernels
