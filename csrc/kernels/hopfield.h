// Launch contract of Hopfield networks on the CPU. Fields v = W y are summed in Acc: float, or double for double. Data
// are dense; out may not overlap what is read. Results do not depend on the number of threads.
#pragma once

#include "core/types.h"

namespace pykernels {

// How long, in which order, and what is told of each row.
struct HopfieldSweeps {
    int64_t units, batch;
    bool at_once;          // all units of a sweep, or one after the other
    const int64_t* order;  // [units], or [batch, units] if order_stride is units and not 0; null: drawn with the seed
    int64_t order_stride;
    uint64_t seed;
    int64_t most;     // sweeps
    int64_t* sweeps;  // [batch]: that were made
    int64_t* period;  // [batch]: 1 if the last sweep changed nothing, 2 if it undid the one before, else 0
};

template <typename Storage_>
struct HopfieldRetrieval {
    using Storage = Storage_;

    HopfieldSweeps run;
    bool symmetric;         // the weight is known to be; it is looked at otherwise
    const Storage* weight;  // [units, units]
    const Storage* state;   // [batch, units]
    Storage* out;           // [batch, units]
};

// The weight is that of Hebb's rule, never written out: patterns of +1 (bit set) and -1, and no unit feeds itself.
// States count by their signs.
template <typename Storage_>
struct HopfieldPackedRetrieval {
    using Storage = Storage_;

    HopfieldSweeps run;
    int64_t count;            // of patterns
    const int64_t* patterns;  // [count, ceil(units / 64)]: unit i is bit i % 64 of word i / 64
    const Storage* state;     // [batch, units]
    Storage* out;             // [batch, units]
};

void hopfield_retrieve(const HopfieldRetrieval<float>& call);
void hopfield_retrieve(const HopfieldRetrieval<double>& call);
void hopfield_retrieve(const HopfieldRetrieval<c10::BFloat16>& call);
void hopfield_retrieve(const HopfieldRetrieval<c10::Half>& call);
void hopfield_retrieve(const HopfieldPackedRetrieval<float>& call);
void hopfield_retrieve(const HopfieldPackedRetrieval<double>& call);
void hopfield_retrieve(const HopfieldPackedRetrieval<c10::BFloat16>& call);
void hopfield_retrieve(const HopfieldPackedRetrieval<c10::Half>& call);

}  // namespace pykernels
