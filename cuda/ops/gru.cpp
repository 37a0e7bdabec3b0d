// The GRU operators on CUDA: the products of whole sequences by the framework, the recurrence by our kernel.
#include "csrc/ops/gru.h"

#include <ATen/ops/cat.h>
#include <torch/library.h>

#include "csrc/ops/cell.h"
#include "csrc/ops/registry.h"
#include "cuda/kernels/gru.h"
#include "cuda/ops/recurrent.h"

namespace pykernels::cuda {
namespace {

// Part of the three gates (or of more columns), by its first gate.
Tensor gates_from(const Tensor& tensor, int64_t dim, int64_t first, int64_t count, int64_t hidden) {
    return tensor.narrow(dim, first * hidden, count * hidden);
}

GruLayer gru_layer(Call& call, const RecurrentSizes& s, const RecurrentFlags& flags, bool reset_after,
                   at::TensorList weights, const OptionalTensor& h0) {
    GruLayer layer{};
    call.fill(layer, s, flags, weights, h0);
    layer.reset_after = reset_after;
    for (const auto d : c10::irange(s.directions)) {
        if (flags.bias && reset_after) {
            layer.bias_hn[d] =
                call.data(gates_from(recurrent_parameters(weights, flags, d).bias_hidden, 0, 2, 1, s.hidden));
        }
    }
    return layer;
}

// What x has of the biases: b_hn stays with its product where the reset comes after it.
Tensor input_bias(const RecurrentParameters& p, bool reset_after, int64_t hidden) {
    if (!p.bias_input.defined() || !reset_after) {
        return whole_bias(p);
    }
    return at::cat({gates_from(p.bias_input, 0, 0, 2, hidden) + gates_from(p.bias_hidden, 0, 0, 2, hidden),
                    gates_from(p.bias_input, 0, 2, 1, hidden)});
}

GruForwardResult forward(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                         at::TensorList weights, bool bias, bool reset_after, bool bidirectional, bool save) {
    const auto flags = gru_flags(bias, bidirectional);
    const auto s = check_gru(input, batch_sizes, h0, weights, flags);
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(input);
    const Tensor output = call.empty(recurrent_output_shape(s));
    const Tensor h_n = call.empty({s.directions, s.batch, s.hidden});
    const Tensor gates = call.empty({s.directions, s.rows, (save ? kGruSaved : kGruGates) * s.hidden});
    const Tensor rows = input.reshape({s.rows, s.input});
    for (const auto d : c10::irange(s.directions)) {
        const auto p = recurrent_parameters(weights, flags, d);
        input_product(gates_from(gates.select(0, d), 1, 0, 3, s.hidden), rows, p.input,
                      input_bias(p, reset_after, s.hidden));
    }

    GruForward args{};
    args.layer = gru_layer(call, s, flags, reset_after, weights, h0);
    args.states = {output.mutable_data_ptr(), h_n.mutable_data_ptr()};
    args.gates = gates.mutable_data_ptr();
    args.workspace = call.workspace(gru_forward_workspace(args.layer));
    args.save = save;
    C10_CUDA_CHECK(gru_forward(args, call.stream));
    return {output, h_n, save ? gates : call.empty({0})};
}

// The weights' gradients of one direction, in the order of the list. grad_gates: of m, r, z, n where the reset comes
// after, else of r, z, n.
void weight_gradients(std::vector<Tensor>& gradients, bool bias, bool reset_after, const Tensor& rows,
                      const Tensor& grad_gates, const Tensor& state_before, const Tensor& gates) {
    const int64_t hidden = state_before.size(1);
    const auto from = [&](int64_t first, int64_t count) { return gates_from(grad_gates, 1, first, count, hidden); };
    gradients.push_back(at::mm(from(reset_after ? 1 : 0, 3).t(), rows));
    if (!reset_after) {
        const Tensor reset_state = gates_from(gates, 1, 3, 1, hidden);
        gradients.push_back(stacked_products({{from(0, 2), state_before}, {from(2, 1), reset_state}}));
        if (bias) {
            push_bias_gradients(gradients, grad_gates);
        }
        return;
    }
    gradients.push_back(stacked_products({{from(1, 2), state_before}, {from(0, 1), state_before}}));
    if (bias) {
        const Tensor sums = grad_gates.sum(0);
        gradients.push_back(gates_from(sums, 0, 1, 3, hidden).clone());
        gradients.push_back(at::cat({gates_from(sums, 0, 1, 2, hidden), gates_from(sums, 0, 0, 1, hidden)}));
    }
}

GruBackwardResult backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n, const Tensor& input,
                           const OptionalTensor& batch_sizes, const OptionalTensor& h0, at::TensorList weights,
                           const Tensor& output, const Tensor& gates, bool bias, bool reset_after, bool bidirectional,
                           bool need_input, bool need_states, bool need_weights) {
    const auto flags = gru_flags(bias, bidirectional);
    const auto s = check_gru(input, batch_sizes, h0, weights, flags);
    check_gru_backward(s, input, grad_output, grad_h_n, output, gates);
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(input);
    const int64_t parts = reset_after ? 4 : 3;
    const Tensor grad_gates = call.empty({s.directions, s.rows, parts * s.hidden});
    const Tensor grad_h0 = need_states ? call.empty({s.directions, s.batch, s.hidden}) : call.empty({0});

    GruBackward args{};
    args.layer = gru_layer(call, s, flags, reset_after, weights, h0);
    args.gradients = call.gradients(s, grad_output, grad_h_n, {}, grad_h0);
    args.gates = call.data(gates);
    args.output = call.data(output);
    args.grad_gates = grad_gates.mutable_data_ptr();
    args.workspace = call.workspace(gru_backward_workspace(args.layer));
    C10_CUDA_CHECK(gru_backward(args, call.stream));

    const Tensor grad_x = gates_from(grad_gates, 2, parts - 3, 3, s.hidden);
    const Tensor grad_input = input_gradient(need_input, input, grad_x, weights, flags);
    if (!need_weights) {
        return {grad_input, grad_h0, call.nothing(weights.size())};
    }
    const Tensor state_before = call.outputs_before(args.layer, output);
    const Tensor rows = input.reshape({s.rows, s.input});
    std::vector<Tensor> grad_weights;
    for (const auto d : c10::irange(s.directions)) {
        weight_gradients(grad_weights, bias, reset_after, rows, grad_gates.select(0, d), state_before.select(0, d),
                         gates.select(0, d));
    }
    return {grad_input, grad_h0, grad_weights};
}

}  // namespace

TORCH_LIBRARY_IMPL(pykernels, CUDA, m) {
    m.impl("gru_forward", forward);
    m.impl("gru_backward", backward);
}

static const RawKernel raw_kernels[] = {{"gru_forward", forward},
                                        {"gru_backward", backward},
                                        {"gru_cell_forward", gru_cell_forward<forward>},
                                        {"gru_cell_backward", gru_cell_backward<backward>}};

}  // namespace pykernels::cuda
