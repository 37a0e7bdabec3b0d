// The operators of the input's part on CUDA: products and normalisation are the framework's. Between the products,
// values are in the accumulator's type.
#include "csrc/ops/input_part.h"

#include <ATen/AccumulateType.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/native_layer_norm.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "csrc/kernels/recurrent_kind.h"
#include "csrc/ops/registry.h"
#include "cuda/ops/recurrent.h"

namespace pykernels::cuda {
namespace {

InputPartForwardResult forward(const Tensor& input, const OptionalTensor& batch_sizes, at::TensorList weights,
                               bool bias, bool layer_norm, bool bidirectional, bool save) {
    const auto s = check_input_part(input, batch_sizes, weights, bias, layer_norm, bidirectional);
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(input);
    const bool keep = save && layer_norm;
    const Tensor out = call.empty({s.rows, s.directions, s.columns});
    const Tensor normalized = keep ? call.empty({s.directions, s.rows, s.columns}) : call.empty({0});
    const Tensor stats = keep ? call.empty({s.directions, s.rows, 1}) : call.empty({0});
    const Tensor rows = input.reshape({s.rows, s.inputs});
    const auto wide = at::toAccumulateType(input.scalar_type(), true);
    for (const auto d : c10::irange(s.directions)) {
        const auto p = input_part_parameters(weights, s, d);
        Tensor target = out.select(1, d);
        if (!layer_norm) {
            input_product(target, rows, p.weight, p.bias);
            continue;
        }
        const auto [value, mean, scale] = at::native_layer_norm(at::mm(rows, p.weight.t()).to(wide), {s.columns},
                                                                std::nullopt, std::nullopt, kNormEpsilon);
        if (keep) {
            normalized.select(0, d).copy_(value);
            stats.select(0, d).copy_(scale.reshape({s.rows, 1}));
        }
        Tensor whole = value * p.gain.to(wide);
        if (bias) whole += p.bias.to(wide);
        target.copy_(whole);
    }
    return {out.view(s.output_shape(input)), normalized, stats};
}

InputPartBackwardResult backward(const OptionalTensor& grad_output, const Tensor& input,
                                 const OptionalTensor& batch_sizes, at::TensorList weights, const Tensor&,
                                 const Tensor& normalized, const Tensor& stats, bool bias, bool layer_norm,
                                 bool bidirectional, bool need_input, bool, bool need_weights) {
    const auto s = check_input_part(input, batch_sizes, weights, bias, layer_norm, bidirectional);
    check_input_part_backward(s, input, grad_output, normalized, stats);
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(input);
    if (!grad_output) {
        std::vector<Tensor> zeros = call.nothing(weights.size());
        for (const auto i : c10::irange(need_weights ? weights.size() : 0)) zeros[i] = at::zeros_like(weights[i]);
        return {need_input ? at::zeros_like(input) : call.empty({0}), zeros};
    }
    const Tensor rows = input.reshape({s.rows, s.inputs});
    const Tensor grad = grad_output->reshape({s.rows, s.directions, s.columns});
    const auto wide = at::toAccumulateType(input.scalar_type(), true);
    Tensor grad_x = call.empty({0});
    std::vector<Tensor> grads;
    for (const auto d : c10::irange(s.directions)) {
        const auto p = input_part_parameters(weights, s, d);
        const Tensor own = grad.select(1, d);
        Tensor sums = own;
        if (layer_norm) {
            const Tensor q = own.to(wide) * p.gain.to(wide), value = normalized.select(0, d).to(wide);
            sums = (stats.select(0, d).to(wide) * (q - q.mean(1, true) - value * (q * value).mean(1, true)))
                       .to(input.scalar_type());
        }
        if (need_input) grad_x = d == 0 ? at::mm(sums, p.weight) : at::addmm(grad_x, sums, p.weight);
        if (!need_weights) continue;
        grads.push_back(at::mm(sums.t(), rows));
        if (bias) grads.push_back(own.sum(0));
        if (layer_norm) grads.push_back((own.to(wide) * normalized.select(0, d)).sum(0).to(input.scalar_type()));
    }
    if (need_input) grad_x = grad_x.view(input.sizes());
    return {grad_x, need_weights ? grads : call.nothing(weights.size())};
}

}  // namespace

TORCH_LIBRARY_IMPL(pykernels, CUDA, m) {
    m.impl("input_part_forward", forward);
    m.impl("input_part_backward", backward);
}

static const RawKernel raw_kernels[] = {{"input_part_forward", forward}, {"input_part_backward", backward}};

}  // namespace pykernels::cuda
