// Choices between lanes by a comparison, without a detour over whole registers of ones and zeros.
#pragma once

#include <bit>

#include "core/vec.h"

namespace pykernels {

// Which lanes of `a` are larger than those of `b`; not where either is not a number.
template <typename T>
class Larger {
  public:
    Larger(const Vec<T>& a, const Vec<T>& b)
#if defined(CPU_CAPABILITY_AVX512)
    {
        if constexpr (std::is_same_v<T, float>)
            lanes_ = _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
        else
            lanes_ = _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ);
    }
#else
        : lanes_(a > b) {
    }
#endif
    // `yes` in those lanes, `no` in the others.
    Vec<T> choose(const Vec<T>& yes, const Vec<T>& no) const {
#if defined(CPU_CAPABILITY_AVX512)
        if constexpr (std::is_same_v<T, float>)
            return _mm512_mask_blend_ps(lanes_, no, yes);
        else
            return _mm512_mask_blend_pd(static_cast<__mmask8>(lanes_), no, yes);
#else
        return Vec<T>::blendv(no, yes, lanes_);
#endif
    }
    // A bit for each lane.
    uint32_t bits() const {
#if defined(CPU_CAPABILITY_AVX512)
        return lanes_;
#elif defined(CPU_CAPABILITY_AVX2)
        if constexpr (std::is_same_v<T, float>)
            return static_cast<uint32_t>(_mm256_movemask_ps(lanes_));
        else
            return static_cast<uint32_t>(_mm256_movemask_pd(lanes_));
#else
        using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
        T lane[kWidth<T>];
        lanes_.store(lane);
        uint32_t found = 0;
        for (int i = 0; i < kWidth<T>; ++i) found |= uint32_t(std::bit_cast<Bits>(lane[i]) != 0) << i;
        return found;
#endif
    }

  private:
#if defined(CPU_CAPABILITY_AVX512)
    __mmask16 lanes_;
#else
    Vec<T> lanes_;
#endif
};

// The smaller value of each lane; of two of which one is not a number, either.
template <typename T>
inline Vec<T> smaller(const Vec<T>& a, const Vec<T>& b) {
    return at::vec::clamp_max(a, b);
}

// A whole number kept in a lane by its bits: to move, not to compute with.
template <typename T>
inline T number_in_lane(int64_t number) {
    if constexpr (sizeof(T) == 4)
        return std::bit_cast<float>(static_cast<int32_t>(number));
    else
        return std::bit_cast<double>(number);
}
template <typename T>
inline int64_t number_of_lane(T lane) {
    if constexpr (sizeof(T) == 4)
        return std::bit_cast<int32_t>(lane);
    else
        return std::bit_cast<int64_t>(lane);
}

}  // namespace pykernels
