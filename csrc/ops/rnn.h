// Contract of the RNN operators (Elman's, and Jordan's as the one with a projection), for every backend: what the kind
// adds to ops/recurrent.h, and what is saved.
//
// hidden [D, rows, hidden]: the hidden state with a projection; without one it is the output.
#pragma once

#include "ops/recurrent.h"

namespace pykernels {

inline RecurrentFlags rnn_flags(bool bias, bool projection, bool bidirectional) {
    return {bias, projection, bias && projection, false, bidirectional};
}

inline RecurrentSizes check_rnn(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                                at::TensorList weights, const RecurrentFlags& flags) {
    return check_recurrent("rnn", 1, "weight_ho", input, batch_sizes, h0, std::nullopt, weights, flags);
}

inline void check_rnn_backward(const RecurrentSizes& s, const Tensor& input, const OptionalTensor& grad_output,
                               const OptionalTensor& grad_h_n, const Tensor& output, const Tensor& hidden) {
    check_recurrent_backward("rnn", s, input, grad_output, grad_h_n, output);
    if (s.projection) check_given("rnn", "hidden", hidden, {s.directions, s.rows, s.hidden}, input);
}

using RnnForwardResult = std::tuple<Tensor, Tensor, Tensor>;
using RnnBackwardResult = std::tuple<Tensor, Tensor, std::vector<Tensor>>;

}  // namespace pykernels
