// The attention operators on the CPU: allocate and call the kernel.
#include "ops/attention_ops.h"

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "core/measure.h"
#include "kernels/attention.h"
#include "ops/attention_padding.h"
#include "ops/registry.h"

namespace pykernels {
namespace {

// Keeps what a call points into.
class Held {
  public:
    template <typename S>
    HeadRows<const S> heads(const Tensor& tensor) {
        const Tensor& kept = keep(tensor.to(c10::CppTypeToScalarType<S>::value));
        return {kept.const_data_ptr<S>(), kept.stride(0), kept.stride(1), kept.stride(2)};
    }
    template <typename S>
    const S* dense(const OptionalTensor& tensor) {
        if (!tensor) return nullptr;
        tensors_.push_back(tensor->to(c10::CppTypeToScalarType<S>::value).contiguous());
        return tensors_.back().template const_data_ptr<S>();
    }
    template <typename Acc>
    AttentionMask<Acc> mask(const OptionalTensor& mask, const AttentionSizes& s) {
        if (!mask) return {};
        const bool chosen = mask->scalar_type() == at::kBool;
        Tensor kept = keep(chosen ? *mask : mask->to(c10::CppTypeToScalarType<Acc>::value));
        kept = kept.expand({s.batch, s.heads, s.rows, s.keys});
        return {chosen ? nullptr : kept.const_data_ptr<Acc>(),
                chosen ? reinterpret_cast<const std::uint8_t*>(kept.const_data_ptr<bool>()) : nullptr,
                kept.stride(0),
                kept.stride(1),
                kept.stride(2),
                s.keys > 1 ? kept.stride(3) : 0};
    }

  private:
    // With neighbours along the last dimension.
    const Tensor& keep(Tensor tensor) {
        const bool beside = tensor.dim() == 0 || tensor.size(-1) <= 1 || tensor.stride(-1) == 1;
        tensors_.push_back(beside ? tensor : tensor.contiguous());
        return tensors_.back();
    }
    std::vector<Tensor> tensors_;
};

AttentionShape kernel_shape(const AttentionArguments& args, const AttentionSizes& s, Held& held) {
    return {s.batch,
            s.heads,
            s.groups,
            s.rows,
            s.keys,
            s.depth,
            s.value_depth,
            held.dense<int64_t>(args.row_lengths),
            held.dense<int64_t>(args.key_lengths),
            args.left,
            args.right,
            args.bottom_right,
            args.scale(),
            args.softcap,
            s.dropout};
}

template <typename S>
HeadRows<S> to_heads(const Tensor& tensor) {
    return {tensor.data_ptr<S>(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

bool nothing_to_do(const AttentionSizes& s) { return s.batch * s.heads * s.rows == 0; }

AttentionForwardResult attend(const AttentionArguments& given) {
    const auto s = check_attention(given);
    const WithoutPadding padding(given, s);
    const auto& args = padding.args;
    const auto& query = args.query;
    const Tensor lse = at::empty({s.batch, s.heads, s.rows}, query.options().dtype(attention_sum_type(query)));
    const bool few = s.groups > 0 && are_few(s.heads / s.groups, s.rows);
    const auto run = [&]<typename Op, typename S>(AttentionForward<Op, S> call) -> AttentionForwardResult {
        using Acc = typename AttentionForward<Op, S>::Acc;
        const auto options = query.options().dtype(c10::CppTypeToScalarType<S>::value);
        const Tensor out = empty_heads(query, s.value_depth, options);
        if (nothing_to_do(s)) return {out.to(query.scalar_type()), lse};
        Held held;
        call.shape = kernel_shape(args, s, held);
        call.query = held.heads<S>(query);
        call.key = held.heads<S>(args.key);
        call.value = held.heads<S>(args.value);
        call.mask = held.mask<Acc>(args.mask, s);
        call.out = to_heads<S>(out);
        call.lse = lse.data_ptr<Acc>();
        few ? attention_few(call) : attention_forward(call);
        return {out.to(query.scalar_type()), lse};
    };
    if (query.scalar_type() == at::kDouble) return run(AttentionForward<double, double>{});
    if (query.scalar_type() == at::kBFloat16 && (few || has_bf16_products()))
        return run(AttentionForward<Bf16Pair, c10::BFloat16>{});
    return run(AttentionForward<float, float>{});
}

AttentionBackwardResult gradients(const AttentionArguments& all, const AttentionGiven& given,
                                  const AttentionWanted& wants) {
    const auto s = check_attention(all);
    check_attention_backward(all, s, given);
    const WithoutPadding padding(all, s, wants.mask);
    const auto& args = padding.args;
    const auto type = args.query.scalar_type();
    const auto run = [&]<typename Op, typename S>(AttentionBackward<Op, S> call) -> AttentionBackwardResult {
        using Acc = typename AttentionBackward<Op, S>::Acc;
        const auto options = args.query.options().dtype(c10::CppTypeToScalarType<S>::value);
        const auto wanted = [&](bool want, const Tensor& of) {
            return want ? empty_heads(of, of.size(3), options) : at::empty({0}, options);
        };
        const Tensor grad_query = wanted(wants.query, args.query), grad_key = wanted(wants.key, args.key);
        const Tensor grad_value = wanted(wants.value, args.value);
        const bool mask = wants.mask && args.mask && args.mask->scalar_type() != at::kBool;
        const Tensor grad_mask =
            mask ? at::zeros(attention_mask_shape(*args.mask, s), options.dtype(c10::CppTypeToScalarType<Acc>::value))
                 : at::empty({0}, options);
        if (nothing_to_do(s) || s.keys == 0) {
            for (const Tensor* grad : {&grad_query, &grad_key, &grad_value}) grad->zero_();
        } else {
            Held held;
            call.shape = kernel_shape(args, s, held);
            call.query = held.heads<S>(args.query);
            call.key = held.heads<S>(args.key);
            call.value = held.heads<S>(args.value);
            call.out = held.heads<S>(given.out);
            call.grad_out =
                held.heads<S>(given.grad_out ? *given.grad_out : at::zeros(given.out.sizes(), given.out.options()));
            call.mask = held.mask<Acc>(args.mask, s);
            call.lse = held.dense<Acc>(given.lse);
            call.grad_lse = held.dense<Acc>(given.grad_lse);
            if (wants.query) call.grad_query = to_heads<S>(grad_query);
            if (wants.key) call.grad_key = to_heads<S>(grad_key);
            if (wants.value) call.grad_value = to_heads<S>(grad_value);
            if (mask) {
                call.grad_mask = grad_mask.data_ptr<Acc>();
                const auto stride = [&](int d) { return grad_mask.size(d) == 1 ? 0 : grad_mask.stride(d); };
                call.grad_mask_batch = stride(0);
                call.grad_mask_head = stride(1);
                call.grad_mask_row = stride(2);
            }
            attention_backward(call);
        }
        return {grad_query.to(type), grad_key.to(type), grad_value.to(type),
                mask ? grad_mask.sum_to_size(args.mask->sizes()).to(args.mask->scalar_type()) : grad_mask.to(type)};
    };
    if (type == at::kDouble) return run(AttentionBackward<double, double>{});
    if (type == at::kBFloat16 && has_bf16_products()) return run(AttentionBackward<Bf16Pair, c10::BFloat16>{});
    return run(AttentionBackward<float, float>{});
}

Tensor weigh(const AttentionArguments& given, const Tensor& lse, bool average) {
    const auto s = check_attention_weights(given, lse);
    const WithoutPadding padding(given, s);
    const auto& args = padding.args;
    const auto type = args.query.scalar_type();
    const auto run = [&]<typename Op, typename S>(AttentionWeights<Op, S> call) -> Tensor {
        using Acc = typename AttentionWeights<Op, S>::Acc;
        const Tensor out = at::empty({s.batch, average ? 1 : s.heads, s.rows, s.keys},
                                     args.query.options().dtype(c10::CppTypeToScalarType<S>::value));
        if (s.heads == 0) out.zero_();
        if (!nothing_to_do(s) && s.keys > 0) {
            Held held;
            call.shape = kernel_shape(args, s, held);
            call.query = held.heads<S>(args.query);
            call.key = held.heads<S>(args.key);
            call.mask = held.mask<Acc>(args.mask, s);
            call.lse = held.dense<Acc>(lse);
            call.out = to_heads<S>(out);
            call.average = average;
            attention_weights(call);
        }
        return (average ? out.squeeze(1) : out).to(type);
    };
    if (type == at::kDouble) return run(AttentionWeights<double, double>{});
    if (type == at::kBFloat16 && has_bf16_products()) return run(AttentionWeights<Bf16Pair, c10::BFloat16>{});
    return run(AttentionWeights<float, float>{});
}

using Operators = AttentionOperators<attend, gradients, weigh>;

}  // namespace

TORCH_LIBRARY_FRAGMENT(pykernels, m) {
    m.def(
        "attention_forward(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? row_lengths, "
        "Tensor? key_lengths, Tensor? seed, float? scale, float softcap, float dropout, SymInt left, SymInt right, "
        "bool bottom_right) -> (Tensor out, Tensor lse)",
        {at::Tag::pt2_compliant_tag});
    m.def(
        "attention_weights(Tensor query, Tensor key, Tensor? mask, Tensor? row_lengths, Tensor? key_lengths, "
        "Tensor? seed, Tensor lse, float? scale, float softcap, float dropout, SymInt left, SymInt right, "
        "bool bottom_right, bool average) -> Tensor",
        {at::Tag::pt2_compliant_tag});
    m.def(
        "attention_backward(Tensor? grad_out, Tensor? grad_lse, Tensor query, Tensor key, Tensor value, Tensor? mask, "
        "Tensor? row_lengths, Tensor? key_lengths, Tensor? seed, Tensor out, Tensor lse, float? scale, float softcap, "
        "float dropout, SymInt left, SymInt right, bool bottom_right, bool need_query, bool need_key, bool need_value, "
        "bool need_mask) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_mask)",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
    m.impl("attention_forward", Operators::forward);
    m.impl("attention_backward", Operators::backward);
    m.impl("attention_weights", Operators::weights);
}

static const RawKernel raw_kernels[] = {{"attention_forward", Operators::forward},
                                        {"attention_backward", Operators::backward},
                                        {"attention_weights", Operators::weights}};

}  // namespace pykernels
