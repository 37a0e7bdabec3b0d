// Rows of planar images as lines that fit into the first cache: for what is done window by window, without a product.
#pragma once

#include "core/parallel.h"
#include "kernels/conv_lines.h"

namespace pykernels {

// Lines of a few rows of one plane of the lattice at a time.
template <typename S>
class RowBlocks {
    using Acc = Accumulator<S>;
    static constexpr int64_t kLineBytes = 32 << 10;

  public:
    RowBlocks(const std::array<Lattice, 3>& lattice, PaddingMode mode, int64_t channel_stride, int64_t channels)
        : lines_(lattice, mode, {0, channel_stride}, channels) {
        const int64_t rows = lattice[1].places, one = lines_.size_for(1) * static_cast<int64_t>(sizeof(Acc));
        const int64_t more = (lines_.size_for(2) - lines_.size_for(1)) * static_cast<int64_t>(sizeof(Acc));
        const int64_t fit = std::max<int64_t>(1 + (kLineBytes - one) / std::max<int64_t>(more, 1), 1);
        count_ = (rows + fit - 1) / fit;
    }

    // Blocks of all planes.
    int64_t count() const { return lines_.lattice()[0].places * count_; }
    // Turns to a block.
    void choose(int64_t block) {
        const int64_t d = block / count_, rows = lines_.lattice()[1].places;
        const Range own = share(rows, block % count_, count_);
        lines_.begin(0, lines_.lattice()[2].places);
        lines_.add_part(0, d, d, own.begin, own.end - 1);
        lines_.end();
        rows_.clear();
        for (int64_t h = own.begin; h < own.end; ++h) rows_.push_back(lines_.row(0, d, h));
        lines_.settle();
        first_ = d * rows + own.begin;
    }
    const PlanarLines<S, Acc>& lines() const { return lines_; }
    const std::vector<int64_t>& rows() const { return rows_; }  // where the windows of each row begin
    int64_t first() const { return first_; }                    // row of the lattice

  private:
    PlanarLines<S, Acc> lines_;
    int64_t count_, first_ = 0;
    std::vector<int64_t> rows_;
};

}  // namespace pykernels
