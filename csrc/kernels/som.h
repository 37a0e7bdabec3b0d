// Launch contract of a map that learns sample by sample on the CPU. For each sample in turn the best unit b is found
// and every unit moves: w_j += rate h(d(b, j)) (x - w_j), with d the distance on the grid. Rows are dense. Results do
// not depend on the number of threads.
#pragma once

#include "core/metric.h"
#include "core/neighbourhood.h"
#include "core/types.h"

namespace pykernels {

template <typename T>
struct SomLearn {
    using Storage = T;

    int64_t samples, units, features;
    Metric metric;
    Neighbourhood neighbourhood;
    int dimensions;              // of the grid
    double periods[2];           // of the grid's coordinates; 0 where they do not come again
    const T* input;              // [samples, features]
    const double* coordinates;   // [units, 2]
    const double *sigma, *rate;  // [samples]
    const T* bounds;             // [2, features], or null: the least and the greatest value of each feature
    T* codebook;                 // [units, features], changed
    T* distance;                 // [samples]: from the best unit before it moved
};

void som_learn(const SomLearn<float>& call);
void som_learn(const SomLearn<double>& call);

}  // namespace pykernels
