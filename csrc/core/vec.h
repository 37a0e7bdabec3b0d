// Names over at::vec: one vector of the instruction set this file is compiled for, and the operands of the product
// core.
#pragma once

#include <ATen/cpu/vec/vec.h>

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
        alignas(64) S lanes[Vec<S>::size()] = {};
        for (int j = 0; j < count; ++j) lanes[j] = p[j];
        if constexpr (std::is_same_v<S, c10::BFloat16>) {
            return std::get<0>(at::vec::convert_bfloat16_float(Vec<S>::loadu(lanes)));
        } else {
            return std::get<0>(at::vec::convert_half_float(Vec<S>::loadu(lanes)));
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

template <typename T>
inline T sum_of_lanes(const Vec<T>& value) {
    alignas(64) T lanes[kWidth<T>];
    value.store(lanes);
    for (int half = kWidth<T> / 2; half > 0; half /= 2)
        for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
    return lanes[0];
}

// The largest value, or not a number if there is one.
template <typename T>
inline T largest_lane(const Vec<T>& value) {
    alignas(64) T lanes[kWidth<T>];
    value.store(lanes);
    T largest = lanes[0];
    for (int j = 1; j < kWidth<T>; ++j)
        if (lanes[j] > largest || lanes[j] != lanes[j]) largest = lanes[j];
    return largest;
}

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
#endif

// Rows of the register tile: with four vectors a row, as many as the registers hold beside the operands.
#if defined(CPU_CAPABILITY_AVX512)
inline constexpr int kRegisters = 32, kTileRows = 6;
#else
inline constexpr int kRegisters = 16, kTileRows = 3;
#endif
inline constexpr int kTileVectors = 4;

}  // namespace pykernels
