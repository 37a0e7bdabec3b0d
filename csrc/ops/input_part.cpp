// The operators of the input's part on the CPU: allocate and call the kernel. Low precisions are computed in float32.
#include "ops/input_part.h"

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "kernels/input_part.h"
#include "ops/registry.h"
#include "ops/run.h"

namespace pykernels {
namespace {

template <typename T>
void fill_call(InputPartCall<T>& call, Held& held, const InputPartSizes& s, const Tensor& input,
               at::TensorList weights) {
    call.rows = s.rows;
    call.inputs = s.inputs;
    call.columns = s.columns;
    call.directions = static_cast<int>(s.directions);
    call.x = held.data<T>(input);
    for (const auto d : c10::irange(s.directions)) {
        const auto p = input_part_parameters(weights, s, d);
        call.weights[d] = {held.data<T>(p.weight), held.data<T>(p.bias), held.data<T>(p.gain)};
    }
}

InputPartForwardResult forward(const Tensor& input, const OptionalTensor& batch_sizes, at::TensorList weights,
                               bool bias, bool layer_norm, bool bidirectional, bool save) {
    const auto s = check_input_part(input, batch_sizes, weights, bias, layer_norm, bidirectional);
    return in_its_precision(input, [&]<typename T>(T) -> InputPartForwardResult {
        const auto type = input.scalar_type();
        const auto options = input.options().dtype(c10::CppTypeToScalarType<T>::value);
        const bool keep = save && layer_norm;
        const Tensor out = empty_kept(true, s.output_shape(input), options);
        const Tensor normalized = empty_kept(keep, {s.directions, s.rows, s.columns}, options);
        const Tensor stats = empty_kept(keep, {s.directions, s.rows, 1}, options);
        Held held;
        InputPartForward<T> call{};
        fill_call(call, held, s, input, weights);
        call.out = pointer<T>(out);
        call.normalized = pointer<T>(normalized);
        call.stats = pointer<T>(stats);
        if (s.rows > 0) input_part_forward(call);
        return {out.to(type), normalized.to(type), stats.to(type)};
    });
}

InputPartBackwardResult backward(const OptionalTensor& grad_output, const Tensor& input,
                                 const OptionalTensor& batch_sizes, at::TensorList weights, const Tensor&,
                                 const Tensor& normalized, const Tensor& stats, bool bias, bool layer_norm,
                                 bool bidirectional, bool need_input, bool, bool need_weights) {
    const auto s = check_input_part(input, batch_sizes, weights, bias, layer_norm, bidirectional);
    check_input_part_backward(s, input, grad_output, normalized, stats);
    return in_its_precision(input, [&]<typename T>(T) -> InputPartBackwardResult {
        const auto type = input.scalar_type();
        const auto options = input.options().dtype(c10::CppTypeToScalarType<T>::value);
        const bool none = s.rows == 0 || !grad_output;
        const auto wanted = [&](bool want, at::IntArrayRef shape) {
            return !want ? at::empty({0}, options) : none ? at::zeros(shape, options) : at::empty(shape, options);
        };
        const Tensor grad_x = wanted(need_input, input.sizes());
        std::vector<Tensor> grads;
        for (const auto& weight : weights) grads.push_back(wanted(need_weights, weight.sizes()));
        if (!none) {
            Held held;
            InputPartBackward<T> call{};
            fill_call(call, held, s, input, weights);
            call.grad = held.data<T>(grad_output);
            call.normalized = held.data<T>(normalized);
            call.stats = held.data<T>(stats);
            call.grad_x = need_input ? pointer<T>(grad_x) : nullptr;
            call.want_weights = need_weights;
            for (const auto d : c10::irange(need_weights ? s.directions : 0)) {
                const auto p = input_part_parameters(grads, s, d);
                call.gradients[d] = {pointer<T>(p.weight), pointer<T>(p.bias), pointer<T>(p.gain)};
            }
            input_part_backward(call);
        }
        for (auto& grad : grads) grad = grad.to(type);
        return {grad_x.to(type), std::move(grads)};
    });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pykernels, m) {
    m.def(
        "input_part_forward(Tensor input, Tensor? batch_sizes, Tensor[] weights, bool bias, bool layer_norm, "
        "bool bidirectional, bool save) -> (Tensor output, Tensor normalized, Tensor stats)",
        {at::Tag::pt2_compliant_tag});
    m.def(
        "input_part_backward(Tensor? grad_output, Tensor input, Tensor? batch_sizes, Tensor[] weights, Tensor output, "
        "Tensor normalized, Tensor stats, bool bias, bool layer_norm, bool bidirectional, bool need_input, "
        "bool need_states, bool need_weights) -> (Tensor grad_input, Tensor[] grad_weights)",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
    m.impl("input_part_forward", forward);
    m.impl("input_part_backward", backward);
}

static const RawKernel raw_kernels[] = {{"input_part_forward", forward}, {"input_part_backward", backward}};

}  // namespace pykernels
