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
        : weight_(call.weight), units_(call.run.units), symmetric_(call.symmetric) {}

    const S* of(int64_t unit) const { return (symmetric_ ? weight_ : turned_.get()) + unit * units_; }

    // Once for all rows, before they are asked for.
    void prepare(int threads) {
        if (symmetric_) return;
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
            for (int64_t k = own.begin * kTile; k < std::min(own.end * kTile, units_); k += kTile)
                for (int64_t i = 0; i < units_; i += kBlock)
                    pack_transposed<S>(weight_ + i * units_ + k, units_, std::min(kBlock, units_ - i),
                                       std::min(kTile, units_ - k), turned_ + k * units_ + i, units_);
        });
    }

  private:
    static constexpr int64_t kBlock = 16, kTile = 64;
    int64_t tiles() const { return (units_ + kTile - 1) / kTile; }

    void ask_for(int64_t row, int64_t first, int64_t count) const {
        for (int64_t i = 0; i < count; i += 64 / static_cast<int64_t>(sizeof(S)))
            __builtin_prefetch(weight_ + row * units_ + first + i);
    }

    // Rows i … i+63 from the diagonal on, beside the columns of these numbers, tile by tile. Every line is in another
    // place: those of the next tile are asked for, a few at a time.
    bool is_symmetric(int64_t i) const {
        const int64_t high = std::min(kTile, units_ - i);
        alignas(64) S turned[kTile * kTile];
        for (int64_t j = i; j < units_; j += kTile) {
            const int64_t wide = std::min(kTile, units_ - j);
            const int64_t left = std::min(kTile, units_ - j - kTile);  // of the next tile
            for (int64_t r = 0; r < wide; r += kBlock) {
                for (int64_t row = r; row < std::min(r + kBlock, left); ++row) ask_for(j + kTile + row, i, high);
                for (int64_t row = r; row < std::min(r + kBlock, high); ++row) ask_for(i + row, j + kTile, left);
                pack_transposed<S>(weight_ + (j + r) * units_ + i, units_, std::min(kBlock, wide - r), high, turned + r,
                                   kTile);
            }
            for (int64_t r = 0; r < high; ++r)
                if (std::memcmp(turned + r * kTile, weight_ + (i + r) * units_ + j,
                                static_cast<std::size_t>(wide) * sizeof(S)) != 0)
                    return false;
        }
        return true;
    }

    const S* weight_;
    int64_t units_;
    bool symmetric_;
    Buffer<S> turned_;
};

// What a unit becomes; whether it changes.
template <typename S, typename Acc>
inline bool flips(Acc field, S before, Acc* change, S* state) {
    const Acc was = static_cast<Acc>(before), is = hopfield_sign(field, was);
    if (is == was || is != is) return false;
    *state = static_cast<S>(is);
    *change = is - was;
    return true;
}

// One unit after the other: the fields of all units are kept, and change when one flips. Rows that share an order go
// together: the units of a step are decided row by row from their own fields, and what flipped changes the others'
// fields afterwards, so that weights are read once for all rows. Every field is the same chain of multiply-adds.
template <typename S>
class RowsInOrder {
    using Acc = Accumulator<S>;
    static constexpr int64_t kStep = 32;         // units that are decided before the other fields follow
    static constexpr int kVectors = 4;           // of a field that are changed at one time
    static constexpr int64_t kFields = 1 << 19;  // bytes of fields that go together: half of the second-level cache
    static constexpr int64_t kMostRows = 64, kFewRows = 3;

  public:
    RowsInOrder(const HopfieldRetrieval<S>& call, const Outgoing<S>& outgoing, Acc* fields)
        : call_(call), outgoing_(outgoing), units_(call.run.units), fields_(fields), orders_(call.run) {}

    void retrieve(Range rows) {
        const int64_t fitting = kFields / (units_ * static_cast<int64_t>(sizeof(Acc)));
        const int64_t most = call_.run.order_stride ? 1 : std::clamp<int64_t>(fitting, kFewRows, kMostRows);
        for (int64_t row = rows.begin; row < rows.end; row += most) {
            active_.clear();
            for (int64_t r = row; r < std::min(row + most, rows.end); ++r) active_.push_back(r);
            for (int64_t sweep = 0; sweep < call_.run.most && !active_.empty(); ++sweep) {
                changed_.assign(active_.size(), 0);
                const int64_t* const order = orders_.at(sweep, row);
                if (active_.size() <= kFewRows) {
                    for (std::size_t r = 0; r < active_.size(); ++r) changed_[r] = sweep_one(active_[r], order);
                } else {
                    for (int64_t t = 0; t < units_; t += kStep) step(order + t, std::min(kStep, units_ - t));
                }
                end(sweep);
            }
        }
    }

  private:
    struct Flip {
        Acc change;
        const S* weights;
    };

    Acc* field(int64_t row) const { return fields_ + row * units_; }
    S* state(int64_t row) const { return call_.out + row * units_; }

    // Rows in which nothing changed are ready.
    void end(int64_t sweep) {
        std::size_t left = 0;
        for (std::size_t r = 0; r < active_.size(); ++r) {
            call_.run.sweeps[active_[r]] = sweep + 1;
            call_.run.period[active_[r]] = !changed_[r];
            if (changed_[r]) active_[left++] = active_[r];
        }
        active_.resize(left);
    }

    bool sweep_one(int64_t row, const int64_t* order) const {
        Acc* const field = this->field(row);
        S* const state = this->state(row);
        bool changed = false;
        for (int64_t t = 0; t < units_; ++t) {
            const int64_t unit = order[t];
            Flip flip;
            if (!flips(field[unit], state[unit], &flip.change, &state[unit])) continue;
            changed = true;
            flip.weights = outgoing_.of(unit);
            for (int64_t i = 0; i < units_; i += kVectors * kWidth<Acc>) change_fields(&flip, 1, field, i);
        }
        return changed;
    }

    // Some units of all rows.
    void step(const int64_t* order, int64_t count) {
        alignas(64) Acc between[kStep][kStep] = {};  // from the first of two units to the second
        for (int64_t s = 0; s < count; ++s)
            for (int64_t t = s; t < count; ++t) between[s][t] = static_cast<Acc>(outgoing_.of(order[s])[order[t]]);
        flips_.resize(active_.size() * kStep);
        flipped_.assign(active_.size(), 0);
        const S* any[kStep] = {};  // what goes out of the units that flip in any row
        for (std::size_t r = 0; r < active_.size(); ++r) {
            alignas(64) Acc near[kStep];
            for (int64_t t = 0; t < count; ++t) near[t] = field(active_[r])[order[t]];
            S* const state = this->state(active_[r]);
            for (int64_t t = 0; t < count; ++t) {
                Flip& flip = flips_[r * kStep + static_cast<std::size_t>(flipped_[r])];
                if (!flips(near[t], state[order[t]], &flip.change, &state[order[t]])) continue;
                flip.weights = any[t] = outgoing_.of(order[t]);
                ++flipped_[r];
                changed_[r] = 1;
                for (int64_t i = t / kWidth<Acc> * kWidth<Acc>; i < kStep; i += kWidth<Acc>)
                    at::vec::fmadd(Vec<Acc>(flip.change), Vec<Acc>::loadu(between[t] + i), Vec<Acc>::loadu(near + i))
                        .store(near + i);
            }
        }
        constexpr int64_t together = kVectors * kWidth<Acc>;
        for (int64_t i = 0; i < units_; i += together) {
            // The weights that come next are far away, and in as many places as there are units.
            for (int64_t t = 0; t < count; ++t)
                if (any[t])
                    for (int64_t ahead = i + together; ahead < i + 2 * together; ahead += 64 / sizeof(S))
                        __builtin_prefetch(any[t] + ahead, 0, 2);
            for (std::size_t r = 0; r < active_.size(); ++r)
                if (flipped_[r]) change_fields(&flips_[r * kStep], flipped_[r], field(active_[r]), i);
        }
    }

    // Fields from number `first` on, as many as are changed at one time.
    void change_fields(const Flip* flips, int count, Acc* field, int64_t first) const {
        constexpr int width = kWidth<Acc>;
        if (first + kVectors * width <= units_) {
            Vec<Acc> sum[kVectors];
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) sum[v] = Vec<Acc>::loadu(field + first + v * width);
            for (int f = 0; f < count; ++f) {
                const Vec<Acc> change(flips[f].change);
                const S* const weights = flips[f].weights + first;
#pragma GCC unroll 8
                for (int v = 0; v < kVectors; ++v)
                    sum[v] = at::vec::fmadd(change, load_as<Acc>(weights + v * width), sum[v]);
            }
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) sum[v].store(field + first + v * width);
            return;
        }
        each_vector<Acc>(units_ - first, [&](int64_t i, int used) {
            auto sum = load_as<Acc>(field + first + i, used);
            for (int f = 0; f < count; ++f)
                sum = at::vec::fmadd(Vec<Acc>(flips[f].change), load_as<Acc>(flips[f].weights + first + i, used), sum);
            store_as<Acc, Acc>(field + first + i, sum, used);
        });
    }

    const HopfieldRetrieval<S>& call_;
    const Outgoing<S>& outgoing_;
    int64_t units_;
    Acc* fields_;
    HopfieldOrders orders_;
    std::vector<int64_t> active_;
    std::vector<char> changed_;
    std::vector<Flip> flips_;
    std::vector<int> flipped_;
};

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
        for (int64_t row = rows.begin; row < rows.end; ++row) {
            const S* const state = call.state + row * units;
            codes.encode(row, state);
            std::memcpy(call.out + row * units, state, static_cast<std::size_t>(units) * sizeof(S));
        }
        team.wait();
        HopfieldFields<S>(call.weight, units)
            .each(
                all, codes, [&](int64_t row) { return call.state + row * units; },
                share(units, team.rank, team.size, HopfieldCodes<S>::kBlock),
                [&](int64_t row, int64_t column, const Acc* field, int64_t count) {
                    std::memcpy(fields + row * units + column, field, static_cast<std::size_t>(count) * sizeof(Acc));
                });
        team.wait();
        RowsInOrder<S>(call, outgoing, fields).retrieve(rows);
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
