// Contract of the best matching units, for every backend.
//
// input      [N, D], codebook [K, D], of one dtype and device, any strides
// k          how many units are wanted for each sample, 1 … min(8, K)
// metric     "euclidean", "cosine" or "manhattan"
//
// distance   [N, k] of the input's dtype, ascending
// index      [N, k] int64: the units, those of float64 arithmetic; the lowest of equal ones. A distance that is not a
//            number is larger than all others.
//
// unit_sums: the rows of an input [N, D] added up by unit, index [N] int64 (0 … units - 1):
// sums       [units, D] float64, each in ascending order of the rows
// counts     [units] int64
#pragma once

#include "core/checks.h"
#include "core/metric.h"

namespace pykernels {

struct BmuSizes {
    int64_t samples, units, features;
    int neighbours;
    Metric metric;
};

struct UnitSumsSizes {
    int64_t samples, units, features;
};

Metric metric_named(std::string_view op, std::string_view name);
BmuSizes check_bmu(const Tensor& input, const Tensor& codebook, int64_t k, std::string_view metric);
UnitSumsSizes check_unit_sums(const Tensor& input, const Tensor& index, int64_t units);

// (what a kernel found, which is told only when it is done)
inline void check_unit_index(bool in_range, int64_t units) {
    TORCH_CHECK_INDEX(in_range, "[unit_sums] expected an index of units 0 to ", units - 1, ", got one out of range");
}

using BmuResult = std::tuple<Tensor, Tensor>;
using BmuFunction = BmuResult (*)(const Tensor& input, const Tensor& codebook, const BmuSizes& sizes);
using UnitSumsFunction = BmuResult (*)(const Tensor& input, const Tensor& index, const UnitSumsSizes& sizes);

// The operators' signatures, for every backend.
template <BmuFunction Find, UnitSumsFunction Sum>
struct BmuOperators {
    static BmuResult bmu(const Tensor& input, const Tensor& codebook, int64_t k, std::string_view metric) {
        return Find(input, codebook, check_bmu(input, codebook, k, metric));
    }
    static BmuResult unit_sums(const Tensor& input, const Tensor& index, int64_t units) {
        return Sum(input, index, check_unit_sums(input, index, units));
    }
};

}  // namespace pykernels
