// Launch contract of attention: what it computes, csrc/ops/attention.h says.
//
// All tensors are of shape.dtype, lse and what is summed of the accumulator's type (double for f64, else float). The
// last dimension of every tensor is contiguous. No buffer overlaps another.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/core/types.h"

namespace pykernels::cuda {

// [batch, heads, rows, columns], neighbouring columns beside each other.
struct HeadsIn {
    const void* data;
    int64_t batch_stride, head_stride, row_stride;
};
struct HeadsOut {
    void* data;
    int64_t batch_stride, head_stride, row_stride;
};

// What is added to the scores, or, of bytes, where nothing is seen if zero. Strides are 0 where it is broadcast.
struct AttentionMask {
    const void* added;
    const uint8_t* chosen;
    int64_t batch_stride, head_stride, row_stride, key_stride;
};

// Rows, keys and the limits of a window are at most so many.
constexpr int64_t kMostRows = (int64_t{1} << 29) - 1;

struct AttentionShape {
    DType dtype;
    int64_t batch, heads, groups, rows, keys, depth, value_depth;
    const int64_t *row_lengths, *key_lengths;  // [batch] on the device, or null for all rows and keys
    int64_t left, right;                       // how far a row sees from its diagonal; -1: no limit
    bool bottom_right;                         // the diagonal ends at the last key, or else begins at the first
    double scale, softcap;                     // softcap 0: none
    uint64_t dropout_key;
    uint32_t dropout_below;  // a weight is dropped where its random number is below; 0: no dropout
    double kept;             // what the others are multiplied by
};

struct AttentionForward {
    AttentionShape shape;
    HeadsIn query, key, value;
    AttentionMask mask;
    HeadsOut out;
    void* lse;  // [batch, heads, rows] out
};
cudaError_t attention_forward(const AttentionForward& args, cudaStream_t stream);

// Gradients may be null where they are not wanted; the others are written whole.
struct AttentionBackward {
    AttentionShape shape;
    HeadsIn query, key, value, out, grad_out;
    AttentionMask mask;
    const void *lse, *grad_lse;  // [batch, heads, rows]; grad_lse may be null
    void* delta;                 // [batch, heads, rows] workspace: sum of out * grad_out, less grad_lse
    HeadsOut grad_query, grad_key, grad_value;
    // [batch or 1, heads or 1, rows or 1, keys] of the accumulator's type, summed over what is 1; the mask is a sum
    void* grad_mask;
    int64_t grad_mask_batch, grad_mask_head, grad_mask_row;  // strides, 0 where it is summed
};
cudaError_t attention_backward(const AttentionBackward& args, cudaStream_t stream);

// With the lse of a forward of the same shape and mask; of shape.value_depth nothing is read.
struct AttentionWeights {
    AttentionShape shape;
    HeadsIn query, key;
    AttentionMask mask;
    const void* lse;  // [batch, heads, rows]
    HeadsOut out;     // [batch, heads, rows, keys], or the mean over the heads: [batch, 1, rows, keys]
    bool average;
};
cudaError_t attention_weights(const AttentionWeights& args, cudaStream_t stream);

}  // namespace pykernels::cuda
