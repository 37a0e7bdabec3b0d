// What the RNN does with a row of sums, and back.
#include "kernels/variant_loop.h"

namespace pykernels {
namespace {

constexpr int64_t kStats = 1;

template <typename T, typename Call>
VariantProduct<T> recurrent_product(const Call& call, int d) {
    return {call.weights[d].hidden, call.shape.hidden, call.shape.hidden};
}

template <typename T>
class RnnForward : public VariantForwardLoop<T> {
    using Base = VariantForwardLoop<T>;
    using Base::call, Base::shape;
    using typename Base::V;

  public:
    RnnForward(const VariantForward<T>& call, int d, const TimeLoopPlan& plan)
        : Base(call, d, plan, recurrent_product<T>(call, d), {}) {}

  private:
    void first(const VariantRow& at, const T* part) const override {
        Base::normalize(at, kStats);
        const T* sums = Base::sums(at);
        T* saved = Base::saved_gates(at, 1);
        each_vector<T>(shape.hidden, [&](int64_t u, int used) {
            const V sum = load_as<T>(part + u, used) + Base::recurrent(sums, u, used);
            const V h = call.form ? at::vec::maximum(sum, V(T(0))) : tanh(sum);
            if (saved) store_as<T>(saved + u, h, used);
            Base::put_out(at, u, used, h);
        });
    }
};

template <typename T>
class RnnBackward : public VariantBackwardLoop<T> {
    using Base = VariantBackwardLoop<T>;
    using Base::call, Base::shape, Base::weights;
    using typename Base::V;

  public:
    RnnBackward(const VariantBackward<T>& call, int d, const TimeLoopPlan& plan)
        : Base(call, d, plan, recurrent_product<T>(call, d), {}, false),
          grad_sums_(weights.gain ? shape.rows * shape.input : 0) {}

    void parameter_gradients(int64_t part, int64_t parts) const override {
        const auto [sums, stride] = fed_back(0);
        Base::recurrent_gradients(Base::grad_part(0), Base::part_stride(), sums, stride, part, parts);
    }

  private:
    std::pair<const T*, int64_t> fed_back(int64_t row) const override {
        if (grad_sums_) return {grad_sums_ + row * shape.input, shape.input};
        return {Base::grad_part(row), Base::part_stride()};
    }

    void first(const VariantRow& at) const override {
        const T* saved = Base::saved_gates(at, 1);
        T* out = Base::grad_part(at.row);
        each_vector<T>(shape.hidden, [&](int64_t u, int used) {
            const V dh = Base::new_state_gradient(at, u, used), h = load_as<T>(saved + u, used);
            // Where a NaN has come out the gradient passes, as torch's does.
            const V grad = call.form ? V::blendv(dh, V(T(0)), h <= V(T(0))) : dh * at::vec::fnmadd(h, h, V(T(1)));
            store_as<T>(out + u, grad, used);
        });
        if (weights.gain) Base::through_norm(at, out, grad_sums_ + at.row * shape.input, kStats);
    }

    const Buffer<T> grad_sums_;  // of all rows, where they were normalised
};

}  // namespace

template <typename T>
void rnn_variant_forward(const VariantForward<T>& call) {
    run_variant_forward<RnnForward<T>>(call);
}
template <typename T>
void rnn_variant_backward(const VariantBackward<T>& call) {
    run_variant_backward<RnnBackward<T>>(call);
}

template void rnn_variant_forward(const VariantForward<float>&);
template void rnn_variant_forward(const VariantForward<double>&);
template void rnn_variant_backward(const VariantBackward<float>&);
template void rnn_variant_backward(const VariantBackward<double>&);

}  // namespace pykernels
