// The GRU's ending of a forward step, with the reset gate after the candidate's recurrent product or before it.
#include "kernels/forward_loop.h"
#include "kernels/instances.h"

namespace pykernels {
namespace {

// Saves r, z, n and m of a vector of units.
template <typename A, typename S, typename V>
[[gnu::always_inline]] inline void save_gates(S* row, const UnitAt& at, int64_t hidden, const V& r, const V& z,
                                              const V& n, const V& m) {
    row += at.unit;
    store_as<A>(row, r, at.used);
    store_as<A>(row + hidden, z, at.used);
    store_as<A>(row + 2 * hidden, n, at.used);
    store_as<A>(row + 3 * hidden, m, at.used);
}

struct ResetAfterGates {
    static constexpr int kGates = 3, kInput[] = {2, 0, 1}, kHidden[] = {0, 1, 2};
    static constexpr bool kConstant = true, kKeepsState = true;
};

// r, z and m = W_hn h + b_hn are one product; the candidate's input part lies apart from it, and first.
template <typename Call>
class ResetAfter : public ForwardLoop<ResetAfter<Call>, ResetAfterGates, Call> {
    using Base = ForwardLoop<ResetAfter<Call>, ResetAfterGates, Call>;
    using Base::call, Base::shape, Base::d, Base::units, Base::width, Base::kept, Base::kept_stride;
    using typename Base::A, typename Base::V;

  public:
    ResetAfter(const Call& call, int d, const TimeLoopPlan& plan) : Base(call, d, plan) {}
    void pack_panel(int64_t, int) const {}

    [[gnu::always_inline]] V finish(const UnitAt& at, const A* gates, const A* input) const {
        const V last = V::loadu(kept + at.batch * kept_stride + at.unit);
        const V r = sigmoid(V::loadu(gates)), z = sigmoid(V::loadu(gates + width)), m = V::loadu(gates + 2 * width);
        const V n = tanh(at::vec::fmadd(r, m, V::loadu(input)));
        const V h = at::vec::fmadd(z, last - n, n);
        if (call.gates)
            save_gates<A>(call.gates + (d * shape.rows + at.row) * kSavedGates * shape.hidden, at, shape.hidden, r, z,
                          n, m);
        return h;
    }
    V finish_second(const UnitAt&, const V& sum) const { return sum; }
};

struct ResetBeforeGates {
    static constexpr int kGates = 2, kInput[] = {0, 1}, kHidden[] = {0, 1};
    static constexpr bool kConstant = false, kKeepsState = true;
};

// r and z are the first product, from which r * h goes into the second.
template <typename Call>
class ResetBefore : public ForwardLoop<ResetBefore<Call>, ResetBeforeGates, Call> {
    using Base = ForwardLoop<ResetBefore<Call>, ResetBeforeGates, Call>;
    using Base::call, Base::shape, Base::d, Base::units, Base::width, Base::kept, Base::kept_stride;
    using typename Base::A, typename Base::V, typename Base::S;

  public:
    ResetBefore(const Call& call, int d, const TimeLoopPlan& plan)
        : Base(call, d, plan,
               {call.weights[d].hidden + 2 * call.shape.hidden * call.shape.hidden, call.shape.hidden, nullptr, 2}),
          reset(shape.batch * units),
          update(shape.batch * units) {}
    void pack_panel(int64_t, int) const {}

    [[gnu::always_inline]] V finish(const UnitAt& at, const A* gates, const A*) const {
        const int64_t unit = at.batch * units + at.unit;
        const V r = sigmoid(V::loadu(gates));
        r.store(reset + unit);
        sigmoid(V::loadu(gates + width)).store(update + unit);
        return r * V::loadu(kept + at.batch * kept_stride + at.unit);
    }
    [[gnu::always_inline]] V finish_second(const UnitAt& at, const V& sum) const {
        const int64_t unit = at.batch * units + at.unit;
        const V r = V::loadu(reset + unit), z = V::loadu(update + unit), n = tanh(sum);
        const V last = V::loadu(kept + at.batch * kept_stride + at.unit);
        const V h = at::vec::fmadd(z, last - n, n);
        if (call.gates)
            save_gates<A>(call.gates + (d * shape.rows + at.row) * kSavedGates * shape.hidden, at, shape.hidden, r, z,
                          n, r * last);
        return h;
    }

  private:
    const Buffer<A> reset, update;
};

}  // namespace

template <typename Call>
void gru_forward(const Call& call, bool reset_after) {
    constexpr int gates = 3;
    reset_after ? run_forward<ResetAfter<Call>>(call, gates) : run_forward<ResetBefore<Call>>(call, gates);
}

#define PYKERNELS_INSTANCE(...) template void gru_forward(const __VA_ARGS__&, bool);
PYKERNELS_FORWARD_INSTANCES
#ifndef __AVX512BF16__
template <>
void gru_forward(const Bf16Forward&, bool) {
    throw_without_bf16();
}
#endif

}  // namespace pykernels
