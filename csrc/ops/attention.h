// Contract of the attention operators, for every backend.
//
// query      [B, H, L, E]
// key, value [B, G, S, E] and [B, G, S, F] with H a multiple of G: query head h reads head h / (H / G)
// mask       none, or of the query's dtype or float32 (added to the scores) or bool (true: is seen), broadcast to
//            [B, H, L, S]
// row_lengths, key_lengths
//            none, or int64 [B] on the query's device: of each example only so many rows and keys are there
// seed       none (no dropout), or one int64 on the CPU: the key of the random numbers
// scale, softcap
//            scores are softcap * tanh(scale * q.k / softcap), or scale * q.k with softcap 0; scale none: 1 / sqrt(E)
// left, right, bottom_right
//            row i sees the keys from i + o - left to i + o + right, -1 for no limit; o is 0, or, with bottom_right,
//            the example's number of keys less that of its rows
//
// out        [B, H, L, F], laid out as [B, L, H, F] or [L, B, H, F] if the query is; zeros for a row that sees nothing
// lse        [B, H, L]: logarithm of the sum of exponentials, -inf for a row that sees nothing; float32, or
//            float64 as the query
//
// Weights are asked for apart, with the lse of a forward of the same arguments:
// weights    [B, H, L, S]: exp(score - lse) times dropout's factor, of the query's dtype; zeros for a row that sees
//            nothing. With average their mean over the heads, [B, L, S].
//
// Dropout multiplies the weight of key j by 1 / (1 - p) or by zero: zero if number (j % 64) / 16 of Philox's counter
// {(j / 64) * 16 + j % 16, i, b * H + h, 0} is below floor(p 2^32 + 1/2).
#pragma once

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>

#include "core/checks.h"

namespace pykernels {

struct AttentionSizes {
    int64_t batch, heads, groups, rows, keys, depth, value_depth;
    DropoutRule dropout;
};

struct AttentionArguments {
    const Tensor &query, &key, &value;
    const OptionalTensor &mask, &row_lengths, &key_lengths, &seed;
    std::optional<double> given_scale;
    double softcap, dropout;
    int64_t left, right;
    bool bottom_right;

    double scale() const {
        return given_scale.value_or(1 / std::sqrt(static_cast<double>(std::max<int64_t>(query.size(3), 1))));
    }
};

struct AttentionGiven {
    const OptionalTensor &grad_out, &grad_lse;
    const Tensor &out, &lse;
};

AttentionSizes check_attention(const AttentionArguments& args);
// The key stands for the value, which weights do not depend on.
AttentionSizes check_attention_weights(const AttentionArguments& args, const Tensor& lse);
void check_attention_backward(const AttentionArguments& args, const AttentionSizes& sizes, const AttentionGiven& given);

// Of the mask's gradient: one as if the mask had all four dimensions and were not broadcast along the keys.
std::vector<int64_t> attention_mask_shape(const Tensor& mask, const AttentionSizes& sizes);

inline at::ScalarType attention_sum_type(const Tensor& query) {
    return query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// [batch, heads, rows, columns] with these four in memory as they are, or rows before heads, or rows before batch
// before heads, as `like` may be.
inline Tensor empty_heads(const Tensor& like, int64_t columns, const at::TensorOptions& options) {
    const int64_t batch = like.size(0), heads = like.size(1), rows = like.size(2);
    if (like.stride(1) >= like.stride(2)) return at::empty({batch, heads, rows, columns}, options);
    if (like.stride(0) >= like.stride(2)) return at::empty({batch, rows, heads, columns}, options).transpose(1, 2);
    return at::empty({rows, batch, heads, columns}, options).permute({1, 2, 0, 3});
}

using AttentionForwardResult = std::tuple<Tensor, Tensor>;
using AttentionBackwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;

}  // namespace pykernels
