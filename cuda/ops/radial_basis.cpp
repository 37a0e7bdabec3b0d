// The radial basis layer on CUDA: allocate and launch.
#include "csrc/ops/radial_basis.h"

#include <torch/library.h>

#include "csrc/ops/dense_rows.h"
#include "csrc/ops/registry.h"
#include "cuda/kernels/radial_basis.h"
#include "cuda/ops/recurrent.h"

namespace pykernels::cuda {
namespace {

Tensor apply(const Tensor& input, const Tensor& centers, double gamma, const RadialBasisSizes& s) {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(input);
    const Tensor x = dense_rows(input), t = dense_rows(centers), out = call.empty({s.samples, s.centers});
    C10_CUDA_CHECK(radial_basis({dtype_of(input), s.samples, s.centers, s.features, gamma, x.const_data_ptr(),
                                 t.const_data_ptr(), x.stride(0), t.stride(0), out.mutable_data_ptr()},
                                call.stream));
    return out;
}

using Operators = RadialBasisOperators<apply>;

}  // namespace

TORCH_LIBRARY_IMPL(pykernels, CUDA, m) { m.impl("radial_basis", Operators::radial_basis); }

static const RawKernel raw_kernels[] = {{"radial_basis", Operators::radial_basis}};

}  // namespace pykernels::cuda
