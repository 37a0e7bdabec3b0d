// What sweeps over a Hopfield network share, whatever gives the fields: the orders of units, and how rows end.
#pragma once

#include <cstring>
#include <vector>

#include "core/scratch.h"
#include "core/shuffle.h"
#include "core/vec.h"
#include "kernels/hopfield.h"

namespace pykernels {

inline constexpr double kHopfieldGrain = 1 << 16;  // additions that are worth a thread
inline constexpr int64_t kHopfieldChunk = 1024;    // rows whose fields are kept at one time

// Where each row's units stand in a sweep. Drawn orders are kept for the thread's next rows.
class HopfieldOrders {
  public:
    explicit HopfieldOrders(const HopfieldSweeps& run) : run_(run) {}

    // order[0 … units-1] of a sweep and a row.
    const int64_t* at(int64_t sweep, int64_t row) {
        if (run_.order) return run_.order + row * run_.order_stride;
        const auto kept = static_cast<std::size_t>(sweep < kKept ? sweep : kKept);
        if (kept >= drawn_.size()) drawn_.resize(kept + 1);
        Drawn& drawn = drawn_[kept];
        if (drawn.sweep != sweep) {
            if (!drawn.order.get()) drawn.order = Buffer<int64_t>(run_.units);
            shuffle(run_.seed, static_cast<uint32_t>(sweep), run_.units, drawn.order.get());
            drawn.sweep = sweep;
        }
        return drawn.order;
    }

  private:
    static constexpr int64_t kKept = 8;
    struct Drawn {
        int64_t sweep = -1;
        Buffer<int64_t> order;
    };
    const HopfieldSweeps& run_;
    std::vector<Drawn> drawn_;
};

// The sign of a field, or the state where there is none: zero, or not a number.
template <typename Acc>
inline Acc hopfield_sign(Acc field, Acc state) {
    return field > 0 ? Acc(1) : field < 0 ? Acc(-1) : state;
}
template <typename Acc>
inline Vec<Acc> hopfield_sign(const Vec<Acc>& field, const Vec<Acc>& state) {
    const Vec<Acc> zero(Acc(0));
    return Vec<Acc>::blendv(Vec<Acc>::blendv(state, Vec<Acc>(Acc(-1)), field < zero), Vec<Acc>(Acc(1)), field > zero);
}

// Rows of states that all change at once, sweep by sweep: those of three sweeps in turn, of which the first is given.
template <typename S>
class HopfieldStates {
  public:
    HopfieldStates(const HopfieldSweeps& run, const S* state, S* out)
        : run_(run), state_(state), out_(out), kept_(run.most > 1 ? 3 * run.batch * run.units : 0) {}

    const S* now(int64_t sweep, int64_t row) const {
        return sweep == 0 ? state_ + row * run_.units : place(sweep % 3, row);
    }
    S* next(int64_t sweep, int64_t row) const {
        return run_.most == 1 ? out_ + row * run_.units : place((sweep + 1) % 3, row);
    }
    // Whether the row goes on after a sweep; its result is there if not.
    bool goes_on(int64_t sweep, int64_t row) const {
        const std::size_t bytes = static_cast<std::size_t>(run_.units) * sizeof(S);
        const S* const found = next(sweep, row);
        const auto is = [&](const S* other) { return std::memcmp(found, other, bytes) == 0; };
        run_.sweeps[row] = sweep + 1;
        run_.period[row] = is(now(sweep, row)) ? 1 : sweep > 0 && is(now(sweep - 1, row)) ? 2 : 0;
        if (run_.period[row] == 0 && sweep + 1 < run_.most) return true;
        if (run_.most > 1) std::memcpy(out_ + row * run_.units, found, bytes);
        return false;
    }

  private:
    S* place(int64_t slot, int64_t row) const { return kept_ + (slot * run_.batch + row) * run_.units; }

    const HopfieldSweeps& run_;
    const S* state_;
    S* out_;
    Buffer<S> kept_;
};

// Calls run(sweeps, first row) for so many rows at a time that what is kept of them stays small.
template <typename Run>
void each_chunk(const HopfieldSweeps& whole, const Run& run) {
    for (int64_t first = 0; first < whole.batch; first += kHopfieldChunk) {
        HopfieldSweeps part = whole;
        part.batch = std::min(kHopfieldChunk, whole.batch - first);
        part.order = whole.order ? whole.order + first * whole.order_stride : nullptr;
        part.sweeps += first;
        part.period += first;
        run(part, first);
    }
}

// Nothing is done: the states as they are.
template <typename S>
bool hopfield_has_nothing_to_do(const HopfieldSweeps& run, const S* state, S* out) {
    if (run.most > 0 && run.units > 0) return false;
    if (run.batch * run.units > 0) std::memcpy(out, state, static_cast<std::size_t>(run.batch * run.units) * sizeof(S));
    std::fill_n(run.sweeps, run.batch, int64_t{0});
    std::fill_n(run.period, run.batch, int64_t{run.units == 0});
    return true;
}

}  // namespace pykernels
