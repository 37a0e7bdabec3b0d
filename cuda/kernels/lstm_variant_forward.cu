#include "cuda/core/variant_forward.cuh"

namespace pykernels::cuda {
namespace {

template <class A>
struct CellAndGate {
    A cell, o;  // the cell before zoneout, and the gate that it goes out through
};

// A step: q and the cell; with a projection then W_hr (o tanh(cell)).
template <bool kNorm>
struct Forward : VariantForwardPass {
    template <class T>
    __device__ CellAndGate<Accumulator<T>> activate(const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                                    const Accumulator<T> (&q)[4]) const;

    template <class T>
    __device__ void finish_hidden(const StepRows& rows, int64_t d, int64_t b, int64_t u, Accumulator<T> o,
                                  Accumulator<T> seen) const {
        const Accumulator<T> h = o * hyperbolic_tangent(seen);
        if (op.layer.projection) {
            static_cast<T*>(between)[sequence_at(op.layer, d, b, op.layer.hidden) + u] = to_storage<T>(h);
        } else {
            finish_state<T>(rows, d, b, u, h);
        }
    }

    struct First : FedProduct<4> {
        template <class T>
        __device__ static void finish(const Forward& r, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                      const Accumulator<T> (&sum)[4]) {
            if constexpr (kNorm) {
                r.template keep_sums<T>(d, b, u, sum);
            } else {
                Accumulator<T> q[4];
                r.template add_bias<T>(d, u, sum, q);
                const auto [cell, o] = r.template activate<T>(rows, d, b, u, q);
                r.template finish_hidden<T>(rows, d, b, u, o, cell);
            }
        }
    };

    struct Rows {
        template <class T>
        __device__ static void run(const Forward& r, const StepRows& rows, int64_t d, int64_t b,
                                   Accumulator<T>* scratch) {
            using A = Accumulator<T>;
            const int64_t H = r.layer().hidden;
            const auto moments = r.template normalize_sums<T, 4>(rows, d, b, 3, scratch);
            // A unit's sums give way to its cell and its gate; the same thread has the unit in every loop.
            A *cells = r.template sums_of<T>(d, b), *gates = cells + H;
            for (int64_t u = threadIdx.x; u < H; u += kThreads) {
                A q[4];
                r.template normalized_sums<T>(rows, d, b, u, moments, q);
                const auto [cell, o] = r.template activate<T>(rows, d, b, u, q);
                cells[u] = cell;
                gates[u] = o;
            }
            const auto of_cell = moments_of<1>(H, [&](int64_t u, int) { return cells[u]; }, scratch);
            if (r.op.stats != nullptr && threadIdx.x == 0) {
                T* saved = static_cast<T*>(r.op.stats) + saved_at(r.layer(), d, rows.row + b, 3);
                saved[1] = to_storage<T>(of_cell.mean);
                saved[2] = to_storage<T>(of_cell.inverse);
            }
            const T *gain = static_cast<const T*>(r.layer().cell_gain[d]),
                    *shift = static_cast<const T*>(r.layer().cell_shift[d]);
            for (int64_t u = threadIdx.x; u < H; u += kThreads) {
                const A seen = of_cell.normalized(cells[u]) * to_accumulator(gain[u]) + to_accumulator(shift[u]);
                r.template finish_hidden<T>(rows, d, b, u, gates[u], seen);
            }
        }
    };

    struct Second : BetweenProduct {
        __host__ __device__ static bool runs(const Forward& r) { return r.layer().projection; }
        template <class T>
        __host__ __device__ static WeightView<T> weights(const Forward& r, int64_t d) {
            return rows_of(static_cast<const T*>(r.layer().weight_projection[d]), r.layer().state, r.layer().hidden);
        }
        template <class T>
        __device__ static void finish(const Forward& r, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                      const Accumulator<T> (&sum)[1]) {
            r.template finish_state<T>(rows, d, b, u, sum[0]);
        }
    };
    using Phases = std::conditional_t<kNorm, PhaseList<First, Rows, Second>, PhaseList<First, Second>>;
};

// From q to the cell of unit u, sequence b.
template <bool kNorm>
template <class T>
__device__ CellAndGate<Accumulator<T>> Forward<kNorm>::activate(const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                                                const Accumulator<T> (&q)[4]) const {
    using A = Accumulator<T>;
    const VariantLayer& layer = op.layer;
    const int64_t H = layer.hidden, row = rows.row + b;
    const int64_t of_sequence = sequence_at(layer, d, b, H) + u;
    A* own_cell = static_cast<A*>(cell) + of_sequence;
    const A cell_before = b < rows.from ? *own_cell : load_or_zero(static_cast<const T*>(layer.c0), of_sequence);

    const T* x = input_of<T>(rows, d, b) + u;
    A i = to_accumulator(x[0]) + q[0];
    A f = to_accumulator(x[H]) + q[1];
    A g = to_accumulator(x[2 * H]) + q[2];
    A o = to_accumulator(x[3 * H]) + q[3];
    const T* peephole = static_cast<const T*>(layer.peephole[d]);
    if (peephole != nullptr) {
        i += to_accumulator(peephole[u]) * cell_before;
        f += to_accumulator(peephole[H + u]) * cell_before;
    }
    i = logistic(i);
    f = logistic(f);
    g = hyperbolic_tangent(g);
    const A fresh = f * cell_before + i * g;
    if (peephole != nullptr) {
        o += to_accumulator(peephole[2 * H + u]) * fresh;
    }
    o = logistic(o);

    const A kept = after_zoneout(layer.zoneout_cell, saved_at(layer, d, row, H) + u, cell_before, fresh);
    *own_cell = kept;
    if (op.gates != nullptr) {
        T* gates = static_cast<T*>(op.gates) + saved_at(layer, d, row, 4 * H) + u;
        gates[0] = to_storage<T>(i);
        gates[H] = to_storage<T>(f);
        gates[2 * H] = to_storage<T>(g);
        gates[3 * H] = to_storage<T>(o);
        static_cast<T*>(op.cells)[saved_at(layer, d, row, H) + u] = to_storage<T>(kept);
    }
    if (b >= rows.to) {
        static_cast<T*>(op.c_n)[of_sequence] = to_storage<T>(kept);
    }
    return {fresh, o};
}

}  // namespace

cudaError_t lstm_variant_forward(const VariantForward& args, cudaStream_t stream) {
    VariantForwardPass pass{args};
    pass.lay_out();
    return args.layer.layer_norm ? run_recurrence(Forward<true>{pass}, args.workspace, stream)
                                 : run_recurrence(Forward<false>{pass}, args.workspace, stream);
}

}  // namespace pykernels::cuda
