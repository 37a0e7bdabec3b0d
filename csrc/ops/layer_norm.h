// Contract of the layer norm operators, for every backend: layer norm of a sum.
//
// input      [*, normalized_shape], any strides: N rows of D elements, D the product of normalized_shape
// residual   none, or like the input
// weight, bias
//            none, or [normalized_shape] of the input's dtype or of that of the sums: float32, or float64 for such an
//            input
// seed       none (no dropout), or one int64 on the CPU: the key of the random numbers
//
// total      residual + dropout(input), rounded to the input's dtype; [0] where that is the input itself
// out        (total - mean) / sqrt(variance + epsilon) * weight + bias
// stats      [*, 2]: mean and 1 / sqrt(variance + epsilon) of each row of the total, of the dtype of the sums
//
// Dropout multiplies element j of row i by 1 / (1 - p) or by zero: zero if number (j % 64) / 16 of Philox's counter
// {(j / 64) * 16 + j % 16, i, 0, 0} is below floor(p 2^32 + 1/2), as attention does for the keys of head 0.
//
// Backward is given the total, or the input where there is none (and the epsilon, for derivatives of it), and gives
// grad_of_total
//            the gradient of the residual, and without dropout of the input too
// grad_input with dropout; [0] without
// grad_weight, grad_bias
//            of their shapes and dtypes; [0] where not wanted
#pragma once

#include <ATen/ops/empty.h>

#include "core/checks.h"

namespace pykernels {

struct LayerNormSizes {
    int64_t rows, columns;
    at::ScalarType sums;  // dtype
    bool adds;            // there is a total that is not the input
    DropoutRule dropout;

    // Rows beside or below each other, of anything that has the input's shape.
    Tensor as_rows(const Tensor& tensor) const { return tensor.reshape({rows, columns}); }
};

struct LayerNormArguments {
    const Tensor& input;
    const OptionalTensor &residual, &weight, &bias, &seed;
    at::IntArrayRef normalized_shape;
    double dropout, epsilon;
};

// What backward is given instead of input and residual, and what is wanted of it.
struct LayerNormGiven {
    const OptionalTensor &grad_out, &grad_total;
    const Tensor &total, &stats;
    const OptionalTensor &weight, &bias, &seed;
    at::IntArrayRef normalized_shape;
    double dropout;
    bool need_weight, need_bias;
};

inline std::vector<int64_t> layer_norm_stats_shape(const LayerNormArguments& args) {
    auto shape = args.input.sizes().slice(0, args.input.dim() - args.normalized_shape.size()).vec();
    shape.push_back(2);
    return shape;
}

LayerNormSizes check_layer_norm(const LayerNormArguments& args);
LayerNormSizes check_layer_norm_backward(const LayerNormGiven& given);

using LayerNormForwardResult = std::tuple<Tensor, Tensor, Tensor>;
using LayerNormBackwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using LayerNormForwardFunction = LayerNormForwardResult (*)(const LayerNormArguments&, const LayerNormSizes&);
using LayerNormBackwardFunction = LayerNormBackwardResult (*)(const LayerNormGiven&, const LayerNormSizes&);

// The operators' signatures, for every backend.
template <LayerNormForwardFunction Forward, LayerNormBackwardFunction Backward>
struct LayerNormOperators {
    static LayerNormForwardResult forward(const Tensor& input, const OptionalTensor& residual,
                                          const OptionalTensor& weight, const OptionalTensor& bias,
                                          const OptionalTensor& seed, at::IntArrayRef normalized_shape, double dropout,
                                          double epsilon) {
        const LayerNormArguments args{input, residual, weight, bias, seed, normalized_shape, dropout, epsilon};
        return Forward(args, check_layer_norm(args));
    }
    static LayerNormBackwardResult backward(const OptionalTensor& grad_out, const OptionalTensor& grad_total,
                                            const Tensor& total, const Tensor& stats, const OptionalTensor& weight,
                                            const OptionalTensor& bias, const OptionalTensor& seed,
                                            at::IntArrayRef normalized_shape, double dropout,
                                            [[maybe_unused]] double epsilon, bool need_weight, bool need_bias) {
        const LayerNormGiven given{grad_out, grad_total,       total,   stats,       weight,   bias,
                                   seed,     normalized_shape, dropout, need_weight, need_bias};
        return Backward(given, check_layer_norm_backward(given));
    }
};

}  // namespace pykernels
