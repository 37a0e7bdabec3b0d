#include "cuda/core/variant_backward.cuh"

// At each step, from dh, the gradient of h before zoneout:
//   dn = dh (1 - z) (1 - n^2)   dz = dh (h' - n) z (1 - z)   kept += dh z
//   reset after the product:    dm = dn r         dr = dn m r (1 - r)
//   reset before the product:   dm = dn W_n       dr = dm s h' r (1 - r)    kept += dm r s

namespace pykernels::cuda {
namespace {

// What both forms have.
struct Backward : VariantBackwardPass {
    // Stores dz and dn, which are part of the input's gradient, and returns dn.
    template <class T>
    __device__ Accumulator<T> finish_candidate(const StepRows& rows, int64_t d, int64_t b, int64_t u, Accumulator<T> dh,
                                               Accumulator<T>& d_z) const {
        using A = Accumulator<T>;
        const int64_t H = op.layer.hidden;
        const T* gates = gates_row<T>(rows, d, b) + u;
        const A z = to_accumulator(gates[H]);
        const A n = to_accumulator(gates[2 * H]);
        d_z = dh * (before<T>(rows, d, b, u) - n) * z * (A(1) - z);
        const A d_n = dh * (A(1) - z) * (A(1) - n * n);
        A& kept = kept_of<T>(d, b, u);
        kept = load_coherent(&kept) + dh * z;
        T* grad_x = static_cast<T*>(op.grad_input) + part_at(op.layer, d, rows.row + b, 3 * H) + u;
        grad_x[H] = to_storage<T>(d_z);
        grad_x[2 * H] = to_storage<T>(d_n);
        return d_n;
    }
};

template <bool kNorm_>
struct ResetAfter : Backward {
    static constexpr bool kNorm = kNorm_;

    template <class T>
    __device__ void finish(const StepRows& rows, int64_t d, int64_t b, int64_t u, Accumulator<T> dh,
                           Accumulator<T> (&dq)[3]) const {
        using A = Accumulator<T>;
        const int64_t H = op.layer.hidden;
        const T* gates = gates_row<T>(rows, d, b) + u;
        const A r = to_accumulator(gates[0]);
        const A m = to_accumulator(gates[3 * H]);
        const A d_n = finish_candidate<T>(rows, d, b, u, dh, dq[1]);
        dq[0] = d_n * m * r * (A(1) - r);
        dq[2] = d_n * r;
        static_cast<T*>(op.grad_input)[part_at(op.layer, d, rows.row + b, 3 * H) + u] = to_storage<T>(dq[0]);
        put_recurrent<T>(rows, d, b, u, dq);
    }

    using Phases = OneProduct<kNorm, StateProduct<ResetAfter, 3>, NormalizedGradientRows<ResetAfter, 3>>;
};

// A step: (dr, dz) times W_r and W_z, then dn and dz; dm = dn W_n, then dr.
struct ResetBefore : Backward {
    struct First : CarriedProduct<2> {
        template <class T>
        __device__ static void finish(const ResetBefore& args, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                      const Accumulator<T> (&sum)[1]) {
            const Accumulator<T> dh = args.through_state<T>(rows, d, b, u, sum[0]);
            if (b < rows.batch) {
                Accumulator<T> d_z;
                args.finish_candidate<T>(rows, d, b, u, dh, d_z);
            }
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
            return r.recurrent.row<T>(d, rows.row + b) + 2 * r.layer().hidden;
        }
        template <class T>
        __device__ static void finish(const ResetBefore& args, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                      const Accumulator<T> (&sum)[1]) {
            using A = Accumulator<T>;
            if (b < rows.batch) {
                const A r = to_accumulator(args.gates_row<T>(rows, d, b)[u]);
                const A scale = args.scale<T>(d, b, u);
                const A d_r = sum[0] * (scale * args.before<T>(rows, d, b, u)) * r * (A(1) - r);
                args.recurrent.row<T>(d, rows.row + b)[u] = to_storage<T>(d_r);
                args.kept_of<T>(d, b, u) += sum[0] * r * scale;
            }
        }
    };
    using Phases = PhaseList<First, Second>;
};

}  // namespace

cudaError_t gru_variant_backward(const VariantBackward& args, cudaStream_t stream) {
    Backward pass{{args}};
    pass.lay_out();
    if (!args.layer.form) {
        return run_recurrence(ResetBefore{pass}, args.workspace, stream);
    }
    return args.layer.layer_norm ? run_recurrence(ResetAfter<true>{pass}, args.workspace, stream)
                                 : run_recurrence(ResetAfter<false>{pass}, args.workspace, stream);
}

}  // namespace pykernels::cuda
