// What attention's forward and backward share: packed keys and values, and a row of products on its way to exponents.
#pragma once

#include <cmath>
#include <limits>

#include "core/gemm.h"
#include "core/philox_vector.h"
#include "kernels/attention.h"

namespace pykernels {

inline constexpr double kLog2E = 1.4426950408889634;

// Rows of a head as the products read them: in place, or copied where pairs of bf16 do not lie side by side.
template <typename Op, typename S>
class OperandRows {
  public:
    OperandRows(int64_t most, int64_t columns) : deep_((columns + kPer - 1) / kPer), columns_(columns) {
        if constexpr (kPer > 1) staged_ = Buffer<Op>(most * deep_);
    }
    // Rows `begin` to `begin + count` of a head from now on.
    void take(const HeadRows<const S>& tensor, int64_t b, int64_t h, int64_t begin, int64_t count) {
        const S* first = tensor.at(b, h, begin);
        stride_ = tensor.row_stride / kPer;
        data_ = reinterpret_cast<const Op*>(first);
        if constexpr (kPer > 1) {
            if (columns_ % kPer == 0 && tensor.row_stride % kPer == 0) return;
            S* to = reinterpret_cast<S*>(staged_.get());
            for (int64_t r = 0; r < count; ++r, to += deep_ * kPer) {
                const S* from = first + r * tensor.row_stride;
                std::fill(std::copy(from, from + columns_, to), to + deep_ * kPer, S(0));
            }
            data_ = staged_;
            stride_ = deep_;
        }
    }
    const Op* row(int64_t r) const { return data_ + r * stride_; }
    int64_t stride() const { return stride_; }
    int64_t deep() const { return deep_; }  // operands in a row
    template <int Rows>
    RowPointers<Op, Rows> tile(int64_t r) const {
        RowPointers<Op, Rows> pointers;
        for (int i = 0; i < Rows; ++i) pointers.row[i] = row(r + i);
        return pointers;
    }

  private:
    static constexpr int kPer = Operand<Op>::kPerElement;
    int64_t deep_, columns_, stride_ = 0;
    const Op* data_ = nullptr;
    Buffer<Op> staged_;
};

// Rows as the columns of panels: for products with other rows. Panels.columns of them; the last vector is filled up
// with zeros.
template <typename Op, typename S>
void pack_as_columns(const OperandRows<Op, S>& rows, const Panels<Op>& panels, Op* packed) {
    constexpr int64_t together = 16;
    for (int64_t p = 0; p < panels.count(); ++p) {
        const int64_t first = panels.column(p), columns = int64_t(panels.vectors(p)) * Panels<Op>::width;
        const int64_t used = std::min(columns, panels.columns - first);
        Op* panel = packed + panels.offset(p);
        if (used < columns) std::fill_n(panel, columns * panels.depth, Op{});
        for (int64_t j = 0; j < used; j += together)
            pack_transposed<Op>(rows.row(first + j), rows.stride(), std::min(together, used - j), panels.depth,
                                panel + j, columns);
    }
}

// `count` rows as the depth of panels: for products with their weights. From there to panels.depth, zeros.
template <typename Op, typename S>
void pack_as_depth(const S* rows, int64_t stride, int64_t count, const Panels<Op>& panels, Op* packed) {
    for (int64_t p = 0; p < panels.count(); ++p) {
        const int64_t first = panels.column(p), columns = int64_t(panels.vectors(p)) * Panels<Op>::width;
        Op* panel = packed + panels.offset(p);
        if constexpr (std::is_same_v<Op, S>) {
            pack_rows<Op>([&](int64_t k) { return rows + k * stride; }, count, first, panels.columns, panels.vectors(p),
                          panel);
            std::fill(panel + count * columns, panel + panels.depth * columns, Op(0));
        } else {
            const int64_t used = std::min(columns, panels.columns - first);
            for (int64_t k = 0; k < panels.depth; ++k, panel += columns) {
                const S *even = rows + 2 * k * stride + first, *odd = even + stride;
                if (2 * k >= count || used < columns) std::fill_n(panel, columns, Op{});
                if (2 * k + 1 < count) {
                    for (int64_t n = 0; n < used; ++n) panel[n] = {even[n], odd[n]};
                } else if (2 * k < count) {
                    for (int64_t n = 0; n < used; ++n) panel[n] = {even[n], S(0)};
                }
            }
        }
    }
}

// Products of some rows with the keys [first, first + count) that panels hold, both whole vectors.
template <int Rows, typename Op>
void multiply_keys(const RowPointers<Op, Rows>& rows, const Panels<Op>& panels, const Op* packed, int64_t first,
                   int64_t count, AccOf<Op>* out, int64_t stride) {
    constexpr int64_t width = Panels<Op>::width;
    for (int64_t at = first; at < first + count;) {
        const int64_t p = at / panels.span(), column = panels.column(p), wide = panels.vectors(p) * width;
        const int64_t end = std::min(first + count, column + wide);
        with_vectors(static_cast<int>((end - at) / width), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
            multiply<Op, Rows, Vectors>(rows, packed + panels.offset(p) + (at - column), panels.depth, nullptr, 0,
                                        out + (at - first), stride, wide);
        });
        at = end;
    }
}

// A row of sums times `factor`, rounded to where it goes.
template <typename Acc, typename S>
void put_row(S* out, const Acc* sums, int64_t columns, Acc factor) {
    constexpr int width = kWidth<Acc>;
    for (int64_t n = 0; n < columns; n += width)
        store_as<Acc, S>(out + n, Vec<Acc>::loadu(sums + n) * Vec<Acc>(factor),
                         static_cast<int>(std::min<int64_t>(width, columns - n)));
}

// One row of scores of one head.
template <typename Acc>
class ScoreRow {
  public:
    using V = Vec<Acc>;
    static constexpr int width = kWidth<Acc>;

    ScoreRow(const AttentionShape& shape, const AttentionMask<Acc>& mask, int64_t b, int64_t h, int64_t row)
        : shape_(shape),
          mask_(mask),
          at_(mask.offset(b, h, row)),
          number_(b * shape.heads + h),
          row_(row),
          seen(shape.seen(b, row)) {}

    // Whether scores are products times a positive number: then it is left out of them.
    static bool plain(const AttentionShape& shape, const AttentionMask<Acc>& mask) {
        return !mask && shape.softcap == 0 && shape.scale > 0;
    }

    // Products of the keys from `first` on to scores. With a softcap, slopes[j] is what a gradient is multiplied by on
    // its way back through it; null if not wanted.
    void finish(Acc* scores, int64_t first, int64_t count, Acc* slopes) const {
        const V scale(static_cast<Acc>(shape_.scale));
        const V cap(static_cast<Acc>(shape_.softcap)), inverse(static_cast<Acc>(1 / shape_.softcap)), one(Acc(1));
        for (int64_t j = 0; j < count; j += width) {
            V x = V::loadu(scores + j) * scale;
            if (shape_.softcap != 0) {
                const V bent = tanh(x * inverse);
                x = cap * bent;
                if (slopes) at::vec::fnmadd(bent, bent, one).store(slopes + j);
            }
            const int used = static_cast<int>(std::clamp<int64_t>(shape_.keys - first - j, 0, width));
            if (mask_.added && used > 0) x = x + added(first + j, used);
            x.store(scores + j);
        }
        if (mask_.chosen) {
            const std::uint8_t* chosen = mask_.chosen + at_;
            const int64_t used = std::min(count, shape_.keys - first);
            for (int64_t j = 0; j < used; ++j)
                if (!chosen[(first + j) * mask_.key_stride]) scores[j] = -std::numeric_limits<Acc>::infinity();
        }
    }
    // Makes -inf of what is not seen among the keys from `first` on; whole vectors. (Single values stored into a vector
    // would have to reach the cache before it can be loaded.)
    void hide(Acc* scores, int64_t first, int64_t count) const {
        const int64_t begin = std::clamp<int64_t>(seen.begin - first, 0, count);
        const int64_t end = std::clamp<int64_t>(seen.end - first, begin, count);
        const V nothing(-std::numeric_limits<Acc>::infinity()), lane = V::arange(Acc(0), Acc(1));
        for (int64_t j = 0; j < begin; j += width)
            V::blendv(V::loadu(scores + j), nothing, lane < V(static_cast<Acc>(begin - j))).store(scores + j);
        for (int64_t j = end / width * width; j < count; j += width)
            V::blendv(nothing, V::loadu(scores + j), lane < V(static_cast<Acc>(end - j))).store(scores + j);
    }
    // What dropout multiplies the weights of the keys from `first` on by.
    void dropout(Acc* factors, int64_t first, int64_t count) const {
        dropout_factors(shape_.dropout, static_cast<std::uint32_t>(row_), static_cast<std::uint32_t>(number_), first,
                        count, factors);
    }

  private:
    V added(int64_t key, int used) const {
        return mask_.key_stride ? load_as<Acc>(mask_.added + at_ + key, used) : V(mask_.added[at_]);
    }

    const AttentionShape& shape_;
    const AttentionMask<Acc>& mask_;
    int64_t at_, number_, row_;

  public:
    const KeyRange seen;
};

// Maximum and sum of the exponentials of a row so far, exp(factor * score).
template <typename Acc>
struct Running {
    using V = Vec<Acc>;
    static constexpr int width = kWidth<Acc>;
    static constexpr Acc kNothing = -std::numeric_limits<Acc>::infinity();

    Acc highest = kNothing, total = 0;  // total: relative to the highest score

    // The weights exp(factor * (score - highest)) of further scores, times `factors` if there are any: put(j, weight j
    // and the vector's others, those of the next vector). Returns what sums of earlier weights are to be multiplied by.
    template <typename Put>
    [[gnu::always_inline]] Acc add(const Acc* scores, int64_t count, Acc factor, const Acc* factors, const Put& put) {
        const Acc here = largest(scores, count), before = highest;
        const bool empty = total == 0;
        highest = here <= before ? before : here;  // not a number stays
        // The difference first: of large scores a fused product would leave what rounding took.
        const V base(highest == kNothing ? Acc(0) : highest), by(factor * static_cast<Acc>(kLog2E));
        V sum[2] = {V(Acc(0)), V(Acc(0))};
        const auto weigh = [&](int64_t j, int chain) {
            const V weight = exp2((V::loadu(scores + j) - base) * by);
            sum[chain] = sum[chain] + weight;
            return factors ? weight * V::loadu(factors + j) : weight;
        };
        int64_t j = 0;
        for (; j + 2 * width <= count; j += 2 * width) put(j, weigh(j, 0), weigh(j + width, 1));
        if (j < count) put(j, weigh(j, 0), V(Acc(0)));
        const Acc down = empty ? Acc(1) : shrink(before, highest, factor);  // (there is nothing to scale down)
        total = total * down + sum_of_lanes(sum[0] + sum[1]);
        return down;
    }
    static Acc shrink(Acc from, Acc to, Acc factor) { return from == to ? Acc(1) : std::exp(factor * (from - to)); }
    Acc lse(Acc factor) const {
        volatile const Acc score = highest * factor;  // rounded by itself, as backward finds it
        return total == 0 ? kNothing : score + std::log(total);
    }

  private:
    static Acc largest(const Acc* scores, int64_t count) {
        V most[4] = {V(kNothing), V(kNothing), V(kNothing), V(kNothing)};
        int64_t j = 0;
        for (; j + 4 * width <= count; j += 4 * width)
            for (int i = 0; i < 4; ++i) most[i] = larger(V::loadu(scores + j + i * width), most[i]);
        for (; j < count; j += width) most[0] = larger(V::loadu(scores + j), most[0]);
        const Acc found = largest_lane(larger(larger(most[0], most[1]), larger(most[2], most[3])));
        if (found == kNothing)
            for (int64_t i = 0; i < count; ++i)
                if (scores[i] != scores[i]) return scores[i];
        return found;
    }
};

}  // namespace pykernels
