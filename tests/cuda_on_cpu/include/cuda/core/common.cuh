// Twin of cuda/core/common.cuh: the same names, carried out by the executor. What waits takes the caller's place in the
// source, so that threads that wait at different places are told apart.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

namespace pykernels::cuda {

using cuda_on_cpu::Place;

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

// Storage and accumulator types -------------------------------------------------------------------------------------

namespace detail {

template <class To, class From>
To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

inline uint16_t bf16_bits(float value) {
    const auto bits = bits_as<uint32_t>(value);
    if (value != value) {
        return static_cast<uint16_t>(bits >> 16 | 0x40u);
    }
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// To the nearest, ties to even: the processor's own rounding of value * 2^k does it at the right place.
inline uint16_t fp16_bits(float value) {
    const auto sign = static_cast<uint16_t>(bits_as<uint32_t>(value) >> 16 & 0x8000u);
    const double magnitude = std::fabs(static_cast<double>(value));
    if (value != value) {
        return static_cast<uint16_t>(sign | 0x7e00u);
    }
    if (magnitude >= 65520.0) {
        return static_cast<uint16_t>(sign | 0x7c00u);
    }
    int exponent = 0;
    std::frexp(magnitude, &exponent);  // magnitude in [2^(exponent-1), 2^exponent)
    const int biased = magnitude < 0x1p-14 ? 0 : exponent + 14;
    const int ulp = biased == 0 ? -24 : exponent - 11;
    const auto mantissa = static_cast<unsigned>(std::nearbyint(std::ldexp(magnitude, -ulp)));
    // A mantissa that rounds up to the next power of two carries into the exponent by itself.
    const unsigned bits = biased == 0 ? mantissa : (static_cast<unsigned>(biased) << 10) + (mantissa - 1024u);
    return static_cast<uint16_t>(sign | bits);
}

inline float fp16_value(uint16_t bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    double magnitude = std::ldexp(exponent == 0 ? mantissa : mantissa + 1024, (exponent == 0 ? 1 : exponent) - 25);
    if (exponent == 31) {
        magnitude = mantissa != 0 ? NAN : INFINITY;
    }
    return static_cast<float>((bits & 0x8000u) != 0 ? -magnitude : magnitude);
}

}  // namespace detail

struct bf16 {
    uint16_t bits;
};
struct fp16 {
    uint16_t bits;
};

template <class T>
struct AccumulatorOf {
    using type = float;
};
template <>
struct AccumulatorOf<double> {
    using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

inline float to_accumulator(float value) { return value; }
inline double to_accumulator(double value) { return value; }
inline float to_accumulator(bf16 value) { return detail::bits_as<float>(static_cast<uint32_t>(value.bits) << 16); }
inline float to_accumulator(fp16 value) { return detail::fp16_value(value.bits); }

template <class T>
T to_storage(Accumulator<T> value) {
    if constexpr (std::is_same_v<T, bf16>) {
        return {detail::bf16_bits(value)};
    } else if constexpr (std::is_same_v<T, fp16>) {
        return {detail::fp16_bits(value)};
    } else {
        return value;
    }
}

template <class A>
A exponential(A value) {
    return std::exp(value);
}
template <class A>
A hyperbolic_tangent(A value) {
    return std::tanh(value);
}
template <class A>
A exponential2(A value) {
    return std::exp2(value);
}
inline float fast_exponential2(float value) {
    const float result = std::exp2(value);
    return result < 0x1p-126f ? 0.0f : result;
}
template <class A>
A logarithm2(A value) {
    return std::log2(value);
}
template <class A>
void sine_cosine_pi(A value, A* sine, A* cosine) {
    *sine = std::sin(value * A(3.141592653589793));
    *cosine = std::cos(value * A(3.141592653589793));
}
template <class A>
A maximum(A a, A b) {
    return std::fmax(a, b);
}
template <class A>
A minimum(A a, A b) {
    return std::fmin(a, b);
}
template <class A>
A absolute(A value) {
    return std::fabs(value);
}
template <class A>
A square_root(A value) {
    return std::sqrt(value);
}

inline int population_count(uint32_t bits) { return __builtin_popcount(bits); }

// Memory ------------------------------------------------------------------------------------------------------------

template <class T>
struct alignas(sizeof(T) == 8 ? 16 : 4 * sizeof(T)) Quad {
    T value[4];
};

template <class T>
bool is_quad_aligned(const T* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % alignof(Quad<T>) == 0;
}

template <class T>
Quad<T> load_quad_constant(const T* pointer) {
    return *reinterpret_cast<const Quad<T>*>(pointer);
}
template <class T>
Quad<T> load_quad_coherent(const T* pointer) {
    return *reinterpret_cast<const Quad<T>*>(pointer);
}
template <class T>
T load_coherent(const T* pointer) {
    return *pointer;
}

template <class T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) : 16) Pack {
    static_assert(kCount == 1 || sizeof(T) * kCount % 16 == 0);
    using A = Accumulator<T>;
    T stored[kCount];

    A at(int i) const { return to_accumulator(stored[i]); }
    static Pack of(const A (&values)[kCount]) {
        Pack pack;
        for (int i = 0; i < kCount; ++i) {
            pack.stored[i] = to_storage<T>(values[i]);
        }
        return pack;
    }
};

namespace detail {

template <class T, int kCount>
void check_pack(const T* pointer, const Place& place) {
    if (reinterpret_cast<uintptr_t>(pointer) % alignof(Pack<T, kCount>) != 0) {
        cuda_on_cpu::fail("not aligned to 16 bytes", place);
    }
}

}  // namespace detail

template <int kCount, class T>
Pack<T, kCount> load_pack(const T* pointer, Place place = Place::current()) {
    detail::check_pack<T, kCount>(pointer, place);
    return *reinterpret_cast<const Pack<T, kCount>*>(pointer);
}
template <int kCount, class T>
Pack<T, kCount> load_pack_once(const T* pointer, Place place = Place::current()) {
    return load_pack<kCount>(pointer, place);
}
template <int kCount, class T>
void store_pack(T* pointer, const Pack<T, kCount>& pack, Place place = Place::current()) {
    detail::check_pack<T, kCount>(pointer, place);
    *reinterpret_cast<Pack<T, kCount>*>(pointer) = pack;
}

template <class T, int kCount>
void stay_packed(Pack<T, kCount>&) {}

inline unsigned char* shared_memory() { return cuda_on_cpu::shared_memory(); }

// Warps, blocks and the grid ----------------------------------------------------------------------------------------

template <class T>
T shuffle_xor(T value, int lane_xor, unsigned lanes = kFullWarp, Place place = Place::current()) {
    T result;
    const int lane = cuda_on_cpu::current_thread().number % kWarp;
    cuda_on_cpu::exchange(&value, &result, sizeof(T), lane ^ lane_xor, lanes, place);
    return result;
}

inline void block_barrier(Place place = Place::current()) { cuda_on_cpu::block_barrier(place); }

inline void grid_barrier(unsigned long long* counter, unsigned long long blocks, Place place = Place::current()) {
    cuda_on_cpu::block_barrier(place);
    if (cuda_on_cpu::current_thread().number == 0) {
        cuda_on_cpu::count_and_wait(counter, blocks, place);
    }
    cuda_on_cpu::block_barrier(place);
}

// All threads of all blocks take their turns on one processor thread.
inline unsigned atomic_or(unsigned* to, unsigned value) { return std::exchange(*to, *to | value); }
inline unsigned atomic_max(unsigned* to, unsigned value) { return std::exchange(*to, *to > value ? *to : value); }
inline unsigned long long atomic_add(unsigned long long* to, unsigned long long value) {
    return std::exchange(*to, *to + value);
}

// Launching ---------------------------------------------------------------------------------------------------------

namespace detail {

template <class... Params, class... Args>
cudaError_t launch(bool cooperative, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                   Args&&... args) {
    const std::tuple<std::remove_cv_t<Params>...> values(std::forward<Args>(args)...);
    return cuda_on_cpu::run(grid, block, shared_bytes, cooperative, [&] { std::apply(kernel, values); });
}

}  // namespace detail

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                   Args&&... args) {
    return detail::launch(false, kernel, grid, block, shared_bytes, std::forward<Args>(args)...);
}

template <class... Params, class... Args>
cudaError_t launch_cooperative(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                               Args&&... args) {
    return detail::launch(true, kernel, grid, block, shared_bytes, std::forward<Args>(args)...);
}

inline cudaError_t shared_memory_limit(size_t* bytes) {
    *bytes = cuda_on_cpu::settings().shared_limit;
    return cudaSuccess;
}

inline cudaError_t multiprocessor_count(int64_t* count) {
    *count = cuda_on_cpu::settings().resident_blocks;
    return cudaSuccess;
}

template <class... Params>
cudaError_t max_resident_blocks(void (*)(Params...), int, size_t, int64_t* blocks) {
    *blocks = cuda_on_cpu::settings().resident_blocks;
    return cudaSuccess;
}

}  // namespace pykernels::cuda
