// Launch contract of layer norm: what it computes, csrc/ops/layer_norm.h says.
//
// Rows are of shape.dtype, statistics and sums of the accumulator's type (double for f64, else float). Outputs are
// dense. No buffer overlaps another.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "csrc/core/dropout.h"
#include "cuda/core/types.h"

namespace pykernels::cuda {

// [rows, columns], neighbouring columns beside each other; or null.
struct LayerNormRows {
    const void* data;
    int64_t stride;
};

// [columns] of shape.dtype or, wide, of the accumulator's type; or null.
struct LayerNormParameter {
    const void* data;
    bool wide;
};
struct LayerNormParameterGradient {
    void* data;
    bool wide;
};

struct LayerNormShape {
    DType dtype;
    int64_t rows, columns;
    DropoutRule dropout;
};

struct LayerNormForward {
    LayerNormShape shape;
    LayerNormRows input, residual;
    LayerNormParameter weight, bias;
    double epsilon;
    void *out, *total;  // total null where it is the input
    void* stats;        // [rows, 2] out
};
cudaError_t layer_norm_forward(const LayerNormForward& args, cudaStream_t stream);

// Gradients of weight and bias are added up over runs of rows, and then the runs; both in an order that only the number
// of rows decides.
inline int64_t layer_norm_run(int64_t rows) {
    const auto parts = [&](int64_t count) { return (rows + count - 1) / count; };
    const int64_t few = parts(128) < 4 ? 4 : parts(128) > 16 ? 16 : parts(128);
    return parts(1024) > few ? parts(1024) : few;
}
inline int64_t layer_norm_runs(int64_t rows) { return (rows + layer_norm_run(rows) - 1) / layer_norm_run(rows); }

struct LayerNormBackward {
    LayerNormShape shape;
    LayerNormRows grad_out, grad_total, total;  // the gradients may be null
    const void* stats;                          // [rows, 2]
    LayerNormParameter weight;
    void *grad_of_total, *grad_input;                   // grad_input null without dropout
    LayerNormParameterGradient grad_weight, grad_bias;  // null where not wanted
    void *weight_runs, *bias_runs;  // workspaces [layer_norm_runs(rows), columns] of the accumulator's type, of 16
                                    // bytes' alignment; null as the gradients are
};
cudaError_t layer_norm_backward(const LayerNormBackward& args, cudaStream_t stream);

}  // namespace pykernels::cuda
