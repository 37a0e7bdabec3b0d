// Dropout by counters: what is dropped is a function of a key and a place, the same in forward and backward and on
// every device, and never stored. Element j of row i (of matrix number n) is dropped if number (j % 64) / 16 of
// Philox's counter {(j / 64) * 16 + j % 16, i, n, 0} is below `below`. Plain C++ that both compilers take.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace pykernels {

struct DropoutRule {
    std::uint64_t key = 0;
    std::uint32_t below = 0;  // 0: nothing is dropped
    double kept = 1;          // what the others are multiplied by
};

inline DropoutRule dropout_rule(std::int64_t seed, double p) {
    // at p = 1 one number in 2^32 is kept, and multiplied by zero
    const double below = std::min(std::floor(p * 4294967296.0 + 0.5), 4294967295.0);
    return {static_cast<std::uint64_t>(seed), static_cast<std::uint32_t>(below), p < 1 ? 1 / (1 - p) : 0};
}

}  // namespace pykernels
