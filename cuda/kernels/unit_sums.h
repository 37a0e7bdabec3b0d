// Launch contract of sums by unit: what is summed, csrc/ops/bmu.h says. Samples come sorted by their unit, those of a
// unit in ascending order. Rows are added up in double precision: those of a unit that lie in one run of the sorted
// samples one after the other, then its runs, so that the result does not depend on how the work is laid out.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/core/types.h"

namespace pykernels::cuda {

struct UnitKeys {
    int64_t samples, units;
    const int64_t* index;  // [samples]
    int32_t* keys;         // [samples]: the same, to be sorted
    int32_t* wrong;        // whether an index is none of a unit; then nothing is of use
};
cudaError_t unit_keys(const UnitKeys& args, cudaStream_t stream);

struct UnitSums {
    DType dtype;
    int64_t samples, units, features;
    const void* input;     // [samples, features], features beside each other
    int64_t input_stride;  // values from one row to the next
    const int32_t* keys;   // [samples]: units, sorted
    const int64_t* order;  // [samples]: whose they are
    double* sums;          // [units, features]
    int64_t* counts;       // [units]
    void* workspace;       // of unit_sums_workspace
};
size_t unit_sums_workspace(const UnitSums& args);
cudaError_t unit_sums(const UnitSums& args, cudaStream_t stream);

}  // namespace pykernels::cuda
