// Vectors of pooling: maxima that keep what is not a number, maxima with their places, every second element of a row.
#pragma once

#include <cmath>
#include <limits>
#include <utility>

#include "core/vec.h"

namespace pykernels {

// How the elements of a window are put together. `join(next, so_far)`.
template <typename T>
struct MaximumOf {
    static constexpr T kNothing = -std::numeric_limits<T>::infinity();
    // (of two equal ones the second: zeros keep the sign of the first that came)
    static Vec<T> join(const Vec<T>& next, const Vec<T>& so_far) {
#if defined(CPU_CAPABILITY_AVX512)
        if constexpr (std::is_same_v<T, float>)
            return _mm512_mask_mov_ps(_mm512_max_ps(next, so_far), _mm512_cmp_ps_mask(next, next, _CMP_UNORD_Q), next);
#endif
        return at::vec::maximum(next, so_far);
    }
    static T join(T next, T so_far) { return next > so_far || std::isnan(next) ? next : so_far; }
};

template <typename T>
struct SumOf {
    static constexpr T kNothing = 0;
    static Vec<T> join(const Vec<T>& next, const Vec<T>& so_far) { return so_far + next; }
    static T join(T next, T so_far) { return so_far + next; }
};

// Where `next` is larger than `best` or, if that may be (kMissing), not a number, it and its place are taken.
template <bool kMissing, typename T>
inline void take_larger(const Vec<T>& next, const Vec<T>& tap, Vec<T>& best, Vec<T>& place) {
#if defined(CPU_CAPABILITY_AVX512)
    if constexpr (std::is_same_v<T, float>) {
        __mmask16 larger = _mm512_cmp_ps_mask(next, best, _CMP_GT_OQ);
        best = _mm512_max_ps(next, best);  // the second of two that are equal, or where one is not a number
        if constexpr (kMissing) {
            const __mmask16 missing = _mm512_cmp_ps_mask(next, next, _CMP_UNORD_Q);
            best = _mm512_mask_mov_ps(best, missing, next);
            larger |= missing;
        }
        place = _mm512_mask_mov_ps(place, larger, tap);
        return;
    }
#endif
    Vec<T> larger = next > best;
    if constexpr (kMissing) larger = larger | next.isnan();
    best = Vec<T>::blendv(best, next, larger);
    place = Vec<T>::blendv(place, tap, larger);
}

// Whether any of the lanes is not a number.
template <typename T>
inline bool any_missing(const Vec<T>& value) {
#if defined(CPU_CAPABILITY_AVX512)
    if constexpr (std::is_same_v<T, float>) return _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q) != 0;
#endif
    return value.has_inf_nan() && value.isnan().zero_mask() != (1 << kWidth<T>)-1;
}

// Places are kept in lanes of the accumulator's type, which holds whole numbers up to kLanePlaces exactly.
inline constexpr int64_t kLanePlaces = int64_t{1} << 24;

template <typename T, typename Place>
inline Vec<T> load_places(const Place* p, int count) {
    alignas(64) T lanes[kWidth<T>] = {};
    for (int i = 0; i < count; ++i) lanes[i] = static_cast<T>(p[i]);
    return Vec<T>::loadu(lanes);
}

template <typename T, typename Place>
inline void store_places(Place* p, const Vec<T>& places, int count) {
    alignas(64) T lanes[kWidth<T>];
    places.store(lanes);
    for (int i = 0; i < count; ++i) p[i] = static_cast<Place>(lanes[i]);
}

#if defined(CPU_CAPABILITY_AVX512)
template <>
inline Vec<float> load_places<float>(const uint8_t* p, int count) {
    const __m128i bytes = count == 16 ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(p))
                                      : _mm_maskz_loadu_epi8(static_cast<__mmask16>((1u << count) - 1), p);
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
}
template <>
inline void store_places<float>(uint8_t* p, const Vec<float>& places, int count) {
    const __m512i numbers = _mm512_cvttps_epi32(places);
    _mm512_mask_cvtepi32_storeu_epi8(p, static_cast<__mmask16>((1u << count) - 1), numbers);
}
#elif defined(CPU_CAPABILITY_AVX2)
template <>
inline Vec<float> load_places<float>(const uint8_t* p, int count) {
    uint64_t bytes = 0;
    count == 8 ? __builtin_memcpy(&bytes, p, 8) : __builtin_memcpy(&bytes, p, count & 7);
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(bytes))));
}
template <>
inline void store_places<float>(uint8_t* p, const Vec<float>& places, int count) {
    const __m256i numbers = _mm256_cvttps_epi32(places);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(numbers), _mm256_extracti128_si256(numbers, 1));
    const int64_t bytes = _mm_cvtsi128_si64(_mm_packus_epi16(words, words));
    count == 8 ? __builtin_memcpy(p, &bytes, 8) : __builtin_memcpy(p, &bytes, count & 7);
}
#endif

// The gradients of the first `count` windows whose place is this one, added to a sum.
template <typename T, typename Place>
inline Vec<T> add_where(const Place* places, int64_t tap, const Vec<T>& grad, const Vec<T>& sum, int count) {
#if defined(CPU_CAPABILITY_AVX512)
    if constexpr (std::is_same_v<T, float> && std::is_same_v<Place, uint8_t>) {
        const auto used = static_cast<__mmask16>((1u << count) - 1);
        const __m128i bytes = count == 16 ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(places))
                                          : _mm_maskz_loadu_epi8(used, places);
        return _mm512_mask_add_ps(sum, _mm_cmpeq_epi8_mask(bytes, _mm_set1_epi8(static_cast<char>(tap))), sum, grad);
    }
#endif
    const Vec<T> here = load_places<T>(places, count) == Vec<T>(static_cast<T>(tap));
    return sum + Vec<T>::blendv(Vec<T>(T(0)), grad, here);
}

// The even and the odd ones of the first 2 * count elements.
template <typename Acc, typename S>
inline std::pair<Vec<Acc>, Vec<Acc>> load_pairs(const S* p, int count) {
    constexpr int width = kWidth<Acc>;
    if (count == width) return at::vec::deinterleave2(load_as<Acc>(p), load_as<Acc>(p + width));
    const int first = std::min(2 * count, width), second = 2 * count - first;
    return at::vec::deinterleave2(load_as<Acc>(p, first), second ? load_as<Acc>(p + first, second) : Vec<Acc>(Acc(0)));
}

template <typename Acc, typename S>
inline void store_pairs_of(S* p, const Vec<Acc>& even, const Vec<Acc>& odd, int count) {
    constexpr int width = kWidth<Acc>;
    const auto [low, high] = at::vec::interleave2(even, odd);
    const int first = std::min(2 * count, width), second = 2 * count - first;
    store_as<Acc, S>(p, low, first);
    if (second) store_as<Acc, S>(p + first, high, second);
}

// Calls visit(i, lanes) for vectors that cover [begin, end): where a whole one fits, the last goes back over what the
// one before has done, so visits must not depend on one another.
template <typename T, typename Visit>
[[gnu::always_inline]] inline void cover(int64_t begin, int64_t end, const Visit& visit) {
    constexpr int width = kWidth<T>;
    if (end - begin < width) {
        if (begin < end) visit(begin, static_cast<int>(end - begin));
        return;
    }
    int64_t i = begin;
    for (; i + width <= end; i += width) visit(i, width);
    if (i < end) visit(end - width, width);
}

}  // namespace pykernels
