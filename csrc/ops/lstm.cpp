// The LSTM operators on the CPU: allocate and call the kernel.
#include "ops/lstm.h"

#include <torch/library.h>

#include "ops/cell.h"
#include "ops/registry.h"
#include "ops/run.h"

namespace pykernels {
namespace {

LstmForwardResult forward(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                          const OptionalTensor& c0, at::TensorList weights, bool bias, bool projection, bool peephole,
                          bool bidirectional, bool save) {
    const auto flags = lstm_flags(bias, projection, peephole, bidirectional);
    const auto s = check_lstm(input, batch_sizes, h0, c0, weights, flags);
    const auto options = input.options();
    const LstmForwardResult out{at::empty(recurrent_output_shape(s), options),
                                at::empty({s.directions, s.batch, s.output()}, options),
                                at::empty({s.directions, s.batch, s.hidden}, options),
                                empty_kept(save, {s.directions, s.rows, kLstmGates * s.hidden}, options),
                                empty_kept(save, {s.directions, s.rows, s.hidden}, options)};
    const auto& [y, h_n, c_n, gates, cells] = out;
    run_forward({s, input, h0, c0, weights, flags}, {y, h_n, c_n, gates, cells},
                [](const auto& call) { lstm_forward(call); });
    return out;
}

LstmBackwardResult backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                            const OptionalTensor& grad_c_n, const Tensor& input, const OptionalTensor& batch_sizes,
                            const OptionalTensor& h0, const OptionalTensor& c0, at::TensorList weights,
                            const Tensor& output, const Tensor& gates, const Tensor& cells, bool bias, bool projection,
                            bool peephole, bool bidirectional, bool need_input, bool need_states, bool need_weights) {
    const auto flags = lstm_flags(bias, projection, peephole, bidirectional);
    const auto s = check_lstm(input, batch_sizes, h0, c0, weights, flags);
    check_lstm_backward(s, input, grad_output, grad_h_n, grad_c_n, output, gates, cells);
    auto grads = run_backward({s, input, h0, c0, weights, flags},
                              {.grad_output = grad_output,
                               .grad_h_n = grad_h_n,
                               .grad_c_n = grad_c_n,
                               .output = output,
                               .gates = gates,
                               .cells = cells,
                               .grad_gates = lstm_grad_gates(s.hidden),
                               .cell_states = true,
                               .bias_apart = 0,
                               .need_input = need_input,
                               .need_states = need_states,
                               .need_weights = need_weights},
                              [](const auto& call) { lstm_backward(call); });
    return {grads.input, grads.h0, grads.c0, std::move(grads.weights)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pykernels, m) {
    m.def(
        "lstm_forward(Tensor input, Tensor? batch_sizes, Tensor? h0, Tensor? c0, Tensor[] weights, bool bias, "
        "bool projection, bool peephole, bool bidirectional, bool save) "
        "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor gates, Tensor cells)",
        {at::Tag::pt2_compliant_tag});
    m.def(
        "lstm_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor input, Tensor? batch_sizes, "
        "Tensor? h0, Tensor? c0, Tensor[] weights, Tensor output, Tensor gates, Tensor cells, bool bias, "
        "bool projection, bool peephole, bool bidirectional, bool need_input, bool need_states, bool need_weights) "
        "-> (Tensor grad_input, Tensor grad_h0, Tensor grad_c0, Tensor[] grad_weights)",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
    m.impl("lstm_forward", forward);
    m.impl("lstm_backward", backward);
}

static const RawKernel raw_kernels[] = {{"lstm_forward", forward},
                                        {"lstm_backward", backward},
                                        {"lstm_cell_forward", lstm_cell_forward<forward>},
                                        {"lstm_cell_backward", lstm_cell_backward<backward>}};

}  // namespace pykernels
