// Contract of the GRU operators, for every backend: what the kind adds to ops/recurrent.h, and what is saved.
//
// gates [D, rows, 4 hidden]: r, z, n activated, then m: W_hn h' + b_hn where the reset comes after the product,
// r * h' where it comes before it (h' the state of the step before).
#pragma once

#include "ops/recurrent.h"

namespace pykernels {

inline constexpr int64_t kGruGates = 3, kGruSaved = 4;

inline RecurrentFlags gru_flags(bool bias, bool bidirectional) { return {bias, false, false, false, bidirectional}; }

inline RecurrentSizes check_gru(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                                at::TensorList weights, const RecurrentFlags& flags) {
    return check_recurrent("gru", kGruGates, "", input, batch_sizes, h0, std::nullopt, weights, flags);
}

inline void check_gru_backward(const RecurrentSizes& s, const Tensor& input, const OptionalTensor& grad_output,
                               const OptionalTensor& grad_h_n, const Tensor& output, const Tensor& gates) {
    check_recurrent_backward("gru", s, input, grad_output, grad_h_n, output);
    check_given("gru", "gates", gates, {s.directions, s.rows, kGruSaved * s.hidden}, input);
}

using GruForwardResult = std::tuple<Tensor, Tensor, Tensor>;
using GruBackwardResult = std::tuple<Tensor, Tensor, std::vector<Tensor>>;

}  // namespace pykernels
