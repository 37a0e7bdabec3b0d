// One step of the LSTM without the dimension of time, over a backend's lstm_forward and lstm_backward. Only for raw
// calls: the views that it makes cost ten times as much in Python, where they would be a third of a small cell's time.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/squeeze.h>
#include <ATen/ops/unsqueeze.h>

#include "ops/lstm.h"

namespace pykernels {

inline OptionalTensor with_time(const OptionalTensor& tensor) {
    return tensor && tensor->defined() ? OptionalTensor(tensor->unsqueeze(0)) : std::nullopt;
}

// input [B,I], h0 and c0 [B,H] -> h [B,H], c [B,H], gates [1,B,4H], cells [1,B,H]; the last two empty if not `save`.
template <auto Forward>
std::tuple<Tensor, Tensor, Tensor, Tensor> lstm_cell_forward(const Tensor& input, const OptionalTensor& h0,
                                                             const OptionalTensor& c0, at::TensorList weights,
                                                             bool bias, bool peephole, bool save) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto out = Forward(input.unsqueeze(0), std::nullopt, with_time(h0), with_time(c0), weights, bias, false,
                             peephole, false, save);
    return {std::get<0>(out).squeeze(0), std::get<2>(out).squeeze(0), std::get<3>(out), std::get<4>(out)};
}

// As lstm_backward, with grad_input [B,I], grad_h0 and grad_c0 [B,H].
template <auto Backward>
LstmBackwardResult lstm_cell_backward(const OptionalTensor& grad_h, const OptionalTensor& grad_c, const Tensor& input,
                                      const OptionalTensor& h0, const OptionalTensor& c0, at::TensorList weights,
                                      const Tensor& gates, const Tensor& cells, bool bias, bool peephole,
                                      bool need_input, bool need_states, bool need_weights) {
    at::AutoDispatchBelowADInplaceOrView below;
    // The output is the state before each step but the first; of one step nothing is read, so that `cells` can stand
    // for it.
    auto [grad_input, grad_h0, grad_c0, grad_weights] =
        Backward(std::nullopt, with_time(grad_h), with_time(grad_c), input.unsqueeze(0), std::nullopt, with_time(h0),
                 with_time(c0), weights, cells, gates, cells, bias, false, peephole, false, need_input, need_states,
                 need_weights);
    if (need_input) grad_input = grad_input.squeeze(0);
    if (need_states) {
        grad_h0 = grad_h0.squeeze(0);
        grad_c0 = grad_c0.squeeze(0);
    }
    return {grad_input, grad_h0, grad_c0, grad_weights};
}

}  // namespace pykernels
