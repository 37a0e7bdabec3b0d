// Tiles of attention in 16-bit types, by matrix instructions. A block is four warps. A tile of scores lies in registers
// as fragments [m][n][4] (mma.cuh says where: lane 4 g + q), whose m blocks of 16 are a warp's own rows (or keys, where
// scores are turned on their side) and whose n blocks of 8 are keys (or rows). As it lies, it is the left operand of
// the product with values, queries or keys.
//
// What another matrix instruction would replace are stage_tile, add_dots and add_weighted.
#pragma once

#include "cuda/core/attention.cuh"
#include "cuda/core/mma.cuh"

namespace pykernels::cuda {

constexpr int kTileWarps = 4, kTileThreads = kTileWarps * kWarp;
// Keys of a tile that has its keys as a warp's own rows. Lane 4 g + q has keys own_key() and 16 more: two of the four
// whose random numbers are drawn together.
constexpr int kOwnKeys = 64;

// Values from one row to the next in shared memory: what is read together, eight rows, lies in different banks.
template <int kD>
constexpr int kTileStride = kD + 8;

template <int kM, int kN>
using Fragments = float[kM][kN][4];

__device__ inline int lane_of_warp() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp_of_block() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ inline int lane_row() { return lane_of_warp() / 4; }         // g
__device__ inline int lane_column() { return lane_of_warp() % 4 * 2; }  // 2q
__device__ inline int first_own_key() { return warp_of_block() / 2 * 32 + warp_of_block() % 2 * 8; }

// Begins to copy `count` rows of `columns` values to a tile [kRows][kD]; zeros in the rest of it.
template <class T, int kRows, int kD>
__device__ void stage_tile(T* tile, const T* rows, int64_t row_stride, int count, int64_t columns) {
    constexpr int kValues = 8, kChunks = kD / kValues, kStep = kTileThreads / kChunks;  // of 16 bytes; rows at one time
    static_assert(kRows % kStep == 0);
    const int used_rows = clamp(count, 0, kRows);
    const int first = static_cast<int>(threadIdx.x) / kChunks,
              column = static_cast<int>(threadIdx.x) % kChunks * kValues;
    const int inside = clamp(static_cast<int>(columns) - column, 0, kValues);
    T* to = tile + first * kTileStride<kD> + column;
    if (reinterpret_cast<uintptr_t>(rows) % 16 == 0 && row_stride % kValues == 0) {
        const T* from = rows + first * row_stride + column;
#pragma unroll 4
        for (int i = 0; i < kRows / kStep; ++i, from += kStep * row_stride, to += kStep * kTileStride<kD>) {
            const int values = first + i * kStep < used_rows ? inside : 0;
            copy_later(to, values > 0 ? from : rows, values * static_cast<int>(sizeof(T)));
        }
    } else {
#pragma unroll 1
        for (int row = first; row < kRows; row += kStep, to += kStep * kTileStride<kD>) {
            const T* from = rows + row * row_stride + column;
#pragma unroll
            for (int i = 0; i < kValues; ++i) {
                to[i] = i < inside && row < used_rows ? from[i] : to_storage<T>(0);
            }
        }
    }
}

// Steps of 16 that cover so many columns.
__device__ inline int steps_of(int64_t columns) { return static_cast<int>((columns + 15) / 16); }

// sums[m][n] += left rows times right rows, over `steps` steps of the columns. A warp's left rows begin at `left`, and
// a lane's second one is kApart below its first.
template <class T, int kM, int kN, int kD, int kApart = 8>
__device__ inline void add_dots(Fragments<kM, kN>& sums, const T* left, const T* right, int steps) {
    constexpr int kStride = kTileStride<kD>;
    static_assert(kN % 2 == 0 && (kM == 1 || kApart == 8));
    const int lane = lane_of_warp();
    left += (lane % 8 + lane / 8 % 2 * kApart) * kStride + lane / 16 * 8;
    right += (lane % 8 + lane / 16 * 8) * kStride + lane / 8 % 2 * 8;
    const auto step = [&](int k) {
        uint32_t a[kM][4];
#pragma unroll
        for (int m = 0; m < kM; ++m) {
            load_matrices(a[m], left + m * 16 * kStride + k * 16);
        }
#pragma unroll
        for (int n = 0; n < kN; n += 2) {
            uint32_t b[4];
            load_matrices(b, right + n * 8 * kStride + k * 16);
#pragma unroll
            for (int m = 0; m < kM; ++m) {
                multiply_add<T>(sums[m][n], a[m], b[0], b[1]);
                multiply_add<T>(sums[m][n + 1], a[m], b[2], b[3]);
            }
        }
    };
    if (steps == kD / 16) {
#pragma unroll
        for (int k = 0; k < kD / 16; ++k) {
            step(k);
        }
    } else {
#pragma unroll 1
        for (int k = 0; k < steps; ++k) {
            step(k);
        }
    }
}

// sums[m][n] += weights times rows, a row for each of the 8 kN columns of the weights.
template <class T, int kM, int kN, int kD>
__device__ inline void add_weighted(Fragments<kM, kD / 8>& sums, const Fragments<kM, kN>& weights, const T* rows) {
    constexpr int kStride = kTileStride<kD>;
    const int lane = lane_of_warp();
    rows += (lane % 8 + lane / 8 % 2 * 8) * kStride + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < kN / 2; ++k) {
        uint32_t a[kM][4];
#pragma unroll
        for (int m = 0; m < kM; ++m) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float* pair = weights[m][2 * k + i / 2] + i % 2 * 2;
                a[m][i] = pack_pair<T>(pair[0], pair[1]);
            }
        }
#pragma unroll
        for (int n = 0; n < kD / 8; n += 2) {
            uint32_t b[4];
            load_matrices_transposed(b, rows + k * 16 * kStride + n * 8);
#pragma unroll
            for (int m = 0; m < kM; ++m) {
                multiply_add<T>(sums[m][n], a[m], b[0], b[1]);
                multiply_add<T>(sums[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// Over the four lanes that share a row.
__device__ inline float largest_of_row(float value) {
    value = maximum(value, shuffle_xor(value, 1));
    return maximum(value, shuffle_xor(value, 2));
}
__device__ inline float sum_of_row(float value) {
    value += shuffle_xor(value, 1);
    return value + shuffle_xor(value, 2);
}

// Which of one m block's weights dropout keeps: bit 4 n + c for element [n][c]. `row` is that of the lane's first.
template <int kN>
__device__ inline uint32_t kept_of_rows(const Dropout& dropout, int row, int first_key) {
    static_assert(kN == 4 || kN == 8);
    uint32_t kept = 0;
#pragma unroll 1
    for (int which = 0; which < 8; ++which) {
        const int half = which / 4, odd = which / 2 % 2, e = which % 2;
        uint32_t numbers[4];
        dropout.draw(row + 8 * half, first_key, odd * 8 + lane_column() + e, numbers);
        const bool upper = first_key % 64 != 0;  // of 64 keys, the second 32
#pragma unroll
        for (int n = 0; n < kN; n += 2) {
            const uint32_t number = kN == 4 && upper ? numbers[(n / 2 + 2) % 4] : numbers[n / 2];
            kept |= (number >= dropout.below ? 1u : 0u) << (4 * (n + odd) + 2 * half + e);
        }
    }
    return kept;
}
// The same of scores turned on their side: the lane's keys, and rows from first_row on.
template <int kN>
__device__ inline uint32_t kept_of_keys(const Dropout& dropout, int first_row, int first_key) {
    static_assert(kN <= 8);
    uint32_t kept = 0;
    const int place = warp_of_block() % 2 * 8 + lane_row();
    const bool upper = warp_of_block() >= 2;
#pragma unroll 1
    for (int which = 0; which < 2 * kN; ++which) {
        uint32_t numbers[4];
        dropout.draw(first_row + which / 2 * 8 + lane_column() + which % 2, first_key, place, numbers);
        const uint32_t first = upper ? numbers[2] : numbers[0], second = upper ? numbers[3] : numbers[1];
        const int bit = which / 2 * 4 + which % 2;
        kept |= (first >= dropout.below ? 1u : 0u) << bit | (second >= dropout.below ? 1u : 0u) << (bit + 2);
    }
    return kept;
}

// One row of sums times `factor` from a lane's fragments: elements [n][2 half] and [n][2 half + 1]. Times zero is zero,
// whatever the sums are.
template <class T, int kN>
__device__ inline void store_row(T* row, const float (&sums)[kN][4], int half, float factor, int64_t columns) {
    const bool pairs = reinterpret_cast<uintptr_t>(row) % 4 == 0;
#pragma unroll
    for (int n = 0; n < kN; ++n) {
        const int column = n * 8 + lane_column();
        const float first = factor == 0 ? 0.0f : sums[n][2 * half] * factor;
        const float second = factor == 0 ? 0.0f : sums[n][2 * half + 1] * factor;
        if (pairs && column + 1 < columns) {
            *reinterpret_cast<uint32_t*>(row + column) = pack_pair<T>(first, second);
        } else {
            if (column < columns) {
                row[column] = to_storage<T>(first);
            }
            if (column + 1 < columns) {
                row[column + 1] = to_storage<T>(second);
            }
        }
    }
}

// Calls run.template operator()<T, kD>() for the dtype and the head size filled up; cudaErrorNotSupported where there
// are no tiles.
template <class Run>
cudaError_t for_tiles(const AttentionShape& shape, const Run& run) {
    const int64_t columns = shape.depth > shape.value_depth ? shape.depth : shape.value_depth;
    const auto with_type = [&]<class T>(T*) {
        return columns <= 32    ? run.template operator()<T, 32>()
               : columns <= 64  ? run.template operator()<T, 64>()
               : columns <= 128 ? run.template operator()<T, 128>()
                                : run.template operator()<T, 256>();
    };
    if (columns > 256 || (shape.dtype != DType::bf16 && shape.dtype != DType::f16)) {
        return cudaErrorNotSupported;
    }
    return shape.dtype == DType::bf16 ? with_type(static_cast<bf16*>(nullptr)) : with_type(static_cast<fp16*>(nullptr));
}

// Starts a kernel of tiles, if there are blocks; cudaErrorNotSupported where the device has too little shared memory
// for it.
template <class... Params, class... Args>
cudaError_t launch_tiles(void (*kernel)(Params...), int64_t blocks, size_t shared_bytes, cudaStream_t stream,
                         Args&&... args) {
    size_t limit = 0;
    const cudaError_t error = shared_memory_limit(&limit);
    if (blocks == 0 && error == cudaSuccess) {
        return cudaSuccess;
    }
    if (error != cudaSuccess || shared_bytes > limit) {
        return error != cudaSuccess ? error : cudaErrorNotSupported;
    }
    return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kTileThreads), shared_bytes, stream,
                  std::forward<Args>(args)...);
}

}  // namespace pykernels::cuda
