// What the variants' kernels for the processor and for the GPU agree on. Plain C++ that both compilers take.
#pragma once

#include <cstdint>

#include "core/everywhere.h"

namespace pykernels {

enum class RecurrentKind : std::int32_t { lstm, gru, rnn };

PYKERNELS_EVERYWHERE constexpr std::int64_t gates_of(RecurrentKind kind) {
    return kind == RecurrentKind::lstm ? 4 : kind == RecurrentKind::gru ? 3 : 1;
}

inline constexpr double kNormEpsilon = 1e-5;  // added to variances

}  // namespace pykernels
