#include "cuda/core/recurrence.cuh"
#include "cuda/kernels/rnn.h"

namespace pykernels::cuda {
namespace {

// A step: h from W_hh s'; with a projection then s from W_ho h.
struct Forward {
    RnnForward op;

    static constexpr bool kBackward = false;
    __host__ __device__ const RnnLayer& layer() const { return op.layer; }
    template <class T>
    __device__ T* hidden_of(const StepRows& rows, int64_t d, int64_t b) const {
        return static_cast<T*>(op.hidden) + (d * op.layer.steps.rows + rows.row + b) * op.layer.hidden;
    }

    struct First {
        static constexpr int kCols = 1;
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
                                      const Accumulator<T> (&sum)[kCols]) {
            using A = Accumulator<T>;
            const RnnLayer& layer = r.layer();
            T* place = layer.projection ? r.hidden_of<T>(rows, d, b) + u
                                        : static_cast<T*>(r.op.states.output) + output_at(layer, d, rows.row + b) + u;
            const A x = to_accumulator(*place) + sum[0];
            const T h = to_storage<T>(!layer.relu ? hyperbolic_tangent(x) : x <= A(0) ? A(0) : x);
            if (layer.projection) {
                *place = h;
            } else {
                put_state(layer, r.op.states, rows, d, b, u, h);
            }
        }
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
        __device__ static const T* source(const Forward& r, const StepRows& rows, int64_t d, int64_t b) {
            return r.hidden_of<T>(rows, d, b);
        }
        template <class T>
        __device__ static void finish(const Forward& r, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                      const Accumulator<T> (&sum)[kCols]) {
            const auto* bias = static_cast<const T*>(r.layer().bias_projection[d]);
            put_state(r.layer(), r.op.states, rows, d, b, u, to_storage<T>(sum[0] + load_or_zero(bias, u)));
        }
    };
    using Phases = PhaseList<First, Second>;
};

}  // namespace

size_t rnn_forward_workspace(const RnnLayer& layer) { return Workspace(nullptr, layer).bytes(); }

cudaError_t rnn_forward(const RnnForward& args, cudaStream_t stream) {
    return run_recurrence(Forward{args}, args.workspace, stream);
}

}  // namespace pykernels::cuda
