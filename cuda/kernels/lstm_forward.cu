#include "cuda/core/recurrence.cuh"
#include "cuda/kernels/lstm.h"

namespace pykernels::cuda {
namespace {

// A step: the gates' sums h' W_hh^T and the cell; with a projection then h = (o tanh(c)) W_hr^T.
struct Forward {
    LstmForward op;
    void* cell_state = nullptr;  // [D, B, H] c, in the accumulator's type
    void* hidden;                // [D, B, H] with a projection: o tanh(c)

    static constexpr bool kBackward = false;
    __host__ __device__ const LstmLayer& layer() const { return op.layer; }
    // Places the parts of the workspace and returns the size of all.
    size_t lay_out() {
        Workspace workspace(op.workspace, op.layer);
        cell_state = workspace.take(accumulator_bytes(op.layer.dtype));
        hidden = op.layer.projection ? workspace.take(storage_bytes(op.layer.dtype)) : nullptr;
        return workspace.bytes();
    }

    struct First {
        static constexpr int kCols = 4;
        template <class T>
        __host__ __device__ static WeightView<T> weights(const Forward& r, int64_t d) {
            return rows_of(static_cast<const T*>(r.layer().weight_hh[d]), r.layer().hidden, r.layer().state);
        }
        __device__ static int64_t multiplied(const StepRows& rows) { return rows.batch; }
        template <class T>
        __device__ static const T* source(const Forward& r, const StepRows& rows, int64_t d, int64_t b) {
            return state_before<T>(r.layer(), r.op.states.output, rows, d, b);
        }
        template <class T>
        __device__ static void finish(const Forward& r, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                      const Accumulator<T> (&sum)[kCols]);
    };

    struct Second {
        static constexpr int kCols = 1;
        __host__ __device__ static bool runs(const Forward& r) { return r.layer().projection; }
        template <class T>
        __host__ __device__ static WeightView<T> weights(const Forward& r, int64_t d) {
            return rows_of(static_cast<const T*>(r.layer().weight_projection[d]), r.layer().state, r.layer().hidden);
        }
        __device__ static int64_t multiplied(const StepRows& rows) { return rows.batch; }
        template <class T>
        __device__ static const T* source(const Forward& r, const StepRows&, int64_t d, int64_t b) {
            return static_cast<const T*>(r.hidden) + sequence_at(r.layer(), d, b, r.layer().hidden);
        }
        template <class T>
        __device__ static void finish(const Forward& r, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                      const Accumulator<T> (&sum)[kCols]) {
            put_state(r.layer(), r.op.states, rows, d, b, u, to_storage<T>(sum[0]));
        }
    };
    using Phases = PhaseList<First, Second>;
};

// From the four sums of W_hh h' to the cell and h of unit u, sequence b.
template <class T>
__device__ void Forward::First::finish(const Forward& r, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                       const Accumulator<T> (&sum)[kCols]) {
    using A = Accumulator<T>;
    const LstmForward& op = r.op;
    const LstmLayer& layer = op.layer;
    const int64_t H = layer.hidden;
    const int64_t row = d * layer.steps.rows + rows.row + b;
    const int64_t of_sequence = sequence_at(layer, d, b, H) + u;
    T* gates = static_cast<T*>(op.gates) + row * 4 * H + u;
    A* cell_state = static_cast<A*>(r.cell_state) + of_sequence;
    const A before = b < rows.from ? *cell_state : load_or_zero(static_cast<const T*>(layer.c0), of_sequence);

    A i = to_accumulator(gates[0]) + sum[0];
    A f = to_accumulator(gates[H]) + sum[1];
    A g = to_accumulator(gates[2 * H]) + sum[2];
    A o = to_accumulator(gates[3 * H]) + sum[3];
    const T* peephole = static_cast<const T*>(layer.peephole[d]);
    if (peephole != nullptr) {
        i += to_accumulator(peephole[u]) * before;
        f += to_accumulator(peephole[H + u]) * before;
    }
    i = logistic(i);
    f = logistic(f);
    g = hyperbolic_tangent(g);
    const A cell = f * before + i * g;
    if (peephole != nullptr) {
        o += to_accumulator(peephole[2 * H + u]) * cell;
    }
    o = logistic(o);
    const T h = to_storage<T>(o * hyperbolic_tangent(cell));

    *cell_state = cell;
    if (op.save) {
        gates[0] = to_storage<T>(i);
        gates[H] = to_storage<T>(f);
        gates[2 * H] = to_storage<T>(g);
        gates[3 * H] = to_storage<T>(o);
        static_cast<T*>(op.cells)[row * H + u] = to_storage<T>(cell);
    }
    if (b >= rows.to) {
        static_cast<T*>(op.c_n)[of_sequence] = to_storage<T>(cell);
    }
    if (layer.projection) {
        static_cast<T*>(r.hidden)[of_sequence] = h;
    } else {
        put_state(layer, op.states, rows, d, b, u, h);
    }
}

}  // namespace

size_t lstm_forward_workspace(const LstmLayer& layer) {
    Forward recurrence{};
    recurrence.op.layer = layer;
    return recurrence.lay_out();
}

cudaError_t lstm_forward(const LstmForward& args, cudaStream_t stream) {
    Forward recurrence{};
    recurrence.op = args;
    recurrence.lay_out();
    return run_recurrence(recurrence, args.workspace, stream);
}

}  // namespace pykernels::cuda
