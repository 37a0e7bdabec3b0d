// Philox4x32-10 (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405): random numbers as a function of a key
// and a counter, so that every number can be computed anywhere. Plain C++ that both compilers take.
#pragma once

#include <cstdint>

#include "core/everywhere.h"

namespace pykernels {

// One of the ten rounds.
PYKERNELS_EVERYWHERE inline void philox_round(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t k0,
                                              uint32_t k1) {
    const uint64_t first = uint64_t{0xD2511F53} * c0, second = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(second >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(second);
    c2 = static_cast<uint32_t>(first >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(first);
}

// Calls round(k0, k1) with the key of every round.
template <typename Round>
PYKERNELS_EVERYWHERE inline void philox_rounds(uint64_t key, const Round& round) {
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int i = 0; i < 10; ++i) {
        round(k0, k1);
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
}

// Four random 32-bit numbers: numbers[w] of counter {index, stream} under the key.
PYKERNELS_EVERYWHERE inline void philox(uint64_t key, uint64_t index, uint32_t stream, uint32_t (&numbers)[4]) {
    numbers[0] = static_cast<uint32_t>(index);
    numbers[1] = static_cast<uint32_t>(index >> 32);
    numbers[2] = stream;
    numbers[3] = 0;
    philox_rounds(
        key, [&](uint32_t k0, uint32_t k1) { philox_round(numbers[0], numbers[1], numbers[2], numbers[3], k0, k1); });
}

}  // namespace pykernels
