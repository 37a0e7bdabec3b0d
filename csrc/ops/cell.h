// One step of each kind without the dimension of time, over a backend's forward and backward. Only for raw calls: the
// views that these make cost ten times as much in Python, where they would be a third of a small cell's time.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/squeeze.h>
#include <ATen/ops/unsqueeze.h>

#include "ops/gru.h"
#include "ops/lstm.h"
#include "ops/rnn.h"

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

// The gradients without the dimension of time.
template <typename Result>
Result one_step(Result result, bool need_input, bool need_states) {
    if (need_input) std::get<0>(result) = std::get<0>(result).squeeze(0);
    if (need_states) std::get<1>(result) = std::get<1>(result).squeeze(0);
    return result;
}

// input [B,I], h0 [B,H] -> h [B,H], gates [1,B,4H], empty if not `save`.
template <auto Forward>
std::tuple<Tensor, Tensor> gru_cell_forward(const Tensor& input, const OptionalTensor& h0, at::TensorList weights,
                                            bool bias, bool reset_after, bool save) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto out = Forward(input.unsqueeze(0), std::nullopt, with_time(h0), weights, bias, reset_after, false, save);
    return {std::get<0>(out).squeeze(0), std::get<2>(out)};
}

template <auto Backward>
GruBackwardResult gru_cell_backward(const OptionalTensor& grad_h, const Tensor& input, const OptionalTensor& h0,
                                    at::TensorList weights, const Tensor& gates, bool bias, bool reset_after,
                                    bool need_input, bool need_states, bool need_weights) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto grad = with_time(grad_h);
    // Of one step's output nothing is read: anything of its shape can stand for it.
    const Tensor output = grad ? *grad : gates.narrow(2, 0, gates.size(2) / kGruSaved);
    return one_step(Backward(std::nullopt, grad, input.unsqueeze(0), std::nullopt, with_time(h0), weights, output,
                             gates, bias, reset_after, false, need_input, need_states, need_weights),
                    need_input, need_states);
}

// input [B,I], h0 [B,H] -> h [B,H].
template <auto Forward>
Tensor rnn_cell_forward(const Tensor& input, const OptionalTensor& h0, at::TensorList weights, bool bias, bool relu) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto out = Forward(input.unsqueeze(0), std::nullopt, with_time(h0), weights, bias, false, relu, false, false);
    return std::get<0>(out).squeeze(0);
}

template <auto Backward>
RnnBackwardResult rnn_cell_backward(const OptionalTensor& grad_h, const Tensor& input, const OptionalTensor& h0,
                                    at::TensorList weights, const Tensor& h, bool bias, bool relu, bool need_input,
                                    bool need_states, bool need_weights) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Tensor output = h.unsqueeze(0);
    return one_step(Backward(std::nullopt, with_time(grad_h), input.unsqueeze(0), std::nullopt, with_time(h0), weights,
                             output, output, bias, false, relu, false, need_input, need_states, need_weights),
                    need_input, need_states);
}

}  // namespace pykernels
