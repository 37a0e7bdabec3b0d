// random_mask on the CPU.
#include "ops/random.h"

#include <torch/library.h>

#include "core/mask.h"
#include "core/types.h"

namespace pykernels {
namespace {

Tensor random_mask(const Tensor& like, const Tensor& seed, int64_t stream, at::IntArrayRef size, double p, double value,
                   bool as_bytes) {
    const auto plan = plan_mask(like, seed, stream, size, p, value, as_bytes);
    const auto fill = [&]<typename Element>(Element one) {
        fill_mask(plan.key, plan.stream, plan.threshold, one, plan.mask.numel(), plan.mask.data_ptr<Element>());
    };
    switch (plan.mask.scalar_type()) {
        case at::kByte:
            fill(static_cast<std::uint8_t>(value));
            break;
        case at::kDouble:
            fill(value);
            break;
        case at::kFloat:
            fill(static_cast<float>(value));
            break;
        case at::kHalf:
            fill(static_cast<c10::Half>(static_cast<float>(value)));
            break;
        default:
            fill(static_cast<c10::BFloat16>(static_cast<float>(value)));
    }
    return plan.mask;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pykernels, m) {
    m.def(
        "random_mask(Tensor like, Tensor seed, int stream, SymInt[] size, float p, float value, bool as_bytes) -> "
        "Tensor",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(pykernels, CPU, m) { m.impl("random_mask", random_mask); }

}  // namespace pykernels
