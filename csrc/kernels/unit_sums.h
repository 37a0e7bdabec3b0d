// Launch contract of sums by unit on the CPU: rows of an input added up in double precision, each unit's in ascending
// order, so that results depend neither on the number of threads nor, but for the last bit, on how samples are shared
// among processes.
#pragma once

#include "core/types.h"

namespace pykernels {

template <typename Storage_>
struct UnitSums {
    using Storage = Storage_;

    int64_t samples, units, features;
    const Storage* input;  // [samples, features], features beside each other
    int64_t input_stride;
    const int64_t* index;  // [samples]
    double* sums;          // [units, features]
    int64_t* counts;       // [units]
};

// False where an index is none of a unit: then nothing is of use.
bool unit_sums(const UnitSums<float>& call);
bool unit_sums(const UnitSums<double>& call);
bool unit_sums(const UnitSums<c10::BFloat16>& call);
bool unit_sums(const UnitSums<c10::Half>& call);

}  // namespace pykernels
