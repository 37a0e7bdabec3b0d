// Signs of states as bits, and bits as lanes.
#pragma once

#include <bit>

#include "core/vec.h"

#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
#include <immintrin.h>
#endif

namespace pykernels {

// Bit i is set where lane i is above zero.
inline uint32_t positive_bits(const Vec<float>& x) {
#if defined(CPU_CAPABILITY_AVX512)
    return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
#elif defined(CPU_CAPABILITY_AVX2)
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GT_OQ)));
#else
    alignas(64) float lanes[kWidth<float>];
    x.store(lanes);
    uint32_t bits = 0;
    for (int i = 0; i < kWidth<float>; ++i) bits |= static_cast<uint32_t>(lanes[i] > 0) << i;
    return bits;
#endif
}

inline uint32_t positive_bits(const Vec<double>& x) {
#if defined(CPU_CAPABILITY_AVX512)
    return _mm512_cmp_pd_mask(x, _mm512_setzero_pd(), _CMP_GT_OQ);
#elif defined(CPU_CAPABILITY_AVX2)
    return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd(x, _mm256_setzero_pd(), _CMP_GT_OQ)));
#else
    alignas(64) double lanes[kWidth<double>];
    x.store(lanes);
    uint32_t bits = 0;
    for (int i = 0; i < kWidth<double>; ++i) bits |= static_cast<uint32_t>(lanes[i] > 0) << i;
    return bits;
#endif
}

// The signs of up to 64 values: where they are above and where below zero.
struct SignBits {
    uint64_t above = 0, below = 0;
};
template <typename Acc, typename S>
inline SignBits sign_bits(const S* values, int64_t count) {
    SignBits bits;
    each_vector<Acc>(count, [&](int64_t i, int used) {
        const auto x = load_as<Acc>(values + i, used);
        bits.above |= uint64_t{positive_bits(x)} << i;
        bits.below |= uint64_t{positive_bits(x.neg())} << i;
    });
    return bits;
}

// A 64 x 64 matrix of bits, row i in word i, becomes its transpose (Warren, Hacker's Delight, 7-3).
inline void transpose_bits(uint64_t (&rows)[64]) {
    uint64_t mask = 0xffffffffull;
    for (int step = 32; step > 0; step /= 2, mask ^= mask << step)
        for (int first = 0; first < 64; first += 2 * step)
            for (int i = first; i < first + step; ++i) {
                const uint64_t moved = (rows[i] >> step ^ rows[i + step]) & mask;
                rows[i] ^= moved << step;
                rows[i + step] ^= moved;
            }
}

// Sets of numbers, 64 a word of `words`. Sums of the members of four sets at a time, and a change of all numbers: by
// `step` of the members, by -step of the others.
#if defined(CPU_CAPABILITY_AVX512)
inline void sums_of_sets(const uint64_t* const (&set)[4], const int32_t* values, int64_t words, int32_t (&sums)[4]) {
    __m512i sum[4] = {};
    for (int64_t w = 0; w < words; ++w)
#pragma GCC unroll 4
        for (int part = 0; part < 4; ++part) {
            const __m512i value = _mm512_loadu_si512(values + w * 64 + part * 16);
#pragma GCC unroll 4
            for (int s = 0; s < 4; ++s)
                sum[s] = _mm512_mask_add_epi32(sum[s], static_cast<__mmask16>(set[s][w] >> part * 16), sum[s], value);
        }
    __m256i half[4];
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s)
        half[s] = _mm256_add_epi32(_mm512_castsi512_si256(sum[s]), _mm512_extracti64x4_epi64(sum[s], 1));
    const __m256i pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(half[0], half[1]), _mm256_hadd_epi32(half[2], half[3]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums),
                     _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)));
}
inline void change_by_set(const uint64_t* set, int32_t* values, int64_t words, int32_t step) {
    const __m512i up = _mm512_set1_epi32(step), down = _mm512_set1_epi32(-step);
    for (int64_t w = 0; w < words; ++w)
#pragma GCC unroll 4
        for (int part = 0; part < 4; ++part) {
            int32_t* const at = values + w * 64 + part * 16;
            const __m512i by = _mm512_mask_blend_epi32(static_cast<__mmask16>(set[w] >> part * 16), down, up);
            _mm512_storeu_si512(at, _mm512_add_epi32(_mm512_loadu_si512(at), by));
        }
}
#elif defined(CPU_CAPABILITY_AVX2)
namespace detail {
// All ones in lane i where bit i of a byte is set.
inline __m256i lanes_of_byte(uint64_t bits) {
    const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int32_t>(bits & 255)), each), each);
}
}  // namespace detail
inline void sums_of_sets(const uint64_t* const (&set)[4], const int32_t* values, int64_t words, int32_t (&sums)[4]) {
    __m256i sum[4] = {};
    for (int64_t w = 0; w < words; ++w)
        for (int part = 0; part < 8; ++part) {
            const __m256i value = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + w * 64 + part * 8));
#pragma GCC unroll 4
            for (int s = 0; s < 4; ++s)
                sum[s] =
                    _mm256_add_epi32(sum[s], _mm256_and_si256(value, detail::lanes_of_byte(set[s][w] >> part * 8)));
        }
    const __m256i pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(sum[0], sum[1]), _mm256_hadd_epi32(sum[2], sum[3]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums),
                     _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)));
}
inline void change_by_set(const uint64_t* set, int32_t* values, int64_t words, int32_t step) {
    const __m256i down = _mm256_set1_epi32(-step), twice = _mm256_set1_epi32(2 * step);
    for (int64_t w = 0; w < words; ++w)
        for (int part = 0; part < 8; ++part) {
            auto* const at = reinterpret_cast<__m256i*>(values + w * 64 + part * 8);
            const __m256i by =
                _mm256_add_epi32(down, _mm256_and_si256(twice, detail::lanes_of_byte(set[w] >> part * 8)));
            _mm256_storeu_si256(at, _mm256_add_epi32(_mm256_loadu_si256(at), by));
        }
}
#else
inline void sums_of_sets(const uint64_t* const (&set)[4], const int32_t* values, int64_t words, int32_t (&sums)[4]) {
    for (int s = 0; s < 4; ++s) {
        int32_t sum = 0;
        for (int64_t w = 0; w < words; ++w)
            for (uint64_t left = set[s][w]; left != 0; left &= left - 1) sum += values[w * 64 + std::countr_zero(left)];
        sums[s] = sum;
    }
}
inline void change_by_set(const uint64_t* set, int32_t* values, int64_t words, int32_t step) {
    for (int64_t w = 0; w < words; ++w)
        for (int i = 0; i < 64; ++i) values[w * 64 + i] += (set[w] >> i & 1) != 0 ? step : -step;
}
#endif

}  // namespace pykernels
