// The ending of a backward step of Elman's and Jordan's RNN, and their parameters' gradients.
#include "kernels/backward_loop.h"

namespace pykernels {
namespace {

template <typename T>
class RnnBackwardLoop : public BackwardLoop<RnnBackwardLoop<T>, T> {
    using Base = BackwardLoop<RnnBackwardLoop<T>, T>;
    using Base::call, Base::shape, Base::gradients, Base::d;
    using Base::grad_gates;
    using typename Base::V;

  public:
    static constexpr int kGates = 1;
    static constexpr bool kCells = false, kCarriesState = false;

    RnnBackwardLoop(const RecurrentBackward<T>& call, int d, const TimeLoopPlan& plan, bool relu)
        : Base(call, d, plan, {rnn_grad_gates(call.shape.hidden), 0, rnn_grad_gates(call.shape.hidden)},
               {call.weights[d].projection, call.shape.projection}),
          grad_projected(shape.projection ? shape.rows * shape.projection : 0),
          hidden(call.cells ? call.cells + d * shape.rows * shape.hidden : call.y + d * shape.hidden),
          relu(relu),
          stride(call.cells ? shape.hidden : shape.directions * shape.hidden) {}

    int64_t input_row(int64_t k) const { return k; }
    const T* second_row(int64_t row) const { return grad_projected + row * shape.projection; }
    void first(const UnitAt& at, const V& grad) const {
        store_as<T>(grad_projected + at.row * shape.projection + at.unit, grad, at.used);
    }

    [[gnu::always_inline]] void finish(const UnitAt& at, const V& grad) const {
        const V h = load_as<T>(hidden + at.row * stride + at.unit, at.used);
        // Where a NaN has come out the gradient passes, as torch's does.
        const V before = relu ? V::blendv(grad, V(T(0)), h <= V(T(0))) : grad * at::vec::fnmadd(h, h, V(T(1)));
        store_as<T>(grad_gates(at.row) + at.unit, before, at.used);
    }

    void parameter_gradients(int64_t part, int64_t parts) const {
        if (gradients.hidden) {
            const auto read = Base::rows_read();
            outer_products_share<T>(
                {Base::grad_rows(0).data(), shape.hidden}, {read.x.data(), shape.input, gradients.input},
                {read.h.data(), shape.output(), gradients.hidden}, shape.rows, gradients.bias, part, parts);
        }
        if (gradients.projection)
            outer_products_share<T>({rows_at<T>(grad_projected, shape.rows, shape.projection).data(), shape.projection},
                                    {rows_at<T>(hidden, shape.rows, stride).data(), shape.hidden, gradients.projection},
                                    {nullptr, 0, nullptr}, shape.rows, gradients.bias_projection, part, parts);
    }

  private:
    const Buffer<T> grad_projected;
    const T* const hidden;  // the activated sums, row after row
    const bool relu;
    const int64_t stride;
};

}  // namespace

template <typename T>
void rnn_backward(const RecurrentBackward<T>& call, bool relu) {
    run_backward<RnnBackwardLoop<T>>(call, relu);
}

template void rnn_backward(const RecurrentBackward<float>&, bool);
template void rnn_backward(const RecurrentBackward<double>&, bool);

}  // namespace pykernels
