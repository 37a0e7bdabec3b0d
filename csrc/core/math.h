// The transcendentals of the gates, in registers. float: about two units in the last place; double: Sleef's, by
// at::vec.
#pragma once

#include "core/vec.h"

namespace pykernels {
namespace detail {

// exp(r) - 1 for |r| <= ln(2)/2 as r + r^2 q(r); q is the minimax polynomial of degree 4 (error 1.5e-8, relative).
inline Vec<float> expm1_reduced(const Vec<float>& r) {
    using at::vec::fmadd;
    Vec<float> q(0x1.6d965ep-10f);
    q = fmadd(q, r, Vec<float>(0x1.12263cp-7f));
    q = fmadd(q, r, Vec<float>(0x1.55548ap-5f));
    q = fmadd(q, r, Vec<float>(0x1.5554b2p-3f));
    q = fmadd(q, r, Vec<float>(0.5f));
    return fmadd(r * r, q, r);
}

// x = n ln(2) + r with n a whole number and |r| <= ln(2)/2, in two steps so that r keeps its last bits.
inline void reduce(const Vec<float>& x, Vec<float>& n, Vec<float>& r) {
    using at::vec::fnmadd;
    n = (x * Vec<float>(0x1.715476p+0f)).round();
    r = fnmadd(n, Vec<float>(0x1.62e400p-1f), x);
    r = fnmadd(n, Vec<float>(0x1.7f7d1cp-20f), r);
}

// 2^n for a whole number n in [-126, 127].
inline Vec<float> power_of_two(const Vec<float>& n) {
    const auto exponent = at::vec::convert_to_int_of_same_size(n) + Vec<int32_t>(127);
    return at::vec::cast<float, int32_t>(exponent << Vec<int32_t>(23));
}

}  // namespace detail

// 1 / (1 + exp(-x)); exact limits at both ends, NaN stays NaN.
inline Vec<float> sigmoid(const Vec<float>& x) {
    Vec<float> n, r;
    const auto z = at::vec::clamp_min(at::vec::clamp_max(x.neg(), Vec<float>(89.f)), Vec<float>(-86.f));
    detail::reduce(z, n, r);
    // exp(z) as 2 * 2^(n-1) * exp(r): n - 1 stays in range up to where exp(z) becomes infinite.
    const auto half = detail::power_of_two(n - Vec<float>(1.f));
    const auto e = at::vec::fmadd(detail::expm1_reduced(r), half, half);
    return Vec<float>(1.f) / (e + e + Vec<float>(1.f));
}

// tanh(x) = m / (m + 2) with m = exp(2|x|) - 1, which keeps relative accuracy near zero; the sign is put back.
inline Vec<float> tanh(const Vec<float>& x) {
    Vec<float> n, r;
    const auto magnitude = x.abs();
    detail::reduce(at::vec::clamp_max(magnitude + magnitude, Vec<float>(20.f)), n, r);
    const auto scale = detail::power_of_two(n);
    const auto m = at::vec::fmadd(detail::expm1_reduced(r), scale, scale - Vec<float>(1.f));
    const auto sign = x & Vec<float>(-0.f);
    return (m / (m + Vec<float>(2.f))) | sign;
}

// 2^x for x <= 127; zero from -150 (without AVX-512 from -127) down, NaN stays NaN. Error 2.3 units in the last place.
inline Vec<float> exp2(const Vec<float>& x) {
    using at::vec::fmadd;
    const auto series = [](const Vec<float>& r) {
        Vec<float> q(0x1.5bba14p-10f);  // (2^r - 1) / r for |r| <= 1/2 (error 9e-8, relative to 2^r)
        q = fmadd(q, r, Vec<float>(0x1.3cea88p-7f));
        q = fmadd(q, r, Vec<float>(0x1.c6b752p-5f));
        q = fmadd(q, r, Vec<float>(0x1.ebf9bcp-3f));
        return fmadd(q, r, Vec<float>(0x1.62e42ap-1f));
    };
#if defined(CPU_CAPABILITY_AVX512)
    const Vec<float> r = _mm512_reduce_ps(x, 0), n = x - r;  // what is left of -inf is zero
    return _mm512_scalef_ps(fmadd(series(r), r, Vec<float>(1.f)), n);
#else
    const auto z = at::vec::clamp_min(x, Vec<float>(-127.f));
    const auto n = z.round(), r = z - n;
    const auto scale = detail::power_of_two(n);  // of -127: zero
    return fmadd(series(r) * r, scale, scale);
#endif
}

inline Vec<double> exp2(const Vec<double>& x) { return x.exp2(); }

inline Vec<double> sigmoid(const Vec<double>& x) { return Vec<double>(1.0) / (x.neg().exp() + Vec<double>(1.0)); }

inline Vec<double> tanh(const Vec<double>& x) { return x.tanh(); }

}  // namespace pykernels
