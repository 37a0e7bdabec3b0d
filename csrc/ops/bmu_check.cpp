#include "ops/bmu.h"

#include <algorithm>

#include "kernels/bmu.h"

namespace pykernels {
Metric metric_named(std::string_view op, std::string_view name) {
    if (name == "euclidean") return Metric::kEuclidean;
    if (name == "cosine") return Metric::kCosine;
    TORCH_CHECK_VALUE(name == "manhattan", "[", op,
                      "] expected metric \"euclidean\", \"cosine\" or \"manhattan\", got \"", name, "\"");
    return Metric::kManhattan;
}

BmuSizes check_bmu(const Tensor& input, const Tensor& codebook, int64_t k, std::string_view metric) {
    const Metric chosen = metric_named("bmu", metric);
    check_floating("bmu", "input", input);
    check_like("bmu", "codebook", codebook, input);
    TORCH_CHECK(input.dim() == 2, "[bmu] expected input of shape [samples, features], got ", input.sizes());
    TORCH_CHECK(codebook.dim() == 2 && codebook.size(1) == input.size(1), "[bmu] expected codebook of shape [units, ",
                input.size(1), "] like the input of shape ", input.sizes(), ", got ", codebook.sizes());
    const int64_t units = codebook.size(0);
    TORCH_CHECK(units >= 1 && units <= INT32_MAX / 8, "[bmu] expected a codebook of 1 to ", INT32_MAX / 8,
                " units, got ", units);
    const int64_t most = std::min<int64_t>(kMostNeighbours, units);
    TORCH_CHECK_VALUE(k >= 1 && k <= most, "[bmu] expected k from 1 to ", most, " for ", units, " units, got ", k);
    return {input.size(0), units, input.size(1), static_cast<int>(k), chosen};
}

UnitSumsSizes check_unit_sums(const Tensor& input, const Tensor& index, int64_t units) {
    check_floating("unit_sums", "input", input);
    TORCH_CHECK(input.dim() == 2, "[unit_sums] expected input of shape [samples, features], got ", input.sizes());
    TORCH_CHECK(index.scalar_type() == at::kLong && index.device() == input.device(),
                "[unit_sums] expected index of dtype Long on ", input.device(), ", got ", index.scalar_type(), " on ",
                index.device());
    check_shape("unit_sums", "index", index, {input.size(0)});
    TORCH_CHECK_VALUE(units >= 0, "[unit_sums] expected a number of units, got ", units);
    return {input.size(0), units, input.size(1)};
}

}  // namespace pykernels
