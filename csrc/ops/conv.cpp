// The convolution operators on the CPU: dense operands in one layout, and the kernels.
#include "ops/conv.h"

#include <torch/library.h>

#include "ops/by_type.h"
#include "ops/recycled.h"
#include "ops/registry.h"

namespace pykernels {
namespace {

// The layout that is computed in: several outputs for a channel have no neighbours to read.
at::MemoryFormat layout(ConvSizes& sizes) {
    const auto& s = sizes.shape;
    if (s.in_channels == 1 && s.groups > 1 && s.out_channels > 1) sizes.shape.channels_last = false;
    return sizes.shape.channels_last ? sizes.format : at::MemoryFormat::Contiguous;
}

Tensor forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const ConvSizes& given,
               bool relu) {
    ConvSizes sizes = given;
    const auto format = layout(sizes);
    const Tensor out = empty_recycled(sizes.output, input.options(), format);
    const Tensor x = input.contiguous(format), w = weight.contiguous(format);
    by_type(input, [&]<typename S>(S) {
        using Acc = typename ConvForward<S>::Acc;
        const Tensor b = bias ? bias->to(c10::CppTypeToScalarType<Acc>::value).contiguous() : Tensor();
        conv_forward(ConvForward<S>{sizes.shape, x.const_data_ptr<S>(), w.const_data_ptr<S>(),
                                    bias ? b.const_data_ptr<Acc>() : nullptr, relu, out.data_ptr<S>()});
    });
    return out.contiguous(sizes.format);
}

Tensor input_gradient(const Tensor& grad, const Tensor& weight, const ConvSizes& given) {
    ConvSizes sizes = given;
    const auto format = layout(sizes);
    const Tensor out = empty_recycled(sizes.input, grad.options(), format);
    const Tensor g = grad.contiguous(format), w = weight.contiguous(format);
    by_type(grad, [&]<typename S>(S) {
        conv_input_gradient(
            ConvInputGradient<S>{sizes.shape, g.const_data_ptr<S>(), w.const_data_ptr<S>(), out.data_ptr<S>()});
    });
    return out.contiguous(sizes.format);
}

std::tuple<Tensor, Tensor> weight_gradient(const Tensor& input, const Tensor& grad, const ConvSizes& given,
                                           bool need_bias) {
    ConvSizes sizes = given;
    const auto format = layout(sizes);
    const Tensor out = empty_recycled(sizes.weight, input.options(), format);
    const Tensor bias = at::empty({need_bias ? sizes.weight[0] : 0}, input.options());
    const Tensor x = input.contiguous(format), g = grad.contiguous(format);
    by_type(input, [&]<typename S>(S) {
        conv_weight_gradient(ConvWeightGradient<S>{sizes.shape, x.const_data_ptr<S>(), g.const_data_ptr<S>(),
                                                   out.data_ptr<S>(), need_bias ? bias.data_ptr<S>() : nullptr});
    });
    return {out.contiguous(sizes.format), bias};
}

using Operators = ConvOperators<forward, input_gradient, weight_gradient>;

}  // namespace

TORCH_LIBRARY_FRAGMENT(pykernels, m) {
    m.def(
        "conv_forward(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, "
        "SymInt[] dilation, SymInt groups, str padding_mode, str activation) -> Tensor",
        {at::Tag::pt2_compliant_tag});
    m.def(
        "conv_input_gradient(Tensor grad, Tensor weight, SymInt[] input_size, SymInt[] stride, SymInt[] padding, "
        "SymInt[] dilation, SymInt groups, str padding_mode) -> Tensor",
        {at::Tag::pt2_compliant_tag});
    m.def(
        "conv_weight_gradient(Tensor input, Tensor grad, SymInt[] weight_size, SymInt[] stride, SymInt[] padding, "
        "SymInt[] dilation, SymInt groups, str padding_mode, bool need_bias) "
        "-> (Tensor grad_weight, Tensor grad_bias)",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
    m.impl("conv_forward", Operators::forward);
    m.impl("conv_input_gradient", Operators::input_gradient);
    m.impl("conv_weight_gradient", Operators::weight_gradient);
}

static const RawKernel raw_kernels[] = {{"conv_forward", Operators::forward},
                                        {"conv_input_gradient", Operators::input_gradient},
                                        {"conv_weight_gradient", Operators::weight_gradient}};

}  // namespace pykernels
