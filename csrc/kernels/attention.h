// Launch contract of the attention kernels on the CPU.
//
// Operand is what the products take: double, float, or Bf16Pair where there is an instruction for it; then Storage is
// bf16, and sums are float32. The last dimension of every tensor is contiguous. No buffer overlaps another.
#pragma once

#include <algorithm>
#include <type_traits>

#include "core/dropout.h"
#include "core/types.h"

namespace pykernels {

// [batch, heads, rows, columns], neighbouring columns beside each other.
template <typename S>
struct HeadRows {
    S* data;
    int64_t batch_stride, head_stride, row_stride;
    S* at(int64_t b, int64_t h, int64_t row = 0) const {
        return data + b * batch_stride + h * head_stride + row * row_stride;
    }
};

// What is added to the scores, or, of bytes, where nothing is seen if zero. Strides are 0 where it is broadcast.
template <typename Acc>
struct AttentionMask {
    const Acc* added;
    const std::uint8_t* chosen;
    int64_t batch_stride, head_stride, row_stride, key_stride;
    explicit operator bool() const { return added || chosen; }
    int64_t offset(int64_t b, int64_t h, int64_t row) const {
        return b * batch_stride + h * head_stride + row * row_stride;
    }
};

struct KeyRange {
    int64_t begin, end;
};

struct AttentionShape {
    int64_t batch, heads, groups, rows, keys, depth, value_depth;
    const int64_t *row_lengths, *key_lengths;  // [batch], or null for all rows and keys
    int64_t left, right;                       // how far a row sees from its diagonal; -1: no limit
    bool bottom_right;                         // the diagonal ends at the last key, or else begins at the first
    double scale, softcap;                     // softcap 0: none
    DropoutRule dropout;

    int64_t heads_of_group() const { return heads / groups; }
    int64_t rows_of(int64_t b) const { return row_lengths ? row_lengths[b] : rows; }
    int64_t keys_of(int64_t b) const { return key_lengths ? key_lengths[b] : keys; }
    // The keys that a row sees; empty beyond the rows of its example. Both ends grow with the row.
    KeyRange seen(int64_t b, int64_t row) const {
        const int64_t count = keys_of(b), at = row + (bottom_right ? count - rows_of(b) : 0);
        if (row >= rows_of(b)) return {count, count};
        const int64_t begin = left < 0 ? 0 : std::clamp<int64_t>(at - left, 0, count);
        const int64_t end = right < 0 ? count : std::clamp<int64_t>(at + right + 1, 0, count);
        return {std::min(begin, end), end};
    }
};

template <typename Operand_, typename Storage_>
struct AttentionForward {
    using Operand = Operand_;
    using Storage = Storage_;
    using Acc = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

    AttentionShape shape;
    HeadRows<const Storage> query, key, value;
    AttentionMask<Acc> mask;
    HeadRows<Storage> out;
    Acc* lse;  // [batch, heads, rows]: logarithm of the sum of exponentials, -inf where nothing is seen
};

// Gradients may be null where they are not wanted. grad_mask is [batch or 1, heads or 1, rows or 1, keys] like the
// mask, but never broadcast along the keys, and zero before.
template <typename Operand_, typename Storage_>
struct AttentionBackward {
    using Operand = Operand_;
    using Storage = Storage_;
    using Acc = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

    AttentionShape shape;
    HeadRows<const Storage> query, key, value, out, grad_out;
    AttentionMask<Acc> mask;
    const Acc *lse, *grad_lse;  // grad_lse may be null
    HeadRows<Storage> grad_query, grad_key, grad_value;
    Acc* grad_mask;
    int64_t grad_mask_batch, grad_mask_head, grad_mask_row;  // strides, 0 where it is summed
};

template <typename Operand_, typename Storage_>
struct AttentionWeights {
    using Operand = Operand_;
    using Storage = Storage_;
    using Acc = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

    AttentionShape shape;
    HeadRows<const Storage> query, key;
    AttentionMask<Acc> mask;
    const Acc* lse;         // as forward found it
    HeadRows<Storage> out;  // [batch, heads, rows, keys], or of the mean over the heads [batch, 1, rows, keys]
    bool average;
};

void attention_forward(const AttentionForward<float, float>& call);
void attention_forward(const AttentionForward<double, double>& call);
void attention_forward(const AttentionForward<Bf16Pair, c10::BFloat16>& call);

// The same for a few rows, which read the keys in place. (Pairs of bf16 are not needed: any processor runs it.)
inline bool are_few(int64_t heads_of_group, int64_t rows) { return heads_of_group * rows <= 4; }
void attention_few(const AttentionForward<float, float>& call);
void attention_few(const AttentionForward<double, double>& call);
void attention_few(const AttentionForward<Bf16Pair, c10::BFloat16>& call);

void attention_weights(const AttentionWeights<float, float>& call);
void attention_weights(const AttentionWeights<double, double>& call);
void attention_weights(const AttentionWeights<Bf16Pair, c10::BFloat16>& call);

void attention_backward(const AttentionBackward<float, float>& call);
void attention_backward(const AttentionBackward<double, double>& call);
void attention_backward(const AttentionBackward<Bf16Pair, c10::BFloat16>& call);

}  // namespace pykernels
