// Best matching units and sums by unit on CUDA: allocate and launch.
#include "csrc/ops/bmu.h"

#include <ATen/ops/sort.h>
#include <torch/library.h>

#include "csrc/ops/dense_rows.h"
#include "csrc/ops/registry.h"
#include "cuda/kernels/bmu.h"
#include "cuda/kernels/unit_sums.h"
#include "cuda/ops/recurrent.h"

namespace pykernels::cuda {
namespace {

BmuResult find(const Tensor& input, const Tensor& codebook, const BmuSizes& s) {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(input);
    const Tensor x = dense_rows(input), w = dense_rows(codebook);
    const auto distance = call.empty({s.samples, s.neighbours});
    const auto index = at::empty({s.samples, s.neighbours}, input.options().dtype(at::kLong));
    const Bmu args{dtype_of(input),
                   s.metric,
                   s.samples,
                   s.units,
                   s.features,
                   s.neighbours,
                   x.const_data_ptr(),
                   w.const_data_ptr(),
                   x.stride(0),
                   w.stride(0),
                   distance.mutable_data_ptr(),
                   index.mutable_data_ptr<int64_t>()};
    BmuPlan plan;
    C10_CUDA_CHECK(plan_bmu(args, &plan));
    C10_CUDA_CHECK(bmu(args, plan, call.workspace(plan.workspace), call.stream));
    return {distance, index};
}

// The framework sorts the samples by their units.
BmuResult sum(const Tensor& input, const Tensor& index, const UnitSumsSizes& s) {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(input);
    const Tensor x = dense_rows(input);
    const auto sums = at::empty({s.units, s.features}, input.options().dtype(at::kDouble));
    const auto counts = at::empty({s.units}, index.options());
    const auto keys = at::empty({s.samples}, index.options().dtype(at::kInt));
    const auto wrong = at::empty({1}, index.options().dtype(at::kInt));
    TORCH_CHECK_VALUE(s.units <= INT32_MAX, "[unit_sums] expected ", INT32_MAX, " units or fewer on a GPU, got ",
                      s.units);
    C10_CUDA_CHECK(unit_keys({s.samples, s.units, static_cast<const int64_t*>(call.data(index)),
                              keys.mutable_data_ptr<int32_t>(), wrong.mutable_data_ptr<int32_t>()},
                             call.stream));
    check_unit_index(wrong.item<int32_t>() == 0, s.units);
    const auto [sorted, order] = at::sort(keys, /*stable=*/std::optional<bool>(true), /*dim=*/0);
    UnitSums args{dtype_of(input),
                  s.samples,
                  s.units,
                  s.features,
                  x.const_data_ptr(),
                  x.stride(0),
                  sorted.const_data_ptr<int32_t>(),
                  order.const_data_ptr<int64_t>(),
                  sums.mutable_data_ptr<double>(),
                  counts.mutable_data_ptr<int64_t>(),
                  nullptr};
    args.workspace = call.workspace(unit_sums_workspace(args));
    C10_CUDA_CHECK(unit_sums(args, call.stream));
    return {sums, counts};
}

using Operators = BmuOperators<find, sum>;

}  // namespace

TORCH_LIBRARY_IMPL(pykernels, CUDA, m) {
    m.impl("bmu", Operators::bmu);
    m.impl("unit_sums", Operators::unit_sums);
}

static const RawKernel raw_kernels[] = {{"bmu", Operators::bmu}, {"unit_sums", Operators::unit_sums}};

}  // namespace pykernels::cuda
