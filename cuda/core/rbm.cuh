// A block's tile of a product, or of other sums of pairs, for endings that want the same four columns in a thread as
// one counter of the random numbers serves.
#pragma once

#include "cuda/core/for_types.cuh"

namespace pykernels::cuda {

// A block has kRows * 16 rows and 64 columns, a thread every 16th of each.
constexpr int kRbmThreads = 256;
constexpr int kRbmSide = 16;     // threads along rows and along columns
constexpr int kRbmColumns = 64;  // of which a thread has four
constexpr int kRbmDepth = 16;    // staged at one time

__device__ inline int rbm_row() { return static_cast<int>(threadIdx.x) / kRbmSide; }
__device__ inline int rbm_column() { return static_cast<int>(threadIdx.x) % kRbmSide; }

template <class A, int kRows>
constexpr size_t rbm_shared_bytes() {
    return sizeof(A) * kRbmDepth * (kRows * kRbmSide + 1 + kRbmColumns + 1);
}

// Copies kCount lines of kRbmDepth each, [depth][line]; neighbours in memory are along the depth, or the lines.
template <int kCount, bool kAlongDepth, class A, class Load>
__device__ inline void rbm_stage(A* tile, const Load& load) {
    constexpr int kEach = kCount * kRbmDepth / kRbmThreads;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        const int index = static_cast<int>(threadIdx.x) + i * kRbmThreads;
        const int k = kAlongDepth ? index % kRbmDepth : index / kCount;
        const int line = kAlongDepth ? index / kRbmDepth : index % kCount;
        tile[k * (kCount + 1) + line] = load(line, k);
    }
}

struct MultiplyAdd {
    template <class A>
    __device__ A operator()(A sum, A a, A b) const {
        return sum + a * b;
    }
};

// sum[i][n] += sum over k < depth of row(rbm_row() + 16 i, k) * column(rbm_column() + 16 n, k), or what `add` makes of
// the pair. Both give zero outside.
template <int kRows, bool kRowsAlongDepth, bool kColumnsAlongDepth, class A, class Row, class Column,
          class Add = MultiplyAdd>
__device__ inline void rbm_product(A (&sum)[kRows][4], int64_t depth, const Row& row, const Column& column,
                                   const Add& add = {}) {
    A* const rows = reinterpret_cast<A*>(shared_memory());
    A* const columns = rows + kRbmDepth * (kRows * kRbmSide + 1);
    for (int64_t first = 0; first < depth; first += kRbmDepth) {
        block_barrier();  // the last tile has been read
        rbm_stage<kRows * kRbmSide, kRowsAlongDepth>(rows, [&](int line, int k) { return row(line, first + k); });
        rbm_stage<kRbmColumns, kColumnsAlongDepth>(columns, [&](int line, int k) { return column(line, first + k); });
        block_barrier();  // this tile has been written
#pragma unroll
        for (int k = 0; k < kRbmDepth; ++k) {
            A of_row[kRows], of_column[4];
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
                of_row[i] = rows[k * (kRows * kRbmSide + 1) + rbm_row() + kRbmSide * i];
            }
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                of_column[n] = columns[k * (kRbmColumns + 1) + rbm_column() + kRbmSide * n];
            }
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    sum[i][n] = add(sum[i][n], of_row[i], of_column[n]);
                }
            }
        }
    }
}

}  // namespace pykernels::cuda
