// Names over at::vec: one vector of the instruction set this file is compiled for, and the operands of the product
// core.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <array>
#include <type_traits>

#include "core/types.h"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace pykernels {

template <typename T>
using Vec = at::vec::Vectorized<T>;

// Elements of the accumulator type in one register.
template <typename T>
inline constexpr int kWidth = Vec<T>::size();

// Type in which values of a storage type are added up.
template <typename S>
using Accumulator = std::conditional_t<std::is_same_v<S, double>, double, float>;

// The first `count` values at `p` as accumulators; the other lanes are zero.
template <typename Acc, typename S>
inline Vec<Acc> load_as(const S* p, int count = kWidth<Acc>) {
    if constexpr (std::is_same_v<S, Acc>) {
        return count == kWidth<Acc> ? Vec<Acc>::loadu(p) : Vec<Acc>::loadu(p, count);
    } else {
        const auto lanes = Vec<S>::loadu(p, count);
        if constexpr (std::is_same_v<S, c10::BFloat16>) {
            return std::get<0>(at::vec::convert_bfloat16_float(lanes));
        } else {
            return std::get<0>(at::vec::convert_half_float(lanes));
        }
    }
}

template <typename Acc, typename S>
inline void store_as(S* p, const Vec<Acc>& value, int count = kWidth<Acc>) {
    if constexpr (std::is_same_v<S, Acc>) {
        count == kWidth<Acc> ? value.store(p) : value.store(p, count);
    } else if constexpr (std::is_same_v<S, c10::BFloat16>) {
        at::vec::convert_float_bfloat16(value, value).store(p, count);
    } else {
        at::vec::convert_float_half(value, value).store(p, count);
    }
}

// Calls visit(i, lanes) for every vector of `count` values.
template <typename T, typename Visit>
[[gnu::always_inline]] inline void each_vector(int64_t count, const Visit& visit) {
    constexpr int width = kWidth<T>;
    const int64_t whole = count / width * width;
    for (int64_t i = 0; i < whole; i += width) visit(i, width);
    if (whole < count) visit(whole, static_cast<int>(count - whole));
}

// Lanes at and beyond `used` are zero.
template <typename T>
inline Vec<T> first_lanes(const Vec<T>& value, int used) {
    return used == kWidth<T> ? value : Vec<T>::set(Vec<T>(T(0)), value, used);
}

// x moved on by a lane, behind the last lane of `before`.
template <typename T>
inline Vec<T> shift_in(const Vec<T>& before, const Vec<T>& x) {
#if defined(CPU_CAPABILITY_AVX512)
    if constexpr (std::is_same_v<T, float>)
        return _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(x), _mm512_castps_si512(before), 15));
    else
        return _mm512_castsi512_pd(_mm512_alignr_epi64(_mm512_castpd_si512(x), _mm512_castpd_si512(before), 7));
#elif defined(CPU_CAPABILITY_AVX2)
    if constexpr (std::is_same_v<T, float>) {
        const __m256i high = _mm256_castps_si256(x);
        const __m256i middle = _mm256_permute2x128_si256(_mm256_castps_si256(before), high, 0x21);
        return _mm256_castsi256_ps(_mm256_alignr_epi8(high, middle, 12));
    } else {
        const __m256i high = _mm256_castpd_si256(x);
        const __m256i middle = _mm256_permute2x128_si256(_mm256_castpd_si256(before), high, 0x21);
        return _mm256_castsi256_pd(_mm256_alignr_epi8(high, middle, 8));
    }
#else
    constexpr int width = kWidth<T>;
    T lanes[2 * width];
    before.store(lanes);
    x.store(lanes + width);
    return Vec<T>::loadu(lanes + width - 1);
#endif
}

// The value as it would be read back from storage type S.
template <typename S, typename Acc>
inline Vec<Acc> round_to(const Vec<Acc>& value) {
    if constexpr (std::is_same_v<S, Acc>) {
        return value;
    } else if constexpr (std::is_same_v<S, c10::BFloat16>) {
        return std::get<0>(at::vec::convert_bfloat16_float(at::vec::convert_float_bfloat16(value, value)));
    } else {
        return std::get<0>(at::vec::convert_half_float(at::vec::convert_float_half(value, value)));
    }
}

// The larger value of each lane; of two of which one is not a number, either.
template <typename T>
inline Vec<T> larger(const Vec<T>& a, const Vec<T>& b) {
    return at::vec::clamp_min(a, b);
}

// Lanes put together by halves: the first with the one in the middle, and so on.
template <typename T, typename Join>
inline T join_lanes(const Vec<T>& value, const Join& join) {
    alignas(64) T lanes[kWidth<T>];
    value.store(lanes);
    for (int half = kWidth<T> / 2; half > 0; half /= 2)
        for (int j = 0; j < half; ++j) lanes[j] = join(lanes[j], lanes[j + half]);
    return lanes[0];
}

#if defined(CPU_CAPABILITY_AVX512)
inline float sum_of_lanes(const Vec<float>& value) { return _mm512_reduce_add_ps(value); }
inline double sum_of_lanes(const Vec<double>& value) { return _mm512_reduce_add_pd(value); }
inline float largest_lane(const Vec<float>& value) { return _mm512_reduce_max_ps(value); }
inline double largest_lane(const Vec<double>& value) { return _mm512_reduce_max_pd(value); }
#else
template <typename T>
inline T sum_of_lanes(const Vec<T>& value) {
    return join_lanes(value, [](T a, T b) { return a + b; });
}
template <typename T>
inline T largest_lane(const Vec<T>& value) {
    return join_lanes(value, [](T a, T b) { return a > b ? a : b; });
}
#endif

// How the product core loads, broadcasts and accumulates one operand type.
template <typename T>
struct Operand {
    using Acc = T;
    using Register = Vec<T>;
    static constexpr int kPerElement = 1;  // summed values in one element
    static Register load(const T* p) { return Register::loadu(p); }
    static Register broadcast(const T* p) { return Register(*p); }
    static Vec<T> multiply_add(const Register& a, const Register& b, const Vec<T>& acc) {
        return at::vec::fmadd(a, b, acc);
    }
};

#ifdef __AVX512BF16__
template <>
struct Operand<Bf16Pair> {
    using Acc = float;
    using Register = __m512i;
    static constexpr int kPerElement = 2;
    static Register load(const Bf16Pair* p) { return _mm512_loadu_si512(p); }
    static Register broadcast(const Bf16Pair* p) {
        int32_t bits;
        __builtin_memcpy(&bits, p, sizeof(bits));
        return _mm512_set1_epi32(bits);
    }
    static Vec<float> multiply_add(Register a, Register b, const Vec<float>& acc) {
        return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
    }
};

// Neighbouring values as pairs, rounded to the nearest.
inline void store_pairs(const Vec<float>& first, const Vec<float>& second, Bf16Pair* to) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}
// Each value of one vector and the same of the other as a pair.
inline void store_zipped(const Vec<float>& even, const Vec<float>& odd, Bf16Pair* to) {
    alignas(64) static constexpr auto order = [] {
        std::array<int16_t, 32> lanes{};
        for (int i = 0; i < 32; ++i) lanes[i] = static_cast<int16_t>(i / 2 + i % 2 * 16);
        return lanes;
    }();
    const auto both = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(_mm512_load_si512(order.data()), both));
}
#endif

template <typename Op>
using AccOf = typename Operand<Op>::Acc;

// Rows of the register tile: with four vectors a row, as many as the registers hold beside the operands.
#if defined(CPU_CAPABILITY_AVX512)
inline constexpr int kRegisters = 32, kTileRows = 6;
#else
inline constexpr int kRegisters = 16, kTileRows = 3;
#endif
inline constexpr int kTileVectors = 4;

}  // namespace pykernels
