// The pass over all units for a block of samples that lie side by side in the lanes: scores of a group of units at a
// time, of which the best are kept.
#pragma once

#include <limits>

#include "core/choose.h"
#include "core/gemm.h"
#include "kernels/bmu_units.h"

namespace pykernels {

inline constexpr int64_t kBmuDepth = 1024;  // features that are summed before the next units come
inline constexpr int64_t kBmuChunk = 16;    // groups that wait for the next features

// Samples side by side: [feature][sample]; and each by itself. `size` is their norm, the sum of magnitudes where
// distances are such sums.
template <typename T>
struct SampleBlock {
    static constexpr int width = kWidth<T>, most = kTileVectors * width;

    explicit SampleBlock(const Units<T>& units)
        : panel(units.features * most), rows(most * units.stride), partial(kBmuChunk * kTileRows * most) {}

    // Takes samples sample(0) … sample(count - 1).
    template <typename S, typename Sample>
    void fill(const Bmu<S>& call, const Units<T>& units, int samples, const Sample& sample) {
        count = samples;
        vectors = count <= width ? 1 : kTileVectors;
        const T* const centre = units.centre();
        const int lanes = vectors * width;
        for (int i = 0; i < count; ++i) {
            const S* x = call.input + sample(i) * call.input_stride;
            T* const row = rows + i * units.stride;
            each_vector<T>(units.features, [&](int64_t d, int used) {  // (beyond `used` the centre is zero too)
                (load_as<T>(x + d, used) - Vec<T>::loadu(centre + d)).store(row + d);
            });
        }
        std::fill(rows + count * units.stride, rows + lanes * units.stride, T(0));
        pack_transposed(rows.get(), units.stride, lanes, units.features, panel.get(), lanes);
        for (int at = 0; at < lanes; at += width) {
            Vec<T> sum(T(0));
            for (int64_t d = 0; d < units.features; ++d) {
                const auto x = Vec<T>::loadu(panel + d * lanes + at);
                sum = units.metric == Metric::kManhattan ? sum + x.abs() : at::vec::fmadd(x, x, sum);
            }
            (units.metric == Metric::kManhattan ? sum : sum.sqrt()).store(size + at);
        }
    }

    int count, vectors;
    alignas(64) T size[most];
    const Buffer<T> panel, rows, partial;
};

// Rows of A one below the other.
template <typename T>
struct UnitRows {
    const T* first;
    int64_t stride;
    const T* at(int m, int64_t k) const { return first + m * stride + k; }
};

// One group of units against the block, over `depth` features: from the units' own start, or from what was summed so
// far; end(tile) has the sums in registers. A function of its own, so that nothing else competes for them.
template <typename T, bool Sums, int Vectors, typename End>
[[gnu::noinline]] void score_group(const UnitRows<T> units, const T* samples, int64_t depth, const T* start,
                                   const T* summed, const End& end) {
    const PanelRows<T> panel{samples, int64_t(Vectors) * kWidth<T>};
    Tile<T, kTileRows, Vectors> tile;
    if (summed) {
        tile.begin(summed, Vectors * kWidth<T>);
    } else {
#pragma GCC unroll 8
        for (int m = 0; m < kTileRows; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) tile.sum[m][v] = Vec<T>(start[m]);
    }
    if constexpr (Sums) {
        for (int64_t k = 0; k < depth; ++k)
#pragma GCC unroll 8
            for (int m = 0; m < kTileRows; ++m)
#pragma GCC unroll 8
                for (int v = 0; v < Vectors; ++v)
                    tile.sum[m][v] =
                        tile.sum[m][v] - (Vec<T>::loadu(panel.at(k) + v * kWidth<T>) - Vec<T>(*units.at(m, k))).abs();
    } else {
        tile.add(units, panel, depth);
    }
    end(tile);
}

// Calls take(group, tile) with the scores of every group of units, while they are in registers. Sums: of distances, in
// the place of products.
template <typename T, bool Sums, int Vectors, typename Take>
void each_group(const Units<T>& units, const SampleBlock<T>& block, const Take& take) {
    constexpr int lanes = Vectors * kWidth<T>;
    const int64_t features = units.features;
    for (int64_t g0 = 0; g0 < units.groups; g0 += kBmuChunk) {
        const int64_t g1 = std::min(g0 + kBmuChunk, units.groups);
        for (int64_t d0 = 0; d0 < std::max<int64_t>(features, 1); d0 += kBmuDepth) {
            const int64_t deep = std::min(kBmuDepth, features - d0);
            const T* const panel = block.panel + d0 * lanes;
            for (int64_t group = g0; group < g1; ++group) {
                T* const partial = block.partial + (group - g0) * kTileRows * lanes;
                const T *const start = units.start(group * kTileRows), *const summed = d0 == 0 ? nullptr : partial;
                const UnitRows<T> rows{units.row(group * kTileRows) + d0, units.stride};
                if (d0 + kBmuDepth < features)
                    score_group<T, Sums, Vectors>(rows, panel, deep, start, summed, StoreSums<T>{partial, lanes});
                else
                    score_group<T, Sums, Vectors>(rows, panel, deep, start, summed,
                                                  [group, take](const auto& tile) { take(group, tile); });
            }
        }
    }
}

// The best scores of each sample and what they belong to, units or groups of units: the first ones where several are
// equal. One score more is held than there are numbers: what the winners have to keep away from.
template <typename T>
struct Best {
    static constexpr int most = SampleBlock<T>::most;
    alignas(64) T value[kMostNeighbours + 1][most];
    alignas(64) T number[kMostNeighbours][most];

    void clear(int held) {
        std::fill(value[0], value[held + 1], -std::numeric_limits<T>::infinity());
        std::fill(number[0], number[held], number_in_lane<T>(0));
    }
};

// Puts a score where it belongs among `Held + 1` descending ones.
template <int Held, typename T>
[[gnu::always_inline]] inline void insert(Vec<T> (&value)[Held + 1], Vec<T> (&number)[Held], const Vec<T>& of_new,
                                          const Vec<T>& new_owner) {
    Vec<T> score = of_new, owner = new_owner;
#pragma GCC unroll 8
    for (int i = 0; i < Held; ++i) {
        const Larger<T> better(score, value[i]);
        const Vec<T> passed = smaller(value[i], score), passed_owner = number[i];
        value[i] = larger(value[i], score);
        number[i] = better.choose(owner, passed_owner);
        owner = better.choose(passed_owner, owner);
        score = passed;
    }
    value[Held] = larger(value[Held], score);
}

// Keeps the best `Held`, one or two: groups of units by their best, or units.
template <typename T, int Held, bool Grouped>
struct KeepBest {
    Best<T>& best;

    template <int Rows, int Vectors>
    [[gnu::always_inline]] void operator()(int64_t group, const Tile<T, Rows, Vectors>& tile) const {
        constexpr int width = kWidth<T>;
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) {
            Vec<T> value[Held + 1], number[Held];
            for (int i = 0; i <= Held; ++i) value[i] = Vec<T>::loadu(best.value[i] + v * width);
            for (int i = 0; i < Held; ++i) number[i] = Vec<T>::loadu(best.number[i] + v * width);
            if constexpr (Grouped) {
                Vec<T> score(-std::numeric_limits<T>::infinity());
#pragma GCC unroll 8
                for (int m = 0; m < Rows; ++m) score = larger(score, tile.sum[m][v]);
                insert<Held>(value, number, score, Vec<T>(number_in_lane<T>(group)));
            } else {
#pragma GCC unroll 8
                for (int m = 0; m < Rows; ++m)
                    insert<Held>(value, number, tile.sum[m][v], Vec<T>(number_in_lane<T>(group * Rows + m)));
            }
            for (int i = 0; i <= Held; ++i) value[i].store(best.value[i] + v * width);
            for (int i = 0; i < Held; ++i) number[i].store(best.number[i] + v * width);
        }
    }
};

// Keeps the best `held` units, however many these are.
template <typename T>
struct KeepMany {
    Best<T>& best;
    int held;

    template <int Rows, int Vectors>
    [[gnu::always_inline]] void operator()(int64_t group, const Tile<T, Rows, Vectors>& tile) const {
        alignas(64) T scores[Rows * Vectors * kWidth<T>];
        tile.end(scores, Vectors * kWidth<T>);
        keep(group * Rows, scores, Rows, Vectors);
    }

  private:
    [[gnu::noinline]] void keep(int64_t first, const T* scores, int rows, int vectors) const {
        constexpr int width = kWidth<T>;
        for (int m = 0; m < rows; ++m)
            for (int v = 0; v < vectors; ++v) {
                auto score = Vec<T>::loadu(scores + (m * vectors + v) * width);
                if (!Larger<T>(score, Vec<T>::loadu(best.value[held] + v * width)).bits()) continue;
                Vec<T> owner(number_in_lane<T>(first + m));
                for (int i = 0; i <= held; ++i) {
                    T *const value = best.value[i] + v * width, *const number = best.number[i] + v * width;
                    const auto old = Vec<T>::loadu(value);
                    const Larger<T> better(score, old);
                    larger(old, score).store(value);
                    score = smaller(old, score);
                    if (i == held) break;
                    const auto old_owner = Vec<T>::loadu(number);
                    better.choose(owner, old_owner).store(number);
                    owner = better.choose(old_owner, owner);
                }
            }
    }
};

// Shows every unit whose score is not below a sample's threshold: visit(sample's place, unit).
template <typename T, typename Visit>
struct Collect {
    const T* threshold;
    const Visit& visit;

    template <int Rows, int Vectors>
    [[gnu::always_inline]] void operator()(int64_t group, const Tile<T, Rows, Vectors>& tile) const {
        alignas(64) T scores[Rows * Vectors * kWidth<T>];
        tile.end(scores, Vectors * kWidth<T>);
        show(group * Rows, scores, Rows, Vectors);
    }

  private:
    [[gnu::noinline]] void show(int64_t first, const T* scores, int rows, int vectors) const {
        constexpr int width = kWidth<T>;
        for (int m = 0; m < rows; ++m)
            for (int v = 0; v < vectors; ++v) {
                const auto score = Vec<T>::loadu(scores + (m * vectors + v) * width);
                constexpr uint32_t all = (uint32_t(1) << width) - 1;
                uint32_t near = all & ~Larger<T>(Vec<T>::loadu(threshold + v * width), score).bits();
                for (; near; near &= near - 1) visit(v * width + __builtin_ctz(near), first + m);
            }
    }
};

}  // namespace pykernels
