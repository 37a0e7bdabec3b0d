// What the GRU does with a row of sums, and back: with the reset gate after the candidate's recurrent product, or
// before it, where the candidate is a second product.
#include "kernels/variant_loop.h"

namespace pykernels {
namespace {

constexpr int64_t kStats = 1;

// Of all gates, or of r and z.
template <typename T, typename Call>
VariantProduct<T> recurrent_product(const Call& call, int d) {
    return {call.weights[d].hidden, (call.form ? 3 : 2) * call.shape.hidden, call.shape.hidden};
}
template <typename T, typename Call>
VariantProduct<T> candidate_product(const Call& call, int d) {
    const int64_t hidden = call.shape.hidden;
    if (call.form) return {};
    return {call.weights[d].hidden + 2 * hidden * hidden, hidden, hidden};
}

template <typename T>
class GruForward : public VariantForwardLoop<T> {
    using Base = VariantForwardLoop<T>;
    using Base::call, Base::shape, Base::weights;
    using typename Base::V;

  public:
    GruForward(const VariantForward<T>& call, int d, const TimeLoopPlan& plan)
        : Base(call, d, plan, recurrent_product<T>(call, d), candidate_product<T>(call, d)) {}

  private:
    void first(const VariantRow& at, const T* part) const override {
        const int64_t hidden = shape.hidden;
        T* sums = Base::sums(at);
        if (call.form) {
            Base::normalize(at, kStats);
            each_vector<T>(hidden, [&](int64_t u, int used) {
                const V r = sigmoid(gate(part, sums, u, used)), z = sigmoid(gate(part, sums, hidden + u, used));
                const V m = Base::recurrent(sums, 2 * hidden + u, used);
                end(at, u, used, r, z, m, at::vec::fmadd(r, m, load_as<T>(part + 2 * hidden + u, used)));
            });
            return;
        }
        each_vector<T>(hidden, [&](int64_t u, int used) {
            const V r = sigmoid(gate(part, sums, u, used)), z = sigmoid(gate(part, sums, hidden + u, used));
            store_as<T>(sums + u, r, used);
            store_as<T>(sums + hidden + u, z, used);
            store_as<T>(Base::middle(at) + u, r * load_as<T>(Base::fed(at) + u, used), used);
        });
    }

    void second(const VariantRow& at, const T* part) const override {
        const int64_t hidden = shape.hidden;
        const T *sums = Base::sums(at), *candidate = Base::second_sums(at);
        each_vector<T>(hidden, [&](int64_t u, int used) {
            V n = load_as<T>(part + 2 * hidden + u, used) + load_as<T>(candidate + u, used);
            if (weights.bias) n = n + load_as<T>(weights.bias + 2 * hidden + u, used);
            end(at, u, used, load_as<T>(sums + u, used), load_as<T>(sums + hidden + u, used),
                load_as<T>(Base::middle(at) + u, used), n);
        });
    }

    V gate(const T* part, const T* sums, int64_t i, int used) const {
        return load_as<T>(part + i, used) + Base::recurrent(sums, i, used);
    }

    // From the gates, and the candidate before its activation, to the state.
    [[gnu::always_inline]] void end(const VariantRow& at, int64_t u, int used, const V& r, const V& z, const V& m,
                                    const V& candidate) const {
        const V n = tanh(candidate), last = load_as<T>(Base::state(at) + u, used);
        if (T* saved = Base::saved_gates(at, kSavedGates)) {
            store_as<T>(saved + u, r, used);
            store_as<T>(saved + shape.hidden + u, z, used);
            store_as<T>(saved + 2 * shape.hidden + u, n, used);
            store_as<T>(saved + 3 * shape.hidden + u, m, used);
        }
        Base::put_out(at, u, used, at::vec::fmadd(z, last - n, n));
    }
};

template <typename T>
class GruBackward : public VariantBackwardLoop<T> {
    using Base = VariantBackwardLoop<T>;
    using Base::call, Base::shape, Base::weights, Base::before, Base::gradients;
    using typename Base::V;

  public:
    GruBackward(const VariantBackward<T>& call, int d, const TimeLoopPlan& plan)
        : Base(call, d, plan, recurrent_product<T>(call, d), candidate_product<T>(call, d), false),
          grad_recurrent_(call.form ? shape.rows * shape.input : 0),
          grad_sums_(weights.gain ? shape.rows * shape.input : 0) {}

    void parameter_gradients(int64_t part, int64_t parts) const override {
        const int64_t wide = shape.input, hidden = shape.hidden;
        if (call.form)
            return Base::recurrent_gradients(grad_recurrent_, wide, grad_sums_ ? grad_sums_ : grad_recurrent_, wide,
                                             part, parts);
        std::vector<const T*> fed(shape.rows), reset(shape.rows);
        for (int64_t r = 0; r < shape.rows; ++r) {
            fed[r] = Base::fed_before(r);
            reset[r] = Base::saved_gates({0, r}, kSavedGates) + 3 * hidden;
        }
        const T* grad = Base::grad_part(0);
        outer_products_share<T>({rows_at<T>(grad, shape.rows, Base::part_stride()).data(), 2 * hidden},
                                {fed.data(), hidden, gradients.hidden}, {nullptr, 0, nullptr}, shape.rows,
                                gradients.bias, part, parts);
        outer_products_share<T>({rows_at<T>(grad + 2 * hidden, shape.rows, Base::part_stride()).data(), hidden},
                                {reset.data(), hidden, gradients.hidden + 2 * hidden * hidden}, {nullptr, 0, nullptr},
                                shape.rows, gradients.bias ? gradients.bias + 2 * hidden : nullptr, part, parts);
    }

  private:
    struct Gates {
        V r, z, n, m, last;
    };
    Gates gates(const VariantRow& at, int64_t u, int used) const {
        const T* saved = Base::saved_gates(at, kSavedGates) + u;
        const int64_t hidden = shape.hidden;
        const T* last = before.states[at.row];
        return {load_as<T>(saved, used), load_as<T>(saved + hidden, used), load_as<T>(saved + 2 * hidden, used),
                load_as<T>(saved + 3 * hidden, used), last ? load_as<T>(last + u, used) : V(T(0))};
    }

    std::pair<const T*, int64_t> fed_back(int64_t row) const override {
        if (call.form) return {(grad_sums_ ? grad_sums_ : grad_recurrent_) + row * shape.input, shape.input};
        return {Base::grad_part(row), Base::part_stride()};
    }
    std::pair<const T*, int64_t> second_back(int64_t row) const override {
        return {Base::grad_part(row) + 2 * shape.hidden, Base::part_stride()};
    }

    void first(const VariantRow& at) const override {
        const V one(T(1));
        const int64_t hidden = shape.hidden;
        T* out = Base::grad_part(at.row);
        T* recurrent = grad_recurrent_ + at.row * shape.input;
        each_vector<T>(hidden, [&](int64_t u, int used) {
            const V dh = Base::new_state_gradient(at, u, used);
            const auto [r, z, n, m, last] = gates(at, u, used);
            const V d_n = dh * (one - z) * at::vec::fnmadd(n, n, one), d_z = dh * (last - n) * z * (one - z);
            T* carry = Base::carry(at) + u;
            store_as<T>(carry, at::vec::fmadd(dh, z, load_as<T>(carry, used)), used);
            store_as<T>(out + 2 * hidden + u, d_n, used);
            store_as<T>(out + hidden + u, d_z, used);
            if (!call.form) return;
            const V d_r = d_n * m * r * (one - r);
            store_as<T>(out + u, d_r, used);
            store_as<T>(recurrent + u, d_r, used);
            store_as<T>(recurrent + hidden + u, d_z, used);
            store_as<T>(recurrent + 2 * hidden + u, d_n * r, used);
        });
        if (weights.gain) Base::through_norm(at, recurrent, grad_sums_ + at.row * shape.input, kStats);
    }

    // With the reset before the product: r, when the candidate's gradient has come back through it.
    void second(const VariantRow& at) const override {
        const T *grad = Base::middle(at), *scale = Base::scale(at.batch), *fed = Base::fed_before(at.row);
        each_vector<T>(shape.hidden, [&](int64_t u, int used) {
            const V d_m = load_as<T>(grad + u, used), r = gates(at, u, used).r;
            store_as<T>(Base::grad_part(at.row) + u, d_m * load_as<T>(fed + u, used) * r * (V(T(1)) - r), used);
            V d_last = d_m * r;
            if (scale) d_last = d_last * load_as<T>(scale + u, used);
            T* carry = Base::carry(at) + u;
            store_as<T>(carry, load_as<T>(carry, used) + d_last, used);
        });
    }

    // For all rows, with the reset after the product: gradients of the recurrent part, and of its sums.
    const Buffer<T> grad_recurrent_, grad_sums_;
};

}  // namespace

template <typename T>
void gru_variant_forward(const VariantForward<T>& call) {
    run_variant_forward<GruForward<T>>(call);
}
template <typename T>
void gru_variant_backward(const VariantBackward<T>& call) {
    run_variant_backward<GruBackward<T>>(call);
}

template void gru_variant_forward(const VariantForward<float>&);
template void gru_variant_forward(const VariantForward<double>&);
template void gru_variant_backward(const VariantBackward<float>&);
template void gru_variant_backward(const VariantBackward<double>&);

}  // namespace pykernels
