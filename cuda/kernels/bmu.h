// Launch contract of best matching units: what is found, csrc/ops/bmu.h says. Rows of input and codebook have their
// features beside each other. Nothing of size samples x units is stored, and the result does not depend on how the work
// is laid out: every sample is decided in double precision, among all units where single precision cannot tell.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "csrc/core/metric.h"
#include "cuda/core/types.h"

namespace pykernels::cuda {

struct Bmu {
    DType dtype;
    Metric metric;
    int64_t samples, units, features;
    int neighbours;                         // units wanted for each sample: 1 to 8, `units` at most
    const void* input;                      // [samples, features]
    const void* codebook;                   // [units, features]
    int64_t input_stride, codebook_stride;  // values from one row to the next
    void* distance;                         // [samples, neighbours], ascending
    int64_t* index;                         // [samples, neighbours]
};

enum class BmuWay : int32_t {
    exact,     // every sample meets all units in double precision: there are few
    held,      // products of samples that stay in registers
    products,  // products of tiles
    sums,      // sums of what differs, of tiles
};

// How a call is laid out on the current device.
struct BmuPlan {
    BmuWay way;
    int64_t slice;  // samples that are searched at one time
    int64_t parts;  // of the units, searched by blocks of their own
    size_t workspace;
};

cudaError_t plan_bmu(const Bmu& args, BmuPlan* plan);
// The plan for a device of so many multiprocessors, in a given way.
BmuPlan plan_bmu(const Bmu& args, BmuWay way, int64_t multiprocessors);
cudaError_t bmu(const Bmu& args, const BmuPlan& plan, void* workspace, cudaStream_t stream);

}  // namespace pykernels::cuda
