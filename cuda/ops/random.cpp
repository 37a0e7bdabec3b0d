// The random masks on CUDA: allocate and launch. The seed is read on the host, so a CUDA graph repeats its masks.
#include "csrc/ops/random.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "csrc/ops/registry.h"
#include "cuda/kernels/random.h"
#include "cuda/ops/recurrent.h"

namespace pykernels::cuda {
namespace {

Tensor draw_mask(const Tensor& like, const Tensor& seed, int64_t stream, at::IntArrayRef size, double p, double value,
                 bool as_bytes) {
    const c10::cuda::CUDAGuard guard(like.device());
    const auto plan = plan_mask(like, seed, stream, size, p, value, as_bytes);
    const RandomMask args{plan.key,          plan.stream, plan.threshold, plan.value,
                          plan.mask.numel(), as_bytes,    dtype_of(like), plan.mask.mutable_data_ptr()};
    C10_CUDA_CHECK(random_mask(args, c10::cuda::getCurrentCUDAStream(like.device().index()).stream()));
    return plan.mask;
}

}  // namespace

TORCH_LIBRARY_IMPL(pykernels, CUDA, m) { m.impl("random_mask", draw_mask); }

static const RawKernel raw_kernels[] = {{"random_mask", draw_mask}};

}  // namespace pykernels::cuda
