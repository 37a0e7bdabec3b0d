// The convolution operators on CUDA: dense operands in one layout, a workspace, and the launches.
#include "cuda/ops/conv.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include "csrc/ops/registry.h"
#include "cuda/kernels/conv.h"
#include "cuda/ops/recurrent.h"

namespace pykernels::cuda {
namespace {

const void* dense(Call& call, const Tensor& tensor, const ConvSizes& sizes) {
    return call.keep(tensor.contiguous(sizes.format)).const_data_ptr();
}

// With the workspace that it needs.
template <class Args>
Args& prepared(Call& call, Args& args) {
    if (const int64_t bytes = conv_workspace(args); bytes > 0) {
        args.workspace = call.workspace(static_cast<size_t>(bytes));
    }
    return args;
}

Tensor empty(const std::vector<int64_t>& size, const Tensor& like, const ConvSizes& sizes) {
    return at::empty(size, like.options().memory_format(sizes.format));
}

Tensor input_gradient(const Tensor& grad, const Tensor& weight, const ConvSizes& sizes) {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    check_extents(sizes);
    Call call(grad);
    const Tensor out = empty(sizes.input, grad, sizes);
    ConvInputGradient args{dtype_of(grad),         sizes.shape, dense(call, grad, sizes), dense(call, weight, sizes),
                           out.mutable_data_ptr(), nullptr,     ConvTile::automatic};
    C10_CUDA_CHECK(conv_input_gradient(prepared(call, args), call.stream));
    return out;
}

std::tuple<Tensor, Tensor> weight_gradient(const Tensor& input, const Tensor& grad, const ConvSizes& sizes,
                                           bool need_bias) {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    check_extents(sizes);
    Call call(input);
    const Tensor out = empty(sizes.weight, input, sizes);
    const Tensor bias = call.empty({need_bias ? sizes.weight[0] : 0});
    ConvWeightGradient args{dtype_of(input),
                            sizes.shape,
                            dense(call, input, sizes),
                            dense(call, grad, sizes),
                            out.mutable_data_ptr(),
                            need_bias ? bias.mutable_data_ptr() : nullptr,
                            nullptr};
    C10_CUDA_CHECK(conv_weight_gradient(prepared(call, args), call.stream));
    return {out, bias};
}

using Operators = ConvOperators<convolution, input_gradient, weight_gradient>;

}  // namespace

void check_extents(const ConvSizes& sizes) {
    const ConvShape& s = sizes.shape;
    const auto check = [](const char* what, int64_t count) {
        TORCH_CHECK(count < kMostPlaces, "[conv] expected fewer ", what, " on a GPU, got ", count);
    };
    check("places of an image", s.places());
    check("images", s.batch);
    check("values of a filter", (s.in_channels + s.out_channels + 8) * s.taps());
    int64_t between[2] = {s.channels_last ? s.groups * s.in_channels : 1,
                          s.channels_last ? s.groups * s.out_channels : 1};
    for (int a = 2; a >= 0; --a) {
        const ConvDimension& d = s.dim[a];
        check("pixels along a dimension", (d.output - 1) * d.stride + (d.kernel - 1) * d.dilation + 1 + d.before);
        check("pixels along a dimension", d.input + d.before + d.stride);
        check("values between pixels", d.input > 1 ? between[0] : 0);
        check("values between places", d.output > 1 ? between[1] : 0);
        between[0] *= d.input;
        between[1] *= d.output;
    }
}

Tensor convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const ConvSizes& sizes,
                   bool relu) {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    check_extents(sizes);
    Call call(input);
    const Tensor out = empty(sizes.output, input, sizes);
    ConvForward args{dtype_of(input),    sizes.shape, dense(call, input, sizes), dense(call, weight, sizes),
                     call.data(bias),    relu,        out.mutable_data_ptr(),    nullptr,
                     ConvTile::automatic};
    C10_CUDA_CHECK(conv_forward(prepared(call, args), call.stream));
    return out;
}

TORCH_LIBRARY_IMPL(pykernels, CUDA, m) {
    m.impl("conv_forward", Operators::forward);
    m.impl("conv_input_gradient", Operators::input_gradient);
    m.impl("conv_weight_gradient", Operators::weight_gradient);
}

static const RawKernel raw_kernels[] = {{"conv_forward", Operators::forward},
                                        {"conv_input_gradient", Operators::input_gradient},
                                        {"conv_weight_gradient", Operators::weight_gradient}};

}  // namespace pykernels::cuda
