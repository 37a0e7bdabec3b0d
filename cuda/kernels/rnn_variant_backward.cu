#include "cuda/core/variant_backward.cuh"

namespace pykernels::cuda {
namespace {

template <bool kNorm_>
struct Backward : VariantBackwardPass {
    static constexpr bool kNorm = kNorm_;

    // Through f, whose derivative follows from its result. The gradient passes where that is not a number.
    template <class T>
    __device__ void finish(const StepRows& rows, int64_t d, int64_t b, int64_t u, Accumulator<T> dh,
                           Accumulator<T> (&dq)[1]) const {
        using A = Accumulator<T>;
        const A h = to_accumulator(gates_row<T>(rows, d, b)[u]);
        dq[0] = !op.layer.form ? dh * (A(1) - h * h) : h <= A(0) ? A(0) : dh;
        put_recurrent<T>(rows, d, b, u, dq);
    }

    using Phases = OneProduct<kNorm, StateProduct<Backward, 1>, NormalizedGradientRows<Backward, 1>>;
};

}  // namespace

cudaError_t rnn_variant_backward(const VariantBackward& args, cudaStream_t stream) {
    VariantBackwardPass pass{args};
    pass.lay_out();
    return args.layer.layer_norm ? run_recurrence(Backward<true>{pass}, args.workspace, stream)
                                 : run_recurrence(Backward<false>{pass}, args.workspace, stream);
}

}  // namespace pykernels::cuda
