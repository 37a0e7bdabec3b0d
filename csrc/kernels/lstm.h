// Launch contract of the LSTM kernels: one layer, all steps, one or both directions. Raw pointers and sizes, no torch.
//
// Rows. A "row" is one step of one sequence. Step t owns rows offsets[t] … offsets[t+1]-1 of the packed form; a padded
// [steps, batch] input is the case where every step has `batch` of them. Sequences are sorted by falling length, so the
// sequences alive at a step are the first ones. Direction 1 runs from each sequence's last step to its first.
#pragma once

#include "core/types.h"

namespace pykernels {

struct LstmShape {
    int64_t steps, batch, input, hidden;
    int64_t projection;      // 0: none
    int64_t rows;            // offsets[steps]
    int directions;          // 1 or 2
    const int64_t* offsets;  // [steps + 1]

    int64_t output() const { return projection ? projection : hidden; }
    int64_t live(int64_t step) const { return offsets[step + 1] - offsets[step]; }
    int64_t first(int64_t step) const { return offsets[step]; }
};

// Parameters of one direction; W is the type of the matrices, A of what is added. Gates in the order i, f, g, o.
template <typename W, typename A>
struct LstmWeights {
    const W* input;        // [4 hidden, input]
    const W* hidden;       // [4 hidden, output]
    const A* bias_input;   // [4 hidden] or null
    const A* bias_hidden;  // [4 hidden] or null
    const W* projection;   // [projection, hidden] or null
    const A* peephole;     // [3, hidden], rows i, f, o, or null
};

// A matrix [rows, input] whose row (t, b) starts at data + step_offset[t] + b * stride.
template <typename W>
struct LstmInput {
    const W* data;
    const int64_t* step_offset;  // [steps]
    int64_t stride;
    const W* row(int64_t t, int64_t b) const { return data + step_offset[t] + b * stride; }
};

// Op: operand type of the products (float, double, Bf16Pair); S: storage type of what is written. W is bf16 for
// Bf16Pair and Op otherwise. No output may alias an input.
template <typename Op, typename S, typename W, typename A>
struct LstmForward {
    LstmShape shape;
    LstmInput<W> x;
    LstmWeights<W, A> weights[2];
    const A* h0;  // [directions, batch, output] or null: zeros
    const A* c0;  // [directions, batch, hidden] or null: zeros
    S* y;         // [rows, directions * output]
    S* h_n;       // [directions, batch, output]
    S* c_n;       // [directions, batch, hidden]
    S* gates;     // [directions, rows, 4 hidden], activated, or null when backward will not run
    S* cells;     // [directions, rows, hidden] or null
};

// T: float or double, for every buffer. What forward saved comes back as `gates`, `cells` and `y`.
template <typename T>
struct LstmBackward {
    LstmShape shape;
    LstmInput<T> x;
    LstmWeights<T, T> weights[2];
    const T *h0, *c0;              // as in forward
    const T *y, *gates, *cells;    // as in forward
    const T* grad_y;               // [rows, directions * output] or null: zeros
    const T *grad_h_n, *grad_c_n;  // as h_n, c_n, or null
    T* grad_gates;                 // [directions, rows, 4 hidden], workspace: gradients before the activations
    T* grad_x;                     // [rows, input], row (t, b) at offsets[t] + b, or null: not wanted
    T *grad_h0, *grad_c0;          // [directions, batch, …] or null
    // Per direction, shaped like the parameter; null where there is no such parameter or none is wanted.
    struct Gradients {
        T *input, *hidden, *bias, *projection, *peephole;
    } gradients[2];
};

template <typename Op, typename S, typename W, typename A>
void lstm_forward(const LstmForward<Op, S, W, A>& call);

template <typename T>
void lstm_backward(const LstmBackward<T>& call);

// True if this build multiplies bf16 with dot-product instructions (lstm_forward<Bf16Pair, …> exists).
bool has_bf16_products();

}  // namespace pykernels
