#include "cuda/core/variant_forward.cuh"

namespace pykernels::cuda {
namespace {

// What both forms have.
struct Forward : VariantForwardPass {
    // Saved gates of a row, or null.
    template <class T>
    __device__ T* gates_row(const StepRows& rows, int64_t d, int64_t b) const {
        return op.gates != nullptr
                   ? static_cast<T*>(op.gates) + saved_at(op.layer, d, rows.row + b, 4 * op.layer.hidden)
                   : nullptr;
    }
    template <class T>
    __device__ void finish_update(const StepRows& rows, int64_t d, int64_t b, int64_t u, Accumulator<T> z,
                                  Accumulator<T> n) const {
        finish_state<T>(rows, d, b, u, n + z * (before<T>(rows, d, b, u) - n));
    }
};

// A step: q, then all else.
template <bool kNorm_>
struct ResetAfter : Forward {
    static constexpr bool kNorm = kNorm_;

    template <class T>
    __device__ void finish(const StepRows& rows, int64_t d, int64_t b, int64_t u, const Accumulator<T> (&q)[3]) const {
        using A = Accumulator<T>;
        const int64_t H = op.layer.hidden;
        const T* x = input_of<T>(rows, d, b) + u;
        const A r = logistic(to_accumulator(x[0]) + q[0]);
        const A z = logistic(to_accumulator(x[H]) + q[1]);
        const A n = hyperbolic_tangent(to_accumulator(x[2 * H]) + r * q[2]);
        if (T* gates = gates_row<T>(rows, d, b); gates != nullptr) {
            gates[u] = to_storage<T>(r);
            gates[H + u] = to_storage<T>(z);
            gates[2 * H + u] = to_storage<T>(n);
            gates[3 * H + u] = to_storage<T>(q[2]);
        }
        finish_update<T>(rows, d, b, u, z, n);
    }

    using Phases = OneProduct<kNorm, SumsProduct<ResetAfter, 3>, NormalizedRows<ResetAfter, 3>>;
};

// A step: r, z and m = r s h'; then W_n m, and h.
struct ResetBefore : Forward {
    struct First : FedProduct<2> {
        template <class T>
        __device__ static void finish(const ResetBefore& args, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                      const Accumulator<T> (&sum)[2]) {
            using A = Accumulator<T>;
            const int64_t H = args.layer().hidden;
            const int64_t of_sequence = sequence_at(args.layer(), d, b, H) + u;
            const T* x = args.input_of<T>(rows, d, b) + u;
            A q[2];
            args.add_bias<T>(d, u, sum, q);
            const A r = logistic(to_accumulator(x[0]) + q[0]);
            const A z = logistic(to_accumulator(x[H]) + q[1]);
            const T m = to_storage<T>(r * load_or_zero(args.fed_back<T>(rows, d, b), u));
            static_cast<A*>(args.update)[of_sequence] = z;
            static_cast<T*>(args.between)[of_sequence] = m;
            if (T* gates = args.gates_row<T>(rows, d, b); gates != nullptr) {
                gates[u] = to_storage<T>(r);
                gates[H + u] = to_storage<T>(z);
                gates[3 * H + u] = m;
            }
        }
    };

    struct Second : BetweenProduct {
        template <class T>
        __host__ __device__ static WeightView<T> weights(const ResetBefore& r, int64_t d) {
            const int64_t H = r.layer().hidden;
            return rows_of(static_cast<const T*>(r.layer().weight_hh[d]) + 2 * H * H, H, H);
        }
        template <class T>
        __device__ static void finish(const ResetBefore& args, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                      const Accumulator<T> (&sum)[1]) {
            using A = Accumulator<T>;
            const int64_t column = 2 * args.layer().hidden + u;
            const A x = to_accumulator(args.input_of<T>(rows, d, b)[column]);
            const A n = hyperbolic_tangent(x + (sum[0] + args.bias_of<T>(d, column)));
            const A z = static_cast<const A*>(args.update)[sequence_at(args.layer(), d, b, args.layer().hidden) + u];
            if (T* gates = args.gates_row<T>(rows, d, b); gates != nullptr) {
                gates[column] = to_storage<T>(n);
            }
            args.finish_update<T>(rows, d, b, u, z, n);
        }
    };
    using Phases = PhaseList<First, Second>;
};

}  // namespace

cudaError_t gru_variant_forward(const VariantForward& args, cudaStream_t stream) {
    Forward pass{{args}};
    pass.lay_out();
    if (!args.layer.form) {
        return run_recurrence(ResetBefore{pass}, args.workspace, stream);
    }
    return args.layer.layer_norm ? run_recurrence(ResetAfter<true>{pass}, args.workspace, stream)
                                 : run_recurrence(ResetAfter<false>{pass}, args.workspace, stream);
}

}  // namespace pykernels::cuda
