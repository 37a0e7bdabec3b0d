#include "cuda/core/recurrence.cuh"
#include "cuda/kernels/lstm.h"

// The walk is the forward's, turned round, with one step more at its end (batch 0) in which what is left flows into the
// initial states. At each step, for every sequence that runs at it or ran at the step walked before:
//   dh = dgates(step before) W_hh, or grad_h_n where the sequence begins here
//   runs here:      dh += grad_output; (with a projection: dh is stored, then dh = dh W_hr); the cell; dgates, dc
//   stored no longer runs: its first step has been left, so dh and dc are the gradients of its initial state

namespace pykernels::cuda {
namespace {

struct Backward {
    LstmBackward op;
    void* grad_cell = nullptr;  // [D, B, H] gradient of the cell state, in the accumulator's type

    static constexpr bool kBackward = true;
    __host__ __device__ const LstmLayer& layer() const { return op.layer; }
    __host__ __device__ const RecurrentGradients& gradients() const { return op.gradients; }
    // Places the parts of the workspace and returns the size of all.
    size_t lay_out() {
        Workspace workspace(op.workspace, op.layer);
        grad_cell = workspace.take(accumulator_bytes(op.layer.dtype));
        return workspace.bytes();
    }

    // dh = dgates W_hh; without a projection the cell follows at once.
    struct First {
        static constexpr int kCols = 1;
        template <class T>
        __host__ __device__ static WeightView<T> weights(const Backward& r, int64_t d) {
            return columns_of(static_cast<const T*>(r.layer().weight_hh[d]), r.layer().state, 4 * r.layer().hidden);
        }
        __device__ static int64_t multiplied(const StepRows& rows) { return rows.from; }
        template <class T>
        __device__ static const T* source(const Backward& r, const StepRows& rows, int64_t d, int64_t b) {
            const int64_t row = d * r.layer().steps.rows + rows.row_from + b;
            return static_cast<const T*>(r.op.grad_gates) + row * 4 * r.layer().hidden;
        }
        template <class T>
        __device__ static void finish(const Backward& r, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                      const Accumulator<T> (&sum)[kCols]) {
            const Accumulator<T> dh = state_gradient<T>(r.layer(), r.gradients(), rows, d, b, u, sum[0]);
            if (!r.layer().projection) {
                finish_cell<T>(r, rows, d, b, u, dh);
            }
        }
    };

    // With a projection: the gradient of o tanh(c) = dh W_hr, then the cell.
    struct Second {
        static constexpr int kCols = 1;
        __host__ __device__ static bool runs(const Backward& r) { return r.layer().projection; }
        template <class T>
        __host__ __device__ static WeightView<T> weights(const Backward& r, int64_t d) {
            const auto* weight = static_cast<const T*>(r.layer().weight_projection[d]);
            return columns_of(weight, r.layer().hidden, r.layer().state);
        }
        __device__ static int64_t multiplied(const StepRows& rows) { return rows.batch; }
        template <class T>
        __device__ static const T* source(const Backward& r, const StepRows& rows, int64_t d, int64_t b) {
            const int64_t row = d * r.layer().steps.rows + rows.row + b;
            return static_cast<const T*>(r.gradients().grad_projected) + row * r.layer().state;
        }
        template <class T>
        __device__ static void finish(const Backward& r, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                      const Accumulator<T> (&sum)[kCols]) {
            finish_cell<T>(r, rows, d, b, u, sum[0]);
        }
    };
    using Phases = PhaseList<First, Second>;

    template <class T>
    __device__ static void finish_cell(const Backward& r, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                       Accumulator<T> dh);
};

// From dh, the gradient of o tanh(c) of unit u, sequence b, to the gates and the cell state of the step before.
// rows.from is the step walked before (one later in time), rows.to the next (one earlier).
template <class T>
__device__ void Backward::finish_cell(const Backward& r, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                      Accumulator<T> dh) {
    using A = Accumulator<T>;
    const LstmBackward& op = r.op;
    const LstmLayer& layer = op.layer;
    const int64_t H = layer.hidden, N = layer.steps.rows;
    const int64_t of_sequence = sequence_at(layer, d, b, H) + u;
    A* grad_cell = static_cast<A*>(r.grad_cell) + of_sequence;
    A dc = b < rows.from ? *grad_cell : load_or_zero(static_cast<const T*>(op.grad_c_n), of_sequence);
    if (b >= rows.batch) {
        if (op.grad_c0 != nullptr) {
            static_cast<T*>(op.grad_c0)[of_sequence] = to_storage<T>(dc);
        }
        return;
    }
    const int64_t row = d * N + rows.row + b;
    const T* gates = static_cast<const T*>(op.gates) + row * 4 * H + u;
    const T* cells = static_cast<const T*>(op.cells) + d * N * H + u;
    const A i = to_accumulator(gates[0]);
    const A f = to_accumulator(gates[H]);
    const A g = to_accumulator(gates[2 * H]);
    const A o = to_accumulator(gates[3 * H]);
    const A squashed = hyperbolic_tangent(to_accumulator(cells[(rows.row + b) * H]));
    const A before = b < rows.to ? to_accumulator(cells[(rows.row_to + b) * H])
                                 : load_or_zero(static_cast<const T*>(layer.c0), of_sequence);
    const T* peephole = static_cast<const T*>(layer.peephole[d]);

    const A d_o = dh * squashed * o * (A(1) - o);
    dc += dh * o * (A(1) - squashed * squashed);
    if (peephole != nullptr) {
        dc += d_o * to_accumulator(peephole[2 * H + u]);
    }
    const A d_i = dc * g * i * (A(1) - i);
    const A d_f = dc * before * f * (A(1) - f);
    const A d_g = dc * i * (A(1) - g * g);
    A dc_before = dc * f;
    if (peephole != nullptr) {
        dc_before += d_i * to_accumulator(peephole[u]) + d_f * to_accumulator(peephole[H + u]);
    }

    T* grad_gates = static_cast<T*>(op.grad_gates) + row * 4 * H + u;
    grad_gates[0] = to_storage<T>(d_i);
    grad_gates[H] = to_storage<T>(d_f);
    grad_gates[2 * H] = to_storage<T>(d_g);
    grad_gates[3 * H] = to_storage<T>(d_o);
    *grad_cell = dc_before;
}

}  // namespace

size_t lstm_backward_workspace(const LstmLayer& layer) {
    Backward recurrence{};
    recurrence.op.layer = layer;
    return recurrence.lay_out();
}

cudaError_t lstm_backward(const LstmBackward& args, cudaStream_t stream) {
    Backward recurrence{};
    recurrence.op = args;
    recurrence.lay_out();
    return run_recurrence(recurrence, args.workspace, stream);
}

}  // namespace pykernels::cuda
