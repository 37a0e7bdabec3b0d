// Contract of the operators of the input's part of a recurrent layer's gates, for every backend.
//
// input       [T, B, I], or [N, I] with batch_sizes, of which nothing else is asked
// weights     of each direction weight [C, I], bias [C] if bias, gain [C] if layer_norm
// output      [T, B, D * C] or [N, D * C]: x W^T + b, or with layer_norm normalized(x W^T) * gain + b
// normalized  [D, N, C] and stats [D, N, 1], 1 / deviation: saved with layer_norm, or else [0]
#pragma once

#include "ops/recurrent.h"

namespace pykernels {

struct InputPartSizes {
    int64_t rows, inputs, columns, directions;
    bool bias, layer_norm;

    size_t per_direction() const { return 1 + bias + layer_norm; }
    std::vector<int64_t> output_shape(const Tensor& input) const {
        auto shape = input.sizes().vec();
        shape.back() = directions * columns;
        return shape;
    }
};

struct InputPartParameters {
    Tensor weight, bias, gain;
};

inline InputPartParameters input_part_parameters(at::TensorList weights, const InputPartSizes& s, int64_t direction) {
    size_t next = direction * s.per_direction();
    InputPartParameters p;
    p.weight = weights[next++];
    if (s.bias) p.bias = weights[next++];
    if (s.layer_norm) p.gain = weights[next++];
    return p;
}

InputPartSizes check_input_part(const Tensor& input, const OptionalTensor& batch_sizes, at::TensorList weights,
                                bool bias, bool layer_norm, bool bidirectional);
void check_input_part_backward(const InputPartSizes& sizes, const Tensor& input, const OptionalTensor& grad_output,
                               const Tensor& normalized, const Tensor& stats);

using InputPartForwardResult = std::tuple<Tensor, Tensor, Tensor>;
using InputPartBackwardResult = std::tuple<Tensor, std::vector<Tensor>>;

}  // namespace pykernels
