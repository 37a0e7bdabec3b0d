// The GRU's endings of a backward step, and its parameters' gradients. A row of gradients is that of n, r, z and, where
// the reset gate comes after the candidate's recurrent product, of m = W_hn h + b_hn; else r * h stands in its place.
#include "kernels/backward_loop.h"

namespace pykernels {
namespace {

template <bool kResetAfter, typename T>
class GruBackwardLoop : public BackwardLoop<GruBackwardLoop<kResetAfter, T>, T> {
    using Base = BackwardLoop<GruBackwardLoop<kResetAfter, T>, T>;
    using Base::call, Base::shape, Base::weights, Base::gradients, Base::d, Base::state_carry, Base::before;
    using Base::grad_gates;
    using typename Base::V;

  public:
    static constexpr int kGates = 3;
    static constexpr bool kCells = false, kCarriesState = true;

    GruBackwardLoop(const RecurrentBackward<T>& call, int d, const TimeLoopPlan& plan)
        : Base(call, d, plan,
               {gru_grad_gates(call.shape.hidden), call.shape.hidden, (kResetAfter ? 3 : 2) * call.shape.hidden},
               second(call, d)) {}

    // The candidate's gradient is first in a row, its weights are last.
    int64_t input_row(int64_t k) const { return k < shape.hidden ? 2 * shape.hidden + k : k - shape.hidden; }
    const T* second_row(int64_t row) const { return grad_gates(row); }

    // With the reset before the product: n and z here, and r when n has come back through it.
    [[gnu::always_inline]] void first(const UnitAt& at, const V& dh) const {
        const Saved saved(*this, at);
        T* out = grad_gates(at.row) + at.unit;
        store_as<T>(out, saved.candidate(dh), at.used);
        store_as<T>(out + 2 * shape.hidden, saved.update(dh), at.used);
        store_as<T>(carry(at), dh * saved.z, at.used);
    }

    [[gnu::always_inline]] void finish(const UnitAt& at, const V& grad) const {
        const V one(T(1));
        const Saved saved(*this, at);
        T* out = grad_gates(at.row) + at.unit;
        if constexpr (kResetAfter) {
            const V d_n = saved.candidate(grad);
            store_as<T>(out, d_n, at.used);
            store_as<T>(out + shape.hidden, d_n * saved.m * saved.r * (one - saved.r), at.used);
            store_as<T>(out + 2 * shape.hidden, saved.update(grad), at.used);
            store_as<T>(out + 3 * shape.hidden, d_n * saved.r, at.used);
            store_as<T>(carry(at), grad * saved.z, at.used);
        } else {  // grad is that of r * h
            store_as<T>(out + shape.hidden, grad * saved.last * saved.r * (one - saved.r), at.used);
            store_as<T>(out + 3 * shape.hidden, saved.m, at.used);  // what the candidate's weights have read
            T* carried = carry(at);
            store_as<T>(carried, at::vec::fmadd(grad, saved.r, load_as<T>(carried, at.used)), at.used);
        }
    }

    void parameter_gradients(int64_t part, int64_t parts) const {
        if (!gradients.hidden) return;
        const auto read = Base::rows_read();
        const int64_t H = shape.hidden, I = shape.input, N = shape.rows;
        const auto of_gates = Base::grad_rows(H), of_candidate = Base::grad_rows(0);
        // r and z read the input and the state, n the input, m the state; or n also reads r * h.
        outer_products_share<T>({of_gates.data(), 2 * H}, {read.x.data(), I, gradients.input},
                                {read.h.data(), H, gradients.hidden}, N, gradients.bias, part, parts);
        T* candidate_bias = gradients.bias ? gradients.bias + 2 * H : nullptr;
        if constexpr (kResetAfter) {
            outer_products_share<T>({of_candidate.data(), H}, {read.x.data(), I, gradients.input + 2 * H * I},
                                    {nullptr, 0, nullptr}, N, candidate_bias, part, parts);
            outer_products_share<T>({Base::grad_rows(3 * H).data(), H},
                                    {read.h.data(), H, gradients.hidden + 2 * H * H}, {nullptr, 0, nullptr}, N,
                                    gradients.bias_state, part, parts);
        } else {
            const auto reset_rows = Base::grad_rows(3 * H);
            outer_products_share<T>({of_candidate.data(), H}, {read.x.data(), I, gradients.input + 2 * H * I},
                                    {reset_rows.data(), H, gradients.hidden + 2 * H * H}, N, candidate_bias, part,
                                    parts);
        }
    }

  private:
    static typename Base::Second second(const RecurrentBackward<T>& call, int d) {
        const int64_t H = call.shape.hidden;
        return kResetAfter ? typename Base::Second{} : typename Base::Second{call.weights[d].hidden + 2 * H * H, H};
    }
    // The gradient that reaches the state before round the products.
    T* carry(const UnitAt& at) const { return state_carry + at.batch * shape.hidden + at.unit; }

    struct Saved {
        V r, z, n, m, last;
        [[gnu::always_inline]] Saved(const GruBackwardLoop& loop, const UnitAt& at) {
            const int64_t hidden = loop.shape.hidden;
            const T* row = loop.call.gates + (loop.d * loop.shape.rows + at.row) * kSavedGates * hidden + at.unit;
            r = load_as<T>(row, at.used);
            z = load_as<T>(row + hidden, at.used);
            n = load_as<T>(row + 2 * hidden, at.used);
            m = load_as<T>(row + 3 * hidden, at.used);
            const T* state = loop.before.states[at.row];
            last = state ? load_as<T>(state + at.unit, at.used) : V(T(0));
        }
        V candidate(const V& dh) const {
            const V one(T(1));
            return dh * (one - z) * at::vec::fnmadd(n, n, one);
        }
        V update(const V& dh) const { return dh * (last - n) * z * (V(T(1)) - z); }
    };
};

}  // namespace

template <typename T>
void gru_backward(const RecurrentBackward<T>& call, bool reset_after) {
    reset_after ? run_backward<GruBackwardLoop<true, T>>(call) : run_backward<GruBackwardLoop<false, T>>(call);
}

template void gru_backward(const RecurrentBackward<float>&, bool);
template void gru_backward(const RecurrentBackward<double>&, bool);

}  // namespace pykernels
