// Kernels in which every thread has an item of its own: one number, of which it takes its digits.
#pragma once

#include "cuda/core/for_types.cuh"

namespace pykernels::cuda {

constexpr int kItemThreads = 256;  // (kernels ask for one block at least, or ptxas would spill to fit in more of them)

__device__ inline int64_t thread_of_grid() { return int64_t{blockIdx.x} * kItemThreads + threadIdx.x; }

// The digits of a number, the last first. Int: for which dividing is cheap where all numbers fit, or int64_t.
template <class Int>
class Digits {
  public:
    using Unsigned = std::make_unsigned_t<Int>;

    __device__ explicit Digits(int64_t number) : rest_(static_cast<Unsigned>(number)) {}
    __device__ Int take(Int base) {
        const Unsigned whole = rest_ / static_cast<Unsigned>(base), own = rest_ - whole * static_cast<Unsigned>(base);
        rest_ = whole;
        return static_cast<Int>(own);
    }
    __device__ Unsigned rest() const { return rest_; }

  private:
    Unsigned rest_;
};

// Neighbours, moved by one access or two.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Neighbours {
    T value[kCount];
};

inline uintptr_t address(const void* data) { return reinterpret_cast<uintptr_t>(data); }

// One thread for each of `count` items.
template <class Kernel, class... Args>
cudaError_t launch_items(Kernel kernel, int64_t count, cudaStream_t stream, const Args&... args) {
    if (count == 0) {
        return cudaSuccess;
    }
    const dim3 grid(static_cast<unsigned>((count + kItemThreads - 1) / kItemThreads));
    return launch(kernel, grid, dim3(kItemThreads), 0, stream, args...);
}

}  // namespace pykernels::cuda
