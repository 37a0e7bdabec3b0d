// Patches of planar images as the columns of a product, [channel, tap][place], from the lines that the taps read.
//
//   flat       places are counted along the lines, padding included: every tap's windows of a panel are then one run of
//              the lines, and are multiplied where they lie. What is computed between the rows is thrown away.
//   by tap     the same with lines for each tap along the width, in which rows follow each other without a gap.
//   gathered   places are counted as they come, through all images; the windows are copied into panels.
//
// The first costs a share of the products, padding over width, and the ends of rows; the second a copy for each tap
// along the width; the third one for each tap, but fills whole vectors with the places of small images. Many rows of
// weights share the copies.
#pragma once

#include "core/scratch.h"
#include "kernels/conv_lines.h"

namespace pykernels {

// Neighbouring places in one row and one panel: their windows are at lines + from + the tap's offset.
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
    int64_t from;  // of a flat panel: its windows are at lines + from + the tap's offset
    std::vector<Segment> segments;
    std::vector<Run> runs;
    std::vector<int64_t> whole;  // where each vector of columns belongs as it is, or -1
    std::vector<Run> rest;       // the runs of the others

    // Once the runs are known.
    void find_whole(int64_t width) {
        whole.assign(vectors, -1);
        rest.clear();
        for (const auto& [column, length, at, apart] : runs) {
            const int64_t end = column + length;
            int64_t first = (column + width - 1) / width * width, last = end / width * width;
            if (apart != 1 || first >= last) first = last = end;
            for (int64_t i = first; i < last; i += width) whole[i / width] = at + i - column;
            if (first > column) rest.push_back({column, first - column, at, apart});
            if (end > last) rest.push_back({last, end - last, at + (last - column) * apart, apart});
        }
    }
};

template <typename S, typename Op>
class ColumnPlan {
    static constexpr int width = kWidth<AccOf<Op>>;

  public:
    static constexpr double kGatherRows = 10;  // rows of weights whose products take as long as a copy
    static constexpr double kPieces = 12;      // multiply-adds that take as long as storing a row's ends
    static constexpr double kLineVector = 24;  // or as laying out a vector of a line

    // `target_image`: elements from one image of the result to the next.
    ColumnPlan(const PlanarLines<S, Op>& lines, int64_t images, int64_t target_image, bool flat)
        : lines_(lines), images_(images), target_image_(target_image), flat_(flat) {
        const auto& [ld, lh, lw] = lines_.lattice();
        plane_ = flat ? (lh.places - 1) * lines_.whole_line() + lw.places : lh.places * lw.places;
        plane_vectors_ = (plane_ + width - 1) / width;
    }

    // What takes the least time for a product with so many rows.
    static ColumnPlan cheapest(const PlanarLines<S, Op>& lines, const PlanarLines<S, Op>& lines_by_tap, int64_t images,
                               int64_t target_image, int64_t rows) {
        ColumnPlan flat(lines, images, target_image, true), by_tap(lines_by_tap, images, target_image, true);
        ColumnPlan gathered(lines, images, target_image, false);
        const double least = std::min({flat.cost(rows), by_tap.cost(rows), gathered.cost(rows)});
        return flat.cost(rows) == least ? flat : by_tap.cost(rows) == least ? by_tap : gathered;
    }

    bool flat() const { return flat_; }
    int64_t vectors() const {
        const int64_t planes = images_ * lines_.lattice()[0].places;
        return flat_ ? planes * plane_vectors_ : (planes * plane_ + width - 1) / width;
    }
    // Where the block that begins at vector `at` ends: blocks are nearly equal, and a flat one stays in its plane.
    int64_t block_end(int64_t at, int64_t end, int64_t most) const {
        if (flat_) end = std::min(end, (at / plane_vectors_ + 1) * plane_vectors_);
        const int64_t blocks = (end - at + most - 1) / most;
        return at + (end - at + blocks - 1) / blocks;
    }

    // Plans for the vectors [begin, end), in panels of at most `most`.
    void plan(int64_t begin, int64_t end, int most) {
        const int64_t count = (end - begin + most - 1) / most;
        panels_.resize(count);
        columns_ = (end - begin) * width;
        if (flat_)
            lay_out_flat(begin, end);
        else
            lay_out(begin * width, std::min(end * width, images_ * lines_.places()));
        for (int64_t p = 0; p < count; ++p) {
            const int64_t first = (end - begin) * p / count, last = (end - begin) * (p + 1) / count;
            auto& panel = panels_[p];
            panel.column = first * width;
            panel.vectors = static_cast<int>(last - first);
            panel.segments.clear();
            panel.runs.clear();
            if (flat_)
                fill_flat(panel, begin + first, begin + last);
            else
                fill_gathered(panel, (begin + first) * width,
                              std::min((begin + last) * width, images_ * lines_.places()));
            panel.find_whole(width);
        }
        lines_.settle();
    }
    const PlanarLines<S, Op>& lines() const { return lines_; }
    const std::vector<ColumnPanel>& panels() const { return panels_; }
    int64_t columns() const { return columns_; }

  private:
    // In multiply-adds of vectors.
    double cost(int64_t rows) const {
        const auto& [ld, lh, lw] = lines_.lattice();
        const auto depth = static_cast<double>(lines_.groups_of_channels() * lines_.taps());
        const auto planes = static_cast<double>(images_ * ld.places), columns = static_cast<double>(vectors());
        const bool gaps = flat_ && lines_.whole_line() != lw.places;
        const double products =
            static_cast<double>(rows) *
            (columns * (depth + 2) + (gaps ? kPieces * planes * static_cast<double>(lh.places) : 0));
        const double lines =
            planes * static_cast<double>(ld.taps() * lines_.groups_of_channels()) * lines_.vectors_of_plane();
        return products + kLineVector * lines + (flat_ ? 0 : columns * kGatherRows * depth);
    }

    void lay_out_flat(int64_t begin, int64_t end) {
        const auto& [ld, lh, lw] = lines_.lattice();
        const int64_t plane = begin / plane_vectors_, line = lines_.whole_line();
        const int64_t first = begin % plane_vectors_ * width;
        const int64_t last = std::min(first + (end - begin) * width, plane_) - 1;
        first_row_ = first / line;
        if (lh.places == 1) {
            lines_.begin(first, last + 1);
        } else {
            lines_.begin(0, lw.places);
        }
        lines_.add_part(plane / ld.places, plane % ld.places, plane % ld.places, first_row_, last / line);
        lines_.end();
        rows_.clear();
        for (int64_t h = first_row_; h <= last / line; ++h) rows_.push_back(lines_.row(0, plane % ld.places, h));
    }

    void fill_flat(ColumnPanel& panel, int64_t begin, int64_t end) {
        const auto& [ld, lh, lw] = lines_.lattice();
        const int64_t plane = begin / plane_vectors_, line = lines_.whole_line();
        const int64_t first = begin % plane_vectors_ * width;
        const int64_t last = std::min(first + (end - begin) * width, plane_);
        panel.from = rows_[0] + first - first_row_ * line - lines_.low();
        for (int64_t at = first; at < last;) {
            const int64_t h = at / line, w = at % line, length = std::min((h + 1) * line, last) - at;
            if (w < lw.places)
                add_run(panel, at - first, std::min(length, lw.places - w), plane / ld.places, plane % ld.places, h, w);
            at += length;
        }
    }

    void lay_out(int64_t begin, int64_t end) {
        const auto& [ld, lh, lw] = lines_.lattice();
        const int64_t plane = lh.places * lw.places, all = ld.places * plane;
        if (begin / lw.places == (end - 1) / lw.places)
            lines_.begin(begin % lw.places, begin % lw.places + end - begin);
        else
            lines_.begin(0, lw.places);
        first_image_ = begin / all;
        for (int64_t at = begin; at < end; at = (at / all + 1) * all) {
            const int64_t last = std::min((at / all + 1) * all, end) - 1;
            const int64_t d = at % all / plane, last_d = last % all / plane;
            const int64_t h = d == last_d ? at % plane / lw.places : 0;
            lines_.add_part(at / all, d, last_d, h, d == last_d ? last % plane / lw.places : lh.places - 1);
        }
        lines_.end();
    }

    void fill_gathered(ColumnPanel& panel, int64_t begin, int64_t end) {
        const auto& [ld, lh, lw] = lines_.lattice();
        const int64_t all = lines_.places();
        for (int64_t at = begin; at < end;) {
            const int64_t w = at % lw.places, row = at % all / lw.places, length = std::min(lw.places - w, end - at);
            const int64_t d = row / lh.places, h = row % lh.places;
            panel.segments.push_back(
                {at - begin, length, lines_.row(at / all - first_image_, d, h) + w - lines_.low()});
            add_run(panel, at - begin, length, at / all, d, h, w);
            at += length;
        }
    }

    void add_run(ColumnPanel& panel, int64_t column, int64_t length, int64_t image, int64_t d, int64_t h, int64_t w) {
        const auto& [ld, lh, lw] = lines_.lattice();
        const auto where = [](const Lattice& l, int64_t o) { return l.first + o * l.apart; };
        const int64_t target =
            image * target_image_ + (where(ld, d) * lh.extent + where(lh, h)) * lw.extent + where(lw, w);
        auto& runs = panel.runs;
        if (lw.apart == 1 && !runs.empty() && runs.back().at + runs.back().length == target &&
            runs.back().column + runs.back().length == column)
            runs.back().length += length;
        else
            runs.push_back({column, length, target, lw.apart});
    }

    PlanarLines<S, Op> lines_;
    int64_t images_, target_image_;
    bool flat_;
    int64_t plane_, plane_vectors_;  // columns of a plane
    int64_t columns_ = 0, first_image_ = 0, first_row_ = 0;
    std::vector<int64_t> rows_;
    std::vector<ColumnPanel> panels_;
};

// Copies the windows of some channels into panels one after the other. What a vector holds beyond a segment is written
// over by the next, or lies behind its panel.
template <typename S, typename Op>
class ColumnGather {
    using Acc = AccOf<Op>;
    static constexpr int width = kWidth<Acc>;

  public:
    // Where a panel of so many rows begins, and with the number of panels and columns the size of all of them.
    static int64_t at(int64_t panel, int64_t column, int64_t depth) { return column * depth + panel * width; }

    // `lines` has `channels` channels (or pairs).
    static void run(const ColumnPlan<S, Op>& plan, const Op* lines, int64_t channels, Op* to) {
        const auto& offsets = plan.lines().offsets();
        const int64_t depth = channels * static_cast<int64_t>(offsets.size());
        for (int64_t row = 0; row < depth; ++row) {
            if (row > 0 && row % static_cast<int64_t>(offsets.size()) == 0) lines += plan.lines().size();
            const Op* const from = lines + offsets[row % static_cast<int64_t>(offsets.size())];
            int64_t p = 0;
            for (const auto& panel : plan.panels()) {
                Op* const out = to + at(p++, panel.column, depth) + row * panel.vectors * width;
                for (const auto& [column, length, start] : panel.segments)
                    for (int64_t i = 0; i < length; i += width) copy_vector(from + start + i, out + column + i);
            }
        }
    }

  private:
    static void copy_vector(const Op* from, Op* to) {
        const auto* const source = reinterpret_cast<const Acc*>(from);  // only bits are moved
        Vec<Acc>::loadu(source).store(reinterpret_cast<Acc*>(to));
    }
};

}  // namespace pykernels
