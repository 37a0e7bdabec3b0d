// Launch contract of best matching units on the CPU: the units of a codebook that are nearest to each sample. Rows of
// input and codebook have their features beside each other. Nothing of size samples x units is stored: a thread keeps a
// block of samples, the codebook centred once for all, and the best units so far. The winners are those of float64
// arithmetic; results do not depend on the number of threads.
#pragma once

#include <type_traits>

#include "core/metric.h"
#include "core/types.h"

namespace pykernels {

inline constexpr int kMostNeighbours = 8;

template <typename Storage_>
struct Bmu {
    using Storage = Storage_;
    using Acc = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

    Metric metric;
    int64_t samples, units, features;
    int neighbours;           // units wanted for each sample, kMostNeighbours and `units` at most
    const Storage* input;     // [samples, features]
    const Storage* codebook;  // [units, features]
    int64_t input_stride, codebook_stride;
    Acc* distance;   // [samples, neighbours], ascending
    int64_t* index;  // [samples, neighbours]
};

void bmu(const Bmu<float>& call);
void bmu(const Bmu<double>& call);
void bmu(const Bmu<c10::BFloat16>& call);
void bmu(const Bmu<c10::Half>& call);

}  // namespace pykernels
