// Launch contract of layer norm on the CPU. Sums are float, or double for double; rows are of Storage, their columns
// beside each other. Outputs and totals are dense. Results do not depend on the number of threads.
#pragma once

#include <type_traits>

#include "core/dropout.h"
#include "core/types.h"

namespace pykernels {

struct LayerNormShape {
    int64_t rows, columns;
    DropoutRule dropout;
};

template <typename Storage_>
struct LayerNormForward {
    using Storage = Storage_;
    using Acc = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

    LayerNormShape shape;
    const Storage *input, *residual;  // residual may be null
    int64_t input_stride, residual_stride;
    const Acc *weight, *bias;  // [columns], or null
    Acc epsilon;
    Storage *out, *total;  // [rows, columns]; total null where it is the input
    Acc* stats;            // [rows, 2]
};

template <typename Storage_>
struct LayerNormBackward {
    using Storage = Storage_;
    using Acc = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

    LayerNormShape shape;
    const Storage *grad_out, *grad_total, *total;  // the gradients may be null
    int64_t grad_out_stride, grad_total_stride, total_stride;
    const Acc *stats, *weight;            // weight may be null
    Storage *grad_of_total, *grad_input;  // [rows, columns]; grad_input null without dropout
    Acc *grad_weight, *grad_bias;         // [columns], or null where not wanted
};

void layer_norm_forward(const LayerNormForward<float>& call);
void layer_norm_forward(const LayerNormForward<double>& call);
void layer_norm_forward(const LayerNormForward<c10::BFloat16>& call);
void layer_norm_forward(const LayerNormForward<c10::Half>& call);
void layer_norm_backward(const LayerNormBackward<float>& call);
void layer_norm_backward(const LayerNormBackward<double>& call);
void layer_norm_backward(const LayerNormBackward<c10::BFloat16>& call);
void layer_norm_backward(const LayerNormBackward<c10::Half>& call);

}  // namespace pykernels
