// Contract of a map that learns sample by sample, for every backend.
//
// codebook   [units, D] float32 or float64, contiguous; changed in place
// input      [N, D] like it: the samples in the order in which they come
// coordinates
//            [units, 2] float64 on the CPU: where units are on the grid
// periods    two numbers, after which coordinates come again; 0 where they do not
// sigma, rate
//            [N] float64 on the CPU: the neighbourhood's width and the learning rate at each sample
// bounds     none, or [2, D] like the codebook: the lowest and highest value of each feature that units may get
// neighbourhood
//            "gaussian", "bubble" or "mexican_hat"
// metric     "euclidean", "cosine" or "manhattan"
//
// distance   [N] of the input's dtype: from the best unit before it moved
#pragma once

#include "core/checks.h"
#include "core/metric.h"
#include "core/neighbourhood.h"

namespace pykernels {

struct SomArguments {
    const Tensor &codebook, &input, &coordinates;
    at::ArrayRef<double> periods;
    const Tensor &sigma, &rate;
    const OptionalTensor& bounds;
    std::string_view neighbourhood, metric;
};

struct SomSizes {
    int64_t samples, units, features;
    Metric metric;
    Neighbourhood neighbourhood;
    int dimensions;  // of the grid: one where all units lie in a row
};

SomSizes check_som(const SomArguments& args);

using SomFunction = Tensor (*)(const SomArguments& args, const SomSizes& sizes);

// The operator's signature, for every backend.
template <SomFunction Learn>
struct SomOperators {
    static Tensor learn(const Tensor& codebook, const Tensor& input, const Tensor& coordinates,
                        at::ArrayRef<double> periods, const Tensor& sigma, const Tensor& rate,
                        const OptionalTensor& bounds, std::string_view neighbourhood, std::string_view metric) {
        const SomArguments args{codebook, input, coordinates, periods, sigma, rate, bounds, neighbourhood, metric};
        return Learn(args, check_som(args));
    }
};

}  // namespace pykernels
