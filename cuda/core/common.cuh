// The primitives that every kernel is written with, and the only place that knows the vendor: launches, inline PTX,
// 16-bit types. tests/cuda_on_cpu has a twin of this file with the same names, so a kernel that uses nothing else
// also runs on a processor. Kernels therefore take shared memory from `shared_memory()` and never write `<<<>>>`.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

namespace pykernels::cuda {

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

// Storage and accumulator types -------------------------------------------------------------------------------------

using bf16 = __nv_bfloat16;
using fp16 = __half;

template <class T>
struct AccumulatorOf {
    using type = float;
};
template <>
struct AccumulatorOf<double> {
    using type = double;
};
// The type in which values stored as T are summed.
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

__device__ inline float to_accumulator(float value) { return value; }
__device__ inline double to_accumulator(double value) { return value; }
__device__ inline float to_accumulator(bf16 value) { return __bfloat162float(value); }
__device__ inline float to_accumulator(fp16 value) { return __half2float(value); }

// Rounds to nearest even.
template <class T>
__device__ inline T to_storage(Accumulator<T> value) {
    if constexpr (std::is_same_v<T, bf16>) {
        return __float2bfloat16_rn(value);
    } else if constexpr (std::is_same_v<T, fp16>) {
        return __float2half_rn(value);
    } else {
        return value;
    }
}

__device__ inline float exponential(float value) { return expf(value); }
__device__ inline double exponential(double value) { return exp(value); }
__device__ inline float hyperbolic_tangent(float value) { return tanhf(value); }
__device__ inline double hyperbolic_tangent(double value) { return tanh(value); }
__device__ inline float exponential2(float value) { return exp2f(value); }
__device__ inline double exponential2(double value) { return exp2(value); }
// 2^value with an error of about 2^-22 of it; 0 below 2^-126.
__device__ inline float fast_exponential2(float value) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}
__device__ inline float logarithm2(float value) { return log2f(value); }
__device__ inline double logarithm2(double value) { return log2(value); }
// Of pi times the value.
__device__ inline void sine_cosine_pi(float value, float* sine, float* cosine) { sincospif(value, sine, cosine); }
__device__ inline void sine_cosine_pi(double value, double* sine, double* cosine) { sincospi(value, sine, cosine); }
// The larger of two; of a number and a not-a-number, the number.
__device__ inline float maximum(float a, float b) { return fmaxf(a, b); }
__device__ inline double maximum(double a, double b) { return fmax(a, b); }
__device__ inline float minimum(float a, float b) { return fminf(a, b); }
__device__ inline double minimum(double a, double b) { return fmin(a, b); }
__device__ inline float absolute(float value) { return fabsf(value); }
__device__ inline double absolute(double value) { return fabs(value); }
__device__ inline float square_root(float value) { return sqrtf(value); }
__device__ inline double square_root(double value) { return sqrt(value); }

// How many bits are set.
__device__ inline int population_count(uint32_t bits) { return __popc(bits); }

// Memory ------------------------------------------------------------------------------------------------------------

// Four consecutive values, moved by one access (two of 16 bytes for double).
template <class T>
struct alignas(sizeof(T) == 8 ? 16 : 4 * sizeof(T)) Quad {
    T value[4];
};

template <class T>
__device__ inline bool is_quad_aligned(const T* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % alignof(Quad<T>) == 0;
}

// Data that nothing writes during the launch (read-only path).
template <class T>
__device__ inline Quad<T> load_quad_constant(const T* pointer) {
    using Word = std::conditional_t<sizeof(T) == 2, uint2, uint4>;
    union {
        Word word[sizeof(Quad<T>) / sizeof(Word)];
        Quad<T> quad;
    } bits;
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(Quad<T>) / sizeof(Word)); ++i) {
        bits.word[i] = __ldg(reinterpret_cast<const Word*>(pointer) + i);
    }
    return bits.quad;
}

// Data that other blocks wrote before the last grid barrier: read from the cache that all multiprocessors share.
template <class T>
__device__ inline Quad<T> load_quad_coherent(const T* pointer) {
    using Word = std::conditional_t<sizeof(T) == 2, uint2, uint4>;
    union {
        Word word[sizeof(Quad<T>) / sizeof(Word)];
        Quad<T> quad;
    } bits;
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(Quad<T>) / sizeof(Word)); ++i) {
        bits.word[i] = __ldcg(reinterpret_cast<const Word*>(pointer) + i);
    }
    return bits.quad;
}

template <class T>
__device__ inline T load_coherent(const T* pointer) {
    return __ldcg(pointer);
}

// As many neighbours as an access of 16 bytes has (or a multiple of that), or a single one. Two of 16 bits share a
// register.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) : 16) Pack {
    static_assert(kCount == 1 || sizeof(T) * kCount % 16 == 0);
    using A = Accumulator<T>;
    static constexpr bool kPairs = sizeof(T) == 2 && kCount > 1;
    std::conditional_t<kPairs, uint32_t, T> stored[kPairs ? kCount / 2 : kCount];

    __device__ A at(int i) const {
        if constexpr (!kPairs) {
            return to_accumulator(stored[i]);
        } else if constexpr (std::is_same_v<T, bf16>) {
            return __uint_as_float(i % 2 == 0 ? stored[i / 2] << 16 : stored[i / 2] & 0xffff0000u);
        } else {
            const __half2 pair = *reinterpret_cast<const __half2*>(&stored[i / 2]);
            return i % 2 == 0 ? __low2float(pair) : __high2float(pair);
        }
    }
    __device__ static Pack of(const A (&values)[kCount]) {
        Pack pack;
        if constexpr (!kPairs) {
#pragma unroll
            for (int i = 0; i < kCount; ++i) {
                pack.stored[i] = to_storage<T>(values[i]);
            }
        } else {
#pragma unroll
            for (int i = 0; i < kCount; i += 2) {
                using Pair = std::conditional_t<std::is_same_v<T, bf16>, __nv_bfloat162, __half2>;
                Pair pair;
                if constexpr (std::is_same_v<T, bf16>) {
                    pair = __floats2bfloat162_rn(values[i], values[i + 1]);
                } else {
                    pair = __floats2half2_rn(values[i], values[i + 1]);
                }
                pack.stored[i / 2] = *reinterpret_cast<const uint32_t*>(&pair);
            }
        }
        return pack;
    }
};

namespace detail {

template <class T, int kCount, class Load>
__device__ inline Pack<T, kCount> load_words(const T* pointer, const Load& load) {
    union {
        uint4 word[sizeof(Pack<T, kCount>) / 16];
        Pack<T, kCount> pack;
    } bits;
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(Pack<T, kCount>) / 16); ++i) {
        bits.word[i] = load(reinterpret_cast<const uint4*>(pointer) + i);
    }
    return bits.pack;
}

}  // namespace detail

template <int kCount, class T>
__device__ inline Pack<T, kCount> load_pack(const T* pointer) {
    if constexpr (kCount == 1) {
        return {{*pointer}};
    } else {
        return detail::load_words<T, kCount>(pointer, [](const uint4* word) { return *word; });
    }
}
// Data that is not read again: the first to leave the caches.
template <int kCount, class T>
__device__ inline Pack<T, kCount> load_pack_once(const T* pointer) {
    if constexpr (kCount == 1) {
        return {{*pointer}};
    } else {
        return detail::load_words<T, kCount>(pointer, [](const uint4* word) { return __ldcs(word); });
    }
}
template <int kCount, class T>
__device__ inline void store_pack(T* pointer, const Pack<T, kCount>& pack) {
    if constexpr (kCount == 1) {
        *pointer = pack.stored[0];
    } else {
        union {
            Pack<T, kCount> pack;
            uint4 word[sizeof(Pack<T, kCount>) / 16];
        } bits{pack};
#pragma unroll
        for (int i = 0; i < static_cast<int>(sizeof(Pack<T, kCount>) / 16); ++i) {
            reinterpret_cast<uint4*>(pointer)[i] = bits.word[i];
        }
    }
}

// Values stay packed: what has been computed from them so far is not kept beside them, but computed again. Grids have
// no third dimension, so that blockIdx.z is a zero; but the compiler does not know it.
template <class T, int kCount>
__device__ inline void stay_packed(Pack<T, kCount>& pack) {
    if constexpr (kCount > 1) {
        union {
            Pack<T, kCount> pack;
            uint32_t word[sizeof(Pack<T, kCount>) / 4];
        } bits{pack};
#pragma unroll
        for (int i = 0; i < static_cast<int>(sizeof(Pack<T, kCount>) / 4); ++i) {
            bits.word[i] |= blockIdx.z;
        }
        pack = bits.pack;
    }
}

// The block's dynamic shared memory, aligned to 16 bytes.
__device__ inline unsigned char* shared_memory() {
    extern __shared__ __align__(16) unsigned char pykernels_shared[];
    return pykernels_shared;
}

// Warps, blocks and the grid ----------------------------------------------------------------------------------------

// Every lane of `lanes` takes part; each gets the value of the lane whose number differs by `lane_xor`.
template <class T>
__device__ inline T shuffle_xor(T value, int lane_xor, unsigned lanes = kFullWarp) {
    return __shfl_xor_sync(lanes, value, lane_xor);
}

// Every thread of the block waits; what they wrote before is seen by all of them after.
__device__ inline void block_barrier() { __syncthreads(); }

// As block_barrier, for all threads of the `blocks` blocks that share `counter` (zero at the first launch, only ever
// counted up). All of those blocks must be resident together: cooperative launches only.
__device__ inline void grid_barrier(unsigned long long* counter, unsigned long long blocks) {
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
        unsigned long long before = 0, seen = 0;
        asm volatile("atom.add.acq_rel.gpu.global.u64 %0, [%1], 1;" : "=l"(before) : "l"(counter) : "memory");
        const unsigned long long target = (before / blocks + 1) * blocks;
        do {
            asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(seen) : "l"(counter) : "memory");
        } while (seen < target);
    }
    __syncthreads();
}

// Whole numbers that threads of any block change: results must not depend on the order in which they come. The value
// from before.
__device__ inline unsigned atomic_or(unsigned* to, unsigned value) { return atomicOr(to, value); }
__device__ inline unsigned atomic_max(unsigned* to, unsigned value) { return atomicMax(to, value); }
__device__ inline unsigned long long atomic_add(unsigned long long* to, unsigned long long value) {
    return atomicAdd(to, value);
}

// Launching ---------------------------------------------------------------------------------------------------------

namespace detail {

// More than 48 KB of dynamic shared memory has to be asked for.
template <class... Params>
cudaError_t allow_shared_memory(void (*kernel)(Params...), size_t shared_bytes) {
    if (shared_bytes <= 48 * 1024) {
        return cudaSuccess;
    }
    return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(shared_bytes));
}

template <bool kCooperative, class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   Args&&... args) {
    if (cudaError_t error = allow_shared_memory(kernel, shared_bytes); error != cudaSuccess) {
        return error;
    }
    std::tuple<std::remove_cv_t<Params>...> values(std::forward<Args>(args)...);
    return std::apply(
        [&](auto&... value) {
            void* pointers[] = {const_cast<void*>(static_cast<const void*>(&value))...};
            const void* function = reinterpret_cast<const void*>(kernel);
            if constexpr (kCooperative) {
                return cudaLaunchCooperativeKernel(function, grid, block, pointers, shared_bytes, stream);
            } else {
                return cudaLaunchKernel(function, grid, block, pointers, shared_bytes, stream);
            }
        },
        values);
}

}  // namespace detail

// Starts kernel(args...) on the stream and returns at once; the error is that of the launch.
template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   Args&&... args) {
    return detail::launch<false>(kernel, grid, block, shared_bytes, stream, std::forward<Args>(args)...);
}

// As launch, with all blocks resident together, so that they may wait for each other.
template <class... Params, class... Args>
cudaError_t launch_cooperative(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                               cudaStream_t stream, Args&&... args) {
    return detail::launch<true>(kernel, grid, block, shared_bytes, stream, std::forward<Args>(args)...);
}

// The most dynamic shared memory that one block may take on the current device.
inline cudaError_t shared_memory_limit(size_t* bytes) {
    int device = 0, value = 0;
    if (cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) {
        return error;
    }
    const cudaError_t error = cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    *bytes = static_cast<size_t>(value);
    return error;
}

// Of the current device.
inline cudaError_t multiprocessor_count(int64_t* count) {
    int device = 0, value = 0;
    if (cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) {
        return error;
    }
    const cudaError_t error = cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device);
    *count = value;
    return error;
}

// How many blocks of the kernel the whole device holds at one time; 0 where it has no cooperative launch.
template <class... Params>
cudaError_t max_resident_blocks(void (*kernel)(Params...), int threads, size_t shared_bytes, int64_t* blocks) {
    int device = 0, multiprocessors = 0, cooperative = 0, per_multiprocessor = 0;
    cudaError_t error = detail::allow_shared_memory(kernel, shared_bytes);
    if (error == cudaSuccess) {
        error = cudaGetDevice(&device);
    }
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    }
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device);
    }
    if (error == cudaSuccess) {
        error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(
            &per_multiprocessor, reinterpret_cast<const void*>(kernel), threads, shared_bytes);
    }
    *blocks = cooperative != 0 ? int64_t{multiprocessors} * per_multiprocessor : 0;
    return error;
}

}  // namespace pykernels::cuda
