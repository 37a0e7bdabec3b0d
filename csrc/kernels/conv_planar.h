// The product of weights with patches of planar images: forward and input gradient. Patches are the panels, weights the
// rows; blocks of places are shared out among the threads, each of which gathers its own.
#pragma once

#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/conv_columns.h"

namespace pykernels {

inline constexpr int64_t kPatchBytes = 640 << 10;  // panels of gathered patches that a thread holds at once
inline constexpr int64_t kMostPanels = 8;
inline constexpr double kConvGrain = 1 << 17;  // multiply-adds that are worth a thread

template <typename S_, typename Op_>
struct PlanarCall {
    using S = S_;
    using Op = Op_;
    using Acc = AccOf<Op>;

    std::array<Lattice, 3> lattice;
    PaddingMode mode;
    int64_t batch, groups, channels, rows;  // of one group
    const S* source;                        // [batch, groups * channels, pixels]
    const Op* weights;                      // [groups * rows, depth], as chunks() lays the depth out
    const Acc* bias;                        // [groups * rows], or null
    bool relu;
    S* out;  // [batch, groups * rows, extents]

    int64_t taps() const { return lattice[0].taps() * lattice[1].taps() * lattice[2].taps(); }
    int64_t places() const { return lattice[0].places * lattice[1].places * lattice[2].places; }
    int64_t pixels() const { return lattice[0].source * lattice[1].source * lattice[2].source; }
    int64_t extent() const { return lattice[0].extent * lattice[1].extent * lattice[2].extent; }
};

// Channels that are gathered together: as many as fill one panel of the workspace.
template <typename Op>
struct DepthChunks {
    int64_t channels, taps, together, count;

    DepthChunks(int64_t channels, int64_t taps) : channels(channels), taps(taps) {
        constexpr int64_t row = kTileVectors * kWidth<AccOf<Op>> * sizeof(Op);
        const int64_t values = kPatchBytes / row * Operand<Op>::kPerElement;
        const int64_t most = std::max<int64_t>(values / std::max<int64_t>(taps, 1), 1);
        count = std::max<int64_t>((channels + most - 1) / most, 1);
        together = (channels + count - 1) / count;
    }
    int64_t first(int64_t chunk) const { return std::min(chunk * together, channels); }
    int64_t deep(int64_t chunk) const {
        return ((first(chunk + 1) - first(chunk)) * taps + Operand<Op>::kPerElement - 1) / Operand<Op>::kPerElement;
    }
    int64_t offset(int64_t chunk) const { return chunk * deep(0); }
    int64_t depth() const { return offset(count - 1) + deep(count - 1); }
};

template <typename Call>
class PlanarProduct {
    using S = typename Call::S;
    using Op = typename Call::Op;
    using Acc = typename Call::Acc;
    using V = Vec<Acc>;
    static constexpr int width = kWidth<Acc>;

  public:
    explicit PlanarProduct(const Call& call) : call_(call), chunks_(call.channels, call.taps()) {}

    void run() const {
        const int64_t columns = call_.batch * call_.places();
        if (columns == 0 || call_.rows == 0) return;
        const double work =
            static_cast<double>(columns) * call_.groups * call_.rows * (call_.channels * call_.taps() + 4);
        parallel_region(threads_for(work, kConvGrain), [&](const Team& team) { Part(*this, team).run(); });
    }

  private:
    // A thread's part: some vectors of columns of some groups, and some rows.
    class Part {
      public:
        Part(const PlanarProduct& all, const Team& team)
            : call_(all.call_),
              chunks_(all.chunks_),
              patches_(call_.lattice, call_.mode, {call_.groups * call_.channels * call_.pixels(), call_.pixels()},
                       call_.groups * call_.rows * call_.extent()),
              gather_(patches_),
              columns_(call_.batch * call_.places()),
              vectors_((columns_ + width - 1) / width) {
            // threads side by side along the columns, and along the rows where there are few columns
            int across = 1;
            double least = 0;
            for (int parts = 1; parts <= team.size && parts <= call_.rows; ++parts) {
                const int64_t along = team.size / parts;
                const double each = static_cast<double>((vectors_ * call_.groups + along - 1) / along) *
                                    (static_cast<double>((call_.rows + parts - 1) / parts) + kGatherRows);
                if (parts == 1 || each < least) least = each, across = parts;
            }
            const int along = team.size / across;
            if (team.rank >= along * across) return;
            mine_ = share(vectors_ * call_.groups, team.rank / across, along);
            rows_ = share(call_.rows, team.rank % across, across, kTileRows);
        }

        void run() {
            if (mine_.size() <= 0 || rows_.size() <= 0) return;
            const int64_t panel = chunks_.deep(0) * kTileVectors * width * static_cast<int64_t>(sizeof(Op));
            const int64_t together = std::clamp<int64_t>(kPatchBytes / std::max<int64_t>(panel, 1), 1, kMostPanels);
            const int64_t most = together * kTileVectors;
            panels_ = Buffer<Op>(chunks_.deep(0) * most * width + (together + 1) * width);
            if (chunks_.count > 1) partial_ = Buffer<Acc>(rows_.size() * most * width);
            for (int64_t g = mine_.begin / vectors_; g <= (mine_.end - 1) / vectors_; ++g) {
                const int64_t begin = std::max(mine_.begin - g * vectors_, int64_t{0});
                const int64_t end = std::min(mine_.end - g * vectors_, vectors_);
                const int64_t blocks = (end - begin + most - 1) / most;
                for (int64_t b = 0; b < blocks; ++b)
                    block(g, begin + (end - begin) * b / blocks, begin + (end - begin) * (b + 1) / blocks);
            }
        }

      private:
        static constexpr double kGatherRows = 4;  // rows of weights whose products take as long as the gathering

        void block(int64_t group, int64_t begin, int64_t end) {
            patches_.plan(begin * width, std::min(end * width, columns_), kTileVectors);
            gather_.prepare();
            const S* source = call_.source + group * call_.channels * call_.pixels();
            for (int64_t chunk = 0; chunk < chunks_.count; ++chunk) {
                gather_.run(source, chunks_.first(chunk), chunks_.first(chunk + 1), panels_);
                for_row_tiles(rows_.size(), [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                    for (size_t p = 0; p < patches_.panels().size(); ++p)
                        with_vectors(patches_.panels()[p].vectors,
                                     [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                                         tile<Rows, Vectors>(group, row, static_cast<int64_t>(p), chunk);
                                     });
                });
            }
        }

        template <int Rows, int Vectors>
        void tile(int64_t group, int64_t row, int64_t p, int64_t chunk) {
            const ColumnPanel& panel = patches_.panels()[p];
            const int64_t first = group * call_.rows + rows_.begin + row, deep = chunks_.deep(chunk);
            RowPointers<Op, Rows> weights;
            for (int m = 0; m < Rows; ++m)
                weights.row[m] = call_.weights + (first + m) * chunks_.depth() + chunks_.offset(chunk);
            const Op* const columns = panels_ + ColumnGather<Op, S>::at(p, panel.column, deep);
            Acc* const partial = partial_ ? partial_ + row * patches_.columns() + panel.column : nullptr;
            const bool last = chunk + 1 == chunks_.count;
            alignas(64) Acc sum[(Rows * Vectors + 1) * width];
            multiply<Op, Rows, Vectors>(weights, columns, deep, chunk ? partial : nullptr, patches_.columns(),
                                        last ? sum : partial, last ? Vectors * width : patches_.columns());
            if (!last) return;
            for (int m = 0; m < Rows; ++m)
                finish(sum + m * Vectors * width, call_.bias ? call_.bias[first + m] : Acc(0), panel.runs,
                       call_.out + (first + m) * call_.extent());
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
        const DepthChunks<Op>& chunks_;
        ColumnPatches<S, Acc> patches_;
        ColumnGather<Op, S> gather_;
        int64_t columns_, vectors_;
        Range mine_{0, 0}, rows_{0, 0};
        Buffer<Op> panels_;
        Buffer<Acc> partial_;
    };

    const Call& call_;
    DepthChunks<Op> chunks_;
};

}  // namespace pykernels
