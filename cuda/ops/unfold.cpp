// Unfold and fold on CUDA: allocate and launch.
#include "csrc/ops/unfold.h"

#include <torch/library.h>

#include "csrc/ops/registry.h"
#include "cuda/kernels/unfold.h"
#include "cuda/ops/recurrent.h"

namespace pykernels::cuda {
namespace {

Tensor unfold_image(const Tensor& image, const UnfoldSizes& sizes) {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(image);
    const Tensor out = call.empty(sizes.columns);
    C10_CUDA_CHECK(unfold({dtype_of(image), sizes.shape, call.data(image), out.mutable_data_ptr()}, call.stream));
    return out;
}

Tensor fold_columns(const Tensor& columns, const UnfoldSizes& sizes) {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(columns);
    const Tensor out = call.empty(sizes.image);
    C10_CUDA_CHECK(fold({dtype_of(columns), sizes.shape, call.data(columns), out.mutable_data_ptr()}, call.stream));
    return out;
}

using Operators = UnfoldOperators<unfold_image, fold_columns>;

}  // namespace

TORCH_LIBRARY_IMPL(pykernels, CUDA, m) {
    m.impl("unfold", Operators::unfold);
    m.impl("fold", Operators::fold);
}

static const RawKernel raw_kernels[] = {{"unfold", Operators::unfold}, {"fold", Operators::fold}};

}  // namespace pykernels::cuda
