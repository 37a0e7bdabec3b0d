// How it is done: patches are the columns, weights the rows; a block of places at a time, for which a thread lays out
// the lines.
#pragma once

#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/conv_columns.h"
#include "kernels/conv_planar.h"

namespace pykernels {

inline constexpr int64_t kPatchBytes = 192 << 10;  // lines, and as much of windows, that a thread holds at once
inline constexpr int64_t kMostPanels = 8;

// Ends a tile: with bias and ReLU to where its vectors belong, row m at out + m * out_stride, or where they belong to
// several places, or `out` is null, to the sums.
template <typename Acc, typename Out>
struct PlanarResults {
    Acc* sums;
    int64_t stride;
    Out* out;
    int64_t out_stride;
    const int64_t* whole;  // of each vector
    const Acc* bias;       // of the rows, or null
    bool relu;

    template <int Rows, int Vectors, typename Op>
    [[gnu::always_inline]] void operator()(const Tile<Op, Rows, Vectors>& tile) const {
        using V = Vec<Acc>;
        if (!out) return tile.end(sums, stride);
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) {
            const int64_t to = whole[v];
#pragma GCC unroll 8
            for (int m = 0; m < Rows; ++m) {
                if (to < 0) {
                    tile.sum[m][v].store(sums + m * stride + v * kWidth<Acc>);
                    continue;
                }
                V x = tile.sum[m][v] + V(bias ? bias[m] : Acc(0));
                if (relu) x = at::vec::maximum(x, V(Acc(0)));
                store_as<Acc, Out>(out + m * out_stride + to, x);
            }
        }
    }
};

// A thread's workspace, and what it does with a planned block.
template <typename Call>
class PlanarTiles {
    using S = typename Call::S;
    using Op = typename Call::Op;
    using Out = typename Call::Out;
    using Acc = typename Call::Acc;
    using V = Vec<Acc>;
    using Plan = ColumnPlan<S, Op>;
    static constexpr int width = kWidth<Acc>;
    static constexpr int64_t kDeepTile = 24;  // products that last until what was asked for is there

  public:
    // For blocks of plans like this one and some rows of each group.
    PlanarTiles(const Call& call, const Plan& plan, const Range& rows) : call_(call), rows_(rows) {
        // the vectors of a block, and the channels of which it holds lines and windows at once
        const int64_t taps = std::max<int64_t>(call_.taps(), 1), pairs = std::max<int64_t>(call_.pairs(), 1);
        constexpr int64_t bytes = sizeof(Op), panel = kTileVectors * width;
        const int64_t windows = plan.flat() ? 0 : taps * panel * bytes;  // of one channel and panel
        const int64_t together =
            std::clamp<int64_t>(windows ? kPatchBytes / (pairs * windows) : kMostPanels, 1, kMostPanels);
        most_ = std::min(together * kTileVectors, plan.vectors());
        const auto& [d, h, w] = call_.lattice;
        const int64_t row = std::max<int64_t>(plan.flat() ? plan.lines().whole_line() : w.places, 1);
        const int64_t rows_of_block = most_ * width / row + 2, rows_of_plane = std::max<int64_t>(h.places, 1);
        const int64_t planes = plan.flat() ? 1 : rows_of_block / rows_of_plane + 2;
        const int64_t lines = plan.lines().size_for(std::min(rows_of_block, rows_of_plane), planes) * bytes;
        const int64_t fit = std::max<int64_t>(kPatchBytes / std::max(lines, windows * together), 1);
        const int64_t chunks = (pairs + fit - 1) / fit;
        channels_ = (pairs + chunks - 1) / chunks;
        windows_ = Buffer<Op>(windows ? channels_ * taps * most_ * width + (together + 1) * width : 0);
        partial_ = Buffer<Acc>(chunks > 1 ? rows_.size() * most_ * width : 0);
    }
    int64_t most() const { return most_; }  // vectors of a block

    // `source`: the group's first channel; `out`: the group's first row.
    void block(const Plan& plan, int64_t group, const S* source, Out* out) {
        const auto& lines = plan.lines();
        const int64_t size = channels_ * lines.size() + lines.behind(), pairs = call_.pairs();
        if (size > lines_size_) lines_ = Buffer<Op>(size), lines_size_ = size;
        for (int64_t c = 0; c == 0 || c < pairs; c += channels_) {
            const int64_t last = std::min(c + channels_, pairs);
            lines.fill(source, c, last, lines_);
            if (plan.flat())
                list_offsets(lines, last - c);
            else
                ColumnGather<S, Op>::run(plan, lines_, last - c, windows_);
            for_row_tiles(rows_.size(), [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                int64_t p = 0;
                for (const auto& panel : plan.panels()) {
                    with_vectors(panel.vectors, [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                        tile<Rows, Vectors>(plan, panel, p, group, rows_.begin + row, {c, last}, out);
                    });
                    ++p;
                }
            });
        }
    }

  private:
    // Where each tap of each channel reads.
    void list_offsets(const PlanarLines<S, Op>& lines, int64_t channels) {
        offsets_.clear();
        for (int64_t c = 0; c < channels; ++c)
            for (const int64_t offset : lines.offsets()) offsets_.push_back(c * lines.size() + offset);
    }

    template <int Rows, int Vectors>
    void tile(const Plan& plan, const ColumnPanel& panel, int64_t p, int64_t group, int64_t row, const Range& channels,
              Out* out) {
        const int64_t columns = plan.columns(), depth = call_.pairs() * call_.taps();
        const int64_t deep = channels.size() * call_.taps(), first = group * call_.rows + row;
        RowPointers<Op, Rows> weights;
        for (int m = 0; m < Rows; ++m)
            weights.row[m] = call_.weights + (first + m) * depth + channels.begin * call_.taps();
        Acc* const partial = partial_ ? partial_ + (row - rows_.begin) * columns + panel.column : nullptr;
        const Acc* const start = channels.begin ? partial : nullptr;
        const auto product = [&](const auto& end) {
            if (plan.flat())
                multiply_to<Op, Rows, Vectors>(weights, ScatteredRows<Op>{lines_ + panel.from, offsets_.data()}, deep,
                                               start, columns, end);
            else
                multiply_to<Op, Rows, Vectors>(
                    weights,
                    PanelRows<Op>{windows_ + ColumnGather<S, Op>::at(p, panel.column, deep), int64_t(Vectors) * width},
                    deep, start, columns, end);
        };
        alignas(64) Acc sum[(Rows * Vectors + 1) * width];
        PlanarResults<Acc, Out> results{partial, columns, nullptr, 0, nullptr, nullptr, call_.relu};
        if (channels.end < call_.pairs()) return product(results);
        results = {sum,
                   int64_t(Vectors) * width,
                   out + row * call_.extent(),
                   call_.extent(),
                   panel.whole.data(),
                   call_.bias ? call_.bias + first : nullptr,
                   call_.relu};
        for (int m = 0; deep >= kDeepTile && m < Rows; ++m) prefetch(panel.runs, out + (row + m) * call_.extent());
        product(results);
        for (int m = 0; !panel.rest.empty() && m < Rows; ++m)
            finish(sum + m * Vectors * width, call_.bias ? call_.bias[first + m] : Acc(0), panel.rest,
                   out + (row + m) * call_.extent());
    }

    // The result comes from far away and is needed last: asks for it.
    static void prefetch(const std::vector<Run>& runs, Out* out) {
        constexpr int64_t line = 64 / sizeof(Out);
        for (const auto& run : runs)
            for (int64_t i = 0; i < run.length * run.apart; i += line) __builtin_prefetch(out + run.at + i, 1);
    }

    void finish(const Acc* sum, Acc bias, const std::vector<Run>& runs, Out* out) const {
        const V shift(bias), zero(Acc(0));
        for (const auto& run : runs) {
            Out* const to = out + run.at;
            each_vector<Acc>(run.length, [&](int64_t i, int used) {
                V x = V::loadu(sum + run.column + i) + shift;
                if (call_.relu) x = at::vec::maximum(x, zero);
                if (run.apart == 1) return store_as<Acc, Out>(to + i, x, used);
                alignas(64) Out lanes[width];
                store_as<Acc, Out>(lanes, x);
                for (int j = 0; j < used; ++j) to[(i + j) * run.apart] = lanes[j];
            });
        }
    }

    const Call& call_;
    Range rows_;
    int64_t most_ = 0, channels_ = 0, lines_size_ = 0;
    std::vector<int64_t> offsets_;
    Buffer<Op> lines_, windows_;
    Buffer<Acc> partial_;
};

// The images of one call, one after the other.
template <typename Call>
ColumnPlan<typename Call::S, typename Call::Op> plan_for(const Call& call) {
    using Lines = PlanarLines<typename Call::S, typename Call::Op>;
    const PlanarStrides strides{call.groups * call.channels * call.pixels(), call.pixels()};
    const Lines lines(call.lattice, call.mode, strides, call.channels);
    const Lines by_tap(call.lattice, call.mode, strides, call.channels, true);
    return ColumnPlan<typename Call::S, typename Call::Op>::cheapest(
        lines, by_tap, call.batch, call.groups * call.rows * call.extent(), call.rows);
}

}  // namespace pykernels
