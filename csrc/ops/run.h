// How a recurrent operator reaches its kernel on the CPU: dense data, the launch contract, the choice of types.
#pragma once

#include <ATen/ops/empty.h>

#include "core/scratch.h"
#include "kernels/recurrent.h"
#include "ops/recurrent.h"
#include "ops/recycled.h"

namespace pykernels {

// What forward keeps for backward or hands to the next operator, or [0] if it is not to.
inline Tensor empty_kept(bool keep, at::IntArrayRef shape, const at::TensorOptions& options) {
    return keep ? empty_recycled(shape, options) : at::empty({0}, options);
}

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
    RecurrentInput<T> rows(const Tensor& input, const RecurrentSizes& s) {
        Tensor x = input.to(c10::CppTypeToScalarType<T>::value);
        if (x.stride(-1) != 1 && x.size(-1) != 1) x = x.contiguous();
        tensors_.push_back(x);
        step_offset_.resize(s.steps);
        for (const auto t : c10::irange(s.steps)) step_offset_[t] = (s.packed ? s.offsets[t] : t) * x.stride(0);
        return {x.const_data_ptr<T>(), step_offset_.data(), x.stride(s.packed ? 0 : 1)};
    }
    template <typename W, typename A>
    RecurrentWeights<W, A> weights(at::TensorList list, const RecurrentFlags& flags, int64_t direction) {
        const auto p = recurrent_parameters(list, flags, direction);
        return {data<W>(p.input),      data<W>(p.hidden),          data<A>(p.bias_input), data<A>(p.bias_hidden),
                data<W>(p.projection), data<A>(p.bias_projection), data<A>(p.peephole)};
    }

  private:
    std::vector<Tensor> tensors_;
    std::vector<int64_t> step_offset_;
};

inline RecurrentShape kernel_shape(const RecurrentSizes& s) {
    return {s.steps,         s.batch, s.input, s.hidden, s.projection, s.rows, static_cast<int>(s.directions),
            s.offsets.data()};
}

template <typename T>
T* pointer(const Tensor& tensor) {
    return tensor.defined() && tensor.numel() > 0 ? tensor.data_ptr<T>() : nullptr;
}

// run(T()) with the type that the input is computed in, where there is nothing but float and double.
template <typename Run>
auto in_its_precision(const Tensor& input, const Run& run) {
    return input.scalar_type() == at::kDouble ? run(double()) : run(float());
}

// A layer's arguments, as every forward and backward is given them.
struct RecurrentArguments {
    const RecurrentSizes& sizes;
    const Tensor& input;
    const OptionalTensor &h0, &c0;
    at::TensorList weights;
    const RecurrentFlags& flags;
};

// What a forward writes; undefined or empty where a kind has none or nothing is saved.
struct RecurrentOutputs {
    Tensor output, h_n, c_n, gates, cells;
};

// Calls kernel(call) with the launch contract of the input's dtype.
template <typename Kernel>
void run_forward(const RecurrentArguments& args, const RecurrentOutputs& out, const Kernel& kernel) {
    if (args.sizes.batch == 0) return;
    const auto run = [&]<typename Op, typename S, typename W, typename A>(RecurrentForward<Op, S, W, A> call) {
        Held held;
        call.shape = kernel_shape(args.sizes);
        call.x = held.rows<W>(args.input, args.sizes);
        for (const auto d : c10::irange(args.sizes.directions))
            call.weights[d] = held.weights<W, A>(args.weights, args.flags, d);
        call.h0 = held.data<A>(args.h0);
        call.c0 = held.data<A>(args.c0);
        call.y = pointer<S>(out.output);
        call.h_n = pointer<S>(out.h_n);
        call.c_n = pointer<S>(out.c_n);
        call.gates = pointer<S>(out.gates);
        call.cells = pointer<S>(out.cells);
        kernel(call);
    };
    switch (args.input.scalar_type()) {
        case at::kDouble:
            return run(RecurrentForward<double, double, double, double>{});
        case at::kFloat:
            return run(RecurrentForward<float, float, float, float>{});
        case at::kHalf:
            return run(RecurrentForward<float, c10::Half, float, float>{});
        default:
            if (has_bf16_products()) return run(RecurrentForward<Bf16Pair, c10::BFloat16, c10::BFloat16, float>{});
            return run(RecurrentForward<float, c10::BFloat16, float, float>{});
    }
}

// What a backward is given in addition, and what is wanted of it.
struct RecurrentGiven {
    const OptionalTensor &grad_output, &grad_h_n;
    OptionalTensor grad_c_n;
    const Tensor& output;
    Tensor gates, cells;
    int64_t grad_gates;  // width of a row of them
    bool cell_states;    // the kind has them
    int64_t bias_apart;  // gates whose bias_hidden has a gradient of its own: the last ones
    bool need_input, need_states, need_weights;
};

struct RecurrentGrads {
    Tensor input, h0, c0;
    std::vector<Tensor> weights;
};

// Calls kernel(call); the low precisions are computed in float32. Gradients that are not wanted come back as [0].
template <typename Kernel>
RecurrentGrads run_backward(const RecurrentArguments& args, const RecurrentGiven& given, const Kernel& kernel) {
    const auto& s = args.sizes;
    const auto run = [&]<typename T>(RecurrentBackward<T> call) {
        const auto type = args.input.scalar_type();
        const auto options = args.input.options().dtype(c10::CppTypeToScalarType<T>::value);
        const auto wanted = [&](bool want, at::IntArrayRef shape) {
            return want ? at::empty(shape, options) : at::empty({0}, args.input.options());
        };
        Held held;
        call.shape = kernel_shape(s);
        call.x = held.rows<T>(args.input, s);
        call.h0 = held.data<T>(args.h0);
        call.c0 = held.data<T>(args.c0);
        call.y = held.data<T>(given.output);
        call.gates = held.data<T>(given.gates);
        call.cells = held.data<T>(given.cells);
        call.grad_y = held.data<T>(given.grad_output);
        call.grad_h_n = held.data<T>(given.grad_h_n);
        call.grad_c_n = held.data<T>(given.grad_c_n);
        const Buffer<T> grad_gates(s.directions * s.rows * given.grad_gates);
        call.grad_gates = grad_gates;

        RecurrentGrads grads{wanted(given.need_input, args.input.sizes()),
                             wanted(given.need_states, {s.directions, s.batch, s.output()}),
                             wanted(given.need_states && given.cell_states, {s.directions, s.batch, s.hidden}),
                             {}};
        call.grad_x = given.need_input ? pointer<T>(grads.input) : nullptr;
        call.grad_h0 = given.need_states ? pointer<T>(grads.h0) : nullptr;
        call.grad_c0 = given.need_states && given.cell_states ? pointer<T>(grads.c0) : nullptr;
        for (const auto& weight : args.weights) grads.weights.push_back(wanted(given.need_weights, weight.sizes()));
        for (const auto d : c10::irange(s.directions)) {
            call.weights[d] = held.weights<T, T>(args.weights, args.flags, d);
            if (!given.need_weights) continue;
            const auto p = recurrent_parameters(grads.weights, args.flags, d);
            // The part of bias_hidden's gradient that is not bias_input's.
            T* state = args.flags.bias ? pointer<T>(p.bias_hidden) + p.bias_hidden.numel() - s.hidden : nullptr;
            call.gradients[d] = {
                pointer<T>(p.input),      pointer<T>(p.hidden),          pointer<T>(p.bias_input), state,
                pointer<T>(p.projection), pointer<T>(p.bias_projection), pointer<T>(p.peephole)};
        }
        if (s.batch > 0) {
            kernel(call);
        } else {
            for (auto& grad : grads.weights) grad.zero_();
        }
        // Where both biases are added at the same place: one gradient, two tensors.
        for (const auto d : c10::irange(s.directions)) {
            if (!args.flags.bias || !given.need_weights) continue;
            const auto p = recurrent_parameters(grads.weights, args.flags, d);
            const int64_t same = p.bias_input.numel() - given.bias_apart * s.hidden;
            p.bias_hidden.narrow(0, 0, same).copy_(p.bias_input.narrow(0, 0, same));
        }
        for (auto& grad : grads.weights) grad = grad.to(type);
        grads.input = grads.input.to(type);
        grads.h0 = grads.h0.to(type);
        grads.c0 = grads.c0.to(type);
        return grads;
    };
    return args.input.scalar_type() == at::kDouble ? run(RecurrentBackward<double>{}) : run(RecurrentBackward<float>{});
}

}  // namespace pykernels
