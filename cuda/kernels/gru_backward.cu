#include "cuda/core/recurrence.cuh"
#include "cuda/kernels/gru.h"

// The walk is the forward's, turned round, with one step more at its end (batch 0) in which what is left flows into h0.
// At each step, for every sequence that runs at it or ran at the step walked before:
//   dh = kept + dgates(step before) W_hh, or grad_h_n where the sequence begins here; + grad_output
//   dn = dh (1 - z) (1 - n^2)   dz = dh (h' - n) z (1 - z)   kept = dh z
//   reset after the product:    dm = dn r         dr = dn m r (1 - r)
//   reset before the product:   dm = dn W_n       dr = dm h' r (1 - r)    kept += dm r

namespace pykernels::cuda {
namespace {

// What both forms have.
struct Backward {
    GruBackward op;
    void* kept = nullptr;  // [D, B, H] the gradient of h' that did not go through W_hh, in the accumulator's type

    static constexpr bool kBackward = true;
    __host__ __device__ const GruLayer& layer() const { return op.layer; }
    __host__ __device__ const RecurrentGradients& gradients() const { return op.gradients; }

    // Places the parts of the workspace and returns the size of all.
    size_t lay_out() {
        Workspace workspace(op.workspace, op.layer);
        kept = workspace.take(accumulator_bytes(op.layer.dtype));
        return workspace.bytes();
    }

    template <class T>
    __device__ Accumulator<T>* kept_of(int64_t d, int64_t b, int64_t u) const {
        return static_cast<Accumulator<T>*>(kept) + sequence_at(op.layer, d, b, op.layer.hidden) + u;
    }
    template <class T>
    __device__ const T* gates_of(const StepRows& rows, int64_t d, int64_t b) const {
        return static_cast<const T*>(op.gates) + (d * op.layer.steps.rows + rows.row + b) * 4 * op.layer.hidden;
    }
    // Row of the gradients: 4H columns where the reset comes after, else 3H.
    template <class T>
    __device__ T* grad_gates_of(int64_t d, int64_t row) const {
        const int64_t columns = (op.layer.reset_after ? 4 : 3) * op.layer.hidden;
        return static_cast<T*>(op.grad_gates) + (d * op.layer.steps.rows + row) * columns;
    }
    // h' of unit u. rows.to is the step walked next, one earlier in time.
    template <class T>
    __device__ Accumulator<T> before(const StepRows& rows, int64_t d, int64_t b, int64_t u) const {
        return b < rows.to
                   ? to_accumulator(static_cast<const T*>(op.output)[output_at(op.layer, d, rows.row_to + b) + u])
                   : load_or_zero(static_cast<const T*>(op.layer.h0), sequence_at(op.layer, d, b, op.layer.state) + u);
    }

    // From the sum of dgates W_hh to the gradients of x_z and x_n, which go to grad_x = (r, z, n) of unit u. Returns
    // that of x_n.
    template <class T>
    __device__ Accumulator<T> finish_candidate(const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                               Accumulator<T> sum, T* grad_x) const {
        using A = Accumulator<T>;
        const int64_t H = op.layer.hidden;
        const A dh =
            state_gradient<T>(op.layer, op.gradients, rows, d, b, u, b < rows.from ? sum + *kept_of<T>(d, b, u) : A(0));
        if (b >= rows.batch) {
            return 0;
        }
        const T* gates = gates_of<T>(rows, d, b) + u;
        const A z = to_accumulator(gates[H]);
        const A n = to_accumulator(gates[2 * H]);
        const A d_n = dh * (A(1) - z) * (A(1) - n * n);
        grad_x[H] = to_storage<T>(dh * (before<T>(rows, d, b, u) - n) * z * (A(1) - z));
        grad_x[2 * H] = to_storage<T>(d_n);
        *kept_of<T>(d, b, u) = dh * z;
        return d_n;
    }
};

// A step: (dm, dr, dz) W_hh, then all else.
struct ResetAfter : Backward {
    struct First {
        static constexpr int kCols = 1;
        // The gradient of m, the part of n in W_hh, comes first.
        template <class T>
        __host__ __device__ static WeightView<T> weights(const ResetAfter& r, int64_t d) {
            const int64_t H = r.layer().hidden;
            return columns_of(static_cast<const T*>(r.layer().weight_hh[d]), H, 3 * H, 2 * H);
        }
        __device__ static int64_t multiplied(const StepRows& rows) { return rows.from; }
        template <class T>
        __device__ static const T* source(const ResetAfter& r, const StepRows& rows, int64_t d, int64_t b) {
            return r.grad_gates_of<T>(d, rows.row_from + b);
        }
        template <class T>
        __device__ static void finish(const ResetAfter& args, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                      const Accumulator<T> (&sum)[kCols]) {
            using A = Accumulator<T>;
            const int64_t H = args.layer().hidden;
            T* grad_m = args.grad_gates_of<T>(d, rows.row + b) + u;
            const A d_n = args.finish_candidate<T>(rows, d, b, u, sum[0], grad_m + H);
            if (b < rows.batch) {
                const T* gates = args.gates_of<T>(rows, d, b) + u;
                const A r = to_accumulator(gates[0]);
                const A m = to_accumulator(gates[3 * H]);
                grad_m[0] = to_storage<T>(d_n * r);
                grad_m[H] = to_storage<T>(d_n * m * r * (A(1) - r));
            }
        }
    };
    using Phases = PhaseList<First>;
};

// A step: (dr, dz) times W_r and W_z, then dn and dz; dm = dn W_n, then dr.
struct ResetBefore : Backward {
    struct First {
        static constexpr int kCols = 1;
        template <class T>
        __host__ __device__ static WeightView<T> weights(const ResetBefore& r, int64_t d) {
            const int64_t H = r.layer().hidden;
            return columns_of(static_cast<const T*>(r.layer().weight_hh[d]), H, 2 * H);
        }
        __device__ static int64_t multiplied(const StepRows& rows) { return rows.from; }
        template <class T>
        __device__ static const T* source(const ResetBefore& r, const StepRows& rows, int64_t d, int64_t b) {
            return r.grad_gates_of<T>(d, rows.row_from + b);
        }
        template <class T>
        __device__ static void finish(const ResetBefore& args, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                      const Accumulator<T> (&sum)[kCols]) {
            args.finish_candidate<T>(rows, d, b, u, sum[0], args.grad_gates_of<T>(d, rows.row + b) + u);
        }
    };

    struct Second {
        static constexpr int kCols = 1;
        template <class T>
        __host__ __device__ static WeightView<T> weights(const ResetBefore& r, int64_t d) {
            const int64_t H = r.layer().hidden;
            return columns_of(static_cast<const T*>(r.layer().weight_hh[d]) + 2 * H * H, H, H);
        }
        __device__ static int64_t multiplied(const StepRows& rows) { return rows.batch; }
        template <class T>
        __device__ static const T* source(const ResetBefore& r, const StepRows& rows, int64_t d, int64_t b) {
            return r.grad_gates_of<T>(d, rows.row + b) + 2 * r.layer().hidden;
        }
        template <class T>
        __device__ static void finish(const ResetBefore& args, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                      const Accumulator<T> (&sum)[kCols]) {
            using A = Accumulator<T>;
            if (b < rows.batch) {
                const A r = to_accumulator(args.gates_of<T>(rows, d, b)[u]);
                const A d_r = sum[0] * args.before<T>(rows, d, b, u) * r * (A(1) - r);
                args.grad_gates_of<T>(d, rows.row + b)[u] = to_storage<T>(d_r);
                *args.kept_of<T>(d, b, u) += sum[0] * r;
            }
        }
    };
    using Phases = PhaseList<First, Second>;
};

}  // namespace

size_t gru_backward_workspace(const GruLayer& layer) {
    Backward recurrence{};
    recurrence.op.layer = layer;
    return recurrence.lay_out();
}

cudaError_t gru_backward(const GruBackward& args, cudaStream_t stream) {
    Backward recurrence{};
    recurrence.op = args;
    recurrence.lay_out();
    return args.layer.reset_after ? run_recurrence(ResetAfter{recurrence}, args.workspace, stream)
                                  : run_recurrence(ResetBefore{recurrence}, args.workspace, stream);
}

}  // namespace pykernels::cuda
