// Contract of the LSTM operators, for every backend: shapes, layouts, and what is saved for backward.
#pragma once

#include <vector>

#include "core/checks.h"

namespace pykernels {

struct LstmSizes {
    int64_t steps, batch, rows, input, hidden, projection, directions;
    bool packed;
    std::vector<int64_t> offsets;  // [steps + 1]: first row of each step in the packed form
    int64_t output() const { return projection ? projection : hidden; }
};

// One direction's parameters as the flat list has them.
struct LstmParameters {
    Tensor input, hidden, bias_input, bias_hidden, projection, peephole;
};

struct LstmFlags {
    bool bias, projection, peephole, bidirectional;
    size_t per_direction() const { return 2 + (bias ? 2 : 0) + projection + peephole; }
    int64_t directions() const { return bidirectional ? 2 : 1; }
};

LstmParameters lstm_parameters(at::TensorList weights, const LstmFlags& flags, int64_t direction);

// Checks every argument of lstm_forward and returns the sizes.
LstmSizes check_lstm(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                     const OptionalTensor& c0, at::TensorList weights, const LstmFlags& flags);

// Checks the arguments that lstm_backward adds.
void check_lstm_backward(const LstmSizes& sizes, const Tensor& input, const OptionalTensor& grad_output,
                         const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n, const Tensor& output,
                         const Tensor& gates, const Tensor& cells);

// Sizes of the outputs.
std::vector<int64_t> lstm_output_shape(const LstmSizes& sizes);

using LstmForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using LstmBackwardResult = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;

}  // namespace pykernels
