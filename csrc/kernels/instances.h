// The element types for which every recurrent kernel exists. Each file defines PYKERNELS_INSTANCE and expands the list.
#pragma once

#include <stdexcept>

#include "kernels/recurrent.h"

namespace pykernels {

using Bf16Forward = RecurrentForward<Bf16Pair, c10::BFloat16, c10::BFloat16, float>;

#ifdef __AVX512BF16__
#define PYKERNELS_BF16_INSTANCE PYKERNELS_INSTANCE(Bf16Forward)
#else
#define PYKERNELS_BF16_INSTANCE
[[noreturn]] inline void throw_without_bf16() { throw std::logic_error("this build has no bf16 dot products"); }
#endif

#define PYKERNELS_FORWARD_INSTANCES                                          \
    PYKERNELS_INSTANCE(RecurrentForward<float, float, float, float>)         \
    PYKERNELS_INSTANCE(RecurrentForward<double, double, double, double>)     \
    PYKERNELS_INSTANCE(RecurrentForward<float, c10::BFloat16, float, float>) \
    PYKERNELS_INSTANCE(RecurrentForward<float, c10::Half, float, float>)     \
    PYKERNELS_BF16_INSTANCE

}  // namespace pykernels
