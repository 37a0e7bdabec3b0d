// Philox for counters side by side, in vectors.
#pragma once

#include "core/philox.h"

namespace pykernels {

inline constexpr std::int64_t kPhiloxTogether = 64;

// The numbers of counters {first + i, second, third}.
inline void philox_together(uint64_t key, uint32_t first, uint32_t second, uint32_t third,
                            uint32_t (&numbers)[4][kPhiloxTogether]) {
    for (std::int64_t i = 0; i < kPhiloxTogether; ++i) {
        numbers[0][i] = first + static_cast<uint32_t>(i);
        numbers[1][i] = second;
        numbers[2][i] = third;
        numbers[3][i] = 0;
    }
    philox_rounds(key, [&](uint32_t k0, uint32_t k1) {
        for (std::int64_t i = 0; i < kPhiloxTogether; ++i)
            philox_round(numbers[0][i], numbers[1][i], numbers[2][i], numbers[3][i], k0, k1);
    });
}

}  // namespace pykernels
