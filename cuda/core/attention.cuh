// What all attention kernels share: which keys a tile's rows see, products on their way to exponents, dropout's random
// numbers. Plain device code over the primitives of common.cuh.
#pragma once

#include <limits>

#include "csrc/core/philox.h"
#include "cuda/core/common.cuh"
#include "cuda/core/for_types.cuh"
#include "cuda/kernels/attention.h"

namespace pykernels::cuda {

inline constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;
template <class A>
inline constexpr A kNothing = -std::numeric_limits<A>::infinity();  // score of a key that is not seen

struct Span {
    int begin, end;
    __host__ __device__ bool empty() const { return begin >= end; }
};

// Blocks of `size` that cover so many.
inline int tiles_of(int64_t count, int size) { return static_cast<int>((count + size - 1) / size); }

// Blocks that a span touches, as their numbers.
__device__ inline Span blocks_of(const Span& span, int size) {
    return span.empty() ? Span{0, 0} : Span{span.begin / size, (span.end + size - 1) / size};
}

template <class I>
__device__ inline I clamp(I value, I low, I high) {
    return value < low ? low : value > high ? high : value;
}

// Of a grid [outer, head, inner], all in one dimension. Blocks of a head run beside each other and share what they
// read.
struct BlockPlace {
    int outer, head, inner, heads;
    __device__ BlockPlace(int inner_count, int64_t head_count) : heads(static_cast<int>(head_count)) {
        const unsigned both = blockIdx.x / static_cast<unsigned>(inner_count);
        inner = static_cast<int>(blockIdx.x % static_cast<unsigned>(inner_count));
        outer = static_cast<int>(both / static_cast<unsigned>(heads));
        head = static_cast<int>(both % static_cast<unsigned>(heads));
    }
    __device__ int64_t item() const { return int64_t{outer} * heads + head; }
};

// Which elements of a tile of scores count: key k (from 0 in the tile) and row r with low <= k - r <= high.
struct TileView {
    int rows, keys, low, high;
    __device__ bool sees(int row, int key) const {
        return row < rows && key < keys && key - row >= low && key - row <= high;
    }
    // The keys that a row sees.
    __device__ Span of_row(int row) const {
        const int begin = row + low > 0 ? row + low : 0, end = keys < row + high + 1 ? keys : row + high + 1;
        return {begin, row < rows ? end : begin};
    }
    // The rows that see a key.
    __device__ Span of_key(int key) const {
        const int begin = key - high > 0 ? key - high : 0, end = rows < key - low + 1 ? rows : key - low + 1;
        return {begin, key < keys ? end : begin};
    }
    // Whether that is so for all of `count` rows from `first` on and all of `all_keys` keys.
    __device__ bool whole(int first, int count, int all_keys) const {
        return rows >= first + count && keys >= all_keys && low <= 1 - first - count && high >= all_keys - 1 - first;
    }
};

// One example: what there is of it, and its diagonal. Rows, keys and limits are below kMostRows, so nothing overflows.
struct Example {
    int rows, keys, diagonal, left, right;

    __device__ Example(const AttentionShape& shape, int64_t b)
        : rows(length(shape.row_lengths, b, shape.rows)),
          keys(length(shape.key_lengths, b, shape.keys)),
          diagonal(shape.bottom_right ? keys - rows : 0),
          left(static_cast<int>(shape.left < 0 ? kMostRows : shape.left)),
          right(static_cast<int>(shape.right < 0 ? kMostRows : shape.right)) {}

    // Keys that some of the rows see.
    __device__ Span keys_seen(const Span& some_rows) const {
        const int last = clamp(some_rows.end, 0, rows) - 1;
        if (last < some_rows.begin) {
            return {0, 0};
        }
        return {clamp(some_rows.begin + diagonal - left, 0, keys), clamp(last + diagonal + right + 1, 0, keys)};
    }
    // Rows that see some of the keys.
    __device__ Span rows_seeing(const Span& some_keys) const {
        const int last = clamp(some_keys.end, 0, keys) - 1;
        if (last < some_keys.begin) {
            return {0, 0};
        }
        return {clamp(some_keys.begin - diagonal - right, 0, rows), clamp(last - diagonal + left + 1, 0, rows)};
    }
    __device__ TileView tile(int first_row, int first_key) const {
        const int apart = first_row + diagonal - first_key;
        return {rows - first_row, keys - first_key, apart - left, apart + right};
    }

  private:
    __device__ static int length(const int64_t* lengths, int64_t b, int64_t all) {
        return static_cast<int>(lengths != nullptr ? clamp<int64_t>(lengths[b], 0, all) : all);
    }
};

// Where head h of example b begins.
template <class T>
__device__ inline const T* head_of(const HeadsIn& tensor, int64_t b, int64_t h) {
    return static_cast<const T*>(tensor.data) + b * tensor.batch_stride + h * tensor.head_stride;
}
template <class T>
__device__ inline T* head_of(const HeadsOut& tensor, int64_t b, int64_t h) {
    return static_cast<T*>(tensor.data) + b * tensor.batch_stride + h * tensor.head_stride;
}
__device__ inline int group_of(const AttentionShape& shape, int h) {
    return h / (static_cast<int>(shape.heads) / static_cast<int>(shape.groups));
}

// Whether exponents are products times a positive number.
__host__ __device__ inline bool is_plain(const AttentionShape& shape, const AttentionMask& mask) {
    return mask.added == nullptr && mask.chosen == nullptr && shape.softcap == 0 && static_cast<float>(shape.scale) > 0;
}

// From products to exponents of base 2, of one head.
template <class T>
struct Exponents {
    using A = Accumulator<T>;
    const T* added;
    const uint8_t* chosen;
    int64_t row_stride, key_stride;
    A scale, softcap;
    bool plain;  // exponents are products times `factor`
    A factor;

    __device__ Exponents(const AttentionShape& shape, const AttentionMask& mask, int64_t b, int64_t h)
        : added(static_cast<const T*>(mask.added)),
          chosen(mask.chosen),
          row_stride(mask.row_stride),
          key_stride(mask.key_stride),
          scale(static_cast<A>(shape.scale)),
          softcap(static_cast<A>(shape.softcap)),
          plain(is_plain(shape, mask)),
          factor(plain ? static_cast<A>(shape.scale * kLog2E) : A(1)) {
        const int64_t of_head = b * mask.batch_stride + h * mask.head_stride;
        added += added != nullptr ? of_head : 0;
        chosen += chosen != nullptr ? of_head : 0;
    }
    // Where it is not plain; of keys that the row sees only. `slope`: what a gradient is multiplied by on its way back
    // through the softcap.
    __device__ A of(A product, int64_t row, int64_t key, A& slope) const {
        A x = product * scale;
        slope = 1;
        if (softcap != 0) {
            const A bent = hyperbolic_tangent(x / softcap);
            x = softcap * bent;
            slope = 1 - bent * bent;
        }
        const int64_t at = row * row_stride + key * key_stride;
        if (added != nullptr) {
            x += to_accumulator(added[at]);
        }
        return chosen != nullptr && chosen[at] == 0 ? kNothing<A> : x * static_cast<A>(kLog2E);
    }
};

// 2^exponent; weights that become 16-bit numbers need not be exact to the last bit of a float.
template <class T>
__device__ inline Accumulator<T> weight_of(Accumulator<T> exponent) {
    if constexpr (sizeof(T) == 2) {
        return fast_exponential2(exponent);
    } else {
        return exponential2(exponent);
    }
}

// Which weights of a head dropout keeps. The four numbers of a counter are those of keys j, j + 16, j + 32 and j + 48
// of a block of 64.
struct Dropout {
    uint64_t key;
    uint32_t below, head;

    __device__ Dropout(const AttentionShape& shape, int64_t b, int64_t h)
        : key(shape.dropout_key), below(shape.dropout_below), head(static_cast<uint32_t>(b * shape.heads + h)) {}

    // Of the block of 64 that has first_key; `place` is a key's number modulo 16.
    __device__ void draw(int row, int first_key, int place, uint32_t (&numbers)[4]) const {
        const auto column = static_cast<uint32_t>(first_key / 64 * 16 + place);
        philox(key, uint64_t{static_cast<uint32_t>(row)} << 32 | column, head, numbers);
    }
};

// A row's logarithm of the sum of exponentials as what is taken from its exponents: of a row that sees nothing, so much
// that no weight is left.
template <class A>
__device__ inline A taken_from_exponents(A lse) {
    return lse == kNothing<A> ? -kNothing<A> : lse * static_cast<A>(kLog2E);
}

// One element of the backward: from products of query and key and of grad_out and value to the weight that multiplies
// the value, and the gradient of the product before it is scaled.
template <class T>
struct SlopeRule {
    using A = Accumulator<T>;
    Exponents<T> exponents;
    bool bends, drops;  // the gradient goes back through the softcap; there is dropout
    A kept;

    __device__ SlopeRule(const AttentionBackward& args, int64_t b, int64_t h, bool back_through_softcap)
        : exponents(args.shape, args.mask, b, h),
          bends(back_through_softcap && args.shape.softcap != 0),
          drops(args.shape.dropout_below != 0),
          kept(static_cast<A>(args.shape.kept)) {}

    __device__ void apply(A& product, A& grad, bool sees, bool keeps, int64_t row, int64_t key, A taken,
                          A delta) const {
        A slope = 1, x = product * exponents.factor;
        if (!exponents.plain && sees) {
            x = exponents.of(product, row, key, slope);
        }
        const A weight = sees ? weight_of<T>(x - taken) : A(0);
        const A factor = drops ? (keeps ? kept : A(0)) : A(1);
        product = weight * factor;
        grad = weight * (grad * factor - delta);
        if (bends) {
            grad *= slope;
        }
    }
};

// What one block of the mask's gradient sums: all examples, heads or blocks of rows where the mask is one for them.
struct MaskPart {
    Span batches, heads, row_blocks;
    int key_block;

    // Blocks are numbered [batch, head, row block, key block] of what is apart.
    __device__ MaskPart(const AttentionBackward& args, int all_row_blocks, int key_blocks) {
        auto rest = static_cast<int>(blockIdx.x);
        const auto next = [&](bool apart, int count) {
            const int own = apart ? rest % count : 0;
            rest = apart ? rest / count : rest;
            return apart ? Span{own, own + 1} : Span{0, count};
        };
        key_block = next(true, key_blocks).begin;
        row_blocks = next(args.grad_mask_row != 0, all_row_blocks);
        heads = next(args.grad_mask_head != 0, static_cast<int>(args.shape.heads));
        batches = next(args.grad_mask_batch != 0, static_cast<int>(args.shape.batch));
    }
    __host__ static int64_t blocks(const AttentionBackward& args, int all_row_blocks, int key_blocks) {
        return key_blocks * (args.grad_mask_row != 0 ? int64_t{all_row_blocks} : 1) *
               (args.grad_mask_head != 0 ? args.shape.heads : 1) * (args.grad_mask_batch != 0 ? args.shape.batch : 1);
    }
    // Calls visit(b, h, row block) in order, where rows of the block see keys of this one.
    template <class Visit>
    __device__ void walk(const AttentionBackward& args, int rows, int keys, const Visit& visit) const {
        for (int b = batches.begin; b < batches.end; ++b) {
            const Example example(args.shape, b);
            const Span seeing = blocks_of(example.rows_seeing({key_block * keys, (key_block + 1) * keys}), rows);
            for (int h = heads.begin; h < heads.end; ++h) {
                for (int block = row_blocks.begin; block < row_blocks.end; ++block) {
                    if (block >= seeing.begin && block < seeing.end) {
                        visit(example, b, h, block);
                    }
                }
            }
        }
    }
    // Where the gradient of this block's part begins, but for rows and keys.
    template <class A>
    __device__ A* target(const AttentionBackward& args) const {
        return static_cast<A*>(args.grad_mask) + batches.begin * args.grad_mask_batch +
               heads.begin * args.grad_mask_head;
    }
};

}  // namespace pykernels::cuda
