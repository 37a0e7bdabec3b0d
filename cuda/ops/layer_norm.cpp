// The layer norm operators on CUDA: allocate and launch. The seed is read on the host, so a CUDA graph repeats its
// dropout.
#include "csrc/ops/layer_norm.h"

#include <torch/library.h>

#include "csrc/ops/registry.h"
#include "cuda/kernels/layer_norm.h"
#include "cuda/ops/recurrent.h"

namespace pykernels::cuda {
namespace {

LayerNormRows rows_of(Call& call, const OptionalTensor& tensor, const LayerNormSizes& s) {
    if (!tensor) {
        return {nullptr, 0};
    }
    const Tensor rows = s.as_rows(*tensor);
    const Tensor& kept = call.keep(s.columns <= 1 || rows.stride(1) == 1 ? rows : rows.contiguous());
    return {kept.const_data_ptr(), kept.stride(0)};
}

bool is_wide(const Tensor& parameter, const LayerNormSizes& s) { return parameter.scalar_type() == s.sums; }

LayerNormParameter parameter_of(Call& call, const OptionalTensor& tensor, const LayerNormSizes& s) {
    return {call.data(tensor), tensor && is_wide(*tensor, s)};
}

LayerNormForwardResult normalize(const LayerNormArguments& args, const LayerNormSizes& s) {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(args.input);
    const Tensor out = call.empty(args.input.sizes());
    const Tensor total = s.adds ? call.empty(args.input.sizes()) : call.empty({0});
    const Tensor stats = at::empty(layer_norm_stats_shape(args), args.input.options().dtype(s.sums));
    const LayerNormForward forward{{dtype_of(args.input), s.rows, s.columns, s.dropout},
                                   rows_of(call, args.input, s),
                                   rows_of(call, args.residual, s),
                                   parameter_of(call, args.weight, s),
                                   parameter_of(call, args.bias, s),
                                   args.epsilon,
                                   out.mutable_data_ptr(),
                                   s.adds ? total.mutable_data_ptr() : nullptr,
                                   stats.mutable_data_ptr()};
    C10_CUDA_CHECK(layer_norm_forward(forward, call.stream));
    return {out, total, stats};
}

LayerNormBackwardResult gradients(const LayerNormGiven& given, const LayerNormSizes& s) {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(given.total);
    const auto options = given.total.options();
    const Tensor grad_total = call.empty(given.total.sizes());
    const Tensor grad_input = s.adds ? call.empty(given.total.sizes()) : call.empty({0});
    const auto wanted = [&](bool want, const OptionalTensor& parameter) {
        return want && parameter ? at::empty(given.normalized_shape, parameter->options())
                                 : at::empty({0}, options.dtype(s.sums));
    };
    const bool weight = given.need_weight && given.weight, bias = given.need_bias && given.bias;
    const Tensor grad_weight = wanted(weight, given.weight), grad_bias = wanted(bias, given.bias);

    LayerNormBackward backward{};
    backward.shape = {dtype_of(given.total), s.rows, s.columns, s.dropout};
    backward.grad_out = rows_of(call, given.grad_out, s);
    backward.grad_total = rows_of(call, given.grad_total, s);
    backward.total = rows_of(call, given.total, s);
    backward.stats = call.data(given.stats);
    backward.weight = parameter_of(call, given.weight, s);
    backward.grad_of_total = grad_total.mutable_data_ptr();
    backward.grad_input = s.adds ? grad_input.mutable_data_ptr() : nullptr;
    const size_t bytes =
        static_cast<size_t>(layer_norm_runs(s.rows) * s.columns * accumulator_bytes(backward.shape.dtype));
    if (weight) {
        backward.grad_weight = {grad_weight.mutable_data_ptr(), is_wide(grad_weight, s)};
        backward.weight_runs = call.workspace(bytes);
    }
    if (bias) {
        backward.grad_bias = {grad_bias.mutable_data_ptr(), is_wide(grad_bias, s)};
        backward.bias_runs = call.workspace(bytes);
    }
    C10_CUDA_CHECK(layer_norm_backward(backward, call.stream));
    return {grad_total, grad_input, grad_weight, grad_bias};
}

using Operators = LayerNormOperators<normalize, gradients>;

}  // namespace

TORCH_LIBRARY_IMPL(pykernels, CUDA, m) {
    m.impl("layer_norm_forward", Operators::forward);
    m.impl("layer_norm_backward", Operators::backward);
}

static const RawKernel raw_kernels[] = {{"layer_norm_forward", Operators::forward},
                                        {"layer_norm_backward", Operators::backward}};

}  // namespace pykernels::cuda
