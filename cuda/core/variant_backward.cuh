// What the backwards of all variants have. The walk is the forward's, turned round, with one step more at its end
// (batch 0) in which what is left flows into the initial states. A step is
//   dh = s (dsums(step before) W_hh) + kept, or grad_h_n where the sequence begins here; + grad_output
//   dh -> what passes zoneout, and what stays with h' (kept)
//   dq of the gates, and with layer_norm dsums, for which the whole row has to be there
#pragma once

#include "cuda/core/variant.cuh"

namespace pykernels::cuda {

// Rows of each direction, side by side in a row or one direction after the other.
struct RowBuffer {
    void* data;
    int64_t direction_stride, row_stride;  // in elements
    template <class T>
    __device__ T* row(int64_t d, int64_t row) const {
        return static_cast<T*>(data) + d * direction_stride + row * row_stride;
    }
};

struct VariantBackwardPass {
    VariantBackward op;
    void* kept = nullptr;           // [D, B, S] gradient of h' that did not go through W_hh, in the accumulator's type
    void* grad_cell = nullptr;      // [D, B, H] LSTM: gradient of c, in the accumulator's type
    void* grad_fresh = nullptr;     // [D, B, H] with layer_norm: gradient of h before zoneout and projection
    RowBuffer recurrent{}, sums{};  // gradients of q and of W_hh (s h')

    static constexpr bool kBackward = true;
    __host__ __device__ const VariantLayer& layer() const { return op.layer; }
    __host__ __device__ const RecurrentGradients& gradients() const { return op.gradients; }

    // Places the parts of the workspace and returns the size of all.
    size_t lay_out() {
        const VariantLayer& layer = op.layer;
        const int64_t summed = accumulator_bytes(layer.dtype);
        const int64_t width = gates_of(layer.kind) * layer.hidden;
        const bool gru = layer.kind == RecurrentKind::gru;
        Workspace workspace(op.workspace, layer);
        kept = gru || is_active(layer.zoneout) ? workspace.take(summed, layer.state) : nullptr;
        grad_cell = layer.kind == RecurrentKind::lstm ? workspace.take(summed) : nullptr;
        grad_fresh = layer.layer_norm ? workspace.take(summed) : nullptr;
        recurrent = {op.grad_input, width, layer.directions * width};
        if (op.grad_recurrent != nullptr) {
            recurrent = {op.grad_recurrent, layer.steps.rows * width, width};
        }
        sums = recurrent;
        if (op.grad_sums != nullptr) {
            sums = {op.grad_sums, layer.steps.rows * width, width};
        }
        return workspace.bytes();
    }

    // h' of unit u. rows.to is the step walked next, one earlier in time.
    template <class T>
    __device__ Accumulator<T> before(const StepRows& rows, int64_t d, int64_t b, int64_t u) const {
        return b < rows.to
                   ? to_accumulator(static_cast<const T*>(op.output)[output_at(op.layer, d, rows.row_to + b) + u])
                   : load_or_zero(static_cast<const T*>(op.layer.h0), sequence_at(op.layer, d, b, op.layer.state) + u);
    }
    // s of unit u.
    template <class T>
    __device__ Accumulator<T> scale(int64_t d, int64_t b, int64_t u) const {
        const T* scales = static_cast<const T*>(op.layer.state_scale);
        return scales != nullptr ? to_accumulator(scales[sequence_at(op.layer, d, b, op.layer.state) + u])
                                 : Accumulator<T>(1);
    }
    template <class T>
    __device__ Accumulator<T>& kept_of(int64_t d, int64_t b, int64_t u) const {
        return static_cast<Accumulator<T>*>(kept)[sequence_at(op.layer, d, b, op.layer.state) + u];
    }
    template <class T>
    __device__ Accumulator<T>& grad_fresh_of(int64_t d, int64_t b, int64_t u) const {
        return static_cast<Accumulator<T>*>(grad_fresh)[sequence_at(op.layer, d, b, op.layer.hidden) + u];
    }
    template <class T>
    __device__ const T* gates_row(const StepRows& rows, int64_t d, int64_t b) const {
        const int64_t width = (op.layer.kind == RecurrentKind::rnn ? 1 : 4) * op.layer.hidden;
        return static_cast<const T*>(op.gates) + saved_at(op.layer, d, rows.row + b, width);
    }

    // From the sum of dsums W_hh to the gradient of h before zoneout; that of h' which passes by is kept.
    template <class T>
    __device__ Accumulator<T> through_state(const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                            Accumulator<T> sum) const {
        using A = Accumulator<T>;
        const VariantLayer& layer = op.layer;
        A from_next = 0;
        if (b < rows.from) {
            from_next = sum * scale<T>(d, b, u) + (kept != nullptr ? load_coherent(&kept_of<T>(d, b, u)) : A(0));
        }
        const A dh = gather_state_gradient<T>(layer, op.gradients, rows, d, b, u, from_next);
        if (b >= rows.batch) {
            return 0;
        }
        const int64_t element = saved_at(layer, d, rows.row + b, layer.state) + u;
        if (op.fed != nullptr) {
            static_cast<T*>(op.fed)[element] = to_storage<T>(before<T>(rows, d, b, u) * scale<T>(d, b, u));
        }
        const Shared<A> share = share_gradient(layer.zoneout, element, dh);
        if (kept != nullptr) {
            kept_of<T>(d, b, u) = share.before;
        }
        return share.fresh;
    }

    // Stores dq of unit u, which becomes what has been stored.
    template <class T, int kGates>
    __device__ void put_recurrent(const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                  Accumulator<T> (&dq)[kGates]) const {
        T* own = recurrent.row<T>(d, rows.row + b) + u;
#pragma unroll
        for (int gate = 0; gate < kGates; ++gate) {
            own[gate * op.layer.hidden] = to_storage<T>(dq[gate]);
            dq[gate] = to_accumulator(own[gate * op.layer.hidden]);
        }
    }

    // The whole row from dq to dsums; ending(u, dq) finds and stores a unit's dq. `stats` are saved of a row.
    template <int kGates, class T, class Ending>
    __device__ void finish_row(const StepRows& rows, int64_t d, int64_t b, int64_t stats, Accumulator<T>* scratch,
                               const Ending& ending) const {
        using A = Accumulator<T>;
        const int64_t H = op.layer.hidden, row = rows.row + b;
        const T* gain = static_cast<const T*>(op.layer.gain[d]);
        const T* normalized = static_cast<const T*>(op.normalized) + saved_at(op.layer, d, row, kGates * H);
        A total[2] = {};
        for (int64_t u = threadIdx.x; u < H; u += kThreads) {
            A dq[kGates];
            ending(u, dq);
#pragma unroll
            for (int gate = 0; gate < kGates; ++gate) {
                const A scaled = dq[gate] * to_accumulator(gain[gate * H + u]);
                total[0] += scaled;
                total[1] += scaled * to_accumulator(normalized[gate * H + u]);
            }
        }
        sum_over_block(total, scratch);
        const T* saved = static_cast<const T*>(op.stats) + saved_at(op.layer, d, row, stats);
        const A count = static_cast<A>(kGates * H);
        const NormGradient<A> norm{to_accumulator(saved[0]), total[0] / count, total[1] / count};
        const T* own = recurrent.row<T>(d, row);
        T* target = sums.row<T>(d, row);
        for (int64_t u = threadIdx.x; u < H; u += kThreads) {
#pragma unroll
            for (int gate = 0; gate < kGates; ++gate) {
                const int64_t column = gate * H + u;
                const A scaled = to_accumulator(own[column]) * to_accumulator(gain[column]);
                target[column] = to_storage<T>(norm.of(scaled, to_accumulator(normalized[column])));
            }
        }
    }
};

// dsums W_hh of the step walked before, of the first kGates gates. A kind adds the ending.
template <int kGates>
struct CarriedProduct {
    static constexpr int kCols = 1;
    template <class T>
    __host__ __device__ static WeightView<T> weights(const VariantBackwardPass& r, int64_t d) {
        return columns_of(static_cast<const T*>(r.layer().weight_hh[d]), r.layer().state, kGates * r.layer().hidden);
    }
    __device__ static int64_t multiplied(const StepRows& rows) { return rows.from; }
    template <class T>
    __device__ static const T* source(const VariantBackwardPass& r, const StepRows& rows, int64_t d, int64_t b) {
        return r.sums.row<T>(d, rows.row_from + b);
    }
};

// A backward of one product, the kind's endings of which are R::finish(..., dh, dq): without layer_norm by the unit,
// with it by the row. The LSTM has its own.
template <class R, int kGates>
struct StateProduct : CarriedProduct<kGates> {
    template <class T>
    __device__ static void finish(const R& r, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                  const Accumulator<T> (&sum)[1]) {
        const Accumulator<T> dh = r.template through_state<T>(rows, d, b, u, sum[0]);
        if (b >= rows.batch) {
            return;
        }
        if constexpr (R::kNorm) {
            r.template grad_fresh_of<T>(d, b, u) = dh;
        } else {
            Accumulator<T> dq[kGates];
            r.template finish<T>(rows, d, b, u, dh, dq);
        }
    }
};

template <class R, int kGates>
struct NormalizedGradientRows {
    template <class T>
    __device__ static void run(const R& r, const StepRows& rows, int64_t d, int64_t b, Accumulator<T>* scratch) {
        if (b >= rows.batch) {
            return;
        }
        r.template finish_row<kGates, T>(rows, d, b, 1, scratch, [&](int64_t u, Accumulator<T>(&dq)[kGates]) {
            r.template finish<T>(rows, d, b, u, load_coherent(&r.template grad_fresh_of<T>(d, b, u)), dq);
        });
    }
};

}  // namespace pykernels::cuda
