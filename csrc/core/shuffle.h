// Random orders from a counter-based generator, the same on every device: Fisher and Yates' shuffle (Durstenfeld 1964,
// https://doi.org/10.1145/364520.364540) with Philox's numbers. Plain C++ that both compilers take.
#pragma once

#include "core/philox.h"

namespace pykernels {

// order[0 … count-1] becomes a permutation, number `stream` of those under the key: for i = count-1 … 1, element i
// changes places with element floor(r (i + 1) / 2^32), where r is number i % 4 of counter {i / 4, stream}.
template <typename Index>
PYKERNELS_EVERYWHERE inline void shuffle(uint64_t key, uint32_t stream, int64_t count, Index* order) {
    for (int64_t i = 0; i < count; ++i) order[i] = static_cast<Index>(i);
    uint32_t numbers[4];
    for (int64_t i = count - 1; i >= 1; --i) {
        if (i == count - 1 || i % 4 == 3) philox(key, static_cast<uint64_t>(i / 4), stream, numbers);
        const auto j = static_cast<int64_t>(uint64_t{numbers[i % 4]} * static_cast<uint64_t>(i + 1) >> 32);
        const Index kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
}

}  // namespace pykernels
