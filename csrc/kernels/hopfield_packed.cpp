// Hebb's rule from the patterns' bits. With m_k the overlap of the state with pattern k, M times the field of unit j is
// the sum of f_k(j) m_k less M y_j: twice the overlaps of the patterns that have the unit set, less those of all. A
// flip changes every overlap by two. All of it is whole numbers.
#include "kernels/hopfield.h"

#include "core/parallel.h"
#include "kernels/hopfield_bits.h"
#include "kernels/hopfield_sweeps.h"

namespace pykernels {
namespace {

using Word = uint64_t;

// For each unit the set of patterns that have it set.
class PatternSets {
  public:
    PatternSets(const int64_t* patterns, int64_t count, int64_t units)
        : patterns_(patterns), count_(count), units_(units), sets_(unit_words() * 64 * words()) {}

    int64_t words() const { return (count_ + 63) / 64; }
    int64_t unit_words() const { return (units_ + 63) / 64; }
    const Word* of(int64_t unit) const { return sets_ + unit * words(); }
    Word pattern(int64_t k, int64_t word) const { return static_cast<Word>(patterns_[k * unit_words() + word]); }

    // Of the units of some words.
    void fill(Range of_words) {
        for (int64_t word = of_words.begin; word < of_words.end; ++word)
            for (int64_t w = 0; w < words(); ++w) {
                Word bits[64];
                for (int64_t i = 0; i < 64; ++i) bits[i] = w * 64 + i < count_ ? pattern(w * 64 + i, word) : 0;
                transpose_bits(bits);
                for (int64_t i = 0; i < 64; ++i) sets_[(word * 64 + i) * words() + w] = bits[i];
            }
    }

  private:
    const int64_t* patterns_;
    int64_t count_, units_;
    Buffer<Word> sets_;
};

// The overlaps of one state with all patterns, and the fields that follow.
class Overlaps {
  public:
    Overlaps(const PatternSets& sets, int64_t count) : sets_(sets), count_(count), overlap_(sets.words() * 64) {}

    template <typename S>
    void begin(const S* state, int64_t units) {
        std::fill_n(overlap_.get(), sets_.words() * 64, 0);
        signs_.resize(static_cast<std::size_t>(sets_.unit_words()));
        int32_t all = 0;  // of the state
        for (int64_t word = 0; word < sets_.unit_words(); ++word) {
            const auto signs = sign_bits<Accumulator<S>>(state + word * 64, std::min<int64_t>(64, units - word * 64));
            signs_[static_cast<std::size_t>(word)] = signs;
            all += std::popcount(signs.above) - std::popcount(signs.below);
        }
        total_ = 0;
        for (int64_t k = 0; k < count_; ++k) {
            int32_t set = 0;
            for (int64_t word = 0; word < sets_.unit_words(); ++word) {
                const auto& signs = signs_[static_cast<std::size_t>(word)];
                const Word bits = sets_.pattern(k, word);
                set += std::popcount(bits & signs.above) - std::popcount(bits & signs.below);
            }
            overlap_[k] = 2 * set - all;
            total_ += overlap_[k];
        }
    }
    // Of four units, M times, still with what each gives itself.
    void fields(const Word* const (&sets)[4], int32_t (&fields)[4]) const {
        sums_of_sets(sets, overlap_, sets_.words(), fields);
        for (int32_t& field : fields) field = 2 * field - total_;
    }
    // `step` is by how much the unit's state rose.
    void change(int64_t unit, int32_t step) {
        int32_t set = 0;
        for (int64_t w = 0; w < sets_.words(); ++w) set += std::popcount(sets_.of(unit)[w]);
        change_by_set(sets_.of(unit), overlap_, sets_.words(), step);
        total_ += step * static_cast<int32_t>(2 * set - count_);
    }

  private:
    const PatternSets& sets_;
    int64_t count_;
    Buffer<int32_t> overlap_;
    std::vector<SignBits> signs_;
    int32_t total_ = 0;
};

// One thread's rows.
template <typename S>
class PackedRows {
    using Acc = Accumulator<S>;

  public:
    PackedRows(const HopfieldPackedRetrieval<S>& call, const PatternSets& sets)
        : call_(call), sets_(sets), overlaps_(sets, call.count), orders_(call.run) {}

    void retrieve(int64_t row) {
        HopfieldSweeps run = call_.run;
        run.batch = 1;
        run.sweeps += row;
        run.period += row;
        const S* const state = call_.state + row * run.units;
        S* const out = call_.out + row * run.units;
        if (run.at_once) {
            const HopfieldStates<S> states(run, state, out);
            int64_t sweep = 0;
            do change_at_once(states.now(sweep, 0), states.next(sweep, 0));
            while (states.goes_on(sweep++, 0));
            return;
        }
        std::memcpy(out, state, static_cast<std::size_t>(run.units) * sizeof(S));
        overlaps_.begin(out, run.units);
        int64_t sweep = 0;
        bool changed = true;
        for (; changed && sweep < run.most; ++sweep) changed = change_in_order(orders_.at(sweep, row), out);
        *run.sweeps = sweep;
        *run.period = !changed;
    }

  private:
    static int32_t sign_of(S state) {
        const Acc value = static_cast<Acc>(state);
        return (value > 0) - (value < 0);
    }
    // What becomes of a unit.
    Acc after(int32_t field, S before) const {
        const auto own = static_cast<int32_t>(call_.count) * sign_of(before);
        return hopfield_sign(static_cast<Acc>(field - own), static_cast<Acc>(before));
    }

    void change_at_once(const S* before, S* next) {
        const int64_t units = call_.run.units;
        overlaps_.begin(before, units);
        for (int64_t unit = 0; unit < units; unit += 4) {
            const Word* sets[4];
            int32_t fields[4];
            for (int64_t i = 0; i < 4; ++i) sets[i] = sets_.of(std::min(unit + i, units - 1));
            overlaps_.fields(sets, fields);
            for (int64_t i = 0; i < std::min<int64_t>(4, units - unit); ++i)
                next[unit + i] = static_cast<S>(after(fields[i], before[unit + i]));
        }
    }

    // Four units at a time; behind one that flips, from there anew.
    bool change_in_order(const int64_t* order, S* state) {
        const int64_t units = call_.run.units;
        bool changed = false;
        for (int64_t t = 0; t < units;) {
            const Word* sets[4];
            int32_t fields[4];
            for (int64_t i = 0; i < 4; ++i) sets[i] = sets_.of(order[std::min(t + i, units - 1)]);
            overlaps_.fields(sets, fields);
            const int64_t end = std::min(t + 4, units);
            for (int64_t i = 0; t < end; ++i) {
                const int64_t unit = order[t++];
                const S before = state[unit];
                const Acc next = after(fields[i], before);
                if (next == static_cast<Acc>(before) || next != next) continue;
                state[unit] = static_cast<S>(next);
                changed = true;
                const int32_t step = sign_of(state[unit]) - sign_of(before);
                if (step == 0) continue;
                overlaps_.change(unit, step);
                break;
            }
        }
        return changed;
    }

    const HopfieldPackedRetrieval<S>& call_;
    const PatternSets& sets_;
    Overlaps overlaps_;
    HopfieldOrders orders_;
};

template <typename S>
void retrieve(const HopfieldPackedRetrieval<S>& call) {
    const HopfieldSweeps& run = call.run;
    if (hopfield_has_nothing_to_do(run, call.state, call.out)) return;
    PatternSets sets(call.patterns, call.count, run.units);
    const double additions = static_cast<double>(run.batch) * static_cast<double>(run.units * (call.count / 8 + 1));
    parallel_region(static_cast<int>(std::min<int64_t>(threads_for(additions, kHopfieldGrain / 4), run.batch)),
                    [&](const Team& team) {
                        sets.fill(share(sets.unit_words(), team.rank, team.size));
                        team.wait();
                        PackedRows<S> rows(call, sets);
                        const Range own = share(run.batch, team.rank, team.size);
                        for (int64_t row = own.begin; row < own.end; ++row) rows.retrieve(row);
                    });
}

}  // namespace

void hopfield_retrieve(const HopfieldPackedRetrieval<float>& call) { retrieve(call); }
void hopfield_retrieve(const HopfieldPackedRetrieval<double>& call) { retrieve(call); }
void hopfield_retrieve(const HopfieldPackedRetrieval<c10::BFloat16>& call) { retrieve(call); }
void hopfield_retrieve(const HopfieldPackedRetrieval<c10::Half>& call) { retrieve(call); }

}  // namespace pykernels
