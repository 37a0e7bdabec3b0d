// Philox for counters side by side, in vectors.
#pragma once

#include "core/dropout.h"
#include "core/philox.h"

#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
#include <immintrin.h>
#endif

namespace pykernels {

inline constexpr std::int64_t kPhiloxTogether = 64;

namespace detail {

// 32-bit numbers in a register. The processor multiplies every second lane to 64 bits; upper() and lower() put the
// halves of the products of even and odd lanes back into place.
#if defined(CPU_CAPABILITY_AVX512)
struct PhiloxLanes {
    using Register = __m512i;
    static constexpr int kLanes = 16, kRegisters = 4;
    static Register all(uint32_t value) { return _mm512_set1_epi32(static_cast<int>(value)); }
    static Register count() { return _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0); }
    static Register add(Register a, Register b) { return _mm512_add_epi32(a, b); }
    static Register multiply(Register a, Register b) { return _mm512_mul_epu32(a, b); }
    static Register odd(Register a) { return _mm512_srli_epi64(a, 32); }
    static Register upper(Register even, Register odd) {
        return _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
    }
    static Register lower(Register even, Register odd) {
        return _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
    }
    static Register exclusive_or(Register a, Register b, Register c) {
        return _mm512_ternarylogic_epi32(a, b, c, 0x96);
    }
    static void store(uint32_t* to, Register a) { _mm512_storeu_si512(to, a); }
};
#define PYKERNELS_PHILOX_LANES 1
#elif defined(CPU_CAPABILITY_AVX2)
struct PhiloxLanes {
    using Register = __m256i;
    static constexpr int kLanes = 8, kRegisters = 2;
    static Register all(uint32_t value) { return _mm256_set1_epi32(static_cast<int>(value)); }
    static Register count() { return _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0); }
    static Register add(Register a, Register b) { return _mm256_add_epi32(a, b); }
    static Register multiply(Register a, Register b) { return _mm256_mul_epu32(a, b); }
    static Register odd(Register a) { return _mm256_srli_epi64(a, 32); }
    static Register upper(Register even, Register odd) {
        return _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
    }
    static Register lower(Register even, Register odd) {
        return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
    }
    static Register exclusive_or(Register a, Register b, Register c) {
        return _mm256_xor_si256(_mm256_xor_si256(a, b), c);
    }
    static void store(uint32_t* to, Register a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), a); }
};
#define PYKERNELS_PHILOX_LANES 1
#endif

}  // namespace detail

// The numbers of counters {first + i, second, third}.
inline void philox_together(uint64_t key, uint32_t first, uint32_t second, uint32_t third,
                            uint32_t (&numbers)[4][kPhiloxTogether]) {
#ifdef PYKERNELS_PHILOX_LANES
    using L = detail::PhiloxLanes;
    using Register = L::Register;
    constexpr int many = L::kRegisters;  // side by side, to fill the pipelines
    const Register a = L::all(0xD2511F53), b = L::all(0xCD9E8D57);
    for (int at = 0; at < kPhiloxTogether; at += many * L::kLanes) {
        Register c0[many], c1[many], c2[many], c3[many];
#pragma GCC unroll 4
        for (int i = 0; i < many; ++i) {
            c0[i] = L::add(L::all(first + static_cast<uint32_t>(at + i * L::kLanes)), L::count());
            c1[i] = L::all(second);
            c2[i] = L::all(third);
            c3[i] = L::all(0);
        }
        philox_rounds(key, [&](uint32_t k0, uint32_t k1) {
            const Register key0 = L::all(k0), key1 = L::all(k1);
#pragma GCC unroll 4
            for (int i = 0; i < many; ++i) {
                const Register even = L::multiply(a, c0[i]), odd = L::multiply(a, L::odd(c0[i]));
                const Register other_even = L::multiply(b, c2[i]), other_odd = L::multiply(b, L::odd(c2[i]));
                c0[i] = L::exclusive_or(L::upper(other_even, other_odd), c1[i], key0);
                c1[i] = L::lower(other_even, other_odd);
                c2[i] = L::exclusive_or(L::upper(even, odd), c3[i], key1);
                c3[i] = L::lower(even, odd);
            }
        });
#pragma GCC unroll 4
        for (int i = 0; i < many; ++i) {
            L::store(numbers[0] + at + i * L::kLanes, c0[i]);
            L::store(numbers[1] + at + i * L::kLanes, c1[i]);
            L::store(numbers[2] + at + i * L::kLanes, c2[i]);
            L::store(numbers[3] + at + i * L::kLanes, c3[i]);
        }
    }
#else
    for (int i = 0; i < kPhiloxTogether; ++i) {
        numbers[0][i] = first + static_cast<uint32_t>(i);
        numbers[1][i] = second;
        numbers[2][i] = third;
        numbers[3][i] = 0;
    }
    philox_rounds(key, [&](uint32_t k0, uint32_t k1) {
        for (int i = 0; i < kPhiloxTogether; ++i)
            philox_round(numbers[0][i], numbers[1][i], numbers[2][i], numbers[3][i], k0, k1);
    });
#endif
}

// What dropout multiplies elements `first` to `first + count` of a row by.
template <typename Acc>
void dropout_factors(const DropoutRule& rule, uint32_t row, uint32_t number, std::int64_t first, std::int64_t count,
                     Acc* factors) {
    constexpr std::int64_t block = 4 * kPhiloxTogether;  // numbers of one round of the generator
    alignas(64) uint32_t numbers[4][kPhiloxTogether];
    const Acc kept = static_cast<Acc>(rule.kept);
    for (std::int64_t begin = first / block * block; begin < first + count; begin += block) {
        philox_together(rule.key, static_cast<uint32_t>(begin / 4), row, number, numbers);
        for (std::int64_t j = 0; j < block; j += 16) {
            const uint32_t* part = numbers[j % 64 / 16] + j / 64 * 16;
            const std::int64_t to = begin + j - first;
            if (to >= 0 && to + 16 <= count) {
                for (int i = 0; i < 16; ++i) factors[to + i] = part[i] >= rule.below ? kept : Acc(0);
            } else {
                for (std::int64_t i = std::max<std::int64_t>(0, -to); i < std::min<std::int64_t>(16, count - to); ++i)
                    factors[to + i] = part[i] >= rule.below ? kept : Acc(0);
            }
        }
    }
}

}  // namespace pykernels
