// Launch contract of a map that learns sample by sample: what is learned, csrc/ops/som.h and csrc/kernels/som.h say.
// For each sample in turn the best unit b is found and every unit moves: w_j += rate h(d(b, j)) (x - w_j). Rows are
// dense. Results do not depend on how many blocks share the units.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "csrc/core/metric.h"
#include "csrc/core/neighbourhood.h"
#include "cuda/core/types.h"

namespace pykernels::cuda {

struct SomLearn {
    DType dtype;  // f32 or f64
    int64_t samples, units, features;
    Metric metric;
    Neighbourhood neighbourhood;
    int dimensions;              // of the grid
    double periods[2];           // of the grid's coordinates; 0 where they do not come again
    const void* input;           // [samples, features]
    const double* coordinates;   // [units, 2]
    const double *sigma, *rate;  // [samples]
    const void* bounds;          // [2, features], or null: the least and the greatest value of each feature
    void* codebook;              // [units, features], changed
    void* distance;              // [samples]: from the best unit before it moved
    void* workspace;             // of som_workspace
};
size_t som_workspace(const SomLearn& args);
cudaError_t som_learn(const SomLearn& args, cudaStream_t stream);

}  // namespace pykernels::cuda
