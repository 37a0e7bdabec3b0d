// The product of weights with patches of planar images: forward and input gradient. Patches are the columns, weights
// the rows; blocks of places are shared out among the threads, each of which lays out the lines of its own.
#pragma once

#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/conv_columns.h"
#include "kernels/conv_parts.h"

namespace pykernels {

inline constexpr int64_t kPatchBytes = 512 << 10;  // lines, and as much of windows, that a thread holds at once
inline constexpr int64_t kMostPanels = 8;

template <typename S_, typename Op_>
struct PlanarCall {
    using S = S_;
    using Op = Op_;
    using Acc = AccOf<Op>;

    std::array<Lattice, 3> lattice;
    PaddingMode mode;
    int64_t batch, groups, channels, rows;  // of one group
    const S* source;                        // [batch, groups * channels, pixels]
    const Op* weights;                      // [groups * rows, channels or pairs of them, taps]
    const Acc* bias;                        // [groups * rows], or null
    bool relu;
    S* out;  // [batch, groups * rows, extents]

    int64_t taps() const { return lattice[0].taps() * lattice[1].taps() * lattice[2].taps(); }
    int64_t places() const { return lattice[0].places * lattice[1].places * lattice[2].places; }
    int64_t pairs() const { return (channels + Operand<Op>::kPerElement - 1) / Operand<Op>::kPerElement; }
    int64_t pixels() const { return lattice[0].source * lattice[1].source * lattice[2].source; }
    int64_t extent() const { return lattice[0].extent * lattice[1].extent * lattice[2].extent; }
};

template <typename Call>
class PlanarProduct {
    using S = typename Call::S;
    using Op = typename Call::Op;
    using Acc = typename Call::Acc;
    using V = Vec<Acc>;
    static constexpr int width = kWidth<Acc>;

  public:
    explicit PlanarProduct(const Call& call)
        : call_(call),
          lines_(call.lattice, call.mode, {call.groups * call.channels * call.pixels(), call.pixels()}, call.channels),
          plan_(lines_, call.batch, call.groups * call.rows * call.extent(),
                ColumnPlan<S, Op>::prefers_flat(lines_, call.batch, call.rows)),
          vectors_(plan_.vectors()),
          depth_(call.pairs() * call.taps()) {}

    void run() const {
        const int64_t columns = call_.batch * call_.places();
        if (columns == 0 || call_.rows == 0) return;
        const double work = static_cast<double>(columns) * call_.groups * call_.rows * (depth_ + 4.0);
        parallel_region(threads_for(work, kConvGrain), [&](const Team& team) { Part(*this, team).run(); });
    }

  private:
    // A thread's part: some vectors of columns of some groups, and some rows.
    class Part {
      public:
        Part(const PlanarProduct& all, const Team& team)
            : call_(all.call_), plan_(all.plan_), vectors_(all.vectors_), depth_(all.depth_) {
            // threads side by side along the columns, and along the rows where there are few columns
            int across = 1;
            double least = 0;
            for (int parts = 1; parts <= team.size && parts <= call_.rows; ++parts) {
                const int64_t along = team.size / parts;
                const double each = static_cast<double>((vectors_ * call_.groups + along - 1) / along) *
                                    (static_cast<double>((call_.rows + parts - 1) / parts) + plan_.kGatherRows);
                if (parts == 1 || each < least) least = each, across = parts;
            }
            const int along = team.size / across;
            if (team.rank >= along * across) return;
            mine_ = share(vectors_ * call_.groups, team.rank / across, along);
            rows_ = share(call_.rows, team.rank % across, across, kTileRows);
        }

        void run() {
            if (mine_.size() <= 0 || rows_.size() <= 0) return;
            choose_sizes();
            for (int64_t g = mine_.begin / vectors_; g <= (mine_.end - 1) / vectors_; ++g) {
                const int64_t end = std::min(mine_.end - g * vectors_, vectors_);
                for (int64_t at = std::max(mine_.begin - g * vectors_, int64_t{0}); at < end;) {
                    const int64_t next = plan_.block_end(at, end, most_);
                    block(g, at, next);
                    at = next;
                }
            }
        }

      private:
        // The vectors of a block, and the channels of which it holds lines and windows at once.
        void choose_sizes() {
            const int64_t taps = std::max<int64_t>(call_.taps(), 1), panel = kTileVectors * width;
            constexpr int64_t bytes = sizeof(Op);
            const int64_t windows = plan_.flat() ? 0 : taps * panel * bytes;  // of one channel and panel
            const int64_t together =
                std::clamp<int64_t>(windows ? kPatchBytes / (call_.pairs() * windows) : kMostPanels, 1, kMostPanels);
            most_ = std::min(together * kTileVectors, vectors_);
            const int64_t row =
                std::max<int64_t>(plan_.flat() ? plan_.lines().whole_line() : call_.lattice[2].places, 1);
            const int64_t lines = plan_.lines().size_for(most_ * width / row + 2) * bytes;
            const int64_t each = std::max(lines, windows * together);
            const int64_t fit = std::max<int64_t>(kPatchBytes / each, 1), pairs = std::max<int64_t>(call_.pairs(), 1);
            const int64_t chunks = (pairs + fit - 1) / fit;
            channels_ = (pairs + chunks - 1) / chunks;
            windows_ = Buffer<Op>(windows ? channels_ * taps * most_ * width + (together + 1) * width : 0);
            partial_ = Buffer<Acc>(chunks > 1 ? rows_.size() * most_ * width : 0);
        }

        void block(int64_t group, int64_t begin, int64_t end) {
            plan_.plan(begin, end, kTileVectors);
            const auto& lines = plan_.lines();
            const int64_t size = channels_ * lines.size() + width, pairs = call_.pairs();
            if (size > lines_size_) lines_ = Buffer<Op>(size), lines_size_ = size;
            const S* source = call_.source + group * call_.channels * call_.pixels();
            for (int64_t c = 0; c == 0 || c < pairs; c += channels_) {
                const int64_t last = std::min(c + channels_, pairs);
                lines.fill(source, c, last, lines_);
                if (plan_.flat())
                    list_offsets(last - c);
                else
                    ColumnGather<S, Op>::run(plan_, lines_, last - c, windows_);
                for_row_tiles(rows_.size(), [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                    int64_t p = 0;
                    for (const auto& panel : plan_.panels()) {
                        with_vectors(panel.vectors, [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                            tile<Rows, Vectors>(group, row, panel, p, c, last);
                        });
                        ++p;
                    }
                });
            }
        }

        // Where each tap of each channel reads.
        void list_offsets(int64_t channels) {
            const auto& taps = plan_.lines().offsets();
            offsets_.clear();
            for (int64_t c = 0; c < channels; ++c)
                for (const int64_t offset : taps) offsets_.push_back(c * plan_.lines().size() + offset);
        }

        template <int Rows, int Vectors>
        void tile(int64_t group, int64_t row, const ColumnPanel& panel, int64_t p, int64_t channel, int64_t last) {
            const int64_t first = group * call_.rows + rows_.begin + row, columns = plan_.columns();
            const int64_t deep = (last - channel) * call_.taps();
            RowPointers<Op, Rows> weights;
            for (int m = 0; m < Rows; ++m)
                weights.row[m] = call_.weights + (first + m) * depth_ + channel * call_.taps();
            if (last == call_.pairs())
                for (int m = 0; m < Rows; ++m) prefetch(panel.runs, call_.out + (first + m) * call_.extent());
            alignas(64) Acc sum[(Rows * Vectors + 1) * width];
            Acc* const partial = partial_ ? partial_ + row * columns + panel.column : nullptr;
            const bool ends = last == call_.pairs();
            const Acc* const start = channel ? partial : nullptr;
            Acc* const out = ends ? sum : partial;
            const int64_t stride = ends ? Vectors * width : columns;
            if (plan_.flat())
                multiply_scattered<Op, Rows, Vectors>(weights, ScatteredRows<Op>{lines_ + panel.from, offsets_.data()},
                                                      deep, start, columns, out, stride);
            else
                multiply<Op, Rows, Vectors>(weights, windows_ + ColumnGather<S, Op>::at(p, panel.column, deep), deep,
                                            start, columns, out, stride);
            if (!ends) return;
            for (int m = 0; m < Rows; ++m)
                finish(sum + m * Vectors * width, call_.bias ? call_.bias[first + m] : Acc(0), panel.runs,
                       call_.out + (first + m) * call_.extent());
        }

        // The result comes from far away and is needed last: asks for it.
        static void prefetch(const std::vector<Run>& runs, S* out) {
            constexpr int64_t line = 64 / sizeof(S);
            for (const auto& run : runs)
                for (int64_t i = 0; i < run.length * run.apart; i += line) __builtin_prefetch(out + run.at + i, 1);
        }

        void finish(const Acc* sum, Acc bias, const std::vector<Run>& runs, S* out) const {
            const V shift(bias), zero(Acc(0));
            for (const auto& run : runs) {
                S* const to = out + run.at;
                each_vector<Acc>(run.length, [&](int64_t i, int used) {
                    V x = V::loadu(sum + run.column + i) + shift;
                    if (call_.relu) x = at::vec::maximum(x, zero);
                    if (run.apart == 1) return store_as<Acc, S>(to + i, x, used);
                    alignas(64) S lanes[width];
                    store_as<Acc, S>(lanes, x);
                    for (int j = 0; j < used; ++j) to[(i + j) * run.apart] = lanes[j];
                });
            }
        }

        const Call& call_;
        ColumnPlan<S, Op> plan_;
        int64_t vectors_, depth_;
        Range mine_{0, 0}, rows_{0, 0};
        int64_t most_ = 0, channels_ = 0, lines_size_ = 0;
        std::vector<int64_t> offsets_;
        Buffer<Op> lines_, windows_;
        Buffer<Acc> partial_;
    };

    const Call& call_;
    PlanarLines<S, Op> lines_;
    ColumnPlan<S, Op> plan_;
    int64_t vectors_, depth_;
};

}  // namespace pykernels
