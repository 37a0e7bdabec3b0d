// Sums by unit: samples are sorted by their unit (counted, then laid out), and each unit's are added up by one thread.
#include "kernels/unit_sums.h"

#include <algorithm>
#include <atomic>
#include <memory>

#include "core/parallel.h"
#include "core/scratch.h"

namespace pykernels {
namespace {

constexpr double kGrain = 1e5;      // values worth a thread
constexpr int64_t kAhead = 4;       // rows that are asked for before they are added
constexpr int64_t kLine = 64;       // bytes
constexpr int64_t kLinesAhead = 8;  // of such a row; the processor finds the rest by itself

template <typename S>
class Sorter {
  public:
    Sorter(const UnitSums<S>& call, int parts)
        : call_(call), parts_(parts), places_(parts * call.units), order_(call.samples), first_(call.units + 1) {}

    // One thread's part; all threads of the team come here. False where an index is none of a unit.
    bool run(const Team& team) {
        const Range mine = share(call_.samples, team.rank, parts_);
        int64_t* const own = places_ + team.rank * call_.units;
        std::fill(own, own + call_.units, int64_t(0));
        for (int64_t i = mine.begin; i < mine.end; ++i) {
            const int64_t unit = call_.index[i];
            if (unit < 0 || unit >= call_.units) {
                wrong_.store(true, std::memory_order_relaxed);
                break;
            }
            ++own[unit];
        }
        team.wait();
        if (wrong_.load(std::memory_order_relaxed)) return false;
        if (team.rank == 0) lay_out();
        team.wait();
        for (int64_t i = mine.begin; i < mine.end; ++i) order_[own[call_.index[i]]++] = i;
        team.wait();
        const int64_t *const begin = first_, *const last = begin + call_.units;
        const auto unit_at = [&](int64_t part) {  // (the last part has the units without samples behind all others)
            return part == parts_ ? call_.units : std::lower_bound(begin, last, call_.samples * part / parts_) - begin;
        };
        for (int64_t unit = unit_at(team.rank), end = unit_at(team.rank + 1); unit < end; ++unit) add_up(unit);
        return true;
    }

  private:
    // From counts to places: of a unit, the first thread's samples come first.
    void lay_out() {
        int64_t at = 0;
        for (int64_t unit = 0; unit < call_.units; ++unit) {
            first_[unit] = at;
            for (int part = 0; part < parts_; ++part) {
                int64_t& place = places_[part * call_.units + unit];
                const int64_t count = place;
                place = at;
                at += count;
            }
            call_.counts[unit] = at - first_[unit];
        }
        first_[call_.units] = at;
    }

    void add_up(int64_t unit) const {
        double* const sum = call_.sums + unit * call_.features;
        std::fill(sum, sum + call_.features, 0.0);
        const int64_t end = first_[unit + 1];
        for (int64_t at = first_[unit]; at < end; ++at) {
            if (at + kAhead < end) ask_for(call_.input + order_[at + kAhead] * call_.input_stride);
            const S* const row = call_.input + order_[at] * call_.input_stride;
            for (int64_t d = 0; d < call_.features; ++d) sum[d] += static_cast<double>(row[d]);
        }
    }
    void ask_for(const S* row) const {
        const int64_t bytes = call_.features * int64_t(sizeof(S));
        for (int64_t at = 0; at < std::min(bytes, kLinesAhead * kLine); at += kLine)
            __builtin_prefetch(reinterpret_cast<const char*>(row) + at);
    }

    const UnitSums<S>& call_;
    const int parts_;
    const Buffer<int64_t> places_, order_, first_;
    std::atomic<bool> wrong_{false};
};

template <typename S>
bool run(const UnitSums<S>& call) {
    bool right = true;
    const int wanted = threads_for(static_cast<double>(call.samples) * static_cast<double>(call.features + 4), kGrain);
    std::unique_ptr<Sorter<S>> sorter;
    parallel_region(wanted, [&](const Team& team) {
        if (team.rank == 0) sorter = std::make_unique<Sorter<S>>(call, team.size);
        team.wait();
        const bool mine = sorter->run(team);
        if (team.rank == 0) right = mine;
    });
    return right;
}

}  // namespace

bool unit_sums(const UnitSums<float>& call) { return run(call); }
bool unit_sums(const UnitSums<double>& call) { return run(call); }
bool unit_sums(const UnitSums<c10::BFloat16>& call) { return run(call); }
bool unit_sums(const UnitSums<c10::Half>& call) { return run(call); }

}  // namespace pykernels
