#include "cuda/core/variant_forward.cuh"

namespace pykernels::cuda {
namespace {

template <bool kNorm_>
struct Forward : VariantForwardPass {
    static constexpr bool kNorm = kNorm_;

    template <class T>
    __device__ void finish(const StepRows& rows, int64_t d, int64_t b, int64_t u, const Accumulator<T> (&q)[1]) const {
        using A = Accumulator<T>;
        const A x = to_accumulator(input_of<T>(rows, d, b)[u]) + q[0];
        const A h = !op.layer.form ? hyperbolic_tangent(x) : x <= A(0) ? A(0) : x;
        if (op.gates != nullptr) {
            T* gates = static_cast<T*>(op.gates) + saved_at(op.layer, d, rows.row + b, op.layer.hidden);
            gates[u] = to_storage<T>(h);
        }
        finish_state<T>(rows, d, b, u, h);
    }

    using Phases = OneProduct<kNorm, SumsProduct<Forward, 1>, NormalizedRows<Forward, 1>>;
};

}  // namespace

cudaError_t rnn_variant_forward(const VariantForward& args, cudaStream_t stream) {
    VariantForwardPass pass{args};
    pass.lay_out();
    return args.layer.layer_norm ? run_recurrence(Forward<true>{pass}, args.workspace, stream)
                                 : run_recurrence(Forward<false>{pass}, args.workspace, stream);
}

}  // namespace pykernels::cuda
