// Convolution, ReLU and max-pooling at once, on the CPU.
#include "ops/conv_pool.h"

#include "kernels/conv_pool.h"

#include <torch/library.h>

#include "ops/by_type.h"
#include "ops/recycled.h"
#include "ops/registry.h"

namespace pykernels {
namespace {

Tensor run(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const ConvOptions&, const PoolWindow&,
           const ConvPoolSizes& sizes) {
    ConvShape shape = sizes.conv.shape;
    shape.channels_last = false;  // planes are pooled one by one
    const Tensor out = empty_recycled(sizes.pool.output, input.options());
    const Tensor x = input.contiguous(), w = weight.contiguous();
    by_type(input, [&]<typename S>(S) {
        using Acc = typename ConvForward<S>::Acc;
        const Tensor b = bias ? bias->to(c10::CppTypeToScalarType<Acc>::value).contiguous() : Tensor();
        const ConvForward<S> conv{
            shape,  x.const_data_ptr<S>(), w.const_data_ptr<S>(), bias ? b.const_data_ptr<Acc>() : nullptr, true,
            nullptr};
        conv_relu_max_pool(ConvPool<S>{conv, sizes.pool.shape.rows, sizes.pool.shape.columns, out.data_ptr<S>()});
    });
    return out.contiguous(sizes.conv.format);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pykernels, m) {
    m.def(
        "conv_relu_max_pool(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, "
        "SymInt[] dilation, SymInt groups, str padding_mode, SymInt[] pool_kernel, SymInt[] pool_stride, "
        "SymInt[] pool_padding, SymInt[] pool_dilation, bool ceil_mode) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(pykernels, CPU, m) { m.impl("conv_relu_max_pool", conv_pool_operator<run>); }

static const RawKernel raw_kernels[] = {{"conv_relu_max_pool", conv_pool_operator<run>}};

}  // namespace pykernels
