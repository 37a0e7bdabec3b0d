#include "cuda/core/variant_backward.cuh"

namespace pykernels::cuda {
namespace {

// What of the forward a unit's gradients take. The cell before zoneout is found again as the forward found it.
template <class A>
struct Unit {
    A i, f, g, o, before, cell;  // before: c'
};

template <bool kNorm>
struct Backward : VariantBackwardPass {
    template <class T>
    __device__ Unit<Accumulator<T>> unit(const StepRows& rows, int64_t d, int64_t b, int64_t u) const {
        const int64_t H = op.layer.hidden;
        const T* gates = gates_row<T>(rows, d, b) + u;
        const T* cells = static_cast<const T*>(op.cells) + u;
        Unit<Accumulator<T>> unit{
            to_accumulator(gates[0]),
            to_accumulator(gates[H]),
            to_accumulator(gates[2 * H]),
            to_accumulator(gates[3 * H]),
            b < rows.to ? to_accumulator(cells[saved_at(op.layer, d, rows.row_to + b, H)])
                        : load_or_zero(static_cast<const T*>(op.layer.c0), sequence_at(op.layer, d, b, H) + u),
            0};
        unit.cell = unit.f * unit.before + unit.i * unit.g;
        return unit;
    }
    // The gradient of c of unit u that comes from the steps after.
    template <class T>
    __device__ Accumulator<T> carried_cell(const StepRows& rows, int64_t d, int64_t b, int64_t u) const {
        const int64_t of_sequence = sequence_at(op.layer, d, b, op.layer.hidden) + u;
        return b < rows.from ? static_cast<const Accumulator<T>*>(grad_cell)[of_sequence]
                             : load_or_zero(static_cast<const T*>(op.grad_c_n), of_sequence);
    }
    // Where a sequence's first step has been left.
    template <class T>
    __device__ void leave_cell(const StepRows& rows, int64_t d, int64_t b, int64_t u) const {
        if (op.grad_c0 != nullptr) {
            static_cast<T*>(op.grad_c0)[sequence_at(op.layer, d, b, op.layer.hidden) + u] =
                to_storage<T>(carried_cell<T>(rows, d, b, u));
        }
    }
    // d_o: of the gate's sum; from_hidden: of the cell before zoneout, as far as it comes from this step's o tanh(.).
    template <class T>
    __device__ void finish_cell(const StepRows& rows, int64_t d, int64_t b, int64_t u, const Unit<Accumulator<T>>& unit,
                                Accumulator<T> d_o, Accumulator<T> from_hidden, Accumulator<T> (&dq)[4]) const {
        using A = Accumulator<T>;
        const VariantLayer& layer = op.layer;
        const int64_t H = layer.hidden, element = saved_at(layer, d, rows.row + b, H) + u;
        const Shared<A> share = share_gradient(layer.zoneout_cell, element, carried_cell<T>(rows, d, b, u));
        A dc = share.fresh + from_hidden;
        const T* peephole = static_cast<const T*>(layer.peephole[d]);
        if (peephole != nullptr) {
            dc += d_o * to_accumulator(peephole[2 * H + u]);
        }
        dq[0] = dc * unit.g * unit.i * (A(1) - unit.i);
        dq[1] = dc * unit.before * unit.f * (A(1) - unit.f);
        dq[2] = dc * unit.i * (A(1) - unit.g * unit.g);
        dq[3] = d_o;
        A dc_before = share.before + dc * unit.f;
        if (peephole != nullptr) {
            dc_before += dq[0] * to_accumulator(peephole[u]) + dq[1] * to_accumulator(peephole[H + u]);
        }
        put_recurrent<T>(rows, d, b, u, dq);
        static_cast<A*>(grad_cell)[sequence_at(layer, d, b, H) + u] = dc_before;
        if (op.cell_new != nullptr) {
            static_cast<T*>(op.cell_new)[element] = to_storage<T>(unit.cell);
        }
    }

    // From dh, the gradient of o tanh(.).
    template <class T>
    __device__ void finish_hidden(const StepRows& rows, int64_t d, int64_t b, int64_t u, Accumulator<T> dh) const {
        using A = Accumulator<T>;
        if constexpr (kNorm) {
            if (b < rows.batch) {
                grad_fresh_of<T>(d, b, u) = dh;
            }
        } else if (b < rows.batch) {
            const Unit<A> own = unit<T>(rows, d, b, u);
            const A squashed = hyperbolic_tangent(own.cell);
            A dq[4];
            finish_cell<T>(rows, d, b, u, own, dh * squashed * own.o * (A(1) - own.o),
                           dh * own.o * (A(1) - squashed * squashed), dq);
        } else {
            leave_cell<T>(rows, d, b, u);
        }
    }

    struct First : CarriedProduct<4> {
        template <class T>
        __device__ static void finish(const Backward& r, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                      const Accumulator<T> (&sum)[1]) {
            const Accumulator<T> dh = r.template through_state<T>(rows, d, b, u, sum[0]);
            if (!r.layer().projection) {
                r.template finish_hidden<T>(rows, d, b, u, dh);
            } else if (b < rows.batch) {
                put_projected_gradient<T>(r.layer(), r.gradients(), rows, d, b, u, dh);
            }
        }
    };

    // With a projection: the gradient of o tanh(.) = dh W_hr.
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
            const T* gradient = static_cast<const T*>(r.gradients().grad_projected);
            return gradient + saved_at(r.layer(), d, rows.row + b, r.layer().state);
        }
        template <class T>
        __device__ static void finish(const Backward& r, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                      const Accumulator<T> (&sum)[1]) {
            r.template finish_hidden<T>(rows, d, b, u, sum[0]);
        }
    };

    struct Rows {
        template <class T>
        __device__ static void run(const Backward& r, const StepRows& rows, int64_t d, int64_t b,
                                   Accumulator<T>* scratch) {
            if (b < rows.batch) {
                r.template run_row<T>(rows, d, b, scratch);
            } else {
                for (int64_t u = threadIdx.x; u < r.layer().hidden; u += kThreads) {
                    r.template leave_cell<T>(rows, d, b, u);
                }
            }
        }
    };
    template <class T>
    __device__ void run_row(const StepRows& rows, int64_t d, int64_t b, Accumulator<T>* scratch) const;

    using Phases = std::conditional_t<kNorm, PhaseList<First, Second, Rows>, PhaseList<First, Second>>;
};

// Back through the cell's normalisation, then through that of the sums.
template <bool kNorm>
template <class T>
__device__ void Backward<kNorm>::run_row(const StepRows& rows, int64_t d, int64_t b, Accumulator<T>* scratch) const {
    using A = Accumulator<T>;
    const VariantLayer& layer = op.layer;
    const int64_t H = layer.hidden, row = rows.row + b;
    const T *gain = static_cast<const T*>(layer.cell_gain[d]), *shift = static_cast<const T*>(layer.cell_shift[d]);
    const T* saved = static_cast<const T*>(op.stats) + saved_at(layer, d, row, 3);
    const Moments<A> of_cell{to_accumulator(saved[1]), to_accumulator(saved[2])};

    A total[2] = {};
    for (int64_t u = threadIdx.x; u < H; u += kThreads) {
        const Unit<A> own = unit<T>(rows, d, b, u);
        const A normalized = of_cell.normalized(own.cell);
        const A squashed = hyperbolic_tangent(normalized * to_accumulator(gain[u]) + to_accumulator(shift[u]));
        const A d_seen = load_coherent(&grad_fresh_of<T>(d, b, u)) * own.o * (A(1) - squashed * squashed);
        if (op.grad_seen != nullptr) {
            static_cast<T*>(op.grad_seen)[saved_at(layer, d, row, H) + u] = to_storage<T>(d_seen);
        }
        total[0] += d_seen * to_accumulator(gain[u]);
        total[1] += d_seen * to_accumulator(gain[u]) * normalized;
    }
    sum_over_block(total, scratch);
    const A count = static_cast<A>(H);
    const NormGradient<A> norm{of_cell.inverse, total[0] / count, total[1] / count};

    finish_row<4, T>(rows, d, b, 3, scratch, [&](int64_t u, A(&dq)[4]) {
        const Unit<A> own = unit<T>(rows, d, b, u);
        const A normalized = of_cell.normalized(own.cell);
        const A squashed = hyperbolic_tangent(normalized * to_accumulator(gain[u]) + to_accumulator(shift[u]));
        const A dh = load_coherent(&grad_fresh_of<T>(d, b, u));
        const A d_seen = dh * own.o * (A(1) - squashed * squashed);
        finish_cell<T>(rows, d, b, u, own, dh * squashed * own.o * (A(1) - own.o),
                       norm.of(d_seen * to_accumulator(gain[u]), normalized), dq);
    });
}

}  // namespace

cudaError_t lstm_variant_backward(const VariantBackward& args, cudaStream_t stream) {
    VariantBackwardPass pass{args};
    pass.lay_out();
    return args.layer.layer_norm ? run_recurrence(Backward<true>{pass}, args.workspace, stream)
                                 : run_recurrence(Backward<false>{pass}, args.workspace, stream);
}

}  // namespace pykernels::cuda
