// The radial basis layer on the CPU.
#include "ops/radial_basis.h"

#include "kernels/radial_basis.h"

#include <torch/library.h>

#include "ops/by_type.h"
#include "ops/dense_rows.h"
#include "ops/recycled.h"
#include "ops/registry.h"

namespace pykernels {
namespace {

Tensor apply(const Tensor& input, const Tensor& centers, double gamma, const RadialBasisSizes& s) {
    const Tensor x = dense_rows(input), t = dense_rows(centers);
    const Tensor out = empty_recycled({s.samples, s.centers}, input.options());
    by_type(input, [&]<typename S>(S) {
        radial_basis(RadialBasis<S>{s.samples, s.centers, s.features, gamma, x.const_data_ptr<S>(),
                                    t.const_data_ptr<S>(), x.stride(0), t.stride(0), out.data_ptr<S>()});
    });
    return out;
}

using Operators = RadialBasisOperators<apply>;

}  // namespace

TORCH_LIBRARY_FRAGMENT(pykernels, m) {
    m.def("radial_basis(Tensor input, Tensor centers, float gamma) -> Tensor", {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(pykernels, CPU, m) { m.impl("radial_basis", Operators::radial_basis); }

static const RawKernel raw_kernels[] = {{"radial_basis", Operators::radial_basis}};

}  // namespace pykernels
