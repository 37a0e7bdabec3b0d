// The LSTM's ending of a backward step, and its parameters' gradients.
#include "kernels/backward_loop.h"
#include "kernels/lstm_cell.h"

namespace pykernels {
namespace {

template <typename T>
class LstmBackwardLoop : public BackwardLoop<LstmBackwardLoop<T>, T> {
    using Base = BackwardLoop<LstmBackwardLoop<T>, T>;
    using Base::call, Base::shape, Base::weights, Base::gradients, Base::d, Base::cell_carry, Base::before, Base::width;
    using Base::grad_gates;
    using typename Base::V;

  public:
    static constexpr int kGates = 4;
    static constexpr bool kCells = true, kCarriesState = false;

    LstmBackwardLoop(const RecurrentBackward<T>& call, int d, const TimeLoopPlan& plan)
        : Base(call, d, plan, {lstm_grad_gates(call.shape.hidden), 0, lstm_grad_gates(call.shape.hidden)},
               {call.weights[d].projection, call.shape.projection}),
          grad_projected(shape.projection ? shape.rows * shape.projection : 0),
          projected(gradients.projection ? shape.rows * shape.hidden : 0) {}

    int64_t input_row(int64_t k) const { return k; }
    const T* second_row(int64_t row) const { return grad_projected + row * shape.projection; }
    void first(const UnitAt& at, const V& grad) const {
        store_as<T>(grad_projected + at.row * shape.projection + at.unit, grad, at.used);
    }

    // From the gradient of o tanh(c) to those of the gates before their activations, and on to the cell state before.
    [[gnu::always_inline]] void finish(const UnitAt& at, const V& dh) const {
        const int used = at.used;
        const int64_t unit = at.unit, hidden = shape.hidden, row = d * shape.rows + at.row;
        const auto gates = CellGates<T>::load(call.gates + row * kSavedGates * hidden + unit, hidden, used);
        const T* cells = before.cells[at.row];
        const V last = cells ? load_as<T>(cells + unit, used) : V(T(0));
        T* carried = cell_carry + at.batch * hidden + unit;
        const V tanh_c = tanh(load_as<T>(call.cells + row * hidden + unit, used));

        const V one(T(1)), o = gates.o, d_o = dh * tanh_c * o * (one - o);
        V d_c = at::vec::fmadd(dh * o, at::vec::fnmadd(tanh_c, tanh_c, one), load_as<T>(carried, used));
        const T* peephole = weights.peephole ? weights.peephole + unit : nullptr;
        if (peephole) d_c = at::vec::fmadd(d_o, load_as<T>(peephole + 2 * hidden, used), d_c);
        const auto grads = gates.back(d_c, d_o, last);
        store_as<T>(carried, grads.back_through(peephole, hidden, used, d_c * gates.f), used);
        grads.store(grad_gates(at.row) + unit, hidden, used);
        if (gradients.projection) store_as<T>(projected + at.row * hidden + unit, o * tanh_c, used);
    }

    void parameter_gradients(int64_t part, int64_t parts) const {
        if (gradients.hidden) {
            const auto read = Base::rows_read();
            outer_products_share<T>(
                {Base::grad_rows(0).data(), kGates * shape.hidden}, {read.x.data(), shape.input, gradients.input},
                {read.h.data(), shape.output(), gradients.hidden}, shape.rows, gradients.bias, part, parts);
        }
        if (gradients.projection)
            outer_products_share<T>(
                {rows_at<T>(grad_projected, shape.rows, shape.projection).data(), shape.projection},
                {rows_at<T>(projected, shape.rows, shape.hidden).data(), shape.hidden, gradients.projection},
                {nullptr, 0, nullptr}, shape.rows, nullptr, part, parts);
        if (gradients.peephole) peephole_gradient(part, parts);
    }

  private:
    void peephole_gradient(int64_t part, int64_t parts) const {
        const int64_t hidden = shape.hidden;
        const auto own = share(hidden, part, parts, 4 * width);
        for (int g = 0; g < 2; ++g)  // i and f see the last cell state
            sum_columns<T>(
                shape.rows, own,
                [&](int64_t r, int64_t u, int count) {
                    if (!before.cells[r]) return V(T(0));
                    return load_as<T>(grad_gates(r) + g * hidden + u, count) * load_as<T>(before.cells[r] + u, count);
                },
                gradients.peephole + g * hidden);
        sum_columns<T>(
            shape.rows, own,
            [&](int64_t r, int64_t u, int count) {
                const T* cells = call.cells + (d * shape.rows + r) * hidden;
                return load_as<T>(grad_gates(r) + 3 * hidden + u, count) * load_as<T>(cells + u, count);
            },
            gradients.peephole + 2 * hidden);
    }

    const Buffer<T> grad_projected, projected;
};

}  // namespace

template <typename T>
void lstm_backward(const RecurrentBackward<T>& call) {
    run_backward<LstmBackwardLoop<T>>(call);
}

template void lstm_backward(const RecurrentBackward<float>&);
template void lstm_backward(const RecurrentBackward<double>&);

}  // namespace pykernels
