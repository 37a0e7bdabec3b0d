// Launch contract of the input's part of a recurrent layer's gates, for all rows at once: x W^T + b, or with a gain
// normalized(x W^T) * gain + b. Raw pointers and sizes, no torch; no output may alias an input.
#pragma once

#include "core/types.h"

namespace pykernels {

template <typename T>
struct InputPartWeights {
    const T* weight;  // [columns, inputs]
    const T* bias;    // [columns] or null
    const T* gain;    // [columns] or null: not normalised
};

template <typename T>
struct InputPartCall {
    int64_t rows, inputs, columns;
    int directions;
    const T* x;  // [rows, inputs]
    InputPartWeights<T> weights[2];
};

template <typename T>
struct InputPartForward : InputPartCall<T> {
    T* out;                 // [rows, directions * columns]
    T *normalized, *stats;  // saved, or null: [directions, rows, columns]; [directions, rows]: 1 / deviation
};

template <typename T>
struct InputPartBackward : InputPartCall<T> {
    const T* grad;                // [rows, directions * columns]
    const T *normalized, *stats;  // as forward left them
    T* grad_x;                    // [rows, inputs] or null: not wanted
    bool want_weights;
    struct Gradients {
        T *weight, *bias, *gain;
    } gradients[2];
};

template <typename T>
void input_part_forward(const InputPartForward<T>& call);
template <typename T>
void input_part_backward(const InputPartBackward<T>& call);

}  // namespace pykernels
