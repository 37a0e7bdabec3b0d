// Tiles of attention without matrix instructions: every dtype and head size. A block of 16 x 16 threads has a tile of
// 64 rows by 64 keys or columns; thread (y, x) has rows y + 16 i and keys or columns x + 16 j of it.
#pragma once

#include "cuda/core/attention.cuh"

namespace pykernels::cuda {

constexpr int kSimpleThreads = 256, kSimpleTile = 64, kSimpleLines = 16;
constexpr int kSimpleOwn = kSimpleTile / kSimpleLines;  // a thread's rows, and keys
constexpr int kPart = 16;                               // of the summed dimension, staged at one time

template <class T>
constexpr int kSimpleBlocks = sizeof(Accumulator<T>) == 4 ? 2 : 1;  // of a multiprocessor, at least

template <class T>
using SimpleFragment = Accumulator<T>[kSimpleOwn][kSimpleOwn];

__device__ inline int line_y() { return static_cast<int>(threadIdx.x) / kSimpleLines; }
__device__ inline int line_x() { return static_cast<int>(threadIdx.x) % kSimpleLines; }

// Shared memory: parts of the operands, and a whole tile of weights [row][key].
template <class A>
struct SimpleShared {
    static constexpr int kPartStride = kPart + 1, kTileStride = kSimpleTile + 1;  // odd: columns in different banks
    A left[kSimpleTile * kPartStride], right[kSimpleTile * kPartStride];
    A weights[kSimpleTile * kTileStride];

    __device__ static SimpleShared& get() { return *reinterpret_cast<SimpleShared*>(shared_memory()); }
    __device__ A& weight(int row, int key) { return weights[row * kTileStride + key]; }
};

// Some rows of a head: `count` of them are there.
template <class T>
struct RowsOfHead {
    const T* first;
    int64_t stride;
    int count;
    __device__ RowsOfHead(const HeadsIn& tensor, int64_t b, int64_t h, int row, int end)
        : first(head_of<T>(tensor, b, h) + row * tensor.row_stride), stride(tensor.row_stride), count(end - row) {}
    __device__ Accumulator<T> at(int row, int64_t column, int64_t columns) const {
        return row < count && column < columns ? to_accumulator(first[row * stride + column]) : Accumulator<T>(0);
    }
};

// sums[i][j] += left row y + 16 i times right row x + 16 j. All threads call, as everything here.
template <class T>
__device__ void simple_dots(SimpleFragment<T>& sums, const RowsOfHead<T>& left, const RowsOfHead<T>& right,
                            int64_t columns) {
    using A = Accumulator<T>;
    auto& shared = SimpleShared<A>::get();
    constexpr int kStride = SimpleShared<A>::kPartStride;
    for (int64_t first = 0; first < columns; first += kPart) {
        block_barrier();  // the last part has been used
#pragma unroll 2
        for (int index = static_cast<int>(threadIdx.x); index < kSimpleTile * kPart; index += kSimpleThreads) {
            const int row = index / kPart, column = index % kPart;
            shared.left[row * kStride + column] = left.at(row, first + column, columns);
            shared.right[row * kStride + column] = right.at(row, first + column, columns);
        }
        block_barrier();  // this part is there
#pragma unroll 4
        for (int k = 0; k < kPart; ++k) {
            A a[kSimpleOwn], b[kSimpleOwn];
#pragma unroll
            for (int i = 0; i < kSimpleOwn; ++i) {
                a[i] = shared.left[(line_y() + kSimpleLines * i) * kStride + k];
                b[i] = shared.right[(line_x() + kSimpleLines * i) * kStride + k];
            }
#pragma unroll
            for (int i = 0; i < kSimpleOwn; ++i) {
#pragma unroll
                for (int j = 0; j < kSimpleOwn; ++j) {
                    sums[i][j] += a[i] * b[j];
                }
            }
        }
    }
}

// Keeps the tile of weights for simple_weighted.
template <class T>
__device__ void keep_weights(const SimpleFragment<T>& weights) {
    auto& shared = SimpleShared<Accumulator<T>>::get();
    block_barrier();  // the last weights have been used
#pragma unroll
    for (int i = 0; i < kSimpleOwn; ++i) {
#pragma unroll
        for (int j = 0; j < kSimpleOwn; ++j) {
            shared.weight(line_y() + kSimpleLines * i, line_x() + kSimpleLines * j) = weights[i][j];
        }
    }
}

// sums[i][n] += the kept weights of row y + 16 i (or, turned, of key y + 16 i) times column first_column + x + 16 n.
template <class T, bool kTurned>
__device__ void simple_weighted(SimpleFragment<T>& sums, const RowsOfHead<T>& rows, int64_t first_column,
                                int64_t columns) {
    using A = Accumulator<T>;
    auto& shared = SimpleShared<A>::get();
    constexpr int kStride = SimpleShared<A>::kTileStride;
    for (int first = 0; first < kSimpleTile && first < rows.count; first += kPart) {
        block_barrier();  // the last part has been used
#pragma unroll 2
        for (int index = static_cast<int>(threadIdx.x); index < kPart * kSimpleTile; index += kSimpleThreads) {
            const int row = index / kSimpleTile, column = index % kSimpleTile;
            shared.left[row * kStride + column] = rows.at(first + row, first_column + column, columns);
        }
        block_barrier();  // this part is there
#pragma unroll 4
        for (int k = 0; k < kPart; ++k) {
            A a[kSimpleOwn], b[kSimpleOwn];
#pragma unroll
            for (int i = 0; i < kSimpleOwn; ++i) {
                const int own = line_y() + kSimpleLines * i;
                a[i] = kTurned ? shared.weight(first + k, own) : shared.weight(own, first + k);
                b[i] = shared.left[k * kStride + line_x() + kSimpleLines * i];
            }
#pragma unroll
            for (int i = 0; i < kSimpleOwn; ++i) {
#pragma unroll
                for (int j = 0; j < kSimpleOwn; ++j) {
                    sums[i][j] += a[i] * b[j];
                }
            }
        }
    }
}

// Writes a tile of sums: rows first_row + y + 16 i below `rows`, columns first_column + x + 16 n below `columns`.
template <class T>
__device__ void put_tile(const HeadsOut& to, int64_t b, int64_t h, int first_row, int64_t rows, int64_t first_column,
                         int64_t columns, const SimpleFragment<T>& sums, Accumulator<T> factor) {
    T* head = head_of<T>(to, b, h);
#pragma unroll
    for (int i = 0; i < kSimpleOwn; ++i) {
#pragma unroll
        for (int n = 0; n < kSimpleOwn; ++n) {
            const int64_t row = first_row + line_y() + kSimpleLines * i;
            const int64_t column = first_column + line_x() + kSimpleLines * n;
            if (row < rows && column < columns) {
                head[row * to.row_stride + column] = to_storage<T>(sums[i][n] * factor);
            }
        }
    }
}

}  // namespace pykernels::cuda
