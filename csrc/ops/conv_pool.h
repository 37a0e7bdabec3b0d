// Contract of convolution, ReLU and max-pooling at once, for every backend: conv_forward with ReLU, then
// max_pool_forward of it, both in two dimensions and as their contracts say (ops/conv.h, ops/pool.h). To infer:
// backends keep nothing for a backward. The result is channels-last where the convolution's would be.
#pragma once

#include "ops/conv.h"
#include "ops/pool.h"

namespace pykernels {

struct ConvPoolSizes {
    ConvSizes conv;
    PoolSizes pool;
};

inline ConvPoolSizes check_conv_pool(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                     const ConvOptions& options, const PoolWindow& window) {
    auto conv = check_conv(input, weight, bias, options);
    TORCH_CHECK(input.dim() == 4, "[conv_pool] expected an input of 4 dimensions, got one of shape ", input.sizes());
    auto pool = max_pool_sizes(conv.output, window, conv.format);
    return {std::move(conv), std::move(pool)};
}

using ConvPoolFunction = Tensor (*)(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                    const ConvOptions& options, const PoolWindow& window, const ConvPoolSizes& sizes);

// The operator's signature, for every backend.
template <ConvPoolFunction Run>
Tensor conv_pool_operator(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, at::IntArrayRef stride,
                          at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                          std::string_view padding_mode, at::IntArrayRef pool_kernel, at::IntArrayRef pool_stride,
                          at::IntArrayRef pool_padding, at::IntArrayRef pool_dilation, bool ceil_mode) {
    const ConvOptions options{stride, padding, dilation, groups, padding_mode};
    const PoolWindow window{pool_kernel, pool_stride, pool_padding, pool_dilation, ceil_mode, {}};
    return Run(input, weight, bias, options, window, check_conv_pool(input, weight, bias, options, window));
}

}  // namespace pykernels
