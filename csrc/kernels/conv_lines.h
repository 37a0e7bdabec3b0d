// Lines of planar images as taps read them. For a block of places, the lines of a channel are laid out with their
// padding, in the type of the product's operands, and split by the remainders of the steps: what a tap reads at
// neighbouring places of a row then lies side by side, and what it reads one row further lies one line further.
//
//   [plane of the first dimension][remainder along h][remainder along w][line][position]
//
// Or along w every tap has lines of its own, as long as a row of places: then rows follow each other without a gap.
//
// A pair holds a value of two neighbouring channels.
#pragma once

#include <array>
#include <numeric>

#include "core/gemm.h"
#include "kernels/conv_lattice.h"

namespace pykernels {

// Strides in elements.
struct PlanarStrides {
    int64_t image, channel, pixel = 1;
};

// Positions of one dimension with the same remainder of the step: tap t reads position shift[t] + place of one of them.
// Or `each_tap` has positions of its own, without a shift; its remainder is then any number.
struct Remainders {
    std::vector<int64_t> values, of, shift;  // the remainders; of each tap, which of them and the shift
    int64_t least = 0, spread = 0;           // of the shifts

    explicit Remainders(const Lattice& lattice, bool each_tap = false) : each_tap_(each_tap) {
        if (each_tap) {
            values = lattice.offset;
            shift.assign(values.size(), 0);
            of.resize(values.size());
            std::iota(of.begin(), of.end(), int64_t{0});
            return;
        }
        for (const int64_t offset : lattice.offset) {
            const int64_t remainder = (offset % lattice.step + lattice.step) % lattice.step;
            const auto found = std::find(values.begin(), values.end(), remainder);
            of.push_back(found - values.begin());
            if (found == values.end()) values.push_back(remainder);
            shift.push_back((offset - remainder) / lattice.step);
        }
        if (shift.empty()) return;
        least = *std::min_element(shift.begin(), shift.end());
        spread = *std::max_element(shift.begin(), shift.end()) - least;
    }
    int64_t count() const { return static_cast<int64_t>(values.size()); }
    bool by_remainder() const { return !each_tap_; }

  private:
    bool each_tap_;
};

template <typename S, typename Op>
class PlanarLines {
    using Acc = AccOf<Op>;
    using V = Vec<Acc>;
    static constexpr int width = kWidth<Acc>, per = Operand<Op>::kPerElement;

  public:
    PlanarLines(const std::array<Lattice, 3>& lattice, PaddingMode mode, PlanarStrides source, int64_t channels,
                bool each_tap = false)
        : lattice_(lattice),
          mode_(mode),
          source_(source),
          channels_(channels),
          h_(lattice[1]),
          w_(lattice[2], each_tap) {}

    const std::array<Lattice, 3>& lattice() const { return lattice_; }
    int64_t taps() const { return lattice_[0].taps() * lattice_[1].taps() * lattice_[2].taps(); }
    int64_t places() const { return lattice_[0].places * lattice_[1].places * lattice_[2].places; }
    int64_t groups_of_channels() const { return (channels_ + per - 1) / per; }
    // From one line to the next where whole rows are read.
    int64_t whole_line() const { return lattice_[2].places + w_.spread; }
    // Vectors of all lines of a plane, of one channel.
    double vectors_of_plane() const {
        const int64_t lines = h_.count() * (lattice_[1].places + h_.spread) * w_.count();
        return static_cast<double>(lines * ((whole_line() + width - 1) / width));
    }
    // At most, for `parts` parts of `rows` rows in one plane.
    int64_t size_for(int64_t rows, int64_t parts = 1) const {
        const int64_t lines = h_.count() * (rows + h_.spread);
        return parts * (spread(lattice_[0]) + 1) * lines * w_.count() * whole_line() + width;
    }

    // Begins a layout for the places [low, high) along the last dimension.
    void begin(int64_t low, int64_t high) {
        low_ = low;
        line_ = high - low + w_.spread;
        parts_.clear();
        lines_.clear();
        height_ = 0;
    }
    // A part: rows of an image from plane `d` to `last_d`, from row `h` to `last_h` (in several planes: all rows).
    void add_part(int64_t image, int64_t d, int64_t last_d, int64_t h, int64_t last_h) {
        parts_.push_back({image, d, h, last_d - d});
        height_ = std::max(height_, last_h - h + 1 + h_.spread);
    }
    // All parts have as many lines as the highest one, so that a tap has one offset.
    void end() {
        const int64_t plane = h_.count() * height_;
        int64_t planes = 0;
        for (auto& part : parts_) {
            const int64_t count = part.planes * lattice_[0].step + spread(lattice_[0]) + 1;
            part.planes = planes;
            planes += count;
        }
        lines_.assign(planes * plane, kUnread);
        offsets_.clear();
        for (const int64_t d : lattice_[0].offset)
            for (int64_t h = 0; h < lattice_[1].taps(); ++h)
                for (int64_t w = 0; w < lattice_[2].taps(); ++w)
                    offsets_.push_back(at((d - lattice_[0].offset[0]) * plane, h_.of[h], w_.of[w]) +
                                       (h_.shift[h] - h_.least) * line_ + w_.shift[w] - w_.least);
    }

    // Where the windows of a row begin, but for a tap's offset; `part` counts from the first.
    int64_t row(int64_t part, int64_t d, int64_t h) {
        const Part& p = parts_[part];
        const int64_t plane = p.planes + (d - p.d) * lattice_[0].step;
        mark_read(plane, p, d, h);
        return at(plane * h_.count() * height_, 0, 0) + (h - p.h) * line_;
    }
    int64_t low() const { return low_; }
    const std::vector<int64_t>& offsets() const { return offsets_; }  // of each tap

    // Operands of one channel (or pair).
    int64_t size() const { return static_cast<int64_t>(lines_.size()) * w_.count() * line_ + width; }
    // What is read behind the last channel: a vector, and by the taps of a place between two rows.
    int64_t behind() const { return width + w_.spread; }

    // To be called when all rows have been asked for: lists what fill() does for each channel.
    void settle() {
        const int64_t step = lattice_[2].step, size = lattice_[2].source, begin = low_ + w_.least, end = begin + line_;
        spans_.clear();
        for (const int64_t remainder : w_.values) {
            const int64_t before = remainder < 0 ? (step - 1 - remainder) / step : 0;
            const int64_t inside = std::clamp(before, begin, end);
            spans_.push_back({remainder, inside, std::clamp((size - remainder + step - 1) / step, inside, end)});
        }
        jobs_.clear();
        for (int64_t l = 0; l < static_cast<int64_t>(lines_.size()); ++l)
            if (lines_[l] != kUnread)
                jobs_.push_back({(l / height_ * w_.count() * height_ + l % height_) * line_, lines_[l]});
    }

    // The lines of channels `first` … of the group at `source`, each size() further; lines outside of the image are
    // zero.
    void fill(const S* source, int64_t first, int64_t last, Op* to) const {
        const int64_t between = height_ * line_;  // the remainders
        const int64_t step = lattice_[2].step;
        const bool simple = per == 1 && mode_ == PaddingMode::Zeros && lattice_[2].between == 1 && step <= 2 &&
                            w_.by_remainder() && w_.count() == step && source_.pixel == 1;
        for (int64_t i = first; i < last; ++i, to += size()) {
            const S* const channel = source + i * per * source_.channel;
            const bool half = per > 1 && i * per + 1 >= channels_;
            for (const auto& [at, from] : jobs_) {
                if (from == kOutside) {
                    for (int64_t r = 0; r < w_.count(); ++r) std::fill_n(to + at + r * between, line_, Op{});
                    continue;
                }
                if (i + 1 < last) prefetch(channel + per * source_.channel + from);
                Op* line = to + at;
                if constexpr (per == 1)
                    if (simple) {
                        copy_zero_padded(channel + from, line, between);
                        continue;
                    }
                for (const Span& span : spans_) fill_line(channel + from, half, span, line), line += between;
            }
        }
    }

  private:
    struct Part {
        int64_t image, d, h, planes;  // the planes before it
    };
    struct Span {
        int64_t remainder, inside, outside;  // positions of pixels, from … to
    };
    struct Job {
        int64_t to, from;  // of a line, in the first remainder
    };
    static constexpr int64_t kUnread = -2, kOutside = -1;

    static int64_t spread(const Lattice& l) { return l.taps() ? l.offset.back() - l.offset.front() : 0; }

    // The first line of a remainder; `lines` lines of all remainders along h lie before its plane.
    int64_t at(int64_t lines, int64_t h, int64_t w) const {
        return ((lines + h * height_) * w_.count() + w * height_) * line_;
    }

    void mark_read(int64_t plane, const Part& part, int64_t d, int64_t h) {
        const auto& [ld, lh, lw] = lattice_;
        for (const int64_t from_d : ld.offset)
            for (int64_t t = 0; t < lh.taps(); ++t) {
                const int64_t line = h - part.h + h_.shift[t] - h_.least;
                auto& found = lines_[((plane + from_d - ld.offset[0]) * h_.count() + h_.of[t]) * height_ + line];
                if (found != kUnread) continue;
                const int64_t at_d = pixel(ld, d * ld.step + from_d), at_h = pixel(lh, h * lh.step + lh.offset[t]);
                found = at_d < 0 || at_h < 0
                            ? kOutside
                            : part.image * source_.image + (at_d * lh.source + at_h) * lw.source * source_.pixel;
            }
    }

    // Asks for what the next channel's line will need.
    void prefetch(const S* source) const {
        const int64_t step = lattice_[2].step, begin = std::max<int64_t>((low_ + w_.least) * step, 0);
        const int64_t end = std::min((low_ + w_.least + line_) * step, lattice_[2].source);
        for (int64_t at = begin * source_.pixel; at < end * source_.pixel; at += 64 / static_cast<int64_t>(sizeof(S)))
            __builtin_prefetch(source + at);
    }

    void fill_line(const S* source, bool half, const Span& span, Op* to) const {
        if constexpr (per == 1) {
            lay_out(source, span, to);
        } else {
            thread_local std::vector<Acc> lines;
            const int64_t size = (line_ + width - 1) / width * width;
            lines.assign(2 * size, Acc(0));
            lay_out(source, span, lines.data());
            if (!half) lay_out(source + source_.channel, span, lines.data() + size);
            for (int64_t i = 0; i < line_; i += width) {
                alignas(64) Op pairs[width];
                store_zipped(Vec<Acc>::loadu(lines.data() + i), Vec<Acc>::loadu(lines.data() + size + i), pairs);
                std::copy_n(pairs, std::min<int64_t>(width, line_ - i), to + i);
            }
        }
    }

    int64_t pixel(const Lattice& lattice, int64_t position) const {
        if (position % lattice.between) return -1;
        return pixel_at(position / lattice.between, lattice.source, mode_);
    }

    // Position j is pixel j * step + remainder.
    void lay_out(const S* source, const Span& span, Acc* to) const {
        const auto& [remainder, inside, outside] = span;
        const int64_t step = lattice_[2].step, size = lattice_[2].source, between = lattice_[2].between;
        const int64_t begin = low_ + w_.least, end = begin + line_;
        if (between > 1) {
            std::fill_n(to, line_, Acc(0));
            for (int64_t i = std::max<int64_t>((begin + between - 1) / between, 0); i < size && i * between < end; ++i)
                to[i * between - begin] = static_cast<Acc>(source[i * source_.pixel]);
            return;
        }
        to -= begin;
        const auto edge = [&](int64_t from, int64_t until) {
            for (int64_t j = from; j < until; ++j) {
                const int64_t pixel = pixel_at(j * step + span.remainder, size, mode_);
                to[j] = pixel < 0 || pixel >= size ? Acc(0) : static_cast<Acc>(source[pixel * source_.pixel]);
            }
        };
        edge(begin, inside);
        const int64_t apart = source_.pixel;
        copy_every(step * apart, source + (inside * step + remainder) * apart, source + (size - 1) * apart + 1,
                   outside - inside, to + inside);
        edge(outside, end);
    }

    // What lay_out does, for zeros and steps of 1 and 2; both remainders at once.
    void copy_zero_padded(const S* source, Acc* to, int64_t between) const {
        const int64_t begin = low_ + w_.least, end = begin + line_, step = lattice_[2].step;
        const auto lanes = [](int64_t count) { return static_cast<int>(std::clamp<int64_t>(count, 0, width)); };
        const int64_t zeros = std::clamp<int64_t>(0, begin, end), size = lattice_[2].source;
        to -= begin;
        for (int64_t r = 0; r < w_.count(); ++r)
            for (int64_t j = begin; j < zeros; ++j) to[r * between + j] = Acc(0);
        if (step == 1) {
            for (int64_t j = zeros; j < end; j += width)
                store_as<Acc, Acc>(to + j, read(source + j, lanes(size - j)), lanes(end - j));
            return;
        }
        Acc* const even = to + (w_.values[0] == 0 ? 0 : between);
        Acc* const odd = to + (w_.values[0] == 0 ? between : 0);
        for (int64_t j = zeros; j < end; j += width) {
            const int64_t i = 2 * j;
            const auto [first, second] = at::vec::deinterleave2(read(source + i, lanes(size - i)),
                                                                read(source + i + width, lanes(size - i - width)));
            store_as<Acc, Acc>(even + j, first, lanes(end - j));
            store_as<Acc, Acc>(odd + j, second, lanes(end - j));
        }
    }
    // Zeros beyond so many lanes.
    static V read(const S* from, int lanes) { return lanes > 0 ? load_as<Acc>(from, lanes) : V(Acc(0)); }

    // to[i] = from[i * step]; nothing is read from `limit` on.
    static void copy_every(int64_t step, const S* from, const S* limit, int64_t count, Acc* to) {
        if (step == 1)
            return each_vector<Acc>(
                count, [&](int64_t i, int used) { store_as<Acc, Acc>(to + i, load_as<Acc>(from + i, used), used); });
        if (step == 2)
            return each_vector<Acc>(count, [&](int64_t i, int used) {
                const S* const second = from + 2 * i + width;
                const auto lanes = [&](const S* at) {
                    return static_cast<int>(std::clamp<int64_t>(limit - at, 0, width));
                };
                const V high = second < limit ? load_as<Acc>(second, lanes(second)) : V(Acc(0));
                const V low = load_as<Acc>(from + 2 * i, lanes(from + 2 * i));
                store_as<Acc, Acc>(to + i, at::vec::deinterleave2(low, high).first, used);
            });
        for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Acc>(from[i * step]);
    }

    std::array<Lattice, 3> lattice_;
    PaddingMode mode_;
    PlanarStrides source_;
    int64_t channels_;
    Remainders h_, w_;
    std::vector<Part> parts_;
    std::vector<Span> spans_;  // of each remainder along the last dimension
    std::vector<Job> jobs_;
    std::vector<int64_t> lines_, offsets_;  // lines_: where each begins in channel 0, or kUnread, kOutside
    int64_t low_ = 0, line_ = 0, height_ = 0;
};

}  // namespace pykernels
