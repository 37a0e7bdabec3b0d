// What the recurrent kernels share: the rows of a step, the states and their gradients. The loop over steps is in
// recurrence.cuh. Plain device code over the primitives of common.cuh.
#pragma once

#include "cuda/core/product.cuh"
#include "cuda/kernels/recurrent.h"

namespace pykernels::cuda {

// Steps -------------------------------------------------------------------------------------------------------------

// Sequences running at step t; none outside 0 <= t < T.
__device__ inline int64_t batch_at(const Steps& steps, int64_t t) {
    if (t < 0 || t >= steps.count) {
        return 0;
    }
    return steps.offsets != nullptr ? steps.offsets[t + 1] - steps.offsets[t] : steps.batch;
}

// Row of sequence 0 at step t (0 <= t < T).
__device__ inline int64_t row_at(const Steps& steps, int64_t t) {
    return steps.offsets != nullptr ? steps.offsets[t] : t * steps.batch;
}

// A step and its neighbours in the order in which a kernel walks. Rows are valid only where the batch is not 0.
struct StepRows {
    int64_t t;               // -1 or T: beyond the last step walked
    int64_t row, batch;      // this step
    int64_t row_from, from;  // the step walked before
    int64_t row_to, to;      // the step walked next
};

__device__ inline StepRows rows_of_step(const Steps& steps, int64_t t, bool descending) {
    const int64_t t_from = descending ? t + 1 : t - 1;
    const int64_t t_to = descending ? t - 1 : t + 1;
    StepRows rows{t, 0, batch_at(steps, t), 0, batch_at(steps, t_from), 0, batch_at(steps, t_to)};
    rows.row = rows.batch > 0 ? row_at(steps, t) : 0;
    rows.row_from = rows.from > 0 ? row_at(steps, t_from) : 0;
    rows.row_to = rows.to > 0 ? row_at(steps, t_to) : 0;
    return rows;
}

// States ------------------------------------------------------------------------------------------------------------

// An element of an optional buffer: 0 where there is none.
template <class T>
__device__ inline Accumulator<T> load_or_zero(const T* data, int64_t index) {
    return data != nullptr ? to_accumulator(data[index]) : Accumulator<T>(0);
}

// Where direction d's state of row `row` of the output starts.
__device__ inline int64_t output_at(const RecurrentLayer& layer, int64_t d, int64_t row) {
    return (row * layer.directions + d) * layer.state;
}

// Where sequence b's part of a buffer [D, B, width] starts.
__device__ inline int64_t sequence_at(const RecurrentLayer& layer, int64_t d, int64_t b, int64_t width) {
    return (d * layer.steps.batch + b) * width;
}

// The state that sequence b had before this step of the forward walk; null for zeros.
template <class T>
__device__ const T* state_before(const RecurrentLayer& layer, const void* output, const StepRows& rows, int64_t d,
                                 int64_t b) {
    if (b < rows.from) {
        return static_cast<const T*>(output) + output_at(layer, d, rows.row_from + b);
    }
    const auto* h0 = static_cast<const T*>(layer.h0);
    return h0 != nullptr ? h0 + sequence_at(layer, d, b, layer.state) : nullptr;
}

// Puts out h of unit u, sequence b.
template <class T>
__device__ void put_state(const RecurrentLayer& layer, const RecurrentStates& states, const StepRows& rows, int64_t d,
                          int64_t b, int64_t u, T h) {
    static_cast<T*>(states.output)[output_at(layer, d, rows.row + b) + u] = h;
    if (b >= rows.to) {
        static_cast<T*>(states.h_n)[sequence_at(layer, d, b, layer.state) + u] = h;
    }
}

// The whole gradient of h of unit u, sequence b. `from_next`: what the step walked before gave it, if the sequence ran
// there. Where the sequence does not run at this step, its first one has been left: that is the gradient of h0.
template <class T>
__device__ Accumulator<T> gather_state_gradient(const RecurrentLayer& layer, const RecurrentGradients& grads,
                                                const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                                Accumulator<T> from_next) {
    const int64_t of_sequence = sequence_at(layer, d, b, layer.state) + u;
    Accumulator<T> dh = b < rows.from ? from_next : load_or_zero(static_cast<const T*>(grads.grad_h_n), of_sequence);
    if (b < rows.batch) {
        dh += load_or_zero(static_cast<const T*>(grads.grad_output), output_at(layer, d, rows.row + b) + u);
    } else if (grads.grad_h0 != nullptr) {
        static_cast<T*>(grads.grad_h0)[of_sequence] = to_storage<T>(dh);
    }
    return dh;
}

// Stores the gradient of what W_hr puts out, for the product with W_hr and for the gradient of W_hr.
template <class T>
__device__ void put_projected_gradient(const RecurrentLayer& layer, const RecurrentGradients& grads,
                                       const StepRows& rows, int64_t d, int64_t b, int64_t u, Accumulator<T> dh) {
    const int64_t row = d * layer.steps.rows + rows.row + b;
    static_cast<T*>(grads.grad_projected)[row * layer.state + u] = to_storage<T>(dh);
}

// Both, where the state is what the projection puts out.
template <class T>
__device__ Accumulator<T> state_gradient(const RecurrentLayer& layer, const RecurrentGradients& grads,
                                         const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                         Accumulator<T> from_next) {
    const Accumulator<T> dh = gather_state_gradient<T>(layer, grads, rows, d, b, u, from_next);
    if (layer.projection && b < rows.batch) {
        put_projected_gradient<T>(layer, grads, rows, d, b, u, dh);
    }
    return dh;
}

template <class A>
__device__ inline A logistic(A x) {
    return A(1) / (A(1) + exponential(-x));
}

}  // namespace pykernels::cuda
