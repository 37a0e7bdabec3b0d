// The LSTM's ending of a forward step.
#include "kernels/forward_loop.h"
#include "kernels/instances.h"
#include "kernels/lstm_cell.h"

namespace pykernels {
namespace {

struct LstmGates {
    static constexpr int kGates = 4, kInput[] = {0, 1, 2, 3}, kHidden[] = {0, 1, 2, 3};
    static constexpr bool kConstant = false, kKeepsState = false;
};

template <typename Call>
class LstmForwardLoop : public ForwardLoop<LstmForwardLoop<Call>, LstmGates, Call> {
    using Base = ForwardLoop<LstmForwardLoop<Call>, LstmGates, Call>;
    using Base::call, Base::shape, Base::weights, Base::d, Base::units, Base::width, Base::cell;
    using typename Base::A, typename Base::V, typename Base::S;

  public:
    LstmForwardLoop(const Call& call, int d, const TimeLoopPlan& plan)
        : Base(call, d, plan, {call.weights[d].projection, call.shape.projection}),
          peephole(weights.peephole ? 3 * units : 0) {}

    void pack_panel(int64_t unit, int used) const {
        for (int g = 0; weights.peephole && g < 3; ++g)
            load_as<A>(weights.peephole + g * shape.hidden + unit, used).store(peephole + g * units + unit);
    }

    [[gnu::always_inline]] V finish(const UnitAt& at, const A* gates, const A*) const {
        A* state = cell + at.batch * units + at.unit;
        const A* diagonal = peephole ? peephole + at.unit : nullptr;
        CellGates<A> gate{V::loadu(gates), V::loadu(gates + width), V::loadu(gates + 2 * width),
                          V::loadu(gates + 3 * width)};
        const V c = gate.activate(V::loadu(state), diagonal, units, width);
        c.store(state);
        if (call.gates) {
            const int64_t row = d * shape.rows + at.row;
            gate.store(call.gates + row * kSavedGates * shape.hidden + at.unit, shape.hidden, at.used);
            store_as<A>(call.cells + row * shape.hidden + at.unit, c, at.used);
        }
        return gate.o * tanh(c);
    }

    V finish_second(const UnitAt&, const V& projected) const { return projected; }

  private:
    const Buffer<A> peephole;
};

}  // namespace

template <typename Call>
void lstm_forward(const Call& call) {
    run_forward<LstmForwardLoop<Call>>(call, LstmGates::kGates);
}

#define PYKERNELS_INSTANCE(...) template void lstm_forward(const __VA_ARGS__&);
PYKERNELS_FORWARD_INSTANCES
#ifndef __AVX512BF16__
template <>
void lstm_forward(const Bf16Forward&) {
    throw_without_bf16();
}
#endif

}  // namespace pykernels
