// Contract of the LSTM operators, for every backend: what the kind adds to ops/recurrent.h, and what is saved.
//
// gates [D, rows, 4 hidden] activated, in the order i, f, g, o; cells [D, rows, hidden]: c.
#pragma once

#include "ops/recurrent.h"

namespace pykernels {

inline constexpr int64_t kLstmGates = 4;

inline RecurrentFlags lstm_flags(bool bias, bool projection, bool peephole, bool bidirectional) {
    return {bias, projection, false, peephole, bidirectional};
}

inline RecurrentSizes check_lstm(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                                 const OptionalTensor& c0, at::TensorList weights, const RecurrentFlags& flags) {
    return check_recurrent("lstm", kLstmGates, "weight_hr", input, batch_sizes, h0, c0, weights, flags);
}

inline void check_lstm_backward(const RecurrentSizes& s, const Tensor& input, const OptionalTensor& grad_output,
                                const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n, const Tensor& output,
                                const Tensor& gates, const Tensor& cells) {
    check_recurrent_backward("lstm", s, input, grad_output, grad_h_n, output);
    check_given("lstm", "gates", gates, {s.directions, s.rows, kLstmGates * s.hidden}, input);
    check_given("lstm", "cells", cells, {s.directions, s.rows, s.hidden}, input);
    if (grad_c_n) check_given("lstm", "grad_c_n", *grad_c_n, {s.directions, s.batch, s.hidden}, input);
}

using LstmForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using LstmBackwardResult = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;

}  // namespace pykernels
