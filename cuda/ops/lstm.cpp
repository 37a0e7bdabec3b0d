// The LSTM operators on CUDA: the products of whole sequences by the framework, the recurrence by our kernel.
#include "csrc/ops/lstm.h"

#include <ATen/ops/stack.h>
#include <torch/library.h>

#include "csrc/ops/cell.h"
#include "csrc/ops/registry.h"
#include "cuda/kernels/lstm.h"
#include "cuda/ops/recurrent.h"

namespace pykernels::cuda {
namespace {

LstmLayer lstm_layer(Call& call, const RecurrentSizes& s, const RecurrentFlags& flags, at::TensorList weights,
                     const OptionalTensor& h0, const OptionalTensor& c0) {
    LstmLayer layer{};
    call.fill(layer, s, flags, weights, h0);
    for (const auto d : c10::irange(s.directions)) {
        layer.peephole[d] = call.data(recurrent_parameters(weights, flags, d).peephole);
    }
    layer.c0 = call.data(c0);
    return layer;
}

LstmForwardResult forward(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                          const OptionalTensor& c0, at::TensorList weights, bool bias, bool projection, bool peephole,
                          bool bidirectional, bool save) {
    const auto flags = lstm_flags(bias, projection, peephole, bidirectional);
    const auto s = check_lstm(input, batch_sizes, h0, c0, weights, flags);
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(input);
    const LstmForwardResult out{call.empty(recurrent_output_shape(s)), call.empty({s.directions, s.batch, s.output()}),
                                call.empty({s.directions, s.batch, s.hidden}),
                                call.empty({s.directions, s.rows, 4 * s.hidden}),
                                save ? call.empty({s.directions, s.rows, s.hidden}) : call.empty({0})};
    const auto& [output, h_n, c_n, gates, cells] = out;
    const Tensor rows = input.reshape({s.rows, s.input});
    for (const auto d : c10::irange(s.directions)) {
        const auto p = recurrent_parameters(weights, flags, d);
        input_product(gates.select(0, d), rows, p.input, whole_bias(p));
    }

    LstmForward args{};
    args.layer = lstm_layer(call, s, flags, weights, h0, c0);
    args.states = {output.mutable_data_ptr(), h_n.mutable_data_ptr()};
    args.gates = gates.mutable_data_ptr();
    args.cells = save ? cells.mutable_data_ptr() : nullptr;
    args.c_n = c_n.mutable_data_ptr();
    args.workspace = call.workspace(lstm_forward_workspace(args.layer));
    args.save = save;
    C10_CUDA_CHECK(lstm_forward(args, call.stream));
    return {output, h_n, c_n, save ? gates : call.empty({0}), cells};
}

// The weights' gradients of one direction, in the order of the list.
void weight_gradients(std::vector<Tensor>& gradients, const RecurrentFlags& flags, const Tensor& rows,
                      const Tensor& grad_gates, const Tensor& state_before, const Tensor& grad_projected,
                      const Tensor& cell_before, const Tensor& gates, const Tensor& cells) {
    const int64_t hidden = cells.size(1);
    const auto gate = [&](const Tensor& four, int64_t index) { return four.narrow(1, index * hidden, hidden); };
    gradients.push_back(at::mm(grad_gates.t(), rows));
    gradients.push_back(at::mm(grad_gates.t(), state_before));
    if (flags.bias) {
        push_bias_gradients(gradients, grad_gates);
    }
    if (flags.projection) {
        gradients.push_back(at::mm(grad_projected.t(), gate(gates, 3) * cells.tanh()));
    }
    if (flags.peephole) {
        const auto sums = cells.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
        const auto against = [&](int64_t index, const Tensor& cell) {
            return (gate(grad_gates, index).to(sums) * cell.to(sums)).sum(0);
        };
        gradients.push_back(
            at::stack({against(0, cell_before), against(1, cell_before), against(3, cells)}).to(cells.scalar_type()));
    }
}

LstmBackwardResult backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                            const OptionalTensor& grad_c_n, const Tensor& input, const OptionalTensor& batch_sizes,
                            const OptionalTensor& h0, const OptionalTensor& c0, at::TensorList weights,
                            const Tensor& output, const Tensor& gates, const Tensor& cells, bool bias, bool projection,
                            bool peephole, bool bidirectional, bool need_input, bool need_states, bool need_weights) {
    const auto flags = lstm_flags(bias, projection, peephole, bidirectional);
    const auto s = check_lstm(input, batch_sizes, h0, c0, weights, flags);
    check_lstm_backward(s, input, grad_output, grad_h_n, grad_c_n, output, gates, cells);
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(input);
    const Tensor grad_gates = call.empty({s.directions, s.rows, 4 * s.hidden});
    const Tensor grad_projected = call.empty({projection ? s.directions : 0, s.rows, s.output()});
    const Tensor grad_h0 = need_states ? call.empty({s.directions, s.batch, s.output()}) : call.empty({0});
    const Tensor grad_c0 = need_states ? call.empty({s.directions, s.batch, s.hidden}) : call.empty({0});

    LstmBackward args{};
    args.layer = lstm_layer(call, s, flags, weights, h0, c0);
    args.gradients = call.gradients(s, grad_output, grad_h_n, grad_projected, grad_h0);
    args.gates = call.data(gates);
    args.cells = call.data(cells);
    args.grad_c_n = call.data(grad_c_n);
    args.grad_gates = grad_gates.mutable_data_ptr();
    args.grad_c0 = need_states ? grad_c0.mutable_data_ptr() : nullptr;
    args.workspace = call.workspace(lstm_backward_workspace(args.layer));
    C10_CUDA_CHECK(lstm_backward(args, call.stream));

    const Tensor grad_input = input_gradient(need_input, input, grad_gates, weights, flags);
    if (!need_weights) {
        return {grad_input, grad_h0, grad_c0, call.nothing(weights.size())};
    }
    const Tensor state_before = call.outputs_before(args.layer, output);
    const Tensor cell_before =
        peephole ? call.states_before(args.layer, args.cells, s.rows * s.hidden, s.hidden, s.hidden, args.layer.c0)
                 : Tensor();
    const Tensor rows = input.reshape({s.rows, s.input});
    std::vector<Tensor> grad_weights;
    for (const auto d : c10::irange(s.directions)) {
        weight_gradients(grad_weights, flags, rows, grad_gates.select(0, d), state_before.select(0, d),
                         projection ? grad_projected.select(0, d) : Tensor(),
                         peephole ? cell_before.select(0, d) : Tensor(), gates.select(0, d), cells.select(0, d));
    }
    return {grad_input, grad_h0, grad_c0, grad_weights};
}

}  // namespace

TORCH_LIBRARY_IMPL(pykernels, CUDA, m) {
    m.impl("lstm_forward", forward);
    m.impl("lstm_backward", backward);
}

static const RawKernel raw_kernels[] = {{"lstm_forward", forward},
                                        {"lstm_backward", backward},
                                        {"lstm_cell_forward", lstm_cell_forward<forward>},
                                        {"lstm_cell_backward", lstm_cell_backward<backward>}};

}  // namespace pykernels::cuda
