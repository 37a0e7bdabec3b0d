// Launch contract of the kernels of the recurrent variants: one layer from its input parts on. What the tensors are:
// ops/variant.h. Raw pointers and sizes, no torch; rows and directions as in kernels/recurrent.h.
#pragma once

#include "kernels/recurrent.h"
#include "kernels/recurrent_kind.h"

namespace pykernels {

// Parameters of one direction; null where there is none.
template <typename T>
struct VariantWeights {
    const T* hidden;      // [G hidden, output]
    const T* bias;        // [G hidden]
    const T* projection;  // [projection, hidden]; LSTM
    const T* peephole;    // [3, hidden]; LSTM
    const T* gain;        // [G hidden]: of the normalised sums
    const T* cell_gain;   // [hidden]; LSTM, with gain
    const T* cell_shift;  // [hidden]
};

template <typename T>
struct VariantNoise {
    const T* state_scale;                  // [directions, batch, output] or null: ones
    const std::uint8_t *stay, *stay_cell;  // [directions, rows, output], [directions, rows, hidden] or null
    T zoneout, zoneout_cell;               // without a mask
};

// What both ways are told. shape.input is the width of a direction's input part, G hidden.
template <typename T>
struct VariantCall {
    RecurrentShape shape;
    bool form;  // GRU: the reset comes after the product; RNN: relu
    VariantWeights<T> weights[2];
    VariantNoise<T> noise;
    const T *h0, *c0;  // [directions, batch, …] or null: zeros
};

// No output may alias an input.
template <typename T>
struct VariantForward : VariantCall<T> {
    RecurrentInput<T> parts;  // direction d's from column d * shape.input on
    T* y;                     // [rows, directions * output]
    T *h_n, *c_n;             // [directions, batch, …]
    T *gates, *cells;         // saved, or null: [directions, rows, 4 hidden] (RNN: hidden), [directions, rows, hidden]
    T *normalized, *stats;    // saved with a gain: [directions, rows, shape.input], [directions, rows, 3 or 1]
};

template <typename T>
struct VariantBackward : VariantCall<T> {
    const T *y, *gates, *cells, *normalized, *stats;  // as forward left them
    const T* grad_y;                                  // [rows, directions * output] or null: zeros
    const T *grad_h_n, *grad_c_n;                     // as h_n, c_n, or null: zeros
    T* grad_parts;                                    // [rows, directions * shape.input]
    T *grad_h0, *grad_c0;                             // or null: not wanted
    bool want_weights;
    struct Gradients {
        T *hidden, *bias, *projection, *peephole, *gain, *cell_gain, *cell_shift;  // shaped like the parameters
    } gradients[2];
};

template <typename T>
void lstm_variant_forward(const VariantForward<T>& call);
template <typename T>
void lstm_variant_backward(const VariantBackward<T>& call);
template <typename T>
void gru_variant_forward(const VariantForward<T>& call);
template <typename T>
void gru_variant_backward(const VariantBackward<T>& call);
template <typename T>
void rnn_variant_forward(const VariantForward<T>& call);
template <typename T>
void rnn_variant_backward(const VariantBackward<T>& call);

}  // namespace pykernels
