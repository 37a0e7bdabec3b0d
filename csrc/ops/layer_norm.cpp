// The layer norm operators on the CPU: allocate and call the kernel.
#include "ops/layer_norm.h"

#include "kernels/layer_norm.h"

#include <torch/library.h>

#include "ops/by_type.h"
#include "ops/recycled.h"
#include "ops/registry.h"

namespace pykernels {
namespace {

// Keeps what a call points into.
class Held {
  public:
    // Rows whose columns lie beside each other.
    template <typename S>
    const S* rows(const OptionalTensor& tensor, const LayerNormSizes& s, int64_t* stride) {
        if (!tensor) return nullptr;
        *stride = s.columns;
        if (tensor->is_contiguous()) return tensor->const_data_ptr<S>();
        const Tensor rows = s.as_rows(*tensor);
        tensors_.push_back(s.columns <= 1 || rows.stride(1) == 1 ? rows : rows.contiguous());
        *stride = tensors_.back().stride(0);
        return tensors_.back().const_data_ptr<S>();
    }
    template <typename Acc>
    const Acc* dense(const OptionalTensor& tensor) {
        if (!tensor) return nullptr;
        if (tensor->scalar_type() == c10::CppTypeToScalarType<Acc>::value && tensor->is_contiguous())
            return tensor->const_data_ptr<Acc>();
        tensors_.push_back(tensor->to(c10::CppTypeToScalarType<Acc>::value).contiguous());
        return tensors_.back().const_data_ptr<Acc>();
    }

  private:
    std::vector<Tensor> tensors_;
};

LayerNormForwardResult normalize(const LayerNormArguments& args, const LayerNormSizes& s) {
    const auto options = args.input.options();
    const Tensor out = empty_recycled(args.input.sizes(), options);
    const Tensor total = s.adds ? empty_recycled(args.input.sizes(), options) : at::empty({0}, options);
    const Tensor stats = at::empty(layer_norm_stats_shape(args), options.dtype(s.sums));
    by_type(args.input, [&]<typename S>(S) {
        LayerNormForward<S> call;
        using Acc = typename LayerNormForward<S>::Acc;
        Held held;
        call.shape = {s.rows, s.columns, s.dropout};
        call.input = held.rows<S>(args.input, s, &call.input_stride);
        call.residual = held.rows<S>(args.residual, s, &call.residual_stride);
        call.weight = held.dense<Acc>(args.weight);
        call.bias = held.dense<Acc>(args.bias);
        call.epsilon = static_cast<Acc>(args.epsilon);
        call.out = out.data_ptr<S>();
        call.total = s.adds ? total.data_ptr<S>() : nullptr;
        call.stats = stats.data_ptr<Acc>();
        layer_norm_forward(call);
    });
    return {out, total, stats};
}

LayerNormBackwardResult gradients(const LayerNormGiven& given, const LayerNormSizes& s) {
    const auto options = given.total.options();
    const Tensor grad_total = empty_recycled(given.total.sizes(), options);
    const Tensor grad_input = s.adds ? empty_recycled(given.total.sizes(), options) : at::empty({0}, options);
    const auto wanted = [&](bool want) {
        return want ? at::empty(given.normalized_shape, options.dtype(s.sums)) : at::empty({0}, options.dtype(s.sums));
    };
    const bool weight = given.need_weight && given.weight, bias = given.need_bias && given.bias;
    const Tensor grad_weight = wanted(weight), grad_bias = wanted(bias);
    by_type(given.total, [&]<typename S>(S) {
        LayerNormBackward<S> call;
        using Acc = typename LayerNormBackward<S>::Acc;
        Held held;
        call.shape = {s.rows, s.columns, s.dropout};
        call.grad_out = held.rows<S>(given.grad_out, s, &call.grad_out_stride);
        call.grad_total = held.rows<S>(given.grad_total, s, &call.grad_total_stride);
        call.total = held.rows<S>(given.total, s, &call.total_stride);
        call.stats = held.dense<Acc>(given.stats);
        call.weight = held.dense<Acc>(given.weight);
        call.grad_of_total = grad_total.data_ptr<S>();
        call.grad_input = s.adds ? grad_input.data_ptr<S>() : nullptr;
        call.grad_weight = weight ? grad_weight.data_ptr<Acc>() : nullptr;
        call.grad_bias = bias ? grad_bias.data_ptr<Acc>() : nullptr;
        layer_norm_backward(call);
    });
    return {grad_total, grad_input, weight ? grad_weight.to(given.weight->scalar_type()) : grad_weight,
            bias ? grad_bias.to(given.bias->scalar_type()) : grad_bias};
}

using Operators = LayerNormOperators<normalize, gradients>;

}  // namespace

TORCH_LIBRARY_FRAGMENT(pykernels, m) {
    m.def(
        "layer_norm_forward(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? seed, "
        "SymInt[] normalized_shape, float dropout, float epsilon) -> (Tensor out, Tensor total, Tensor stats)",
        {at::Tag::pt2_compliant_tag});
    m.def(
        "layer_norm_backward(Tensor? grad_out, Tensor? grad_total, Tensor total, Tensor stats, Tensor? weight, "
        "Tensor? bias, Tensor? seed, SymInt[] normalized_shape, float dropout, float epsilon, bool need_weight, "
        "bool need_bias) -> (Tensor grad_of_total, Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
    m.impl("layer_norm_forward", Operators::forward);
    m.impl("layer_norm_backward", Operators::backward);
}

static const RawKernel raw_kernels[] = {{"layer_norm_forward", Operators::forward},
                                        {"layer_norm_backward", Operators::backward}};

}  // namespace pykernels
