// The RNN operators (Elman's and Jordan's) on CUDA: the products of whole sequences by the framework, the recurrence by
// our kernel.
#include "csrc/ops/rnn.h"

#include <torch/library.h>

#include "csrc/ops/cell.h"
#include "csrc/ops/registry.h"
#include "cuda/kernels/rnn.h"
#include "cuda/ops/recurrent.h"

namespace pykernels::cuda {
namespace {

RnnLayer rnn_layer(Call& call, const RecurrentSizes& s, const RecurrentFlags& flags, bool relu, at::TensorList weights,
                   const OptionalTensor& h0) {
    RnnLayer layer{};
    call.fill(layer, s, flags, weights, h0);
    layer.relu = relu;
    for (const auto d : c10::irange(s.directions)) {
        layer.bias_projection[d] = call.data(recurrent_parameters(weights, flags, d).bias_projection);
    }
    return layer;
}

RnnForwardResult forward(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                         at::TensorList weights, bool bias, bool projection, bool relu, bool bidirectional, bool save) {
    const auto flags = rnn_flags(bias, projection, bidirectional);
    const auto s = check_rnn(input, batch_sizes, h0, weights, flags);
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(input);
    const Tensor output = call.empty(recurrent_output_shape(s));
    const Tensor h_n = call.empty({s.directions, s.batch, s.output()});
    const Tensor hidden = projection ? call.empty({s.directions, s.rows, s.hidden}) : call.empty({0});
    const Tensor rows = input.reshape({s.rows, s.input});
    for (const auto d : c10::irange(s.directions)) {
        const auto p = recurrent_parameters(weights, flags, d);
        const Tensor target =
            projection ? hidden.select(0, d) : output.view({s.rows, s.directions, s.hidden}).select(1, d);
        input_product(target, rows, p.input, whole_bias(p));
    }

    RnnForward args{};
    args.layer = rnn_layer(call, s, flags, relu, weights, h0);
    args.states = {output.mutable_data_ptr(), h_n.mutable_data_ptr()};
    args.hidden = projection ? hidden.mutable_data_ptr() : nullptr;
    args.workspace = call.workspace(rnn_forward_workspace(args.layer));
    C10_CUDA_CHECK(rnn_forward(args, call.stream));
    return {output, h_n, save ? hidden : call.empty({0})};
}

RnnBackwardResult backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n, const Tensor& input,
                           const OptionalTensor& batch_sizes, const OptionalTensor& h0, at::TensorList weights,
                           const Tensor& output, const Tensor& hidden, bool bias, bool projection, bool relu,
                           bool bidirectional, bool need_input, bool need_states, bool need_weights) {
    const auto flags = rnn_flags(bias, projection, bidirectional);
    const auto s = check_rnn(input, batch_sizes, h0, weights, flags);
    check_rnn_backward(s, input, grad_output, grad_h_n, output, hidden);
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(input);
    const Tensor grad_gates = call.empty({s.directions, s.rows, s.hidden});
    const Tensor grad_projected = call.empty({projection ? s.directions : 0, s.rows, s.output()});
    const Tensor grad_h0 = need_states ? call.empty({s.directions, s.batch, s.output()}) : call.empty({0});

    RnnBackward args{};
    args.layer = rnn_layer(call, s, flags, relu, weights, h0);
    args.gradients = call.gradients(s, grad_output, grad_h_n, grad_projected, grad_h0);
    args.output = call.data(output);
    args.hidden = projection ? call.data(hidden) : nullptr;
    args.grad_gates = grad_gates.mutable_data_ptr();
    args.workspace = call.workspace(rnn_backward_workspace(args.layer));
    C10_CUDA_CHECK(rnn_backward(args, call.stream));

    const Tensor grad_input = input_gradient(need_input, input, grad_gates, weights, flags);
    if (!need_weights) {
        return {grad_input, grad_h0, call.nothing(weights.size())};
    }
    const Tensor state_before = call.outputs_before(args.layer, output);
    const Tensor rows = input.reshape({s.rows, s.input});
    std::vector<Tensor> grad_weights;
    for (const auto d : c10::irange(s.directions)) {
        const Tensor grad = grad_gates.select(0, d);
        grad_weights.push_back(at::mm(grad.t(), rows));
        grad_weights.push_back(at::mm(grad.t(), state_before.select(0, d)));
        if (bias) {
            push_bias_gradients(grad_weights, grad);
        }
        if (projection) {
            grad_weights.push_back(at::mm(grad_projected.select(0, d).t(), hidden.select(0, d)));
        }
        if (flags.bias_projection) {
            grad_weights.push_back(grad_projected.select(0, d).sum(0));
        }
    }
    return {grad_input, grad_h0, grad_weights};
}

}  // namespace

TORCH_LIBRARY_IMPL(pykernels, CUDA, m) {
    m.impl("rnn_forward", forward);
    m.impl("rnn_backward", backward);
}

static const RawKernel raw_kernels[] = {{"rnn_forward", forward},
                                        {"rnn_backward", backward},
                                        {"rnn_cell_forward", rnn_cell_forward<forward>},
                                        {"rnn_cell_backward", rnn_cell_backward<backward>}};

}  // namespace pykernels::cuda
