// Patches where channels lie beside each other: the rows of a product with weights. Where a tap has channels enough, a
// patch is read where it lies, tap by tap; else it is gathered as one row, [tap, channel], in runs of channels, or of
// all taps along the last dimension where those are neighbours.
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

// Rows of A for one tap, or for all of them where they are gathered.
template <typename Op, int Rows>
struct RunOfRows : RowPointers<Op, Rows> {
    int64_t depth;
};

// Where the taps of a lattice's places read, pixel by pixel.
template <typename S>
class PixelTable {
  public:
    // `channels` of `all_channels` are read at each pixel.
    PixelTable(const std::array<Lattice, 3>& lattice, PaddingMode mode, int64_t channels, int64_t all_channels)
        : lattice_(lattice), mode_(mode), all_(all_channels), zeros_(channels + kWidth<Accumulator<S>>) {
        lines_.resize(lattice[0].taps() * lattice[1].taps());
        for (const auto& l : lattice) plain_ &= l.first == 0 && l.apart == 1;
        std::fill_n(zeros_.get(), channels, S(0));
    }

    int64_t taps() const { return lattice_[0].taps() * lattice_[1].taps() * lattice_[2].taps(); }

    // to[(place - begin) * place_stride + (tap - taps.begin) * tap_stride] for the places [begin, end), counted through
    // all images, and some taps; `source` is the first channel that is read.
    void find(const S* source, int64_t begin, int64_t end, const Range& taps, int64_t place_stride, int64_t tap_stride,
              const S** to) {
        const Lattice& lw = lattice_[2];
        each_place(source, begin, end, [&](int64_t at, int64_t w) {
            const S** start = to + (at - begin) * place_stride;
            for (int64_t t = taps.begin; t < taps.end; ++t, start += tap_stride) {
                const S* const line = lines_[t / lw.taps()];
                const int64_t pixel = line ? pixel_at(w * lw.step + lw.offset[t % lw.taps()], lw.source, mode_) : -1;
                *start = pixel < 0 ? zeros_.get() : line + pixel * all_;
            }
        });
    }

    // Calls visit(place, its position along the last dimension), with lines() of its row.
    template <typename Visit>
    void each_place(const S* source, int64_t begin, int64_t end, const Visit& visit) {
        const auto& [ld, lh, lw] = lattice_;
        const int64_t plane = lh.places * lw.places, all = ld.places * plane;
        int64_t w = begin % lw.places;
        for (int64_t at = begin; at < end; ++at, ++w) {
            if (w == lw.places) w = 0;
            if (w == 0 || at == begin) find_lines(source, at / all, at % all / plane, at % plane / lw.places);
            visit(at, w);
        }
    }
    // Of each tap along the first two dimensions; null for zeros.
    const std::vector<const S*>& lines() const { return lines_; }

    // Where the result of a place belongs, in elements of one channel.
    int64_t target(int64_t at) const {
        if (plain_) return at;
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

    std::array<Lattice, 3> lattice_;
    PaddingMode mode_;
    int64_t all_;
    Buffer<S> zeros_;
    bool plain_ = true;  // every pixel of the result has a place
    std::vector<const S*> lines_;
};

// Some rows of a block: run r of row m begins at start[m * stride + r].
template <typename S, typename Op, int Rows>
struct RowRuns {
    const S* const* start;
    int64_t stride, depth;
    [[gnu::always_inline]] RunOfRows<Op, Rows> run(int64_t r) const {
        RunOfRows<Op, Rows> rows;
        for (int m = 0; m < Rows; ++m) rows.row[m] = reinterpret_cast<const Op*>(start[m * stride + r]);
        rows.depth = depth;
        return rows;
    }
};

template <typename S, typename Op>
class RowPatches {
    using D = RowElement<Op>;
    static constexpr int per = Operand<Op>::kPerElement, slack = kWidth<D>;
    static constexpr int64_t kChannels = 16;  // of a tap that is worth a run of its own

  public:
    // `channels` of `all_channels` are read; the source ends at `limit`.
    RowPatches(const std::array<Lattice, 3>& lattice, PaddingMode mode, int64_t channels, int64_t all_channels,
               const S* limit)
        : lattice_(lattice),
          mode_(mode),
          channels_(channels),
          all_(all_channels),
          limit_(limit),
          table_(lattice, mode, channels, all_channels) {
        const Lattice& lw = lattice[2];
        neighbours_ =
            channels == all_channels && lw.taps() > 0 && lw.offset.back() - lw.offset.front() + 1 == lw.taps();
        in_place_ = std::is_same_v<S, D> && channels % per == 0 && all_channels % per == 0 &&
                    (channels >= kChannels || table_.taps() == 1);
    }

    int64_t depth() const { return (table_.taps() * channels_ + per - 1) / per; }
    // Runs of each row, and their depth.
    int64_t runs() const { return in_place_ ? table_.taps() : 1; }
    int64_t run_depth() const { return in_place_ ? channels_ / per : depth(); }
    // What a row takes of a thread's workspace, or of its caches.
    int64_t row_bytes() const { return (in_place_ ? 2 * run_depth() : stride()) * static_cast<int64_t>(sizeof(Op)); }

    // For blocks of at most `most` places.
    void reserve(int64_t most) {
        starts_.resize(most * runs());
        if (!in_place_) rows_ = Buffer<Op>(most * stride());
    }

    // The places [begin, end), counted through all images; `source` is the first channel that is read.
    void read(const S* source, int64_t begin, int64_t end) {
        if (in_place_) return table_.find(source, begin, end, {0, runs()}, runs(), 1, starts_.data());
        table_.each_place(source, begin, end, [&](int64_t at, int64_t w) {
            auto* const row = reinterpret_cast<D*>(rows_ + (at - begin) * stride());
            starts_[at - begin] = reinterpret_cast<const S*>(row);
            gather_row(w, row);
        });
    }
    // From run `first` on.
    template <int Rows>
    RowRuns<S, Op, Rows> rows(int64_t row, int64_t first) const {
        return {starts_.data() + row * runs() + first, runs(), run_depth()};
    }
    int64_t target(int64_t at) const { return table_.target(at); }

  private:
    // Elements from one gathered row to the next.
    int64_t stride() const { return (depth() + slack / per + 15) / 16 * 16; }

    void gather_row(int64_t w, D* to) const {
        const Lattice& lw = lattice_[2];
        const int64_t first = w * lw.step + (lw.taps() ? lw.offset[0] : 0), run = lw.taps() * channels_;
        const bool together = neighbours_ && first >= 0 && first + lw.taps() <= lw.source;
        D* const begin = to;
        for (const S* line : table_.lines()) {
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
        if (per > 1 && (to - begin) % 2) *to = D(0);
    }

    const std::array<Lattice, 3>& lattice_;
    PaddingMode mode_;
    int64_t channels_, all_;
    const S* limit_;
    PixelTable<S> table_;
    bool neighbours_, in_place_;
    std::vector<const S*> starts_;  // of each place's runs
    Buffer<Op> rows_;
};

}  // namespace pykernels
