// What the LSTM does with a row of sums, and back.
#include "kernels/lstm_cell.h"
#include "kernels/variant_loop.h"

namespace pykernels {
namespace {

constexpr int64_t kStats = 3;

template <typename T, typename Call>
VariantProduct<T> recurrent_product(const Call& call, int d) {
    return {call.weights[d].hidden, 4 * call.shape.hidden, call.shape.output()};
}
template <typename T, typename Call>
VariantProduct<T> projection_product(const Call& call, int d) {
    if (!call.shape.projection) return {};
    return {call.weights[d].projection, call.shape.projection, call.shape.hidden};
}

template <typename T>
class LstmForward : public VariantForwardLoop<T> {
    using Base = VariantForwardLoop<T>;
    using Base::call, Base::shape, Base::weights, Base::d, Base::width;
    using typename Base::V;

  public:
    LstmForward(const VariantForward<T>& call, int d, const TimeLoopPlan& plan)
        : Base(call, d, plan, recurrent_product<T>(call, d), projection_product<T>(call, d)) {}

  private:
    void first(const VariantRow& at, const T* part) const override {
        Base::normalize(at, kStats);
        const int64_t hidden = shape.hidden;
        T* sums = Base::sums(at);
        T* saved = Base::saved_gates(at, kSavedGates);
        each_vector<T>(hidden, [&](int64_t u, int used) {
            const auto gate = [&](int64_t g) {
                return load_as<T>(part + g * hidden + u, used) + Base::recurrent(sums, g * hidden + u, used);
            };
            CellGates<T> gates{gate(0), gate(1), gate(2), gate(3)};
            const V c = gates.activate(load_as<T>(Base::cell(at) + u, used),
                                       weights.peephole ? weights.peephole + u : nullptr, hidden, used);
            if (saved) gates.store(saved + u, hidden, used);
            // In the sums' place, which is free now: c before it stays or not, and o.
            store_as<T>(sums + u, c, used);
            store_as<T>(sums + 3 * hidden + u, gates.o, used);
        });
        const int64_t row = d * shape.rows + at.row;
        RowStats<T> cell{};
        if (weights.gain) {
            cell = row_stats(sums, hidden, T(kNormEpsilon));
            if (call.stats) {
                call.stats[row * kStats + 1] = cell.mean;
                call.stats[row * kStats + 2] = cell.scale;
            }
        }
        each_vector<T>(hidden, [&](int64_t u, int used) {
            const V c = load_as<T>(sums + u, used), o = load_as<T>(sums + 3 * hidden + u, used);
            V seen = c;
            if (weights.gain)
                seen = at::vec::fmadd((c - V(cell.mean)) * V(cell.scale), load_as<T>(weights.cell_gain + u, used),
                                      load_as<T>(weights.cell_shift + u, used));
            const V h = o * tanh(seen);
            T* state = Base::cell(at) + u;
            const std::uint8_t* stay = call.noise.stay_cell ? call.noise.stay_cell + row * hidden + u : nullptr;
            const V kept = Base::zone_out(stay, call.noise.zoneout_cell, load_as<T>(state, used), c, used);
            store_as<T>(state, kept, used);
            if (call.cells) store_as<T>(call.cells + row * hidden + u, kept, used);
            if (weights.projection) {
                store_as<T>(Base::middle(at) + u, h, used);
            } else {
                Base::put_out(at, u, used, h);
            }
        });
    }

    void second(const VariantRow& at, const T*) const override {
        const T* sums = Base::second_sums(at);
        each_vector<T>(shape.projection,
                       [&](int64_t u, int used) { Base::put_out(at, u, used, load_as<T>(sums + u, used)); });
    }
};

template <typename T>
class LstmBackward : public VariantBackwardLoop<T> {
    using Base = VariantBackwardLoop<T>;
    using Base::call, Base::shape, Base::weights, Base::d, Base::before, Base::gradients;
    using typename Base::V;

  public:
    LstmBackward(const VariantBackward<T>& call, int d, const TimeLoopPlan& plan)
        : Base(call, d, plan, recurrent_product<T>(call, d), projection_product<T>(call, d), true),
          grad_sums_(weights.gain ? shape.rows * shape.input : 0),
          grad_projected_(shape.rows * shape.projection),
          projected_(weights.projection && call.want_weights ? shape.rows * shape.hidden : 0),
          cell_seen_(gradients.peephole ? shape.rows * shape.hidden : 0),
          grad_seen_(shape.batch * shape.hidden),
          grad_norm_(gradients.cell_gain ? shape.rows * shape.hidden : 0) {}

    void parameter_gradients(int64_t part, int64_t parts) const override {
        const T* recurrent = Base::grad_part(0);
        const int64_t stride = Base::part_stride(), hidden = shape.hidden;
        Base::recurrent_gradients(recurrent, stride, grad_sums_ ? grad_sums_ : recurrent,
                                  grad_sums_ ? shape.input : stride, part, parts);
        if (projected_)
            outer_products_share<T>(
                {rows_at<T>(grad_projected_, shape.rows, shape.projection).data(), shape.projection},
                {rows_at<T>(projected_, shape.rows, hidden).data(), hidden, gradients.projection},
                {nullptr, 0, nullptr}, shape.rows, nullptr, part, parts);
        for (int g = 0; gradients.peephole && g < 3; ++g)
            Base::sum_rows(
                hidden, part, parts,
                [&](int64_t r, int64_t u, int used) {
                    const T* cells = g == 2 ? cell_seen_ + r * hidden : before.cells[r];  // o sees the new one
                    if (!cells) return V(T(0));
                    const int64_t gate = g == 2 ? 3 : g;
                    return load_as<T>(Base::grad_part(r) + gate * hidden + u, used) * load_as<T>(cells + u, used);
                },
                gradients.peephole + g * hidden);
        if (!grad_norm_) return;
        norm_gradients<T>(
            shape.rows, share(hidden, part, parts, 4 * Base::width),
            [&](int64_t r, int64_t u, int used) { return load_as<T>(grad_norm_ + r * hidden + u, used); },
            [&](int64_t r, int64_t u, int used) { return normalized_cell(r, u, used); }, gradients.cell_shift,
            gradients.cell_gain);
    }

  private:
    const T* saved(int64_t row) const { return call.gates + (d * shape.rows + row) * kSavedGates * shape.hidden; }
    V last_cell(int64_t row, int64_t u, int used) const {
        return before.cells[row] ? load_as<T>(before.cells[row] + u, used) : V(T(0));
    }
    // The cell before it stayed or not, as forward has computed it.
    V new_cell(int64_t row, int64_t u, int used) const {
        const T* gates = saved(row) + u;
        const V i = load_as<T>(gates, used), f = load_as<T>(gates + shape.hidden, used);
        return at::vec::fmadd(f, last_cell(row, u, used), i * load_as<T>(gates + 2 * shape.hidden, used));
    }
    const T* stats(int64_t row) const { return call.stats + (d * shape.rows + row) * kStats; }
    V normalized_cell(int64_t row, int64_t u, int used) const {
        return (new_cell(row, u, used) - V(stats(row)[1])) * V(stats(row)[2]);
    }

    std::pair<const T*, int64_t> fed_back(int64_t row) const override {
        if (grad_sums_) return {grad_sums_ + row * shape.input, shape.input};
        return {Base::grad_part(row), Base::part_stride()};
    }
    std::pair<const T*, int64_t> second_back(int64_t row) const override {
        return {grad_projected_ + row * shape.projection, shape.projection};
    }

    void first(const VariantRow& at) const override {
        if (!weights.projection)
            return gates(at, [&](int64_t u, int used) { return Base::new_state_gradient(at, u, used); });
        T* out = grad_projected_ + at.row * shape.projection;
        each_vector<T>(shape.projection,
                       [&](int64_t u, int used) { store_as<T>(out + u, Base::new_state_gradient(at, u, used), used); });
    }
    void second(const VariantRow& at) const override {
        const T* grad = Base::middle(at);
        gates(at, [&](int64_t u, int used) { return load_as<T>(grad + u, used); });
    }

    // From the gradient of o tanh(...) to those of the gates, of the cell before and of the sums.
    template <typename Grad>
    void gates(const VariantRow& at, const Grad& grad) const {
        const int64_t hidden = shape.hidden, row = d * shape.rows + at.row;
        const V one(T(1));
        const T* gate = saved(at.row);
        T* out = Base::grad_part(at.row);
        T* grad_seen = grad_seen_ + at.batch * hidden;
        // To o, and to what tanh saw of the cell.
        each_vector<T>(hidden, [&](int64_t u, int used) {
            const V dh = grad(u, used), o = load_as<T>(gate + 3 * hidden + u, used), c = new_cell(at.row, u, used);
            V seen = c;
            if (weights.gain)
                seen =
                    at::vec::fmadd((c - V(stats(at.row)[1])) * V(stats(at.row)[2]),
                                   load_as<T>(weights.cell_gain + u, used), load_as<T>(weights.cell_shift + u, used));
            const V tanh_c = tanh(seen);
            store_as<T>(out + 3 * hidden + u, dh * tanh_c * o * (one - o), used);
            const V d_seen = dh * o * at::vec::fnmadd(tanh_c, tanh_c, one);
            store_as<T>(grad_seen + u, d_seen, used);
            if (grad_norm_) store_as<T>(grad_norm_ + at.row * hidden + u, d_seen, used);
            if (projected_) store_as<T>(projected_ + at.row * hidden + u, o * tanh_c, used);
            if (cell_seen_) store_as<T>(cell_seen_ + at.row * hidden + u, c, used);
        });
        if (weights.gain)
            row_norm_backward<T>(
                hidden, stats(at.row)[2],
                [&](int64_t u, int used) {
                    return load_as<T>(grad_seen + u, used) * load_as<T>(weights.cell_gain + u, used);
                },
                [&](int64_t u, int used) { return normalized_cell(at.row, u, used); },
                [&](int64_t u, int used, const V& value) { store_as<T>(grad_seen + u, value, used); });
        // On to the other gates and to the cell before.
        each_vector<T>(hidden, [&](int64_t u, int used) {
            const auto saved_gates = CellGates<T>::load(gate + u, hidden, used);
            T* carried = Base::cell_carry(at) + u;
            const V d_cell = load_as<T>(carried, used), d_o = load_as<T>(out + 3 * hidden + u, used);
            const std::uint8_t* stay = call.noise.stay_cell ? call.noise.stay_cell + row * hidden + u : nullptr;
            const auto [stays, fresh] = Base::shared(stay, call.noise.zoneout_cell, d_cell, used);
            V d_c = load_as<T>(grad_seen + u, used) + fresh;
            const T* diagonal = weights.peephole ? weights.peephole + u : nullptr;
            if (diagonal) d_c = at::vec::fmadd(d_o, load_as<T>(diagonal + 2 * hidden, used), d_c);
            const auto grads = saved_gates.back(d_c, d_o, last_cell(at.row, u, used));
            const V d_last = at::vec::fmadd(d_c, saved_gates.f, stays);
            store_as<T>(carried, grads.back_through(diagonal, hidden, used, d_last), used);
            grads.store(out + u, hidden, used);
        });
        if (weights.gain) Base::through_norm(at, out, grad_sums_ + at.row * shape.input, kStats);
    }

    // For all rows: gradients of the sums and of the projection, what the projection read, the cell that o saw, the
    // gradient of the normalised cell with gain and shift. For a row of the batch: that of the cell.
    const Buffer<T> grad_sums_, grad_projected_, projected_, cell_seen_, grad_seen_, grad_norm_;
};

}  // namespace

template <typename T>
void lstm_variant_forward(const VariantForward<T>& call) {
    run_variant_forward<LstmForward<T>>(call);
}
template <typename T>
void lstm_variant_backward(const VariantBackward<T>& call) {
    run_variant_backward<LstmBackward<T>>(call);
}

template void lstm_variant_forward(const VariantForward<float>&);
template void lstm_variant_forward(const VariantForward<double>&);
template void lstm_variant_backward(const VariantBackward<float>&);
template void lstm_variant_backward(const VariantBackward<double>&);

}  // namespace pykernels
