// What the forwards of all variants have.
#pragma once

#include "cuda/core/variant.cuh"

namespace pykernels::cuda {

struct VariantForwardPass {
    VariantForward op;
    void* state = nullptr;    // [D, B, S] h, in the accumulator's type, where a step needs more of h' than its product
    void* fed = nullptr;      // [2, D, B, S] with state_scale: s h of this step and of the one before, in turn
    void* cell = nullptr;     // [D, B, H] LSTM: c, in the accumulator's type
    void* sums = nullptr;     // [D, B, G*H] with layer_norm: W_hh (s h'), in the accumulator's type
    void* between = nullptr;  // [D, B, H] what the second product takes
    void* update = nullptr;   // [D, B, H] GRU with the reset before: z, in the accumulator's type

    static constexpr bool kBackward = false;
    __host__ __device__ const VariantLayer& layer() const { return op.layer; }

    // Places the parts of the workspace and returns the size of all.
    size_t lay_out() {
        const VariantLayer& layer = op.layer;
        const int64_t stored = storage_bytes(layer.dtype), summed = accumulator_bytes(layer.dtype);
        const bool gru = layer.kind == RecurrentKind::gru, lstm = layer.kind == RecurrentKind::lstm;
        Workspace workspace(op.workspace, layer);
        state = gru || is_active(layer.zoneout) ? workspace.take(summed, layer.state) : nullptr;
        fed = layer.state_scale != nullptr ? workspace.take(stored, 2 * layer.state) : nullptr;
        cell = lstm ? workspace.take(summed) : nullptr;
        sums = layer.layer_norm ? workspace.take(summed, gates_of(layer.kind) * layer.hidden) : nullptr;
        between = layer.projection || (gru && !layer.form) ? workspace.take(stored) : nullptr;
        update = gru && !layer.form ? workspace.take(summed) : nullptr;
        return workspace.bytes();
    }

    // Where s h of step t lies.
    template <class T>
    __device__ T* fed_at(int64_t t, int64_t d, int64_t b) const {
        return static_cast<T*>(fed) + (t & 1) * op.layer.directions * op.layer.steps.batch * op.layer.state +
               sequence_at(op.layer, d, b, op.layer.state);
    }
    // s h' of sequence b; null for zeros.
    template <class T>
    __device__ const T* fed_back(const StepRows& rows, int64_t d, int64_t b) const {
        if (op.layer.state_scale == nullptr) {
            return state_before<T>(op.layer, op.states.output, rows, d, b);
        }
        if (b < rows.from) {
            return fed_at<T>(rows.t + 1, d, b);
        }
        const T* first = static_cast<const T*>(op.fed0);
        return first != nullptr ? first + sequence_at(op.layer, d, b, op.layer.state) : nullptr;
    }
    // h' of unit u, where `state` is kept.
    template <class T>
    __device__ Accumulator<T> before(const StepRows& rows, int64_t d, int64_t b, int64_t u) const {
        const int64_t of_sequence = sequence_at(op.layer, d, b, op.layer.state) + u;
        return b < rows.from ? static_cast<const Accumulator<T>*>(state)[of_sequence]
                             : load_or_zero(static_cast<const T*>(op.layer.h0), of_sequence);
    }
    // From what a step has come to to the state after it.
    template <class T>
    __device__ void finish_state(const StepRows& rows, int64_t d, int64_t b, int64_t u, Accumulator<T> fresh) const {
        const VariantLayer& layer = op.layer;
        const int64_t of_sequence = sequence_at(layer, d, b, layer.state) + u;
        Accumulator<T> h = fresh;
        if (is_active(layer.zoneout)) {
            const int64_t element = saved_at(layer, d, rows.row + b, layer.state) + u;
            h = after_zoneout(layer.zoneout, element, before<T>(rows, d, b, u), fresh);
        }
        if (state != nullptr) {
            static_cast<Accumulator<T>*>(state)[of_sequence] = h;
        }
        const T stored = to_storage<T>(h);
        put_state(layer, op.states, rows, d, b, u, stored);
        if (layer.state_scale != nullptr) {
            const T scale = static_cast<const T*>(layer.state_scale)[of_sequence];
            fed_at<T>(rows.t, d, b)[u] = to_storage<T>(to_accumulator(stored) * to_accumulator(scale));
        }
    }

    // Input part of a row.
    template <class T>
    __device__ const T* input_of(const StepRows& rows, int64_t d, int64_t b) const {
        const int64_t width = gates_of(op.layer.kind) * op.layer.hidden;
        return static_cast<const T*>(op.input) + part_at(op.layer, d, rows.row + b, width);
    }
    template <class T>
    __device__ Accumulator<T> bias_of(int64_t d, int64_t column) const {
        return load_or_zero(static_cast<const T*>(op.layer.bias[d]), column);
    }
    template <class T>
    __device__ Accumulator<T>* sums_of(int64_t d, int64_t b) const {
        return static_cast<Accumulator<T>*>(sums) +
               sequence_at(op.layer, d, b, gates_of(op.layer.kind) * op.layer.hidden);
    }

    // Keeps a unit's sums until those of all units are there to be normalised.
    template <class T, int kGates>
    __device__ void keep_sums(int64_t d, int64_t b, int64_t u, const Accumulator<T> (&sum)[kGates]) const {
#pragma unroll
        for (int gate = 0; gate < kGates; ++gate) {
            sums_of<T>(d, b)[gate * op.layer.hidden + u] = sum[gate];
        }
    }
    template <class T, int kGates>
    __device__ void add_bias(int64_t d, int64_t u, const Accumulator<T> (&sum)[kGates],
                             Accumulator<T> (&q)[kGates]) const {
#pragma unroll
        for (int gate = 0; gate < kGates; ++gate) {
            q[gate] = sum[gate] + bias_of<T>(d, gate * op.layer.hidden + u);
        }
    }
    // The row's statistics; saved are `stats` of them.
    template <class T, int kGates>
    __device__ Moments<Accumulator<T>> normalize_sums(const StepRows& rows, int64_t d, int64_t b, int64_t stats,
                                                      Accumulator<T>* scratch) const {
        const Accumulator<T>* own = sums_of<T>(d, b);
        const int64_t H = op.layer.hidden;
        const auto moments =
            moments_of<kGates>(H, [&](int64_t u, int gate) { return load_coherent(own + gate * H + u); }, scratch);
        if (op.stats != nullptr && threadIdx.x == 0) {
            T* saved = static_cast<T*>(op.stats) + saved_at(op.layer, d, rows.row + b, stats);
            saved[0] = to_storage<T>(moments.inverse);
        }
        return moments;
    }
    // q of unit u.
    template <class T, int kGates>
    __device__ void normalized_sums(const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                    const Moments<Accumulator<T>>& moments, Accumulator<T> (&q)[kGates]) const {
        const int64_t H = op.layer.hidden;
        const int64_t row = saved_at(op.layer, d, rows.row + b, kGates * H);
#pragma unroll
        for (int gate = 0; gate < kGates; ++gate) {
            const int64_t column = gate * H + u;
            const Accumulator<T> value = moments.normalized(load_coherent(sums_of<T>(d, b) + column));
            if (op.normalized != nullptr) {
                static_cast<T*>(op.normalized)[row + column] = to_storage<T>(value);
            }
            q[gate] = value * to_accumulator(static_cast<const T*>(op.layer.gain[d])[column]) + bias_of<T>(d, column);
        }
    }
};

// W_hh (s h'), of the first kCols gates. A kind adds the ending.
template <int kCols_>
struct FedProduct {
    static constexpr int kCols = kCols_;
    template <class T>
    __host__ __device__ static WeightView<T> weights(const VariantForwardPass& r, int64_t d) {
        return rows_of(static_cast<const T*>(r.layer().weight_hh[d]), r.layer().hidden, r.layer().state);
    }
    __device__ static int64_t multiplied(const StepRows& rows) { return rows.batch; }
    template <class T>
    __device__ static const T* source(const VariantForwardPass& r, const StepRows& rows, int64_t d, int64_t b) {
        return r.fed_back<T>(rows, d, b);
    }
};

// What `between` holds, times a matrix.
struct BetweenProduct {
    static constexpr int kCols = 1;
    __device__ static int64_t multiplied(const StepRows& rows) { return rows.batch; }
    template <class T>
    __device__ static const T* source(const VariantForwardPass& r, const StepRows&, int64_t d, int64_t b) {
        return static_cast<const T*>(r.between) + sequence_at(r.layer(), d, b, r.layer().hidden);
    }
};

// A forward of one product, the kind's endings of which are R::finish: without layer_norm by the unit, with it by the
// row. The LSTM has its own.
template <class R, int kGates>
struct SumsProduct : FedProduct<kGates> {
    template <class T>
    __device__ static void finish(const R& r, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                  const Accumulator<T> (&sum)[kGates]) {
        if constexpr (R::kNorm) {
            r.template keep_sums<T>(d, b, u, sum);
        } else {
            Accumulator<T> q[kGates];
            r.template add_bias<T>(d, u, sum, q);
            r.template finish<T>(rows, d, b, u, q);
        }
    }
};

template <class R, int kGates>
struct NormalizedRows {
    template <class T>
    __device__ static void run(const R& r, const StepRows& rows, int64_t d, int64_t b, Accumulator<T>* scratch) {
        const auto moments = r.template normalize_sums<T, kGates>(rows, d, b, 1, scratch);
        for (int64_t u = threadIdx.x; u < r.layer().hidden; u += kThreads) {
            Accumulator<T> q[kGates];
            r.template normalized_sums<T>(rows, d, b, u, moments, q);
            r.template finish<T>(rows, d, b, u, q);
        }
    }
};

}  // namespace pykernels::cuda
