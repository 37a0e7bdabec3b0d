// The product of patches with weights where channels lie beside each other: forward and input gradient. Patches are
// gathered as rows, [place][tap, channel], in runs of channels, or of all taps along the last dimension where those are
// neighbours; the weights are packed once as panels.
#pragma once

#include <cstring>

#include "core/product.h"
#include "core/row_norm.h"
#include "core/scratch.h"
#include "kernels/conv_lattice.h"

namespace pykernels {

// What a row of patches is made of: the operands of the product core, or the two halves of a pair.
template <typename Op>
using RowElement = std::conditional_t<Operand<Op>::kPerElement == 1, Op, c10::BFloat16>;

// Copies a run, converted; writes whole vectors, so up to one less than a vector too much. Nothing is read from `limit`
// on.
template <typename S, typename D>
inline void copy_run(const S* from, int64_t count, const S* limit, D* to) {
    constexpr int width = kWidth<D>;
    for (int64_t i = 0; i < count; i += width) {
        if constexpr (std::is_same_v<S, D>) {
            const bool whole = from + i + width <= limit;
            (whole ? Vec<S>::loadu(from + i) : Vec<S>::loadu(from + i, limit - from - i)).store(to + i);
        } else {
            load_as<D>(from + i, static_cast<int>(std::min<int64_t>(width, count - i))).store(to + i);
        }
    }
}

template <typename S, typename Op>
class RowPatches {
    using D = RowElement<Op>;
    static constexpr int slack = kWidth<D>;

  public:
    // `channels` of `all_channels` are read; the source ends at `limit`.
    RowPatches(const std::array<Lattice, 3>& lattice, PaddingMode mode, int64_t channels, int64_t all_channels,
               const S* limit)
        : lattice_(lattice), mode_(mode), channels_(channels), all_(all_channels), limit_(limit) {
        const auto& [ld, lh, lw] = lattice;
        lines_.resize(ld.taps() * lh.taps());
        neighbours_ =
            channels == all_channels && lw.taps() > 0 && lw.offset.back() - lw.offset.front() + 1 == lw.taps();
    }

    int64_t taps() const { return lattice_[0].taps() * lattice_[1].taps() * lattice_[2].taps(); }
    int64_t depth() const { return (taps() * channels_ + Operand<Op>::kPerElement - 1) / Operand<Op>::kPerElement; }
    // Elements from one row to the next; the last one needs as many.
    int64_t stride() const {
        constexpr int per = Operand<Op>::kPerElement;
        return (depth() + slack / per + 15) / 16 * 16;
    }

    // The places [begin, end) of all images one after the other; `source` is the first channel that is read.
    void gather(const S* source, int64_t begin, int64_t end, Op* rows) {
        const auto& [ld, lh, lw] = lattice_;
        const int64_t plane = lh.places * lw.places, all = ld.places * plane;
        int64_t row = -1;
        for (int64_t at = begin; at < end; ++at) {
            const int64_t w = at % lw.places;
            if (at / lw.places != row) {
                row = at / lw.places;
                find_lines(source, at / all, at % all / plane, at % plane / lw.places);
            }
            gather_row(w, reinterpret_cast<D*>(rows + (at - begin) * stride()));
        }
    }

    // Where the result of a place belongs, in elements of one channel.
    int64_t target(int64_t at) const {
        const auto& [ld, lh, lw] = lattice_;
        const auto where = [](const Lattice& l, int64_t o) { return l.first + o * l.apart; };
        const int64_t w = at % lw.places, h = at / lw.places % lh.places, d = at / lw.places / lh.places % ld.places;
        const int64_t image = at / lw.places / lh.places / ld.places;
        return ((image * ld.extent + where(ld, d)) * lh.extent + where(lh, h)) * lw.extent + where(lw, w);
    }

  private:
    void find_lines(const S* source, int64_t image, int64_t d, int64_t h) {
        const auto& [ld, lh, lw] = lattice_;
        size_t i = 0;
        for (const int64_t from_d : ld.offset)
            for (const int64_t from_h : lh.offset) {
                const int64_t at_d = pixel_at(d * ld.step + from_d, ld.source, mode_);
                const int64_t at_h = pixel_at(h * lh.step + from_h, lh.source, mode_);
                lines_[i++] = at_d < 0 || at_h < 0
                                  ? nullptr
                                  : source + ((image * ld.source + at_d) * lh.source + at_h) * lw.source * all_;
            }
    }

    void gather_row(int64_t w, D* to) const {
        const Lattice& lw = lattice_[2];
        const int64_t first = w * lw.step + (lw.taps() ? lw.offset[0] : 0), run = lw.taps() * channels_;
        const bool together = neighbours_ && first >= 0 && first + lw.taps() <= lw.source;
        D* const begin = to;
        for (const S* line : lines_) {
            if (!line) {
                std::fill_n(to, run, D(0));
                to += run;
            } else if (together) {
                copy_run(line + first * all_, run, limit_, to);
                to += run;
            } else {
                for (const int64_t offset : lw.offset) {
                    const int64_t pixel = pixel_at(w * lw.step + offset, lw.source, mode_);
                    if (pixel < 0)
                        std::fill_n(to, channels_, D(0));
                    else
                        copy_run(line + pixel * all_, channels_, limit_, to);
                    to += channels_;
                }
            }
        }
        if (Operand<Op>::kPerElement > 1 && (to - begin) % 2) *to = D(0);
    }

    const std::array<Lattice, 3>& lattice_;
    PaddingMode mode_;
    int64_t channels_, all_;
    const S* limit_;
    bool neighbours_;
    std::vector<const S*> lines_;  // of each tap along the first two dimensions; null for zeros
};

template <typename S_, typename Op_, typename Pack>
struct RowsCall {
    using S = S_;
    using Op = Op_;
    using Acc = AccOf<Op>;

    std::array<Lattice, 3> lattice;
    PaddingMode mode;
    int64_t batch, groups, channels, columns;  // of one group
    const S* source;                           // [batch, pixels, groups * channels]
    Pack pack;                                 // pack(group, column, columns, padded, panel) of the weights
    const Acc* bias;                           // [groups * columns], or null
    bool relu;
    S* out;  // [batch, extents, groups * columns]

    int64_t taps() const { return lattice[0].taps() * lattice[1].taps() * lattice[2].taps(); }
    int64_t places() const { return lattice[0].places * lattice[1].places * lattice[2].places; }
    int64_t pixels() const { return lattice[0].source * lattice[1].source * lattice[2].source; }
};

template <typename Call>
class RowsProduct {
    using S = typename Call::S;
    using Op = typename Call::Op;
    using Acc = typename Call::Acc;
    using V = Vec<Acc>;
    static constexpr int width = kWidth<Acc>;
    static constexpr int64_t kRowBytes = 256 << 10;  // rows of patches that a thread gathers together
    static constexpr int64_t kDeepest = 2560;        // so much of a panel passes the rows before the rest of it does
    static constexpr double kGatherVectors = 0.25;   // vectors of columns whose products take as long as the gathering

  public:
    explicit RowsProduct(const Call& call)
        : call_(call),
          depth_((call.taps() * call.channels + Operand<Op>::kPerElement - 1) / Operand<Op>::kPerElement),
          panels_{call.columns, depth_},
          packed_(call.groups * panels_.size()),
          places_(call.batch * call.places()) {}

    void run() const {
        if (places_ == 0 || call_.columns == 0) return;
        const double work = static_cast<double>(places_) * call_.groups * call_.columns * (depth_ + 4.0);
        parallel_region(threads_for(work, 1 << 17), [&](const Team& team) {
            const Range own = share(call_.groups * panels_.count(), team.rank, team.size);
            for (int64_t i = own.begin; i < own.end; ++i) pack(i / panels_.count(), i % panels_.count());
            team.wait();
            work_on(team);
        });
    }

  private:
    void pack(int64_t group, int64_t p) const {
        const int64_t first = panels_.column(p), padded = int64_t(panels_.vectors(p)) * width;
        call_.pack(group, first, std::min(padded, call_.columns - first), padded,
                   packed_ + group * panels_.size() + panels_.offset(p));
    }

    // A thread's part: some places of some groups, and some panels.
    void work_on(const Team& team) const {
        int across = 1;
        double least = 0;
        for (int parts = 1; parts <= team.size && parts <= panels_.count(); ++parts) {
            const int64_t along = team.size / parts, vectors = (call_.columns + width - 1) / width;
            const double each = static_cast<double>((places_ * call_.groups + along - 1) / along) *
                                (static_cast<double>((vectors + parts - 1) / parts) + kGatherVectors);
            if (parts == 1 || each < least) least = each, across = parts;
        }
        const int along = team.size / across;
        if (team.rank >= along * across) return;
        const Range mine = share(places_ * call_.groups, team.rank / across, along, kTileRows);
        const Range panels = share(panels_.count(), team.rank % across, across);
        if (mine.size() <= 0 || panels.size() <= 0) return;

        RowPatches<S, Op> patches(call_.lattice, call_.mode, call_.channels, call_.groups * call_.channels,
                                  call_.source + call_.batch * call_.pixels() * call_.groups * call_.channels);
        const int64_t fit = kRowBytes / (patches.stride() * static_cast<int64_t>(sizeof(Op)));
        const int64_t most = std::clamp<int64_t>(fit / kTileRows * kTileRows, kTileRows, kRowBlock);
        const Buffer<Op> rows(most * patches.stride());
        const Buffer<Acc> partial(depth_ > kDeepest ? most * panels_.span() : 0);
        for (int64_t g = mine.begin / places_; g <= (mine.end - 1) / places_; ++g) {
            const int64_t end = std::min(mine.end - g * places_, places_);
            for (int64_t at = std::max(mine.begin - g * places_, int64_t{0}); at < end; at += most) {
                const int64_t count = std::min(most, end - at);
                patches.gather(call_.source + g * call_.channels, at, at + count, rows);
                for (int64_t p = panels.begin; p < panels.end; ++p) panel(patches, g, p, at, count, rows, partial);
            }
        }
    }

    void panel(const RowPatches<S, Op>& patches, int64_t group, int64_t p, int64_t at, int64_t count, const Op* rows,
               Acc* partial) const {
        const Op* const packed = packed_ + group * panels_.size() + panels_.offset(p);
        with_vectors(panels_.vectors(p), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
            constexpr int64_t columns = Vectors * width;
            for (int64_t k = 0; k < std::max<int64_t>(depth_, 1); k += kDeepest) {
                const int64_t deep = std::min(kDeepest, depth_ - k);
                const bool last = k + deep >= depth_;
                for_row_tiles(count, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                    RowPointers<Op, Rows> pointers;
                    for (int m = 0; m < Rows; ++m) pointers.row[m] = rows + (row + m) * patches.stride() + k;
                    alignas(64) Acc sum[Rows * columns];
                    Acc* const part = partial ? partial + row * columns : nullptr;
                    multiply<Op, Rows, Vectors>(pointers, packed + k * columns, deep, k ? part : nullptr, columns,
                                                last ? sum : part, columns);
                    if (!last) return;
                    for (int m = 0; m < Rows; ++m)
                        finish(sum + m * columns, group * call_.columns + panels_.column(p),
                               std::min(columns, call_.columns - panels_.column(p)), patches.target(at + row + m));
                });
            }
        });
    }

    void finish(const Acc* sum, int64_t column, int64_t count, int64_t target) const {
        S* const to = call_.out + target * call_.groups * call_.columns + column;
        each_vector<Acc>(count, [&](int64_t i, int used) {
            V x = V::loadu(sum + i);
            if (call_.bias) x = x + load_as<Acc>(call_.bias + column + i, used);
            if (call_.relu) x = at::vec::maximum(x, V(Acc(0)));
            store_as<Acc, S>(to + i, x, used);
        });
    }

    const Call& call_;
    int64_t depth_;
    Panels<Op> panels_;
    Buffer<Op> packed_;
    int64_t places_;
};

}  // namespace pykernels
