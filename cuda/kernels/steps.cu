#include "cuda/kernels/steps.h"

#include <algorithm>

#include "cuda/core/recurrent.cuh"

namespace pykernels::cuda {
namespace {

// As many offsets as travel in one launch's parameters (4 KB on every device).
constexpr int kChunk = 500;
struct OffsetChunk {
    int64_t value[kChunk];
};

__global__ void __launch_bounds__(kThreads)
    write_chunk(int64_t* offsets, const __grid_constant__ OffsetChunk chunk, int count) {
    for (int index = static_cast<int>(threadIdx.x); index < count; index += kThreads) {
        offsets[index] = chunk.value[index];
    }
}

// The step that row n belongs to: the last t with row_at(t) <= n.
__device__ int64_t step_of_row(const Steps& steps, int64_t n) {
    if (steps.offsets == nullptr) {
        return n / steps.batch;
    }
    int64_t low = 0, high = steps.count;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        if (steps.offsets[middle] <= n) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

// One block a row; the bytes of a T move as they are.
template <class T>
__global__ void __launch_bounds__(kThreads) gather_previous_kernel(const __grid_constant__ PreviousStates args) {
    const int64_t d = blockIdx.z;
    for (int64_t n = blockIdx.x; n < args.steps.rows; n += gridDim.x) {
        const int64_t t = step_of_row(args.steps, n);
        const StepRows rows = rows_of_step(args.steps, t, d == 1);
        const int64_t b = n - rows.row;
        const T* source = nullptr;
        if (b < rows.from) {
            source =
                static_cast<const T*>(args.states) + d * args.direction_stride + (rows.row_from + b) * args.row_stride;
        } else if (args.initial != nullptr) {
            source = static_cast<const T*>(args.initial) + (d * args.steps.batch + b) * args.width;
        }
        T* target = static_cast<T*>(args.previous) + (d * args.steps.rows + n) * args.width;
        for (int64_t k = threadIdx.x; k < args.width; k += kThreads) {
            target[k] = source != nullptr ? source[k] : T(0);
        }
    }
}

}  // namespace

cudaError_t write_offsets(int64_t* offsets, const int64_t* values, int64_t count, cudaStream_t stream) {
    for (int64_t first = 0; first < count; first += kChunk) {
        const int length = static_cast<int>(std::min<int64_t>(kChunk, count - first));
        OffsetChunk chunk;
        std::copy_n(values + first, length, chunk.value);
        if (cudaError_t error = launch(write_chunk, dim3(1), dim3(kThreads), 0, stream, offsets + first, chunk, length);
            error != cudaSuccess) {
            return error;
        }
    }
    return cudaSuccess;
}

cudaError_t gather_previous_states(const PreviousStates& args, cudaStream_t stream) {
    if (args.steps.rows == 0 || args.width == 0) {
        return cudaSuccess;
    }
    constexpr int64_t kMaxBlocks = 1 << 20;
    const dim3 grid(static_cast<unsigned>(args.steps.rows < kMaxBlocks ? args.steps.rows : kMaxBlocks), 1,
                    static_cast<unsigned>(args.directions));
    switch (storage_bytes(args.dtype)) {
        case 8:
            return launch(gather_previous_kernel<uint64_t>, grid, dim3(kThreads), 0, stream, args);
        case 4:
            return launch(gather_previous_kernel<uint32_t>, grid, dim3(kThreads), 0, stream, args);
        default:
            return launch(gather_previous_kernel<uint16_t>, grid, dim3(kThreads), 0, stream, args);
    }
}

}  // namespace pykernels::cuda
