// The attention operators on CUDA: allocate and launch. The seed is read on the host, so a CUDA graph repeats its
// dropout.
#include "csrc/ops/attention_ops.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "csrc/ops/registry.h"
#include "cuda/kernels/attention.h"
#include "cuda/ops/recurrent.h"

namespace pykernels::cuda {
namespace {

// A call's device and stream, and what it points into. Memory freed at the end of the call is reused in the order of
// the stream.
class AttentionCall {
  public:
    explicit AttentionCall(const Tensor& query)
        : guard_(query.device()), stream(c10::cuda::getCurrentCUDAStream(query.device().index()).stream()) {}

    HeadsIn heads(const Tensor& tensor) {
        const bool beside = tensor.size(3) <= 1 || tensor.stride(3) == 1;
        const Tensor& kept = keep(beside ? tensor : tensor.contiguous());
        return {kept.const_data_ptr(), kept.stride(0), kept.stride(1), kept.stride(2)};
    }
    const void* dense(const OptionalTensor& tensor) {
        return tensor ? keep(tensor->contiguous()).const_data_ptr() : nullptr;
    }
    AttentionMask mask(const OptionalTensor& mask, const AttentionSizes& s, at::ScalarType type) {
        if (!mask) {
            return {};
        }
        const bool chosen = mask->scalar_type() == at::kBool;
        const Tensor typed = chosen ? *mask : mask->to(type);
        const Tensor& kept = keep(typed.expand({s.batch, s.heads, s.rows, s.keys}));
        const void* data = kept.const_data_ptr();
        return {chosen ? nullptr : data, chosen ? static_cast<const uint8_t*>(data) : nullptr,
                kept.stride(0),          kept.stride(1),
                kept.stride(2),          kept.stride(3)};
    }
    AttentionShape shape(const AttentionArguments& args, const AttentionSizes& s) {
        TORCH_CHECK(
            std::max(s.rows, s.keys) <= kMostRows && s.batch * s.heads * std::max(s.rows, s.keys) / 8 < INT32_MAX,
            "[attention] expected fewer rows and keys on a GPU, got ", s.rows, " and ", s.keys, " of ",
            s.batch * s.heads, " heads");
        return {dtype_of(args.query),
                s.batch,
                s.heads,
                s.groups,
                s.rows,
                s.keys,
                s.depth,
                s.value_depth,
                static_cast<const int64_t*>(dense(args.row_lengths)),
                static_cast<const int64_t*>(dense(args.key_lengths)),
                std::min(args.left, kMostRows),
                std::min(args.right, kMostRows),
                args.bottom_right,
                args.scale(),
                args.softcap,
                s.dropout.key,
                s.dropout.below,
                s.dropout.kept};
    }

  private:
    const Tensor& keep(const Tensor& tensor) {
        held_.push_back(tensor);
        return held_.back();
    }
    c10::cuda::CUDAGuard guard_;
    std::vector<Tensor> held_;

  public:
    const cudaStream_t stream;
};

HeadsOut to_heads(const Tensor& tensor) {
    return {tensor.mutable_data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

AttentionForwardResult attend(const AttentionArguments& args) {
    const auto s = check_attention(args);
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    AttentionCall call(args.query);
    const Tensor out = empty_heads(args.query, s.value_depth, args.query.options());
    const Tensor lse =
        at::empty({s.batch, s.heads, s.rows}, args.query.options().dtype(attention_sum_type(args.query)));
    const AttentionForward forward{call.shape(args, s),
                                   call.heads(args.query),
                                   call.heads(args.key),
                                   call.heads(args.value),
                                   call.mask(args.mask, s, args.query.scalar_type()),
                                   to_heads(out),
                                   lse.mutable_data_ptr()};
    C10_CUDA_CHECK(attention_forward(forward, call.stream));
    return {out, lse};
}

AttentionBackwardResult gradients(const AttentionArguments& args, const AttentionGiven& given,
                                  const AttentionWanted& wants) {
    const auto s = check_attention(args);
    check_attention_backward(args, s, given);
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    AttentionCall call(args.query);
    const auto options = args.query.options(), sums = options.dtype(attention_sum_type(args.query));
    const auto wanted = [&](bool want, const Tensor& of) {
        return want ? empty_heads(of, of.size(3), options) : at::empty({0}, options);
    };
    const Tensor grad_query = wanted(wants.query, args.query), grad_key = wanted(wants.key, args.key);
    const Tensor grad_value = wanted(wants.value, args.value);
    const bool mask = wants.mask && args.mask && args.mask->scalar_type() != at::kBool;
    const Tensor grad_mask = at::empty(mask ? attention_mask_shape(*args.mask, s) : std::vector<int64_t>{0}, sums);
    const Tensor delta = at::empty({s.batch, s.heads, s.rows}, sums);

    AttentionBackward backward{};
    backward.shape = call.shape(args, s);
    backward.query = call.heads(args.query);
    backward.key = call.heads(args.key);
    backward.value = call.heads(args.value);
    backward.out = call.heads(given.out);
    backward.grad_out = call.heads(given.grad_out ? *given.grad_out : at::zeros_like(given.out));
    backward.mask = call.mask(args.mask, s, args.query.scalar_type());
    backward.lse = call.dense(given.lse);
    backward.grad_lse = call.dense(given.grad_lse);
    backward.delta = delta.mutable_data_ptr();
    if (wants.query) {
        backward.grad_query = to_heads(grad_query);
    }
    if (wants.key) {
        backward.grad_key = to_heads(grad_key);
    }
    if (wants.value) {
        backward.grad_value = to_heads(grad_value);
    }
    if (mask) {
        const auto stride = [&](int d) { return grad_mask.size(d) == 1 ? 0 : grad_mask.stride(d); };
        backward.grad_mask = grad_mask.mutable_data_ptr();
        backward.grad_mask_batch = stride(0);
        backward.grad_mask_head = stride(1);
        backward.grad_mask_row = stride(2);
    }
    C10_CUDA_CHECK(attention_backward(backward, call.stream));
    return {grad_query, grad_key, grad_value,
            mask ? grad_mask.sum_to_size(args.mask->sizes()).to(args.mask->scalar_type())
                 : grad_mask.to(args.query.scalar_type())};
}

Tensor weigh(const AttentionArguments& args, const Tensor& lse, bool average) {
    const auto s = check_attention_weights(args, lse);
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    AttentionCall call(args.query);
    const Tensor out = at::empty({s.batch, average ? 1 : s.heads, s.rows, s.keys}, args.query.options());
    const AttentionWeights weights{call.shape(args, s),
                                   call.heads(args.query),
                                   call.heads(args.key),
                                   call.mask(args.mask, s, args.query.scalar_type()),
                                   call.dense(lse),
                                   to_heads(out),
                                   average};
    C10_CUDA_CHECK(attention_weights(weights, call.stream));
    return average ? out.squeeze(1) : out;
}

using Operators = AttentionOperators<attend, gradients, weigh>;

}  // namespace

TORCH_LIBRARY_IMPL(pykernels, CUDA, m) {
    m.impl("attention_forward", Operators::forward);
    m.impl("attention_backward", Operators::backward);
    m.impl("attention_weights", Operators::weights);
}

static const RawKernel raw_kernels[] = {{"attention_forward", Operators::forward},
                                        {"attention_backward", Operators::backward},
                                        {"attention_weights", Operators::weights}};

}  // namespace pykernels::cuda
