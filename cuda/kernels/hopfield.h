// Launch contract of Hopfield networks: what they compute, csrc/ops/hopfield.h says. Tensors are dense; no buffer
// overlaps another. Fields are sums of the accumulator's type.
#pragma once

#include <cuda_runtime_api.h>

#include "csrc/core/everywhere.h"
#include "cuda/core/types.h"

namespace pykernels::cuda {

// All units of all rows at once: the signs of their fields, or the fields themselves.
struct HopfieldFields {
    DType dtype;
    int64_t units, batch;
    const void* weight;  // [units, units]
    const void* state;   // [batch, units]
    void* next;          // [batch, units]; of the accumulator's type if `raw`
    bool raw;
};
cudaError_t hopfield_fields(const HopfieldFields& args, cudaStream_t stream);

// After sweep number `sweep`: rows that had ended stay as they were, others may end.
struct HopfieldEnding {
    DType dtype;
    int64_t units, batch, sweep;
    const void *before, *now;  // [batch, units]; before is null in the first sweep
    void* next;                // [batch, units]
    int64_t *sweeps, *period;  // [batch]; period is 0 at first
    int64_t* going;            // one: 1 if any row goes on, else 0
};
cudaError_t hopfield_ending(const HopfieldEnding& args, cudaStream_t stream);

// orders [count, units]: the permutations number 0 … count-1 of a key.
cudaError_t hopfield_orders(uint64_t key, int64_t count, int64_t units, int64_t* orders, cudaStream_t stream);

// Which order a row has in a sweep: number sweep * sweep_stride + row * row_stride, in elements.
struct HopfieldOrder {
    const int64_t* data;
    int64_t sweep_stride, row_stride;
};

// Sweeps one unit after the other.
struct HopfieldInOrder {
    DType dtype;
    int64_t units, batch, most;
    HopfieldOrder order;
    const void* outgoing;      // [units, units]: row i has what unit i gives the others
    void* fields;              // [batch, units], of the accumulator's type; those of the state, overwritten
    void* state;               // [batch, units], in place
    int64_t *sweeps, *period;  // [batch]
};
cudaError_t hopfield_in_order(const HopfieldInOrder& args, cudaStream_t stream);

PYKERNELS_EVERYWHERE constexpr int64_t hopfield_words(int64_t count) { return (count + 31) / 32; }

// Hebb's rule from the patterns' bits.
struct HopfieldPacked {
    DType dtype;
    int64_t units, batch, count, most;
    bool at_once;
    HopfieldOrder order;       // not looked at if at_once
    const int64_t* patterns;   // [count, ceil(units / 64)]
    const void* state;         // [batch, units]
    void* out;                 // [batch, units]
    int64_t *sweeps, *period;  // [batch]
    uint32_t* sets;            // workspace [units, words of count]
    uint32_t* signs;           // workspace [batch, 2, words of units]
    int32_t* overlaps;         // workspace [batch, count]
    void* kept;                // workspace [3, batch, units] of the dtype; not looked at unless at_once
};
cudaError_t hopfield_packed(const HopfieldPacked& args, cudaStream_t stream);

}  // namespace pykernels::cuda
