// What the contracts of the recurrent operators share, for every backend: a layer's sizes, its flat list of weights,
// and the checks of both.
#pragma once

#include <vector>

#include "core/checks.h"

namespace pykernels {

struct RecurrentSizes {
    int64_t steps, batch, rows, input, hidden, projection, directions;
    bool packed;
    std::vector<int64_t> offsets;  // [steps + 1]: first row of each step in the packed form
    // What one direction puts out and feeds back.
    int64_t output() const { return projection ? projection : hidden; }
};

// One direction's parameters as the flat list has them, in this order.
struct RecurrentParameters {
    Tensor input, hidden, bias_input, bias_hidden, projection, bias_projection, peephole;
};

// Which parameters there are.
struct RecurrentFlags {
    bool bias = true, projection = false, bias_projection = false, peephole = false, bidirectional = false;
    size_t per_direction() const { return 2 + (bias ? 2 : 0) + projection + bias_projection + peephole; }
    int64_t directions() const { return bidirectional ? 2 : 1; }
};

RecurrentParameters recurrent_parameters(at::TensorList weights, const RecurrentFlags& flags, int64_t direction);

// What of the sizes the input says, and whether there are as many weights as it takes.
RecurrentSizes check_sequences(std::string_view op, const Tensor& input, const OptionalTensor& batch_sizes,
                               at::TensorList weights, size_t per_direction, bool bidirectional);
// Initial states of these sizes, and everything of the input's dtype on its device.
void check_states(std::string_view op, const RecurrentSizes& sizes, const Tensor& input, const OptionalTensor& h0,
                  const OptionalTensor& c0, at::TensorList weights);

// Checks the forward's arguments and returns the sizes. `gates`: blocks of rows in weight_ih. `projection_name`: of the
// projection's weight in messages.
RecurrentSizes check_recurrent(std::string_view op, int64_t gates, std::string_view projection_name,
                               const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                               const OptionalTensor& c0, at::TensorList weights, const RecurrentFlags& flags);

// Checks what every backward is given in addition; a kind adds what it has saved.
void check_recurrent_backward(std::string_view op, const RecurrentSizes& sizes, const Tensor& input,
                              const OptionalTensor& grad_output, const OptionalTensor& grad_h_n, const Tensor& output);

// One tensor that was saved or is a gradient.
inline void check_given(std::string_view op, std::string_view name, const Tensor& tensor, at::IntArrayRef shape,
                        const Tensor& input) {
    check_shape(op, name, tensor, shape);
    check_like(op, name, tensor, input);
}

std::vector<int64_t> recurrent_output_shape(const RecurrentSizes& sizes);

}  // namespace pykernels
