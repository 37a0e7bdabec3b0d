// The pooling operators on CUDA: allocate and launch.
#include "cuda/ops/pool.h"

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "csrc/ops/registry.h"
#include "cuda/kernels/pool.h"
#include "cuda/ops/recurrent.h"

namespace pykernels::cuda {
namespace {

PoolPlaces places_of(const Tensor& places, const PoolSizes& s) { return {places.data_ptr(), s.wide}; }

struct Gpu {
    static MaxPoolForwardResult max_forward(const Tensor& input, bool keep, const PoolSizes& s) {
        return max_pool(input, keep, s);
    }

    static Tensor max_backward(const Tensor& grad, const Tensor& places, const PoolSizes& s) {
        const at::AutoDispatchBelowADInplaceOrView no_autograd;
        const Call call(grad);
        const Tensor dense = s.formatted(grad), kept = s.formatted(places), found = s.empty(s.input, grad.options());
        C10_CUDA_CHECK(max_pool_backward(
            {dtype_of(grad), s.shape, dense.const_data_ptr(), places_of(kept, s), found.mutable_data_ptr()},
            call.stream));
        return found;
    }

    static Tensor max_gather(const Tensor& input, const Tensor& places, const PoolSizes& s) {
        const at::AutoDispatchBelowADInplaceOrView no_autograd;
        const Call call(input);
        const Tensor dense = s.formatted(input), kept = s.formatted(places), out = s.empty(s.output, input.options());
        C10_CUDA_CHECK(max_pool_gather(
            {dtype_of(input), s.shape, places_of(kept, s), dense.const_data_ptr(), out.mutable_data_ptr()},
            call.stream));
        return out;
    }

    static Tensor max_indices(const Tensor& places, const PoolSizes& s) {
        const Call call(places);
        const Tensor kept = s.formatted(places), out = s.empty(s.output, places.options().dtype(at::kLong));
        C10_CUDA_CHECK(max_pool_indices({s.shape, places_of(kept, s), out.data_ptr<int64_t>()}, call.stream));
        return out;
    }

    static Tensor avg_forward(const Tensor& input, bool padded, int64_t divisor, const PoolSizes& s) {
        const at::AutoDispatchBelowADInplaceOrView no_autograd;
        const Call call(input);
        const Tensor dense = s.formatted(input), out = s.empty(s.output, input.options());
        C10_CUDA_CHECK(avg_pool_forward(
            {dtype_of(input), s.shape, {padded, divisor}, dense.const_data_ptr(), out.mutable_data_ptr()},
            call.stream));
        return out;
    }

    static Tensor avg_backward(const Tensor& grad, bool padded, int64_t divisor, const PoolSizes& s) {
        const at::AutoDispatchBelowADInplaceOrView no_autograd;
        const Call call(grad);
        const Tensor dense = s.formatted(grad), found = s.empty(s.input, grad.options());
        C10_CUDA_CHECK(avg_pool_backward(
            {dtype_of(grad), s.shape, {padded, divisor}, dense.const_data_ptr(), found.mutable_data_ptr()},
            call.stream));
        return found;
    }

    // The framework's own scatter: which of several values for one place stays is as undecided as in its max_unpool.
    // (An index outside would end the process's use of the GPU, so that they are looked at first.)
    static Tensor unpool(const Tensor& input, const Tensor& indices, const MaxUnpoolSizes& s) {
        const at::AutoDispatchBelowADInplaceOrView no_autograd;
        const int64_t lead = input.dim() - s.dims;
        check_unpool_indices(
            indices.numel() == 0 || (indices.min().item<int64_t>() >= 0 && indices.max().item<int64_t>() < s.out_plane),
            s);
        auto flat = input.sizes().slice(0, lead).vec();
        flat.push_back(s.out_plane);
        const Tensor out = at::zeros(flat, input.options()).scatter_(-1, indices.flatten(lead), input.flatten(lead));
        return out.view(s.output).contiguous(s.format);
    }
};

using Operators = PoolOperators<Gpu>;

}  // namespace

MaxPoolForwardResult max_pool(const Tensor& input, bool keep, const PoolSizes& s) {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    const Call call(input);
    const Tensor dense = s.formatted(input), out = s.empty(s.output, input.options());
    const auto options = input.options().dtype(s.places());
    const Tensor places = keep ? s.empty(s.output, options) : at::empty({0}, options);
    C10_CUDA_CHECK(max_pool_forward({dtype_of(input), s.shape, dense.const_data_ptr(), out.mutable_data_ptr(),
                                     keep ? places_of(places, s) : PoolPlaces{nullptr, s.wide}},
                                    call.stream));
    return {out, places};
}

TORCH_LIBRARY_IMPL(pykernels, CUDA, m) {
    m.impl("max_pool_forward", Operators::max_forward);
    m.impl("max_pool_backward", Operators::max_backward);
    m.impl("max_pool_gather", Operators::max_gather);
    m.impl("max_pool_indices", Operators::max_indices);
    m.impl("avg_pool_forward", Operators::avg_forward);
    m.impl("avg_pool_backward", Operators::avg_backward);
    m.impl("max_unpool", Operators::unpool);
}

static const RawKernel raw_kernels[] = {
    {"max_pool_forward", Operators::max_forward},
    {"max_pool_backward", Operators::max_backward},
    {"max_pool_gather", Operators::max_gather},
    {"max_pool_indices", Operators::max_indices},
    {"avg_pool_forward", Operators::avg_forward},
    {"avg_pool_backward", Operators::avg_backward},
    {"max_unpool", Operators::unpool},
};

}  // namespace pykernels::cuda
