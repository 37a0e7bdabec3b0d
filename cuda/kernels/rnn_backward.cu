#include "cuda/core/recurrence.cuh"
#include "cuda/kernels/rnn.h"

// The walk is the forward's, turned round, with one step more at its end (batch 0) in which what is left flows into h0.
// At each step, for every sequence that runs at it or ran at the step walked before:
//   ds = dx(step before) W_hh, or grad_h_n where the sequence begins here; + grad_output
//   dx = dh f'(h), where dh = ds, or with a projection dh = ds W_ho

namespace pykernels::cuda {
namespace {

struct Backward {
    RnnBackward op;

    static constexpr bool kBackward = true;
    __host__ __device__ const RnnLayer& layer() const { return op.layer; }
    __host__ __device__ const RecurrentGradients& gradients() const { return op.gradients; }
    // Through f, whose derivative follows from its result. The gradient passes where that is not a number.
    template <class T>
    __device__ void finish_hidden(const StepRows& rows, int64_t d, int64_t b, int64_t u, Accumulator<T> dh) const {
        using A = Accumulator<T>;
        const int64_t place = (d * op.layer.steps.rows + rows.row + b) * op.layer.hidden + u;
        const A h = to_accumulator(op.layer.projection
                                       ? static_cast<const T*>(op.hidden)[place]
                                       : static_cast<const T*>(op.output)[output_at(op.layer, d, rows.row + b) + u]);
        const A d_x = !op.layer.relu ? dh * (A(1) - h * h) : h <= A(0) ? A(0) : dh;
        static_cast<T*>(op.grad_gates)[place] = to_storage<T>(d_x);
    }

    struct First {
        static constexpr int kCols = 1;
        template <class T>
        __host__ __device__ static WeightView<T> weights(const Backward& r, int64_t d) {
            return columns_of(static_cast<const T*>(r.layer().weight_hh[d]), r.layer().state, r.layer().hidden);
        }
        __device__ static int64_t multiplied(const StepRows& rows) { return rows.from; }
        template <class T>
        __device__ static const T* source(const Backward& r, const StepRows& rows, int64_t d, int64_t b) {
            const int64_t row = d * r.layer().steps.rows + rows.row_from + b;
            return static_cast<const T*>(r.op.grad_gates) + row * r.layer().hidden;
        }
        template <class T>
        __device__ static void finish(const Backward& r, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                      const Accumulator<T> (&sum)[kCols]) {
            const Accumulator<T> ds = state_gradient<T>(r.layer(), r.gradients(), rows, d, b, u, sum[0]);
            if (!r.layer().projection && b < rows.batch) {
                r.finish_hidden<T>(rows, d, b, u, ds);
            }
        }
    };

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
            if (b < rows.batch) {
                r.finish_hidden<T>(rows, d, b, u, sum[0]);
            }
        }
    };
    using Phases = PhaseList<First, Second>;
};

}  // namespace

size_t rnn_backward_workspace(const RnnLayer& layer) { return Workspace(nullptr, layer).bytes(); }

cudaError_t rnn_backward(const RnnBackward& args, cudaStream_t stream) {
    return run_recurrence(Backward{args}, args.workspace, stream);
}

}  // namespace pykernels::cuda
