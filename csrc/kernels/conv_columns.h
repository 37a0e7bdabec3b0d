// Patches of planar images as columns, [channel, tap][place], gathered in two steps. The lines of a channel that the
// places need are laid out with their padding, in the type of the sums, and split by the remainder of the step, so that
// what a tap reads at neighbouring places lies side by side. Then the windows of each tap are copied from them.
#pragma once

#include <array>

#include "core/gemm.h"
#include "core/row_norm.h"
#include "kernels/conv_lattice.h"

namespace pykernels {

// Neighbouring places in one row of the lattice and one panel: their windows are at lines + from + the tap's offset.
struct Segment {
    int64_t column, length, from;
};

// Columns that belong to targets `apart` elements apart, from `at` on.
struct Run {
    int64_t column, length, at, apart;
};

struct ColumnPanel {
    int64_t column;  // in the block
    int vectors;
    std::vector<Segment> segments;
    std::vector<Run> runs;
};

// Strides in elements.
struct PlanarStrides {
    int64_t image, channel;
};

template <typename S, typename Acc>
class ColumnPatches {
    static constexpr int width = kWidth<Acc>;

  public:
    ColumnPatches(const std::array<Lattice, 3>& lattice, PaddingMode mode, PlanarStrides source, int64_t target_image)
        : lattice_(lattice), mode_(mode), source_(source), target_image_(target_image) {
        const auto& [step, offset] = std::tie(lattice[2].step, lattice[2].offset);
        for (const int64_t at : offset) {
            const int64_t remainder = (at % step + step) % step, shift = (at - remainder) / step;
            size_t i = 0;
            while (i < phases_.size() && phases_[i].remainder != remainder) ++i;
            if (i == phases_.size()) phases_.push_back({remainder, shift, shift, 0});
            phases_[i].most = shift;
        }
    }

    int64_t taps() const { return lattice_[0].taps() * lattice_[1].taps() * lattice_[2].taps(); }
    int64_t places() const { return lattice_[0].places * lattice_[1].places * lattice_[2].places; }

    // Plans for the places [begin, end), counted through all images, in panels of at most `most` vectors.
    void plan(int64_t begin, int64_t end, int most) {
        lay_out(begin, end);
        const int64_t vectors = (end - begin + width - 1) / width, count = (vectors + most - 1) / most;
        panels_.resize(count);
        columns_ = vectors * width;
        for (int64_t p = 0; p < count; ++p) {
            const int64_t first = vectors * p / count, last = vectors * (p + 1) / count;
            panels_[p] = {first * width, static_cast<int>(last - first), {}, {}};
            for (int64_t at = begin + first * width; at < std::min(begin + last * width, end);)
                at = add_segment(panels_[p], at, begin, std::min(begin + last * width, end));
        }
    }
    const std::vector<ColumnPanel>& panels() const { return panels_; }
    int64_t columns() const { return columns_; }  // of the block, whole vectors

    // The lines of one channel; prepare() once for a plan, then fill() for each channel of the group at `source`.
    int64_t lines_size() const { return static_cast<int64_t>(lines_.size()) * line_size_ + width; }
    void prepare(Acc* lines) const { std::fill_n(lines, lines_size(), Acc(0)); }
    void fill(const S* source, int64_t channel, Acc* lines) const {
        source += channel * source_.channel;
        for (size_t i = 0; i < lines_.size(); ++i)
            if (lines_[i] >= 0) fill_line(source + lines_[i], lines + static_cast<int64_t>(i) * line_size_);
    }
    int64_t offset(int64_t tap) const { return offsets_[tap]; }

  private:
    struct Phase {
        int64_t remainder, least, most, at;  // the shifts of its taps; where it lies in a line
    };
    // Places of one image that the block covers, and the first of the lines that they read.
    struct Part {
        int64_t image, d, h, line;
    };
    static constexpr int64_t kUnread = -2, kOutside = -1;

    static int64_t spread(const Lattice& l) { return l.taps() ? l.offset.back() - l.offset.front() : 0; }

    void lay_out(int64_t begin, int64_t end) {
        const auto& [ld, lh, lw] = lattice_;
        const int64_t plane = lh.places * lw.places, all = places();
        low_ = 0, high_ = lw.places;
        if (begin / lw.places == (end - 1) / lw.places) low_ = begin % lw.places, high_ = low_ + end - begin;
        line_size_ = 0;
        for (auto& phase : phases_) {
            phase.at = line_size_;
            line_size_ += high_ - low_ + phase.most - phase.least;
        }
        line_size_ = (line_size_ + width - 1) / width * width;

        // all parts have lines for as many rows as the largest one, so that a tap has one offset
        parts_.clear();
        int64_t lines_h = 0, count = 0;
        for (int64_t at = begin; at < end; at = (at / all + 1) * all) {
            const int64_t last = std::min((at / all + 1) * all, end) - 1;
            const int64_t d = at % all / plane, last_d = last % all / plane;
            const int64_t h = d == last_d ? at % plane / lw.places : 0;
            const int64_t last_h = d == last_d ? last % plane / lw.places : lh.places - 1;
            lines_h = std::max(lines_h, (last_h - h) * lh.step + spread(lh) + 1);
            parts_.push_back({at / all, d, h, (last_d - d) * ld.step + spread(ld) + 1});
        }
        for (auto& part : parts_) {
            const int64_t lines_d = part.line;
            part.line = count;
            count += lines_d * lines_h;
        }
        lines_.assign(count, kUnread);
        lines_h_ = lines_h;
        offsets_.clear();
        for (const int64_t d : ld.offset)
            for (const int64_t h : lh.offset)
                for (const int64_t w : lw.offset) {
                    const int64_t line = (d - ld.offset[0]) * lines_h + h - lh.offset[0];
                    const int64_t remainder = (w % lw.step + lw.step) % lw.step;
                    for (const auto& phase : phases_)
                        if (phase.remainder == remainder)
                            offsets_.push_back(line * line_size_ + phase.at + (w - remainder) / lw.step - phase.least);
                }
    }

    // The neighbours from place `at` on that lie in one row, up to `last`. Gives the place after them.
    int64_t add_segment(ColumnPanel& panel, int64_t at, int64_t begin, int64_t last) {
        const auto& [ld, lh, lw] = lattice_;
        const int64_t all = places(), row = at % all / lw.places, w = at % lw.places;
        const int64_t d = row / lh.places, h = row % lh.places, length = std::min(lw.places - w, last - at);
        const Part& part = parts_[at / all - parts_.front().image];
        const int64_t line = part.line + (d - part.d) * ld.step * lines_h_ + (h - part.h) * lh.step;
        const int64_t column = at - begin - panel.column;
        panel.segments.push_back({column, length, line * line_size_ + w - low_});
        mark_read(line, part.image, d, h);

        const auto where = [](const Lattice& l, int64_t o) { return l.first + o * l.apart; };
        const int64_t target =
            part.image * target_image_ + (where(ld, d) * lh.extent + where(lh, h)) * lw.extent + where(lw, w);
        auto& runs = panel.runs;
        if (lw.apart == 1 && !runs.empty() && runs.back().at + runs.back().length == target)
            runs.back().length += length;
        else
            runs.push_back({column, length, target, lw.apart});
        return at + length;
    }

    void mark_read(int64_t line, int64_t image, int64_t d, int64_t h) {
        const auto& [ld, lh, lw] = lattice_;
        for (const int64_t from_d : ld.offset)
            for (const int64_t from_h : lh.offset) {
                auto& found = lines_[line + (from_d - ld.offset[0]) * lines_h_ + from_h - lh.offset[0]];
                if (found != kUnread) continue;
                const int64_t at_d = pixel_at(d * ld.step + from_d, ld.source, mode_);
                const int64_t at_h = pixel_at(h * lh.step + from_h, lh.source, mode_);
                found = at_d < 0 || at_h < 0 ? kOutside : image * source_.image + (at_d * lh.source + at_h) * lw.source;
            }
    }

    void fill_line(const S* source, Acc* line) const {
        const int64_t step = lattice_[2].step, size = lattice_[2].source;
        for (const auto& [remainder, least, most, at] : phases_) {
            // position j of the phase is pixel j * step + remainder
            const int64_t begin = low_ + least, end = high_ + most;
            const int64_t inside = std::clamp<int64_t>(0, begin, end);
            const int64_t outside = std::clamp((size - remainder + step - 1) / step, inside, end);
            Acc* const to = line + at - begin;
            const auto edge = [&](int64_t from, int64_t until) {
                for (int64_t j = from; j < until; ++j) {
                    const int64_t pixel = pixel_at(j * step + remainder, size, mode_);
                    to[j] = pixel < 0 ? Acc(0) : static_cast<Acc>(source[pixel]);
                }
            };
            edge(begin, inside);
            copy_every(step, source + inside * step + remainder, source + size, outside - inside, to + inside);
            edge(outside, end);
        }
    }

    // to[i] = from[i * step]; nothing is read from `limit` on.
    static void copy_every(int64_t step, const S* from, const S* limit, int64_t count, Acc* to) {
        int64_t i = 0;
        if (step == 1)
            return each_vector<Acc>(
                count, [&](int64_t j, int used) { store_as<Acc, Acc>(to + j, load_as<Acc>(from + j, used), used); });
        if (step == 2)
            for (; i + width <= count && from + 2 * (i + width) <= limit; i += width) {
                const auto first = load_as<Acc>(from + 2 * i), second = load_as<Acc>(from + 2 * i + width);
                at::vec::deinterleave2(first, second).first.store(to + i);
            }
        for (; i < count; ++i) to[i] = static_cast<Acc>(from[i * step]);
    }

    const std::array<Lattice, 3>& lattice_;
    PaddingMode mode_;
    PlanarStrides source_;
    int64_t target_image_;
    std::vector<Phase> phases_;
    std::vector<Part> parts_;
    std::vector<ColumnPanel> panels_;
    std::vector<int64_t> lines_, offsets_;  // where each line begins in channel 0, or kUnread, kOutside; of each tap
    int64_t columns_ = 0, low_ = 0, high_ = 0, line_size_ = 0, lines_h_ = 0;
};

// The windows of channels [first, last) and all taps, as rows of one panel after the other; a row of pairs holds what
// two taps read. What a vector holds beyond a segment is written over by the next, or lies behind its panel.
template <typename Op, typename S>
class ColumnGather {
    using Acc = AccOf<Op>;
    static constexpr int width = kWidth<Acc>, per = Operand<Op>::kPerElement;

  public:
    // Depth of the panels of so many channels.
    static int64_t depth(int64_t channels, int64_t taps) { return (channels * taps + per - 1) / per; }
    // Where a panel of so many rows begins; count() is the size of all.
    static int64_t at(int64_t panel, int64_t column, int64_t depth) { return column * depth + panel * width; }

    explicit ColumnGather(const ColumnPatches<S, Acc>& patches) : patches_(patches) {}

    // Once for each plan.
    void prepare() {
        const int64_t size = patches_.lines_size();
        if (size > size_) lines_ = Buffer<Acc>(per * size), size_ = size;
        for (int i = 0; i < per; ++i) patches_.prepare(lines_ + i * size_);
    }

    void run(const S* source, int64_t first, int64_t last, Op* to) const {
        const int64_t taps = patches_.taps(), values = (last - first) * taps, deep = depth(last - first, taps);
        int64_t channel = first;  // the next to be laid out
        for (int64_t row = 0; row < deep; ++row) {
            const Acc* from[per];
            for (int i = 0; i < per; ++i) {
                const int64_t k = std::min(row * per + i, values - 1), c = first + k / taps;
                Acc* const lines = lines_ + (per > 1 ? c % per * size_ : 0);
                if (c == channel) patches_.fill(source, channel++, lines);
                from[i] = lines + patches_.offset(k % taps);
            }
            const bool half = (row + 1) * per > values;
            for (size_t p = 0; p < patches_.panels().size(); ++p) {
                const auto& panel = patches_.panels()[p];
                copy(from, half, panel,
                     to + at(static_cast<int64_t>(p), panel.column, deep) + row * panel.vectors * width);
            }
        }
    }

  private:
    static void copy(const Acc* const* from, [[maybe_unused]] bool half, const ColumnPanel& panel, Op* row) {
        for (const auto& [column, length, at] : panel.segments)
            for (int64_t i = 0; i < length; i += width) {
                const auto values = Vec<Acc>::loadu(from[0] + at + i);
                if constexpr (per == 1) {
                    values.store(row + column + i);
                } else {
                    store_zipped(values, half ? Vec<Acc>(Acc(0)) : Vec<Acc>::loadu(from[1] + at + i), row + column + i);
                }
            }
    }

    const ColumnPatches<S, Acc>& patches_;
    Buffer<Acc> lines_;
    int64_t size_ = 0;
};

}  // namespace pykernels
