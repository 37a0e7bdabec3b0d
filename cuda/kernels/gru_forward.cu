#include "cuda/core/recurrence.cuh"
#include "cuda/kernels/gru.h"

namespace pykernels::cuda {
namespace {

// What both forms have.
struct Forward {
    GruForward op;
    void* state;             // [D, B, H] h, in the accumulator's type
    void* update = nullptr;  // [D, B, H] where the reset comes before: z, in the accumulator's type

    static constexpr bool kBackward = false;
    __host__ __device__ const GruLayer& layer() const { return op.layer; }

    // Places the parts of the workspace and returns the size of all.
    size_t lay_out() {
        Workspace workspace(op.workspace, op.layer);
        state = workspace.take(accumulator_bytes(op.layer.dtype));
        update = op.layer.reset_after ? nullptr : workspace.take(accumulator_bytes(op.layer.dtype));
        return workspace.bytes();
    }

    __host__ __device__ int64_t gate_columns() const { return (op.save ? 4 : 3) * op.layer.hidden; }
    // Where m is kept between the products: in its own place, or in that of x_r, which has been read.
    __host__ __device__ int64_t reset_column() const { return op.save ? 3 * op.layer.hidden : 0; }
    template <class T>
    __device__ T* gates_of(const StepRows& rows, int64_t d, int64_t b) const {
        return static_cast<T*>(op.gates) + (d * op.layer.steps.rows + rows.row + b) * gate_columns();
    }
    // h of the step before, of unit u.
    template <class T>
    __device__ Accumulator<T> before(const StepRows& rows, int64_t d, int64_t b, int64_t u) const {
        const int64_t of_sequence = sequence_at(op.layer, d, b, op.layer.hidden) + u;
        return b < rows.from ? static_cast<const Accumulator<T>*>(state)[of_sequence]
                             : load_or_zero(static_cast<const T*>(op.layer.h0), of_sequence);
    }
    // h from the activated gates.
    template <class T>
    __device__ void finish_state(const StepRows& rows, int64_t d, int64_t b, int64_t u, Accumulator<T> z,
                                 Accumulator<T> n, Accumulator<T> h_before) const {
        const Accumulator<T> h = n + z * (h_before - n);
        static_cast<Accumulator<T>*>(state)[sequence_at(op.layer, d, b, op.layer.hidden) + u] = h;
        put_state(op.layer, op.states, rows, d, b, u, to_storage<T>(h));
    }
};

// A step: the three sums of W_hh h', then all else.
struct ResetAfter : Forward {
    struct First {
        static constexpr int kCols = 3;
        template <class T>
        __host__ __device__ static WeightView<T> weights(const ResetAfter& r, int64_t d) {
            return rows_of(static_cast<const T*>(r.layer().weight_hh[d]), r.layer().hidden, r.layer().hidden);
        }
        __device__ static int64_t multiplied(const StepRows& rows) { return rows.batch; }
        template <class T>
        __device__ static const T* source(const ResetAfter& r, const StepRows& rows, int64_t d, int64_t b) {
            return state_before<T>(r.layer(), r.op.states.output, rows, d, b);
        }
        template <class T>
        __device__ static void finish(const ResetAfter& args, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                      const Accumulator<T> (&sum)[kCols]) {
            using A = Accumulator<T>;
            const int64_t H = args.layer().hidden;
            T* gates = args.gates_of<T>(rows, d, b) + u;
            const A r = logistic(to_accumulator(gates[0]) + sum[0]);
            const A z = logistic(to_accumulator(gates[H]) + sum[1]);
            const A m = sum[2] + load_or_zero(static_cast<const T*>(args.layer().bias_hn[d]), u);
            const A n = hyperbolic_tangent(to_accumulator(gates[2 * H]) + r * m);
            if (args.op.save) {
                gates[0] = to_storage<T>(r);
                gates[H] = to_storage<T>(z);
                gates[2 * H] = to_storage<T>(n);
                gates[3 * H] = to_storage<T>(m);
            }
            args.finish_state<T>(rows, d, b, u, z, n, args.before<T>(rows, d, b, u));
        }
    };
    using Phases = PhaseList<First>;
};

// A step: the sums of W_r h' and W_z h', and m = r h'; then the sum of W_n m, and h.
struct ResetBefore : Forward {
    struct First {
        static constexpr int kCols = 2;
        template <class T>
        __host__ __device__ static WeightView<T> weights(const ResetBefore& r, int64_t d) {
            return rows_of(static_cast<const T*>(r.layer().weight_hh[d]), r.layer().hidden, r.layer().hidden);
        }
        __device__ static int64_t multiplied(const StepRows& rows) { return rows.batch; }
        template <class T>
        __device__ static const T* source(const ResetBefore& r, const StepRows& rows, int64_t d, int64_t b) {
            return state_before<T>(r.layer(), r.op.states.output, rows, d, b);
        }
        template <class T>
        __device__ static void finish(const ResetBefore& args, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                      const Accumulator<T> (&sum)[kCols]) {
            using A = Accumulator<T>;
            const int64_t H = args.layer().hidden;
            T* gates = args.gates_of<T>(rows, d, b) + u;
            const A r = logistic(to_accumulator(gates[0]) + sum[0]);
            const A z = logistic(to_accumulator(gates[H]) + sum[1]);
            static_cast<A*>(args.update)[sequence_at(args.layer(), d, b, H) + u] = z;
            if (args.op.save) {
                gates[0] = to_storage<T>(r);
                gates[H] = to_storage<T>(z);
            }
            gates[args.reset_column()] = to_storage<T>(r * args.before<T>(rows, d, b, u));
        }
    };

    struct Second {
        static constexpr int kCols = 1;
        template <class T>
        __host__ __device__ static WeightView<T> weights(const ResetBefore& r, int64_t d) {
            const int64_t H = r.layer().hidden;
            return rows_of(static_cast<const T*>(r.layer().weight_hh[d]) + 2 * H * H, H, H);
        }
        __device__ static int64_t multiplied(const StepRows& rows) { return rows.batch; }
        template <class T>
        __device__ static const T* source(const ResetBefore& r, const StepRows& rows, int64_t d, int64_t b) {
            return r.gates_of<T>(rows, d, b) + r.reset_column();
        }
        template <class T>
        __device__ static void finish(const ResetBefore& args, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                      const Accumulator<T> (&sum)[kCols]) {
            using A = Accumulator<T>;
            const int64_t H = args.layer().hidden;
            T* candidate = args.gates_of<T>(rows, d, b) + 2 * H + u;
            const A n = hyperbolic_tangent(to_accumulator(*candidate) + sum[0]);
            const A z = static_cast<const A*>(args.update)[sequence_at(args.layer(), d, b, H) + u];
            if (args.op.save) {
                *candidate = to_storage<T>(n);
            }
            args.finish_state<T>(rows, d, b, u, z, n, args.before<T>(rows, d, b, u));
        }
    };
    using Phases = PhaseList<First, Second>;
};

}  // namespace

size_t gru_forward_workspace(const GruLayer& layer) {
    Forward recurrence{};
    recurrence.op.layer = layer;
    return recurrence.lay_out();
}

cudaError_t gru_forward(const GruForward& args, cudaStream_t stream) {
    Forward recurrence{};
    recurrence.op = args;
    recurrence.lay_out();
    return args.layer.reset_after ? run_recurrence(ResetAfter{recurrence}, args.workspace, stream)
                                  : run_recurrence(ResetBefore{recurrence}, args.workspace, stream);
}

}  // namespace pykernels::cuda
