// What the recurrent operators share on CUDA: the call's device memory, the layer as the kernels see it, and the
// products of whole sequences, which are the framework's.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <utility>
#include <vector>

#include "csrc/ops/recurrent.h"
#include "cuda/kernels/recurrent.h"

namespace pykernels::cuda {

inline DType dtype_of(const Tensor& tensor) {
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
        return keep(tensor->contiguous()).const_data_ptr();
    }
    // Until the end of the call.
    const Tensor& keep(const Tensor& tensor) {
        held_.push_back(tensor);
        return held_.back();
    }

    void* workspace(size_t bytes) {
        held_.push_back(at::empty({static_cast<int64_t>(bytes)}, options_.dtype(at::kByte)));
        return held_.back().mutable_data_ptr();
    }

    Tensor empty(at::IntArrayRef sizes) const { return at::empty(sizes, options_); }
    // A tensor each: outputs of an operator do not share memory.
    std::vector<Tensor> nothing(size_t count) const {
        std::vector<Tensor> tensors(count);
        for (auto& tensor : tensors) {
            tensor = empty({0});
        }
        return tensors;
    }

    // What all kinds tell their kernels, but for the weights. The rows of packed input are told to the device through
    // launch parameters.
    void fill(RecurrentLayer& layer, const RecurrentSizes& s, const Tensor& like, const OptionalTensor& h0) {
        layer.dtype = dtype_of(like);
        layer.form = LaunchForm::automatic;
        layer.steps = {nullptr, s.steps, s.batch, s.rows};
        layer.directions = s.directions;
        layer.hidden = s.hidden;
        layer.state = s.output();
        layer.projection = s.projection != 0;
        layer.h0 = data(h0);
        if (s.packed && s.rows > 0) {
            auto* offsets = static_cast<int64_t*>(workspace(s.offsets.size() * sizeof(int64_t)));
            C10_CUDA_CHECK(write_offsets(offsets, s.offsets.data(), static_cast<int64_t>(s.offsets.size()), stream));
            layer.steps.offsets = offsets;
        }
    }
    // With the weights.
    void fill(RecurrentLayer& layer, const RecurrentSizes& s, const RecurrentFlags& flags, at::TensorList weights,
              const OptionalTensor& h0) {
        fill(layer, s, weights[0], h0);
        for (const auto d : c10::irange(s.directions)) {
            const auto p = recurrent_parameters(weights, flags, d);
            layer.weight_hh[d] = data(p.hidden);
            layer.weight_projection[d] = data(p.projection);
        }
    }

    RecurrentGradients gradients(const RecurrentSizes& s, const OptionalTensor& grad_output,
                                 const OptionalTensor& grad_h_n, const Tensor& grad_projected, const Tensor& grad_h0) {
        return {data(grad_output), data(grad_h_n), s.projection ? grad_projected.mutable_data_ptr() : nullptr,
                grad_h0.dim() == 3 ? grad_h0.mutable_data_ptr() : nullptr};
    }

    // The states [D, N, width] that each row started from; `states` has row n of direction d at the strides given.
    Tensor states_before(const RecurrentLayer& layer, const void* states, int64_t direction_stride, int64_t row_stride,
                         int64_t width, const void* initial) const {
        const Tensor before = empty({layer.directions, layer.steps.rows, width});
        C10_CUDA_CHECK(gather_previous_states({layer.dtype, layer.steps, layer.directions, width, states,
                                               direction_stride, row_stride, initial, before.mutable_data_ptr()},
                                              stream));
        return before;
    }
    // The same of an output [N, D*S].
    Tensor outputs_before(const RecurrentLayer& layer, const Tensor& output) {
        return states_before(layer, data(output), layer.state, layer.directions * layer.state, layer.state, layer.h0);
    }

  private:
    c10::cuda::CUDAGuard guard_;
    at::TensorOptions options_;
    std::vector<Tensor> held_;

  public:
    const cudaStream_t stream;
};

// The input's part of the gates of all steps: target [N, columns] = rows W_ih^T + bias, if there is one.
inline void input_product(Tensor target, const Tensor& rows, const Tensor& weight, const Tensor& bias) {
    if (bias.defined()) {
        at::addmm_out(target, bias, rows, weight.t());
    } else {
        at::mm_out(target, rows, weight.t());
    }
}

// The sum of both biases, where that is what the gates see.
inline Tensor whole_bias(const RecurrentParameters& p) {
    return p.bias_input.defined() ? p.bias_input + p.bias_hidden : Tensor();
}

// The input's gradient from that of x [D, N, columns], or nothing.
inline Tensor input_gradient(bool needed, const Tensor& input, const Tensor& grad_x, at::TensorList weights,
                             const RecurrentFlags& flags) {
    if (!needed) {
        return at::empty({0}, input.options());
    }
    Tensor gradient = at::mm(grad_x.select(0, 0), recurrent_parameters(weights, flags, 0).input);
    if (flags.bidirectional) {
        gradient.addmm_(grad_x.select(0, 1), recurrent_parameters(weights, flags, 1).input);
    }
    return gradient.view(input.sizes());
}

// Adds a bias' gradient, for both biases: one gradient, two tensors.
inline void push_bias_gradients(std::vector<Tensor>& gradients, const Tensor& grad_gates) {
    gradients.push_back(grad_gates.sum(0));
    gradients.push_back(gradients.back().clone());
}

// left^T right for each pair, one below the other.
inline Tensor stacked_products(std::initializer_list<std::pair<Tensor, Tensor>> factors) {
    int64_t size = 0;
    for (const auto& [left, right] : factors) {
        size += left.size(1);
    }
    const Tensor whole = at::empty({size, factors.begin()->second.size(1)}, factors.begin()->second.options());
    int64_t first = 0;
    for (const auto& [left, right] : factors) {
        Tensor part = whole.narrow(0, first, left.size(1));
        at::mm_out(part, left.t(), right);
        first += left.size(1);
    }
    return whole;
}

}  // namespace pykernels::cuda
