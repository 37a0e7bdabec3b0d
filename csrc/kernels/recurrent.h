// Launch contract of the recurrent kernels: one layer, all steps, one or both directions. Raw pointers and sizes, no
// torch.
//
// Rows. A "row" is one step of one sequence. Step t owns rows offsets[t] … offsets[t+1]-1 of the packed form; a padded
// [steps, batch] input is the case where every step has `batch` of them. Sequences are sorted by falling length, so the
// sequences alive at a step are the first ones. Direction 1 runs from each sequence's last step to its first.
#pragma once

#include "core/types.h"

namespace pykernels {

struct RecurrentShape {
    int64_t steps, batch, input, hidden;
    int64_t projection;      // 0: none
    int64_t rows;            // offsets[steps]
    int directions;          // 1 or 2
    const int64_t* offsets;  // [steps + 1]

    // Width of the state that is put out and fed back.
    int64_t output() const { return projection ? projection : hidden; }
    int64_t live(int64_t step) const { return offsets[step + 1] - offsets[step]; }
    int64_t first(int64_t step) const { return offsets[step]; }
};

// Parameters of one direction; W is the type of the matrices, A of what is added. G gates: i, f, g, o of the LSTM;
// r, z, n of the GRU; one of the RNN.
template <typename W, typename A>
struct RecurrentWeights {
    const W* input;            // [G hidden, input]
    const W* hidden;           // [G hidden, output]
    const A* bias_input;       // [G hidden] or null
    const A* bias_hidden;      // [G hidden] or null
    const W* projection;       // [projection, hidden] or null
    const A* bias_projection;  // [projection] or null
    const A* peephole;         // [3, hidden], rows i, f, o, or null
};

// A matrix [rows, input] whose row (t, b) starts at data + step_offset[t] + b * stride.
template <typename W>
struct RecurrentInput {
    const W* data;
    const int64_t* step_offset;  // [steps]
    int64_t stride;
    const W* row(int64_t t, int64_t b) const { return data + step_offset[t] + b * stride; }
};

// Op: operand type of the products (float, double, Bf16Pair); S: storage type of what is written. W is bf16 for
// Bf16Pair and Op otherwise. No output may alias an input.
template <typename OpType, typename SType, typename WType, typename AType>
struct RecurrentForward {
    using Op = OpType;
    using S = SType;
    using W = WType;
    using A = AType;
    RecurrentShape shape;
    RecurrentInput<W> x;
    RecurrentWeights<W, A> weights[2];
    const A* h0;  // [directions, batch, output] or null: zeros
    const A* c0;  // [directions, batch, hidden] or null: zeros; LSTM
    S* y;         // [rows, directions * output]
    S* h_n;       // [directions, batch, output]
    S* c_n;       // [directions, batch, hidden]; LSTM
    S* gates;     // [directions, rows, 4 hidden], or null when backward will not run; LSTM: i, f, g, o; GRU: r, z, n, m
    S* cells;     // [directions, rows, hidden] or null; LSTM: c; RNN where y is not f(…) itself: f(…)
};

// T: float or double, for every buffer. What forward saved comes back as `gates`, `cells` and `y`.
template <typename T>
struct RecurrentBackward {
    RecurrentShape shape;
    RecurrentInput<T> x;
    RecurrentWeights<T, T> weights[2];
    const T *h0, *c0;              // as in forward
    const T *y, *gates, *cells;    // as in forward
    const T* grad_y;               // [rows, directions * output] or null: zeros
    const T *grad_h_n, *grad_c_n;  // as h_n, c_n, or null
    T* grad_gates;                 // [directions, rows, grad_gates_size()], workspace
    T* grad_x;                     // [rows, input], row (t, b) at offsets[t] + b, or null: not wanted
    T *grad_h0, *grad_c0;          // [directions, batch, …] or null
    // Per direction, shaped like the parameter; null where there is no such parameter or none is wanted. `bias` is both
    // biases' gradient; of the GRU it is that of bias_input, and `bias_state` [hidden] that of bias_hidden's last gate.
    struct Gradients {
        T *input, *hidden, *bias, *bias_state, *projection, *bias_projection, *peephole;
    } gradients[2];
};

inline constexpr int64_t kSavedGates = 4;  // vectors of `hidden` in a row of saved gates

template <typename Call>
void lstm_forward(const Call& call);
template <typename T>
void lstm_backward(const RecurrentBackward<T>& call);

// reset_after: whether the reset gate comes after the candidate's recurrent product, as in torch, or before it.
template <typename Call>
void gru_forward(const Call& call, bool reset_after);
template <typename T>
void gru_backward(const RecurrentBackward<T>& call, bool reset_after);

template <typename Call>
void rnn_forward(const Call& call, bool relu);
template <typename T>
void rnn_backward(const RecurrentBackward<T>& call, bool relu);

// Width of a row of grad_gates.
constexpr int64_t lstm_grad_gates(int64_t hidden) { return 4 * hidden; }
constexpr int64_t gru_grad_gates(int64_t hidden) { return 4 * hidden; }
constexpr int64_t rnn_grad_gates(int64_t hidden) { return hidden; }

// True if this build multiplies bf16 with dot-product instructions (the kernels exist for Bf16Pair).
bool has_bf16_products();

}  // namespace pykernels
