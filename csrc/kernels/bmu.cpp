// Best matching units. A block of samples meets all units in single or double precision; where the best scores are
// farther apart than rounding errors, they stand. Samples in doubt meet the units once more, and
// those units that may have won are measured in double precision.
#include "kernels/bmu.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "core/parallel.h"
#include "kernels/bmu_exact.h"
#include "kernels/bmu_search.h"

namespace pykernels {
namespace {

constexpr double kGrain = 2e5;          // products worth a thread
constexpr int64_t kScannedSamples = 4;  // so few are not worth the preparation of the units

template <typename S>
class Searcher {
    using T = typename Bmu<S>::Acc;
    static constexpr int width = kWidth<T>, most = SampleBlock<T>::most;

  public:
    Searcher(const Bmu<S>& call, const Units<T>& units)
        : call_(call), units_(units), block_(units), grouped_(groups_pay(call, units)) {}

    void search(const Range& samples) {
        for (int64_t first = samples.begin; first < samples.end; first += most) {
            const auto sample = [&](int i) { return first + i; };
            block_.fill(call_, units_, static_cast<int>(std::min<int64_t>(most, samples.end - first)), sample);
            pass();
            finish(first);
        }
        settle();
    }

  private:
    // Whether it costs less to keep groups and to look for the winner within them, than to keep units.
    static bool groups_pay(const Bmu<S>& call, const Units<T>& units) {
        if (call.neighbours > 2 || call.metric == Metric::kManhattan) return false;
        const double keep = call.neighbours * 4.5 * static_cast<double>(call.units) / width;
        const double look = call.neighbours * kTileRows * (8.0 + static_cast<double>(units.stride) / width);
        return look < keep * (kTileRows - 1) / kTileRows;
    }

    template <typename Take>
    void each_tile(const Take& take) {
        const bool sums = units_.metric == Metric::kManhattan;
        if (block_.vectors == 1)
            sums ? each_group<T, true, 1>(units_, block_, take) : each_group<T, false, 1>(units_, block_, take);
        else
            sums ? each_group<T, true, kTileVectors>(units_, block_, take)
                 : each_group<T, false, kTileVectors>(units_, block_, take);
    }
    template <int Held>
    void grouped_pass() {
        const KeepBest<T, Held, true> take{best_};
        block_.vectors == 1 ? each_group<T, false, 1>(units_, block_, take)
                            : each_group<T, false, kTileVectors>(units_, block_, take);
    }

    void pass() {
        const int held = call_.neighbours;
        best_.clear(held);
        if (held == 1) return grouped_ ? grouped_pass<1>() : each_tile(KeepBest<T, 1, false>{best_});
        if (held == 2) return grouped_ ? grouped_pass<2>() : each_tile(KeepBest<T, 2, false>{best_});
        each_tile(KeepMany<T>{best_, held});
    }

    // Writes what is certain of the block, and notes the samples in doubt.
    void finish(int64_t first) {
        const int held = call_.neighbours;
        if (grouped_) held == 1 ? look_into_groups<1>() : look_into_groups<2>();
        alignas(64) T margin[most];
        margins(margin);
        for (int v = 0; v < block_.vectors; ++v) {
            const int at = v * width;
            constexpr uint32_t all = (uint32_t(1) << width) - 1;
            uint32_t certain = units_.overflowed() ? 0 : all;
            for (int j = 0; j < held; ++j) {
                const auto apart = Vec<T>::loadu(best_.value[j] + at) - Vec<T>::loadu(best_.value[j + 1] + at);
                certain &= Larger<T>(apart, Vec<T>::loadu(margin + at)).bits();
            }
            for (int i = at; i < std::min(at + width, block_.count); ++i) {
                if (certain >> (i - at) & 1)
                    write(first + i, i);
                else
                    doubtful_.push_back({first + i, best_.value[held - 1][i] - margin[i]});
            }
        }
    }

    // How far apart scores have to be for the order of their units to be certain.
    void margins(T* margin) const {
        const Vec<T> norm(units_.norm()), rounding(units_.rounding());
        const Vec<T> times = units_.metric == Metric::kManhattan ? rounding : rounding * norm;
        const Vec<T> lost(std::numeric_limits<T>::min());  // more than what products lose that are subnormal
        for (int at = 0; at < block_.vectors * width; at += width)
            ((Vec<T>::loadu(block_.size + at) + norm) * times + lost).store(margin + at);
    }

    void write(int64_t sample, int i) const {
        const S* const x = call_.input + sample * call_.input_stride;
        Nearest nearest(call_.neighbours);
        for (int j = 0; j < call_.neighbours; ++j) {
            const int64_t unit = number_of_lane(best_.number[j][i]);
            nearest.consider(measure(x, unit), unit);
        }
        write_nearest(call_, sample, nearest);
    }

    // From the best groups of each sample to the best units within them.
    template <int Held>
    void look_into_groups() {
        alignas(64) T scores[Held * kTileRows][most];
        for (int i = 0; i < block_.count; ++i)
            for (int g = 0; g < Held; ++g) score_units(i, number_of_lane(best_.number[g][i]) * kTileRows, scores, g);
        for (int at = 0; at < block_.vectors * width; at += width) {
            Vec<T> value[Held + 1], number[Held];
            for (auto& one : value) one = Vec<T>(-std::numeric_limits<T>::infinity());
            for (auto& one : number) one = Vec<T>(T(0));
            value[Held] = Vec<T>::loadu(best_.value[Held] + at);
            for (int c = 0; c < Held * kTileRows; ++c)
                insert<Held>(value, number, Vec<T>::loadu(scores[c] + at), Vec<T>(number_in_lane<T>(c)));
            T chosen[Held][width];
            for (int j = 0; j < Held; ++j) number[j].store(chosen[j]);
            for (int lane = 0; lane < width; ++lane) {
                int64_t unit[Held];
                for (int j = 0; j < Held; ++j) {
                    const int64_t c = number_of_lane(chosen[j][lane]);
                    unit[j] = number_of_lane(best_.number[c / kTileRows][at + lane]) * kTileRows + c % kTileRows;
                }
                for (int j = 0; j < Held; ++j) best_.number[j][at + lane] = number_in_lane<T>(unit[j]);
            }
            for (int j = 0; j <= Held; ++j) value[j].store(best_.value[j] + at);
        }
    }
    // Of a sample and the units of its group g.
    void score_units(int i, int64_t first, T (*scores)[most], int g) const {
        const T* const x = block_.rows + i * units_.stride;
        Vec<T> sum[kTileRows];
#pragma GCC unroll 8
        for (auto& part : sum) part = Vec<T>(T(0));
        for (int64_t d = 0; d < units_.stride; d += width) {
            const auto part = Vec<T>::loadu(x + d);
#pragma GCC unroll 8
            for (int m = 0; m < kTileRows; ++m)
                sum[m] = at::vec::fmadd(part, Vec<T>::loadu(units_.row(first + m) + d), sum[m]);
        }
#pragma GCC unroll 8
        for (int m = 0; m < kTileRows; ++m)
            scores[g * kTileRows + m][i] = sum_of_lanes(sum[m]) + *units_.start(first + m);
    }

    double measure(const S* x, int64_t unit) const {
        return exact_measure(units_.metric, x, call_.codebook + unit * call_.codebook_stride, units_.features);
    }

    // Decides the samples in doubt.
    void settle() {
        const T infinity = std::numeric_limits<T>::infinity();
        const auto open = [&](const Doubt& d) { return !(std::abs(d.threshold) < infinity) || units_.overflowed(); };
        const auto end = std::partition(doubtful_.begin(), doubtful_.end(), open);
        for (auto doubt = doubtful_.begin(); doubt != end; ++doubt) search_exactly(call_, doubt->sample);
        for (auto first = end; first != doubtful_.end(); first += block_.count) {
            const auto rest = std::min<int64_t>(most, doubtful_.end() - first);
            block_.fill(call_, units_, static_cast<int>(rest), [&](int i) { return first[i].sample; });
            std::vector<Nearest> nearest(most, Nearest(call_.neighbours));
            alignas(64) T threshold[most];
            std::fill(threshold, threshold + most, infinity);
            for (int i = 0; i < block_.count; ++i) threshold[i] = first[i].threshold;
            const auto visit = [&](int i, int64_t unit) {
                if (i < block_.count && unit < call_.units)
                    nearest[i].consider(measure(call_.input + first[i].sample * call_.input_stride, unit), unit);
            };
            each_tile(Collect<T, decltype(visit)>{threshold, visit});
            for (int i = 0; i < block_.count; ++i) write_nearest(call_, first[i].sample, nearest[i]);
        }
    }

    struct Doubt {
        int64_t sample;
        T threshold;  // no winner has a score below
    };
    const Bmu<S>& call_;
    const Units<T>& units_;
    SampleBlock<T> block_;
    Best<T> best_;
    std::vector<Doubt> doubtful_;
    const bool grouped_;
};

template <typename S>
void run(const Bmu<S>& call) {
    using T = typename Bmu<S>::Acc;
    const double work = static_cast<double>(call.samples) * static_cast<double>(call.units * (call.features + 2));
    const int threads = threads_for(work, kGrain);
    if (call.samples <= kScannedSamples) {
        parallel_region(threads, [&](const Team& team) {
            const Range mine = share(call.samples, team.rank, team.size);
            for (int64_t sample = mine.begin; sample < mine.end; ++sample) search_exactly(call, sample);
        });
        return;
    }
    Units<T> units(call);
    parallel_region(threads, [&](const Team& team) {
        units.prepare(call, team);
        Searcher<S>(call, units).search(share(call.samples, team.rank, team.size, SampleBlock<T>::most));
    });
}

}  // namespace

void bmu(const Bmu<float>& call) { run(call); }
void bmu(const Bmu<double>& call) { run(call); }
void bmu(const Bmu<c10::BFloat16>& call) { run(call); }
void bmu(const Bmu<c10::Half>& call) { run(call); }

}  // namespace pykernels
