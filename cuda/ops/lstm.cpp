// The LSTM operators on CUDA: the products of whole sequences by the framework, the recurrence by our kernel.
#include "csrc/ops/lstm.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/stack.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "csrc/ops/lstm_cell.h"
#include "csrc/ops/registry.h"
#include "cuda/kernels/lstm.h"

namespace pykernels::cuda {
namespace {

DType dtype_of(const Tensor& tensor) {
    switch (tensor.scalar_type()) {
        case at::kDouble:
            return DType::f64;
        case at::kBFloat16:
            return DType::bf16;
        case at::kHalf:
            return DType::f16;
        default:
            return DType::f32;
    }
}

// What a call needs beside its arguments: the device, its stream, and the copies that the kernel points into. Memory
// freed at the end of the call is reused in the order of the stream, so the kernel need not be waited for.
class Call {
  public:
    explicit Call(const Tensor& input)
        : guard_(input.device()),
          options_(input.options()),
          stream(c10::cuda::getCurrentCUDAStream(input.device().index()).stream()) {}

    // Dense data of `tensor`; null if there is none.
    const void* data(const OptionalTensor& tensor) {
        if (!tensor || !tensor->defined()) {
            return nullptr;
        }
        held_.push_back(tensor->contiguous());
        return held_.back().const_data_ptr();
    }

    void* workspace(size_t bytes) {
        held_.push_back(at::empty({static_cast<int64_t>(bytes)}, options_.dtype(at::kByte)));
        return held_.back().mutable_data_ptr();
    }

    Tensor empty(at::IntArrayRef sizes) const { return at::empty(sizes, options_); }

    // The layer as the kernel sees it. The rows of packed input are told to the device through launch parameters.
    LstmLayer layer(const LstmSizes& s, const LstmFlags& flags, at::TensorList weights, const OptionalTensor& h0,
                    const OptionalTensor& c0) {
        LstmLayer layer{};
        layer.dtype = dtype_of(weights[0]);
        layer.form = LaunchForm::automatic;
        layer.steps = {nullptr, s.steps, s.batch, s.rows};
        layer.directions = s.directions;
        layer.hidden = s.hidden;
        layer.state = s.output();
        layer.projection = flags.projection;
        for (const auto d : c10::irange(s.directions)) {
            const auto p = lstm_parameters(weights, flags, d);
            layer.weight_hh[d] = data(p.hidden);
            layer.weight_hr[d] = data(p.projection);
            layer.peephole[d] = data(p.peephole);
        }
        layer.h0 = data(h0);
        layer.c0 = data(c0);
        if (s.packed && s.rows > 0) {
            auto* offsets = static_cast<int64_t*>(workspace(s.offsets.size() * sizeof(int64_t)));
            C10_CUDA_CHECK(write_offsets(offsets, s.offsets.data(), static_cast<int64_t>(s.offsets.size()), stream));
            layer.steps.offsets = offsets;
        }
        return layer;
    }

  private:
    c10::cuda::CUDAGuard guard_;
    at::TensorOptions options_;
    std::vector<Tensor> held_;

  public:
    const cudaStream_t stream;
};

LstmForwardResult forward(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                          const OptionalTensor& c0, at::TensorList weights, bool bias, bool projection, bool peephole,
                          bool bidirectional, bool save) {
    const LstmFlags flags{bias, projection, peephole, bidirectional};
    const auto s = check_lstm(input, batch_sizes, h0, c0, weights, flags);
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(input);
    const LstmForwardResult out{call.empty(lstm_output_shape(s)), call.empty({s.directions, s.batch, s.output()}),
                                call.empty({s.directions, s.batch, s.hidden}),
                                call.empty({s.directions, s.rows, 4 * s.hidden}),
                                save ? call.empty({s.directions, s.rows, s.hidden}) : call.empty({0})};
    const auto& [output, h_n, c_n, gates, cells] = out;

    // The input's part of the gates, all steps at once.
    const Tensor rows = input.reshape({s.rows, s.input});
    for (const auto d : c10::irange(s.directions)) {
        const auto p = lstm_parameters(weights, flags, d);
        Tensor target = gates.select(0, d);
        if (bias) {
            at::addmm_out(target, p.bias_input + p.bias_hidden, rows, p.input.t());
        } else {
            at::mm_out(target, rows, p.input.t());
        }
    }

    LstmForward args{};
    args.layer = call.layer(s, flags, weights, h0, c0);
    args.gates = gates.mutable_data_ptr();
    args.cells = save ? cells.mutable_data_ptr() : nullptr;
    args.output = output.mutable_data_ptr();
    args.h_n = h_n.mutable_data_ptr();
    args.c_n = c_n.mutable_data_ptr();
    args.workspace = call.workspace(lstm_forward_workspace(args.layer));
    args.save = save;
    C10_CUDA_CHECK(lstm_forward(args, call.stream));
    return {output, h_n, c_n, save ? gates : call.empty({0}), cells};
}

// The weights' gradients of one direction, in the order of the list.
void weight_gradients(std::vector<Tensor>& gradients, const LstmFlags& flags, const Tensor& rows,
                      const Tensor& grad_gates, const Tensor& state_before, const Tensor& grad_projected,
                      const Tensor& cell_before, const Tensor& gates, const Tensor& cells) {
    const int64_t hidden = cells.size(1);
    const auto gate = [&](const Tensor& four, int64_t index) { return four.narrow(1, index * hidden, hidden); };
    gradients.push_back(at::mm(grad_gates.t(), rows));
    gradients.push_back(at::mm(grad_gates.t(), state_before));
    if (flags.bias) {
        gradients.push_back(grad_gates.sum(0));
        gradients.push_back(gradients.back().clone());
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
    const LstmFlags flags{bias, projection, peephole, bidirectional};
    const auto s = check_lstm(input, batch_sizes, h0, c0, weights, flags);
    check_lstm_backward(s, input, grad_output, grad_h_n, grad_c_n, output, gates, cells);
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(input);
    const Tensor grad_gates = call.empty({s.directions, s.rows, 4 * s.hidden});
    const Tensor grad_projected = call.empty({projection ? s.directions : 0, s.rows, s.output()});
    Tensor grad_input = call.empty({0}), grad_h0 = call.empty({0}), grad_c0 = call.empty({0});
    std::vector<Tensor> grad_weights;

    LstmBackward args{};
    args.layer = call.layer(s, flags, weights, h0, c0);
    args.gates = call.data(gates);
    args.cells = call.data(cells);
    args.grad_output = call.data(grad_output);
    args.grad_h_n = call.data(grad_h_n);
    args.grad_c_n = call.data(grad_c_n);
    args.grad_gates = grad_gates.mutable_data_ptr();
    args.grad_projected = projection ? grad_projected.mutable_data_ptr() : nullptr;
    if (need_states) {
        grad_h0 = call.empty({s.directions, s.batch, s.output()});
        grad_c0 = call.empty({s.directions, s.batch, s.hidden});
        args.grad_h0 = grad_h0.mutable_data_ptr();
        args.grad_c0 = grad_c0.mutable_data_ptr();
    }
    args.workspace = call.workspace(lstm_backward_workspace(args.layer));
    C10_CUDA_CHECK(lstm_backward(args, call.stream));

    if (need_input) {
        grad_input = at::mm(grad_gates.select(0, 0), lstm_parameters(weights, flags, 0).input);
        if (bidirectional) {
            grad_input.addmm_(grad_gates.select(0, 1), lstm_parameters(weights, flags, 1).input);
        }
        grad_input = grad_input.view(input.sizes());
    }
    if (!need_weights) {
        grad_weights.assign(weights.size(), call.empty({0}));
        for (auto& grad : grad_weights) {
            grad = call.empty({0});  // a tensor each: outputs of an operator do not share memory
        }
        return {grad_input, grad_h0, grad_c0, grad_weights};
    }

    // The states that each row started from.
    const Tensor state_before = call.empty({s.directions, s.rows, s.output()});
    const Tensor cell_before = call.empty({peephole ? s.directions : 0, s.rows, s.hidden});
    C10_CUDA_CHECK(
        gather_previous_states({args.layer.dtype, args.layer.steps, s.directions, s.output(), call.data(output),
                                s.output(), s.directions * s.output(), args.layer.h0, state_before.mutable_data_ptr()},
                               call.stream));
    if (peephole) {
        C10_CUDA_CHECK(
            gather_previous_states({args.layer.dtype, args.layer.steps, s.directions, s.hidden, args.cells,
                                    s.rows * s.hidden, s.hidden, args.layer.c0, cell_before.mutable_data_ptr()},
                                   call.stream));
    }
    const Tensor rows = input.reshape({s.rows, s.input});
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
