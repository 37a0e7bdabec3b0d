// What the launches of best matching units are made of.
//
// Units are compared by scores, of which the largest is the nearest: x w - w w / 2 where distances are Euclidean,
// x w / |w| for the cosine, -sum |x - w|; x and w are taken from a centre of the codebook, so that how far all of it
// lies from the origin costs no digits. Single precision finds the best groups of units, four each; where the next
// group is within what rounding can do, the sample goes to a list, and it meets all units in double precision.
//
// Rows as the search reads them: chunks of 64 bytes, 16 features each, then 16 bytes that are the row's own. For
// products a feature is the sum of two numbers of 16 bits, after scaling by a power of two: a chunk has the upper ones,
// then the lower ones. For sums it is a float.
#pragma once

#include "cuda/kernels/bmu.h"

namespace pykernels::cuda {

constexpr int kRowChunk = 16, kRowChunkBytes = 64, kRowOwnBytes = 16;  // features; bytes
constexpr int kUnitTile = 128, kSampleTile = 128;                      // prepared rows are a multiple of these
constexpr int kGroup = 4;                                              // units
constexpr int kMostHeldChunks = 4;                                     // of samples that stay in registers
constexpr int kHeldSamples = 256, kHeldUnits = 64;                     // of a block, and of its tile
constexpr int kScanGroups = 32;                                        // units that a block measures at one time

struct BmuStats {
    unsigned norm;        // the largest of a unit, as bits of a float
    unsigned overflowed;  // whether a unit has no score although it is finite
    unsigned long long doubts;
};

struct BmuSearch {
    Bmu call;
    bool products;
    int held;    // groups that are kept: 1, 2 or 8
    int chunks;  // of a row
    int64_t row_bytes;
    int64_t first, count;  // samples of this slice
    int64_t slice, parts;
    int64_t units;  // filled up
    BmuStats* stats;
    void* centre;                // [features] of the type in which the input's is summed
    double* scale;               // [units]: what a unit's row is multiplied by
    unsigned char* unit_rows;    // own: where the score begins
    unsigned char* sample_rows;  // of this slice, tiles only; own: what undoes the scaling
    float* size;                 // [slice]: norms of samples
    float* best;                 // [parts, slice]: held + 1 scores and the numbers of `held` groups
    int64_t* doubts;             // [samples]: those to be decided
    void* nearest;               // [samples, parts, neighbours]: exact search in parts only
};

cudaError_t bmu_prepare_units(const BmuSearch& search, cudaStream_t stream);
cudaError_t bmu_prepare_samples(const BmuSearch& search, cudaStream_t stream);
// The best groups of the slice's samples.
cudaError_t bmu_search_held(const BmuSearch& search, cudaStream_t stream);
cudaError_t bmu_search_products(const BmuSearch& search, cudaStream_t stream);
cudaError_t bmu_search_sums(const BmuSearch& search, cudaStream_t stream);
// From groups to units, or to the list of samples in doubt.
cudaError_t bmu_finish(const BmuSearch& search, cudaStream_t stream);
// Decides the samples in doubt, whose number only the device knows.
cudaError_t bmu_decide(const BmuSearch& search, int64_t blocks, cudaStream_t stream);
// Decides all samples.
cudaError_t bmu_scan(const BmuSearch& search, cudaStream_t stream);

}  // namespace pykernels::cuda
