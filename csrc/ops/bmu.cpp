// Best matching units and sums by unit on the CPU.
#include "ops/bmu.h"

#include "kernels/bmu.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "kernels/unit_sums.h"
#include "ops/by_type.h"
#include "ops/dense_rows.h"
#include "ops/registry.h"

namespace pykernels {
namespace {

BmuResult find(const Tensor& input, const Tensor& codebook, const BmuSizes& s) {
    const Tensor x = dense_rows(input), w = dense_rows(codebook);
    const auto index = at::empty({s.samples, s.neighbours}, input.options().dtype(at::kLong));
    const auto sums = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const auto distance = at::empty({s.samples, s.neighbours}, input.options().dtype(sums));
    by_type(input, [&]<typename S>(S) {
        using Acc = typename Bmu<S>::Acc;
        bmu(Bmu<S>{s.metric, s.samples, s.units, s.features, s.neighbours, x.const_data_ptr<S>(), w.const_data_ptr<S>(),
                   x.stride(0), w.stride(0), distance.data_ptr<Acc>(), index.data_ptr<int64_t>()});
    });
    return {distance.to(input.scalar_type()), index};
}

BmuResult sum(const Tensor& input, const Tensor& index, const UnitSumsSizes& s) {
    const Tensor x = dense_rows(input), units = index.contiguous();
    const auto sums = at::empty({s.units, s.features}, input.options().dtype(at::kDouble));
    const auto counts = at::empty({s.units}, units.options());
    bool in_range = true;
    by_type(input, [&]<typename S>(S) {
        in_range = unit_sums(UnitSums<S>{s.samples, s.units, s.features, x.const_data_ptr<S>(), x.stride(0),
                                         units.const_data_ptr<int64_t>(), sums.data_ptr<double>(),
                                         counts.data_ptr<int64_t>()});
    });
    check_unit_index(in_range, s.units);
    return {sums, counts};
}

using Operators = BmuOperators<find, sum>;

}  // namespace

TORCH_LIBRARY_FRAGMENT(pykernels, m) {
    m.def("bmu(Tensor input, Tensor codebook, int k, str metric) -> (Tensor distance, Tensor index)",
          {at::Tag::pt2_compliant_tag});
    m.def("unit_sums(Tensor input, Tensor index, SymInt units) -> (Tensor sums, Tensor counts)",
          {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
    m.impl("bmu", Operators::bmu);
    m.impl("unit_sums", Operators::unit_sums);
}

static const RawKernel raw_kernels[] = {{"bmu", Operators::bmu}, {"unit_sums", Operators::unit_sums}};

}  // namespace pykernels
