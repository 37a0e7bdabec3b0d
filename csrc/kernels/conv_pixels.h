// Patches where channels lie beside each other: the rows of a product with weights, never laid down themselves. Where a
// tap has channels enough, a patch is read in place, tap by tap. Else, and where values have to be converted, the lines
// that a block of places reads are laid out with their padding, and each value of a patch is at an offset from its
// first.
#pragma once

#include "core/product.h"
#include "core/scratch.h"
#include "kernels/conv_parts.h"

namespace pykernels {

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
        const int64_t first_line = taps.begin / std::max<int64_t>(lw.taps(), 1);
        each_place(source, begin, end, [&](int64_t at, int64_t w) {
            const S** start = to + (at - begin) * place_stride;
            int64_t tap = taps.begin - first_line * lw.taps();
            const S* const* line = lines_.data() + first_line;
            for (int64_t t = taps.begin; t < taps.end; ++t, start += tap_stride) {
                const int64_t pixel = *line ? pixel_at(w * lw.step + lw.offset[tap], lw.source, mode_) : -1;
                *start = pixel < 0 ? zeros_.get() : *line + pixel * all_;
                if (++tap == lw.taps()) tap = 0, ++line;
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
    // Turns lines() to the row of a place.
    void turn_to(const S* source, int64_t at) {
        const auto& [ld, lh, lw] = lattice_;
        const int64_t plane = lh.places * lw.places, all = ld.places * plane;
        find_lines(source, at / all, at % all / plane, at % plane / lw.places);
    }
    const S* zeros() const { return zeros_.get(); }
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

// Rows whose values are all at the same offsets from their first.
template <typename Op, int Rows>
struct OffsetRows {
    const Op* row[Rows];
    const int64_t* offset;
    const Op* at(int m, int64_t k) const { return row[m] + offset[k]; }
};

// The lines that some rows of one plane read: [plane of the first dimension][line][position][channel].
template <typename S, typename Op>
class RowLines {
    using D = RowElement<Op>;
    static constexpr int per = Operand<Op>::kPerElement;

  public:
    RowLines(const std::array<Lattice, 3>& lattice, PaddingMode mode, int64_t channels, int64_t all_channels,
             const S* limit)
        : lattice_(lattice),
          mode_(mode),
          channels_(channels),
          all_(all_channels),
          pairs_((channels + per - 1) / per),
          limit_(limit) {}

    // Bytes for `rows` rows.
    int64_t bytes_for(int64_t rows) const {
        const auto& [ld, lh, lw] = lattice_;
        const int64_t line = ((lw.places - 1) * lw.step + spread(lw) + 1) * pairs_;
        return (spread(ld) + 1) * ((rows - 1) * lh.step + spread(lh) + 1) * line * static_cast<int64_t>(sizeof(Op));
    }

    // The places [begin, end) of one plane, counted through all images.
    void read(const S* source, int64_t begin, int64_t end) {
        const auto& [ld, lh, lw] = lattice_;
        starts_.assign(end - begin, nullptr);
        offsets_.clear();
        if (!ld.taps() || !lh.taps() || !lw.taps()) return;
        const int64_t plane = begin / (lh.places * lw.places), row = begin / lw.places % lh.places;
        const int64_t rows = (end - 1) / lw.places - begin / lw.places + 1;
        low_ = rows == 1 ? begin % lw.places : 0;
        const int64_t high = rows == 1 ? (end - 1) % lw.places + 1 : lw.places;
        line_ = ((high - low_ - 1) * lw.step + spread(lw) + 1) * pairs_;
        const int64_t height = (rows - 1) * lh.step + spread(lh) + 1, size = (spread(ld) + 1) * height * line_;
        if (size > size_) lines_ = Buffer<Op>(size + 64), size_ = size;

        for (const int64_t from_d : ld.offset) {
            const int64_t d = pixel_at(plane % ld.places * ld.step + from_d, ld.source, mode_);
            Op* const lines = lines_ + (from_d - ld.offset[0]) * height * line_;
            for (int64_t i = 0; i < height; ++i) {
                if (!is_read(i, rows)) continue;
                const int64_t h = d < 0 ? -1 : pixel_at(row * lh.step + lh.offset[0] + i, lh.source, mode_);
                if (h < 0)
                    std::fill_n(lines + i * line_, line_, Op{});
                else
                    fill(source + ((plane / ld.places * ld.source + d) * lh.source + h) * lw.source * all_,
                         reinterpret_cast<D*>(lines + i * line_));
            }
        }
        for (const int64_t d : ld.offset)
            for (const int64_t h : lh.offset)
                for (const int64_t w : lw.offset)
                    for (int64_t c = 0; c < pairs_; ++c)
                        offsets_.push_back(((d - ld.offset[0]) * height + h - lh.offset[0]) * line_ +
                                           (w - lw.offset[0]) * pairs_ + c);
        for (int64_t at = begin; at < end; ++at)
            starts_[at - begin] = lines_ + (at / lw.places - begin / lw.places) * lh.step * line_ +
                                  (at % lw.places - low_) * lw.step * pairs_;
    }
    template <int Rows>
    OffsetRows<Op, Rows> rows(int64_t row, int64_t first) const {
        OffsetRows<Op, Rows> rows;
        for (int m = 0; m < Rows; ++m) rows.row[m] = starts_[row + m];
        rows.offset = offsets_.data() + first;
        return rows;
    }

  private:
    static int64_t spread(const Lattice& l) { return l.taps() ? l.offset.back() - l.offset.front() : 0; }

    bool is_read(int64_t line, int64_t rows) const {
        const Lattice& lh = lattice_[1];
        for (const int64_t offset : lh.offset) {
            const int64_t at = line - (offset - lh.offset[0]);
            if (at >= 0 && at % lh.step == 0 && at / lh.step < rows) return true;
        }
        return false;
    }

    void fill(const S* source, D* to) const {
        const Lattice& lw = lattice_[2];
        const int64_t begin = low_ * lw.step + lw.offset[0], end = begin + line_ / pairs_, padded = pairs_ * per;
        const int64_t inside = std::clamp<int64_t>(0, begin, end), outside = std::clamp(lw.source, inside, end);
        const auto one_by_one = [&](int64_t from, int64_t until) {
            for (int64_t at = from; at < until; ++at) {
                const int64_t pixel = pixel_at(at, lw.source, mode_);
                D* const one = to + (at - begin) * padded;
                if (pixel >= 0) copy_run(source + pixel * all_, channels_, limit_, one);
                for (int64_t c = pixel < 0 ? 0 : channels_; c < padded; ++c) one[c] = D(0);
            }
        };
        one_by_one(begin, inside);
        if (channels_ == all_ && channels_ == padded)
            copy_run(source + inside * all_, (outside - inside) * channels_, limit_, to + (inside - begin) * padded);
        else
            one_by_one(inside, outside);
        one_by_one(outside, end);
    }

    const std::array<Lattice, 3>& lattice_;
    PaddingMode mode_;
    int64_t channels_, all_, pairs_;
    const S* limit_;
    int64_t low_ = 0, line_ = 0, size_ = 0;
    Buffer<Op> lines_;
    std::vector<int64_t> offsets_;   // of each value of a patch
    std::vector<const Op*> starts_;  // of each place's patch
};

template <typename S, typename Op>
class RowPatches {
    static constexpr int per = Operand<Op>::kPerElement;
    static constexpr int64_t kChannels = 16;          // of a tap that is worth a run of its own
    static constexpr int64_t kLineBytes = 256 << 10;  // that a thread lays out together

  public:
    // `channels` of `all_channels` are read; the source ends at `limit`.
    RowPatches(const std::array<Lattice, 3>& lattice, PaddingMode mode, int64_t channels, int64_t all_channels,
               const S* limit)
        : lattice_(lattice),
          channels_(channels),
          table_(lattice, mode, channels, all_channels),
          lines_(lattice, mode, channels, all_channels, limit),
          in_place_(std::is_same_v<S, RowElement<Op>> && channels % per == 0 && all_channels % per == 0 &&
                    (channels >= kChannels || table_.taps() == 1)) {}

    int64_t depth() const { return table_.taps() * run_depth(); }
    int64_t run_depth() const { return (channels_ + per - 1) / per; }  // of a tap

    // Places of a block, at most `most`; lines are those of one plane.
    int64_t block_size(int64_t most) const {
        if (in_place_) return most;
        while (most > kTileRows && lines_.bytes_for(most / lattice_[2].places + 2) > kLineBytes) most /= 2;
        return std::max<int64_t>(most / kTileRows * kTileRows, kTileRows);
    }
    int64_t block_end(int64_t at, int64_t end, int64_t most) const {
        const int64_t plane = lattice_[1].places * lattice_[2].places;
        return std::min({end, at + most, in_place_ ? end : (at / plane + 1) * plane});
    }

    // The places [begin, end), counted through all images; `source` is the first channel that is read.
    void read(const S* source, int64_t begin, int64_t end) {
        if (!in_place_) return lines_.read(source, begin, end);
        starts_.resize((end - begin) * table_.taps());
        table_.find(source, begin, end, {0, table_.taps()}, table_.taps(), 1, starts_.data());
    }

    // Some rows of the block, from tap `first` on, `taps` of them, times a panel.
    template <int Rows, int Vectors, typename End>
    void multiply_rows(int64_t row, int64_t first, int64_t taps, const Op* panel, const AccOf<Op>* start,
                       int64_t start_stride, const End& end) const {
        if (!in_place_)
            return multiply_to<Op, Rows, Vectors>(lines_.template rows<Rows>(row, first * run_depth()),
                                                  PanelRows<Op>{panel, int64_t(Vectors) * kWidth<AccOf<Op>>},
                                                  taps * run_depth(), start, start_stride, end);
        const RowRuns<S, Op, Rows> runs{starts_.data() + row * table_.taps() + first, table_.taps(), run_depth()};
        multiply_runs<Op, Rows, Vectors>(runs, taps, panel, start, start_stride, end);
    }
    int64_t taps() const { return table_.taps(); }
    int64_t target(int64_t at) const { return table_.target(at); }

  private:
    const std::array<Lattice, 3>& lattice_;
    int64_t channels_;
    PixelTable<S> table_;
    RowLines<S, Op> lines_;
    bool in_place_;
    std::vector<const S*> starts_;  // of each place's taps
};

}  // namespace pykernels
