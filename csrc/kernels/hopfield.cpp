#include "kernels/hopfield.h"

#include <atomic>

#include "kernels/hopfield_fields.h"
#include "kernels/hopfield_sweeps.h"

namespace pykernels {
namespace {

std::vector<int64_t> all_rows(int64_t count) {
    std::vector<int64_t> rows(static_cast<std::size_t>(count));
    for (int64_t i = 0; i < count; ++i) rows[static_cast<std::size_t>(i)] = i;
    return rows;
}

template <typename S>
int threads_of(const HopfieldRetrieval<S>& call) {
    const double fields = static_cast<double>(call.run.units) * static_cast<double>(call.run.units);
    return threads_for(fields * static_cast<double>(std::max<int64_t>(call.run.batch / 4, 1)) / kWidth<Accumulator<S>>,
                       kHopfieldGrain / 4);
}

// All units at once: threads have columns, then rows.
template <typename S>
void retrieve_at_once(const HopfieldRetrieval<S>& call) {
    using Acc = Accumulator<S>;
    const HopfieldSweeps& run = call.run;
    const HopfieldStates<S> states(run, call.state, call.out);
    HopfieldCodes<S> codes(run.units, run.batch);
    std::vector<int64_t> active = all_rows(run.batch);
    std::vector<char> goes_on(active.size());
    parallel_region(threads_of(call), [&](const Team& team) {
        const Range columns = share(run.units, team.rank, team.size, HopfieldCodes<S>::kBlock);
        HopfieldFields<S> fields(call.weight, run.units);
        for (int64_t sweep = 0; sweep < run.most && !active.empty(); ++sweep) {
            const Range rows = share(static_cast<int64_t>(active.size()), team.rank, team.size);
            for (int64_t r = rows.begin; r < rows.end; ++r) codes.encode(active[r], states.now(sweep, active[r]));
            team.wait();
            fields.each(
                active, codes, [&](int64_t row) { return states.now(sweep, row); }, columns,
                [&](int64_t row, int64_t column, const Acc* field, int64_t count) {
                    const S* const before = states.now(sweep, row) + column;
                    S* const after = states.next(sweep, row) + column;
                    each_vector<Acc>(count, [&](int64_t i, int used) {
                        const auto sign = hopfield_sign(Vec<Acc>::loadu(field + i), load_as<Acc>(before + i, used));
                        store_as<Acc, S>(after + i, sign, used);
                    });
                });
            team.wait();
            for (int64_t r = rows.begin; r < rows.end; ++r) goes_on[r] = states.goes_on(sweep, active[r]);
            team.wait();
            if (team.rank == 0) {
                std::vector<int64_t> left;
                for (std::size_t r = 0; r < active.size(); ++r)
                    if (goes_on[r]) left.push_back(active[r]);
                active.swap(left);
            }
            team.wait();
        }
    });
}

// The weights that go out of each unit, in a row: those of a symmetric weight are there.
template <typename S>
class Outgoing {
  public:
    explicit Outgoing(const HopfieldRetrieval<S>& call)
        : weight_(call.weight), units_(call.run.units), symmetric_(call.symmetric), looked_at_(call.symmetric) {}

    const S* of(int64_t unit) const { return (symmetric_ ? weight_ : turned_.get()) + unit * units_; }

    // Once for all rows, before they are asked for.
    void prepare(int threads) {
        if (looked_at_) return;
        looked_at_ = true;
        std::atomic<bool> same{true};
        parallel_region(threads, [&](const Team& team) {
            for (int64_t tile = team.rank; tile < tiles() && same.load(std::memory_order_relaxed); tile += team.size)
                if (!is_symmetric(tile * kTile)) same.store(false, std::memory_order_relaxed);
        });
        symmetric_ = same.load();
        if (symmetric_) return;
        turned_ = Buffer<S>(units_ * units_);
        parallel_region(threads, [&](const Team& team) {
            const Range own = share(tiles(), team.rank, team.size);
            for (int64_t i = own.begin * kTile; i < std::min(own.end * kTile, units_); i += kTile)
                pack_transposed<S>(weight_ + i * units_, units_, std::min(kTile, units_ - i), units_, turned_ + i,
                                   units_);
        });
    }

  private:
    static constexpr int64_t kTile = 16;
    int64_t tiles() const { return (units_ + kTile - 1) / kTile; }

    // Rows i … i+15 from the diagonal on, beside the columns of these numbers.
    bool is_symmetric(int64_t i) const {
        const int64_t high = std::min(kTile, units_ - i);
        alignas(64) S turned[kTile * kTile];
        for (int64_t j = i; j < units_; j += kTile) {
            const int64_t wide = std::min(kTile, units_ - j);
            pack_transposed<S>(weight_ + j * units_ + i, units_, wide, high, turned, kTile);
            for (int64_t r = 0; r < high; ++r)
                if (std::memcmp(turned + r * kTile, weight_ + (i + r) * units_ + j, wide * sizeof(S)) != 0) return false;
        }
        return true;
    }

    const S* weight_;
    int64_t units_;
    bool symmetric_, looked_at_;
    Buffer<S> turned_;
};

// One unit after the other: the fields of all units are kept, and change when one flips.
template <typename S>
void retrieve_in_order(const HopfieldRetrieval<S>& call, const Outgoing<S>& outgoing) {
    using Acc = Accumulator<S>;
    const HopfieldSweeps& run = call.run;
    const int64_t units = run.units;
    HopfieldCodes<S> codes(units, run.batch);
    const Buffer<Acc> fields(run.batch * units);
    const std::vector<int64_t> all = all_rows(run.batch);
    parallel_region(threads_of(call), [&](const Team& team) {
        const Range rows = share(run.batch, team.rank, team.size);
        for (int64_t row = rows.begin; row < rows.end; ++row) codes.encode(row, call.state + row * units);
        team.wait();
        {
            HopfieldFields<S> sums(call.weight, units);
            sums.each(
                all, codes, [&](int64_t row) { return call.state + row * units; },
                share(units, team.rank, team.size, HopfieldCodes<S>::kBlock),
                [&](int64_t row, int64_t column, const Acc* field, int64_t count) {
                    std::memcpy(fields + row * units + column, field, static_cast<std::size_t>(count) * sizeof(Acc));
                });
        }
        team.wait();
        HopfieldOrders orders(run);
        for (int64_t row = rows.begin; row < rows.end; ++row) {
            Acc* const field = fields + row * units;
            S* const state = call.out + row * units;
            std::memcpy(state, call.state + row * units, static_cast<std::size_t>(units) * sizeof(S));
            int64_t sweep = 0;
            bool changed = true;
            for (; changed && sweep < run.most; ++sweep) {
                const int64_t* const order = orders.at(sweep, row);
                changed = false;
                for (int64_t t = 0; t < units; ++t) {
                    const int64_t unit = order[t];
                    const Acc before = static_cast<Acc>(state[unit]), after = hopfield_sign(field[unit], before);
                    if (!(after != before) || !(before == before || after == after)) continue;
                    changed = true;
                    state[unit] = static_cast<S>(after);
                    const Vec<Acc> change(after - before);
                    const S* const weights = outgoing.of(unit);
                    each_vector<Acc>(units, [&](int64_t i, int used) {
                        store_as<Acc, Acc>(field + i,
                                           at::vec::fmadd(change, load_as<Acc>(weights + i, used),
                                                          load_as<Acc>(field + i, used)),
                                           used);
                    });
                }
            }
            run.sweeps[row] = sweep;
            run.period[row] = !changed;
        }
    });
}

template <typename S>
void retrieve(const HopfieldRetrieval<S>& call) {
    if (hopfield_has_nothing_to_do(call.run, call.state, call.out)) return;
    Outgoing<S> outgoing(call);
    if (!call.run.at_once) outgoing.prepare(threads_of(call));
    each_chunk(call.run, [&](const HopfieldSweeps& run, int64_t first) {
        HopfieldRetrieval<S> part = call;
        part.run = run;
        part.state += first * run.units;
        part.out += first * run.units;
        if (run.at_once) {
            retrieve_at_once(part);
        } else {
            retrieve_in_order(part, outgoing);
        }
    });
}

}  // namespace

void hopfield_retrieve(const HopfieldRetrieval<float>& call) { retrieve(call); }
void hopfield_retrieve(const HopfieldRetrieval<double>& call) { retrieve(call); }
void hopfield_retrieve(const HopfieldRetrieval<c10::BFloat16>& call) { retrieve(call); }
void hopfield_retrieve(const HopfieldRetrieval<c10::Half>& call) { retrieve(call); }

}  // namespace pykernels
