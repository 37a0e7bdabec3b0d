// Contract of the convolution operators, for every backend. With one to three spatial dimensions:
//
// input      [N, C, *pixels]
// weight     [K, C / groups, *kernel]
// bias       none, or [K]; all three of one dtype
// stride, dilation
//            one number for each spatial dimension
// padding    two for each: what is put before and behind it
// padding_mode
//            what that is: "zeros", "reflect", "replicate" or "circular", as torch.nn.functional.pad means them
// activation "none" or "relu"
//
// conv_forward gives [N, K, *places], each dimension (pixels + padding - dilation (kernel - 1) - 1) / stride + 1.
// conv_input_gradient takes a gradient of that shape and gives one of input_size, conv_weight_gradient gives one of
// weight_size and the sums of the gradient over all but the channels ([0] where they are not wanted). Both are those of
// a convolution with neither bias nor activation.
//
// The result is channels-last where torch's memory format of one of the two operands says so, and else contiguous.
//
// The three are each other's derivatives: forward is linear in input and in weight, and so are the gradients in theirs.
#pragma once

#include <ATen/ops/empty.h>

#include <string_view>

#include "core/checks.h"
#include "kernels/conv.h"

namespace pykernels {

struct ConvOptions {
    at::IntArrayRef stride, padding, dilation;
    int64_t groups;
    std::string_view padding_mode;
};

// What the sizes of an operator's tensors say.
struct ConvSizes {
    ConvShape shape;
    std::vector<int64_t> input, weight, output;  // their sizes
    at::MemoryFormat format;
};

ConvSizes conv_sizes(at::IntArrayRef input, at::IntArrayRef weight, const ConvOptions& options);
ConvSizes check_conv(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const ConvOptions& options);
ConvSizes check_conv_input_gradient(const Tensor& grad, const Tensor& weight, at::IntArrayRef input_size,
                                    const ConvOptions& options);
ConvSizes check_conv_weight_gradient(const Tensor& input, const Tensor& grad, at::IntArrayRef weight_size,
                                     const ConvOptions& options);
bool check_conv_activation(std::string_view activation);  // is it "relu"

using ConvForwardFunction = Tensor (*)(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                       const ConvSizes& sizes, bool relu);
using ConvInputGradientFunction = Tensor (*)(const Tensor& grad, const Tensor& weight, const ConvSizes& sizes);
using ConvWeightGradientFunction = std::tuple<Tensor, Tensor> (*)(const Tensor& input, const Tensor& grad,
                                                                  const ConvSizes& sizes, bool need_bias);

// The operators' signatures, for every backend.
template <ConvForwardFunction Forward, ConvInputGradientFunction InputGradient,
          ConvWeightGradientFunction WeightGradient>
struct ConvOperators {
    static Tensor forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, at::IntArrayRef stride,
                          at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                          std::string_view padding_mode, std::string_view activation) {
        const auto sizes = check_conv(input, weight, bias, {stride, padding, dilation, groups, padding_mode});
        return Forward(input, weight, bias, sizes, check_conv_activation(activation));
    }
    static Tensor input_gradient(const Tensor& grad, const Tensor& weight, at::IntArrayRef input_size,
                                 at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                 int64_t groups, std::string_view padding_mode) {
        const ConvOptions options{stride, padding, dilation, groups, padding_mode};
        return InputGradient(grad, weight, check_conv_input_gradient(grad, weight, input_size, options));
    }
    static std::tuple<Tensor, Tensor> weight_gradient(const Tensor& input, const Tensor& grad,
                                                      at::IntArrayRef weight_size, at::IntArrayRef stride,
                                                      at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                                                      std::string_view padding_mode, bool need_bias) {
        const ConvOptions options{stride, padding, dilation, groups, padding_mode};
        return WeightGradient(input, grad, check_conv_weight_gradient(input, grad, weight_size, options), need_bias);
    }
};

}  // namespace pykernels
