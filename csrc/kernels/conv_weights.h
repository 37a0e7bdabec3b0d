// Weights as the products take them: rows of operands for planar patches, panels for rows of patches.
#pragma once

#include "core/gemm.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/conv_parts.h"

namespace pykernels {

// Values as the halves of operands, or as the operands.
template <typename Op>
RowElement<Op>* elements(Op* operands) {
    return reinterpret_cast<RowElement<Op>*>(operands);
}

// A matrix of operands: `fill(row, to)` writes a row of `depth` operands over zeros, several threads at once.
template <typename Op, typename Fill>
Buffer<Op> filled_rows(int64_t rows, int64_t depth, const Fill& fill) {
    Buffer<Op> matrix(rows * depth);
    parallel_region(threads_for(static_cast<double>(rows) * depth, kConvGrain), [&](const Team& team) {
        const Range own = share(rows, team.rank, team.size);
        for (int64_t row = own.begin; row < own.end; ++row) {
            std::fill_n(matrix + row * depth, depth, Op{});
            fill(row, elements(matrix + row * depth));
        }
    });
    return matrix;
}

// Weights that lie as rows of operands, converted where they are of another type.
template <typename Op, typename S>
class WeightRows {
    static constexpr int per = Operand<Op>::kPerElement;

  public:
    // Rows of [taps, channels]; pairs hold neighbouring channels.
    static WeightRows taps(const S* weights, int64_t rows, int64_t taps, int64_t channels) {
        if constexpr (std::is_same_v<S, RowElement<Op>>)
            if (channels % per == 0) return {Buffer<Op>(), reinterpret_cast<const Op*>(weights)};
        const int64_t padded = (channels + per - 1) / per * per;
        return filled_rows<Op>(rows, taps * padded / per, [&](int64_t row, auto* to) {
            const S* from = weights + row * taps * channels;
            for (int64_t t = 0; t < taps; ++t)
                for (int64_t c = 0; c < channels; ++c) to[t * padded + c] = static_cast<RowElement<Op>>(*from++);
        });
    }
    // Rows of [channels, taps]; pairs hold a tap's values of neighbouring channels.
    static WeightRows channels(const S* weights, int64_t rows, int64_t channels, int64_t taps) {
        if constexpr (per == 1) return WeightRows::taps(weights, rows, channels, taps);  // the order is all the same
        return filled_rows<Op>(rows, (channels + per - 1) / per * taps, [&](int64_t row, auto* to) {
            const S* from = weights + row * channels * taps;
            for (int64_t c = 0; c < channels; ++c)
                for (int64_t t = 0; t < taps; ++t)
                    to[(c / per * taps + t) * per + c % per] = static_cast<RowElement<Op>>(*from++);
        });
    }
    const Op* data() const { return data_; }

  private:
    WeightRows(Buffer<Op> copy) : copy_(std::move(copy)), data_(copy_) {}
    WeightRows(Buffer<Op> copy, const Op* data) : copy_(std::move(copy)), data_(data) {}

    Buffer<Op> copy_;
    const Op* data_;
};

// Packs `used` rows of `depth` operands as columns of a panel of `padded`.
template <typename Op>
void pack_columns(const Op* rows, int64_t depth, int64_t used, int64_t padded, Op* panel) {
    constexpr int64_t together = 16;
    for (int64_t j = 0; j < used; j += together)
        pack_transposed<Op>(rows + j * depth, depth, std::min(together, used - j), depth, panel + j, padded);
    if (used < padded)
        for (int64_t k = 0; k < depth; ++k) std::fill(panel + k * padded + used, panel + (k + 1) * padded, Op{});
}

// Packs rows, found by row(tap, k) for k < count, as rows of operands of a panel; pairs hold neighbours of one tap.
template <typename Op, typename S, typename Row>
void pack_as_rows(const Row& row, int64_t taps, int64_t count, int64_t used, int64_t padded, Op* panel) {
    using Acc = AccOf<Op>;
    constexpr int per = Operand<Op>::kPerElement, width = kWidth<Acc>;
    for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t k = 0; k < count; k += per, panel += padded)
            for (int64_t i = 0; i < padded; i += width) {
                const int lanes = static_cast<int>(std::clamp<int64_t>(used - i, 0, width));
                const auto load = [&](int64_t at) {
                    return at < count && lanes > 0 ? load_as<Acc, S>(row(tap, at) + i, lanes) : Vec<Acc>(Acc(0));
                };
                if constexpr (per == 1)
                    load(k).store(panel + i);
                else
                    store_zipped(load(k), load(k + 1), panel + i);
            }
}

}  // namespace pykernels
