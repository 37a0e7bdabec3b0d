// The LSTM operators on the CPU: allocate, choose the dtype, call the kernel.
#include "ops/lstm.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "kernels/lstm.h"
#include "ops/lstm_cell.h"
#include "ops/registry.h"

namespace pykernels {
namespace {

// Keeps the dense copies that a call points into.
class Held {
  public:
    // Dense data of `tensor` as T; null if there is none.
    template <typename T>
    const T* data(const OptionalTensor& tensor) {
        if (!tensor || !tensor->defined()) return nullptr;
        tensors_.push_back(tensor->to(c10::CppTypeToScalarType<T>::value).contiguous());
        return tensors_.back().template const_data_ptr<T>();
    }
    // The input's rows, in place where their values are neighbours.
    template <typename T>
    LstmInput<T> rows(const Tensor& input, const LstmSizes& s) {
        Tensor x = input.to(c10::CppTypeToScalarType<T>::value);
        if (x.stride(-1) != 1 && x.size(-1) != 1) x = x.contiguous();
        tensors_.push_back(x);
        step_offset_.resize(s.steps);
        for (const auto t : c10::irange(s.steps)) step_offset_[t] = (s.packed ? s.offsets[t] : t) * x.stride(0);
        return {x.const_data_ptr<T>(), step_offset_.data(), x.stride(s.packed ? 0 : 1)};
    }
    template <typename W, typename A>
    LstmWeights<W, A> weights(at::TensorList list, const LstmFlags& flags, int64_t direction) {
        const auto p = lstm_parameters(list, flags, direction);
        return {data<W>(p.input),       data<W>(p.hidden),     data<A>(p.bias_input),
                data<A>(p.bias_hidden), data<W>(p.projection), data<A>(p.peephole)};
    }

  private:
    std::vector<Tensor> tensors_;
    std::vector<int64_t> step_offset_;
};

LstmShape kernel_shape(const LstmSizes& s) {
    return {s.steps,         s.batch, s.input, s.hidden, s.projection, s.rows, static_cast<int>(s.directions),
            s.offsets.data()};
}

template <typename Op, typename S, typename W, typename A>
void run_forward(const LstmSizes& s, const Tensor& input, const OptionalTensor& h0, const OptionalTensor& c0,
                 at::TensorList weights, const LstmFlags& flags, const LstmForwardResult& out) {
    const auto& [y, h_n, c_n, gates, cells] = out;
    Held held;
    LstmForward<Op, S, W, A> call{};
    call.shape = kernel_shape(s);
    call.x = held.rows<W>(input, s);
    for (const auto d : c10::irange(s.directions)) call.weights[d] = held.weights<W, A>(weights, flags, d);
    call.h0 = held.data<A>(h0);
    call.c0 = held.data<A>(c0);
    call.y = y.data_ptr<S>();
    call.h_n = h_n.data_ptr<S>();
    call.c_n = c_n.data_ptr<S>();
    call.gates = gates.dim() == 3 ? gates.data_ptr<S>() : nullptr;
    call.cells = cells.dim() == 3 ? cells.data_ptr<S>() : nullptr;
    lstm_forward(call);
}

LstmForwardResult forward(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                          const OptionalTensor& c0, at::TensorList weights, bool bias, bool projection, bool peephole,
                          bool bidirectional, bool save) {
    const LstmFlags flags{bias, projection, peephole, bidirectional};
    const auto s = check_lstm(input, batch_sizes, h0, c0, weights, flags);
    const auto options = input.options();
    const LstmForwardResult out{
        at::empty(lstm_output_shape(s), options), at::empty({s.directions, s.batch, s.output()}, options),
        at::empty({s.directions, s.batch, s.hidden}, options),
        save ? at::empty({s.directions, s.rows, 4 * s.hidden}, options) : at::empty({0}, options),
        save ? at::empty({s.directions, s.rows, s.hidden}, options) : at::empty({0}, options)};
    if (s.batch == 0) return out;
    switch (input.scalar_type()) {
        case at::kDouble:
            run_forward<double, double, double, double>(s, input, h0, c0, weights, flags, out);
            break;
        case at::kFloat:
            run_forward<float, float, float, float>(s, input, h0, c0, weights, flags, out);
            break;
        case at::kHalf:
            run_forward<float, c10::Half, float, float>(s, input, h0, c0, weights, flags, out);
            break;
        default:
            if (has_bf16_products()) {
                run_forward<Bf16Pair, c10::BFloat16, c10::BFloat16, float>(s, input, h0, c0, weights, flags, out);
            } else {
                run_forward<float, c10::BFloat16, float, float>(s, input, h0, c0, weights, flags, out);
            }
    }
    return out;
}

template <typename T>
LstmBackwardResult run_backward(const LstmSizes& s, const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                                const OptionalTensor& grad_c_n, const Tensor& input, const OptionalTensor& h0,
                                const OptionalTensor& c0, at::TensorList weights, const Tensor& output,
                                const Tensor& gates, const Tensor& cells, const LstmFlags& flags, bool need_input,
                                bool need_states, bool need_weights) {
    const auto type = input.scalar_type();
    const auto options = input.options().dtype(c10::CppTypeToScalarType<T>::value);
    const auto none = [&] { return at::empty({0}, input.options()); };
    Held held;
    LstmBackward<T> call{};
    call.shape = kernel_shape(s);
    call.x = held.rows<T>(input, s);
    call.h0 = held.data<T>(h0);
    call.c0 = held.data<T>(c0);
    call.y = held.data<T>(output);
    call.gates = held.data<T>(gates);
    call.cells = held.data<T>(cells);
    call.grad_y = held.data<T>(grad_output);
    call.grad_h_n = held.data<T>(grad_h_n);
    call.grad_c_n = held.data<T>(grad_c_n);
    const Tensor grad_gates = at::empty({s.directions, s.rows, 4 * s.hidden}, options);
    call.grad_gates = grad_gates.data_ptr<T>();

    Tensor grad_input = none(), grad_h0 = none(), grad_c0 = none();
    if (need_input) {
        grad_input = at::empty(input.sizes(), options);
        call.grad_x = grad_input.data_ptr<T>();
    }
    if (need_states) {
        grad_h0 = at::empty({s.directions, s.batch, s.output()}, options);
        grad_c0 = at::empty({s.directions, s.batch, s.hidden}, options);
        call.grad_h0 = grad_h0.data_ptr<T>();
        call.grad_c0 = grad_c0.data_ptr<T>();
    }
    std::vector<Tensor> grad_weights;
    for (const auto& weight : weights)
        grad_weights.push_back(need_weights ? at::empty(weight.sizes(), options) : none());
    for (const auto d : c10::irange(s.directions)) {
        call.weights[d] = held.weights<T, T>(weights, flags, d);
        if (!need_weights) continue;
        const auto p = lstm_parameters(grad_weights, flags, d);
        const auto pointer = [](const Tensor& tensor) { return tensor.defined() ? tensor.data_ptr<T>() : nullptr; };
        call.gradients[d] = {pointer(p.input), pointer(p.hidden), pointer(p.bias_input), pointer(p.projection),
                             pointer(p.peephole)};
    }
    if (s.batch > 0) {
        lstm_backward(call);
    } else {
        for (auto& grad : grad_weights) grad.zero_();
    }
    // Both biases are added at the same place: one gradient, two tensors.
    for (const auto d : c10::irange(s.directions))
        if (flags.bias && need_weights)
            grad_weights[d * flags.per_direction() + 3].copy_(grad_weights[d * flags.per_direction() + 2]);
    for (auto& grad : grad_weights) grad = grad.to(type);
    return {grad_input.to(type), grad_h0.to(type), grad_c0.to(type), grad_weights};
}

LstmBackwardResult backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                            const OptionalTensor& grad_c_n, const Tensor& input, const OptionalTensor& batch_sizes,
                            const OptionalTensor& h0, const OptionalTensor& c0, at::TensorList weights,
                            const Tensor& output, const Tensor& gates, const Tensor& cells, bool bias, bool projection,
                            bool peephole, bool bidirectional, bool need_input, bool need_states, bool need_weights) {
    const LstmFlags flags{bias, projection, peephole, bidirectional};
    const auto s = check_lstm(input, batch_sizes, h0, c0, weights, flags);
    check_lstm_backward(s, input, grad_output, grad_h_n, grad_c_n, output, gates, cells);
    const auto run = input.scalar_type() == at::kDouble ? run_backward<double> : run_backward<float>;
    return run(s, grad_output, grad_h_n, grad_c_n, input, h0, c0, weights, output, gates, cells, flags, need_input,
               need_states, need_weights);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pykernels, m) {
    m.def(
        "lstm_forward(Tensor input, Tensor? batch_sizes, Tensor? h0, Tensor? c0, Tensor[] weights, bool bias, bool "
        "projection, "
        "bool peephole, bool bidirectional, bool save) -> (Tensor output, Tensor h_n, Tensor c_n, Tensor gates, Tensor "
        "cells)",
        {at::Tag::pt2_compliant_tag});
    m.def(
        "lstm_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor input, Tensor? batch_sizes, "
        "Tensor? h0, "
        "Tensor? c0, Tensor[] weights, Tensor output, Tensor gates, Tensor cells, bool bias, bool projection, bool "
        "peephole, "
        "bool bidirectional, bool need_input, bool need_states, bool need_weights) "
        "-> (Tensor grad_input, Tensor grad_h0, Tensor grad_c0, Tensor[] grad_weights)",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
    m.impl("lstm_forward", forward);
    m.impl("lstm_backward", backward);
}

static const RawKernel raw_kernels[] = {{"lstm_forward", forward},
                                        {"lstm_backward", backward},
                                        {"lstm_cell_forward", lstm_cell_forward<forward>},
                                        {"lstm_cell_backward", lstm_cell_backward<backward>}};

}  // namespace pykernels
