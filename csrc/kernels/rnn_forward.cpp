// The ending of a forward step of Elman's RNN, and of Jordan's, which feeds back a projection of its hidden state.
#include "kernels/forward_loop.h"
#include "kernels/instances.h"

namespace pykernels {
namespace {

struct RnnGates {
    static constexpr int kGates = 1, kInput[] = {0}, kHidden[] = {0};
    static constexpr bool kConstant = false, kKeepsState = false;
};

template <typename Call>
class RnnForwardLoop : public ForwardLoop<RnnForwardLoop<Call>, RnnGates, Call> {
    using Base = ForwardLoop<RnnForwardLoop<Call>, RnnGates, Call>;
    using Base::call, Base::shape, Base::d;
    using typename Base::A, typename Base::V;

  public:
    RnnForwardLoop(const Call& call, int d, const TimeLoopPlan& plan, bool relu)
        : Base(call, d, plan, {call.weights[d].projection, call.shape.projection, call.weights[d].bias_projection}),
          relu(relu) {}
    void pack_panel(int64_t, int) const {}

    [[gnu::always_inline]] V finish(const UnitAt& at, const A* gates, const A*) const {
        const V sum = V::loadu(gates);
        const V h = relu ? at::vec::maximum(sum, V(A(0))) : tanh(sum);
        if (call.cells) store_as<A>(call.cells + (d * shape.rows + at.row) * shape.hidden + at.unit, h, at.used);
        return h;
    }
    V finish_second(const UnitAt&, const V& projected) const { return projected; }

  private:
    const bool relu;
};

}  // namespace

template <typename Call>
void rnn_forward(const Call& call, bool relu) {
    run_forward<RnnForwardLoop<Call>>(call, RnnGates::kGates, relu);
}

#define PYKERNELS_INSTANCE(...) template void rnn_forward(const __VA_ARGS__&, bool);
PYKERNELS_FORWARD_INSTANCES
#ifndef __AVX512BF16__
template <>
void rnn_forward(const Bf16Forward&, bool) {
    throw_without_bf16();
}
#endif

}  // namespace pykernels
