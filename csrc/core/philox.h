// Philox4x32-10 (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405): random numbers as a function of a key
// and a counter, so that every number can be computed anywhere. Plain C++ that both compilers take.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define PYKERNELS_HERE __host__ __device__
#else
#define PYKERNELS_HERE
#endif

namespace pykernels {

// Four random 32-bit numbers: numbers[w] of counter {index, stream} under the key.
PYKERNELS_HERE inline void philox(uint64_t key, uint64_t index, uint32_t stream, uint32_t (&numbers)[4]) {
    uint32_t c0 = static_cast<uint32_t>(index), c1 = static_cast<uint32_t>(index >> 32), c2 = stream, c3 = 0;
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t first = uint64_t{0xD2511F53} * c0, second = uint64_t{0xCD9E8D57} * c2;
        c0 = static_cast<uint32_t>(second >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(second);
        c2 = static_cast<uint32_t>(first >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(first);
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    numbers[0] = c0;
    numbers[1] = c1;
    numbers[2] = c2;
    numbers[3] = c3;
}

}  // namespace pykernels
