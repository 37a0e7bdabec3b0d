#include "cuda/kernels/random.h"

#include <algorithm>

#include "csrc/core/philox.h"
#include "cuda/core/common.cuh"

namespace pykernels::cuda {
namespace {

constexpr int kMaskThreads = 256;

template <class T>
__device__ T mask_value(double value) {
    if constexpr (std::is_same_v<T, uint8_t>) {
        return static_cast<uint8_t>(value);
    } else {
        return to_storage<T>(static_cast<Accumulator<T>>(value));
    }
}

// A thread has the four numbers of one counter at a time, which lie a quarter of the mask apart.
template <class T>
__global__ void __launch_bounds__(kMaskThreads) mask_kernel(const __grid_constant__ RandomMask args) {
    const int64_t quarter = (args.count + 3) / 4;
    const T chosen = mask_value<T>(args.value), other = mask_value<T>(0);
    T* mask = static_cast<T*>(args.mask);
    for (int64_t index = int64_t{blockIdx.x} * kMaskThreads + threadIdx.x; index < quarter;
         index += int64_t{gridDim.x} * kMaskThreads) {
        uint32_t numbers[4];
        philox(args.key, static_cast<uint64_t>(index), args.stream, numbers);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int64_t element = i * quarter + index;
            if (element < args.count) {
                mask[element] = numbers[i] < args.threshold ? chosen : other;
            }
        }
    }
}

template <class T>
cudaError_t fill_mask(const RandomMask& args, cudaStream_t stream) {
    constexpr int64_t kMaxBlocks = 1 << 16;
    const int64_t blocks = ((args.count + 3) / 4 + kMaskThreads - 1) / kMaskThreads;
    const dim3 grid(static_cast<unsigned>(std::min(blocks, kMaxBlocks)));
    return launch(mask_kernel<T>, grid, dim3(kMaskThreads), 0, stream, args);
}

}  // namespace

cudaError_t random_mask(const RandomMask& args, cudaStream_t stream) {
    if (args.count == 0) {
        return cudaSuccess;
    }
    if (args.bytes) {
        return fill_mask<uint8_t>(args, stream);
    }
    switch (args.dtype) {
        case DType::f32:
            return fill_mask<float>(args, stream);
        case DType::f64:
            return fill_mask<double>(args, stream);
        case DType::bf16:
            return fill_mask<bf16>(args, stream);
        case DType::f16:
            return fill_mask<fp16>(args, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace pykernels::cuda
