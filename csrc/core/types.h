// Types that the contracts of the kernels and the glue share; no vectors here.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>

namespace pykernels {

using std::int64_t;

// Two neighbouring values along the summed dimension: one operand of the bf16 dot-product instruction.
struct Bf16Pair {
    c10::BFloat16 value[2];
};

}  // namespace pykernels
