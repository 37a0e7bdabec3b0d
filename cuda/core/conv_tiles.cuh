// Tiles of the products with patches: what a warp sums, by matrix instructions for 16-bit types and else by
// multiply-adds, and the ring of tiles in shared memory that it reads. All tiles of operands are as deep as 64 bytes.
#pragma once

#include "cuda/core/conv.cuh"
#include "cuda/core/mma.cuh"

namespace pykernels::cuda {

constexpr int kRing = 3;        // tiles that are loaded or used at one time
constexpr int kRowChunks = 4;   // of 16 bytes, in a row of a tile
constexpr int kTileHalves = 2;  // a tile is used in two halves

template <class T>
constexpr int kTileDepth = kRowChunks * kChunk<T>;
template <class T>
constexpr int kHalfDepth = kTileDepth<T> / kTileHalves;
// Values from one row to the next: what is read together, eight rows, lies in different banks.
template <class T>
constexpr int kRowStride = kTileDepth<T> + kChunk<T>;

// A product of 64 rows (double: 32) and 32 columns, spread over a warp. Operands lie either row by row (and the
// columns' values column by column), each of kRowStride, or depth by depth. `each` visits runs of neighbouring columns.
template <class T>
class WarpSums {
  public:
    using A = Accumulator<T>;
    static constexpr int kLeft = sizeof(T) == 8 ? 4 : 8, kRight = 8;  // a lane's rows and columns
    static constexpr int kRows = 8 * kLeft, kColumns = 4 * kRight;

    // Half a tile.
    __device__ void add_rows(const T* left, const T* right) {
        left += lane() / 4 * kRowStride<T>;
        right += lane() % 4 * kRowStride<T>;
#pragma unroll 1
        for (int k = 0; k < kHalfDepth<T>; k += kChunk<T>) {
            Chunk<T> a[kLeft];
#pragma unroll
            for (int i = 0; i < kLeft; ++i) {
                a[i] = chunk_at(left + i * 8 * kRowStride<T> + k);
            }
#pragma unroll
            for (int j = 0; j < kRight; ++j) {
                const Chunk<T> b = chunk_at(right + j * 4 * kRowStride<T> + k);
#pragma unroll
                for (int i = 0; i < kLeft; ++i) {
#pragma unroll
                    for (int e = 0; e < kChunk<T>; ++e) {
                        sum_[i][j] += a[i].value[e] * b.value[e];
                    }
                }
            }
        }
    }
    template <int kLeftStride, int kRightStride>
    __device__ void add_depths(const T* left, const T* right) {
        constexpr int kEach = kChunk<T>;
        left += lane() / 4 * kEach;
        right += lane() % 4 * kEach;
#pragma unroll
        for (int k = 0; k < kHalfDepth<T>; ++k) {
            Chunk<T> a[kLeft / kEach], b[kRight / kEach];
#pragma unroll
            for (int i = 0; i < kLeft / kEach; ++i) {
                a[i] = chunk_at(left + k * kLeftStride + i * 8 * kEach);
            }
#pragma unroll
            for (int j = 0; j < kRight / kEach; ++j) {
                b[j] = chunk_at(right + k * kRightStride + j * 4 * kEach);
            }
#pragma unroll
            for (int i = 0; i < kLeft; ++i) {
#pragma unroll
                for (int j = 0; j < kRight; ++j) {
                    sum_[i][j] += a[i / kEach].value[i % kEach] * b[j / kEach].value[j % kEach];
                }
            }
        }
    }
    // visit(row, column, run): what add_rows has summed.
    template <class Visit>
    __device__ void each_by_rows(const Visit& visit) {
#pragma unroll
        for (int i = 0; i < kLeft; ++i) {
#pragma unroll
            for (int j = 0; j < kRight; ++j) {
                A run[1] = {sum_[i][j]};
                visit(lane() / 4 + 8 * i, lane() % 4 + 4 * j, run);
            }
        }
    }
    // The same of add_depths.
    template <class Visit>
    __device__ void each_by_depths(const Visit& visit) {
        constexpr int kEach = kChunk<T>;
#pragma unroll
        for (int i = 0; i < kLeft; ++i) {
#pragma unroll
            for (int j = 0; j < kRight; j += kEach) {
                A run[kEach];
#pragma unroll
                for (int e = 0; e < kEach; ++e) {
                    run[e] = sum_[i][j + e];
                }
                visit((lane() / 4 + i / kEach * 8) * kEach + i % kEach, (lane() % 4 + j / kEach * 4) * kEach, run);
            }
        }
    }

  private:
    __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
    __device__ static Chunk<T> chunk_at(const T* from) { return *reinterpret_cast<const Chunk<T>*>(from); }

    A sum_[kLeft][kRight] = {};
};

template <class T>
    requires(sizeof(T) == 2)
class WarpSums<T> {
  public:
    static constexpr int kM = 4, kN = 4;  // blocks of 16 rows and 8 columns
    static constexpr int kRows = 16 * kM, kColumns = 8 * kN;

    __device__ void add_rows(const T* left, const T* right) {
        left += (lane() % 16) * kRowStride<T> + lane() / 16 * 8;
        right += (lane() % 8 + lane() / 16 * 8) * kRowStride<T> + lane() / 8 % 2 * 8;
        multiply([&](int m, uint32_t (&a)[4]) { load_matrices(a, left + m * 16 * kRowStride<T>); },
                 [&](int n, uint32_t (&b)[4]) { load_matrices(b, right + n * 8 * kRowStride<T>); });
    }
    template <int kLeftStride, int kRightStride>
    __device__ void add_depths(const T* left, const T* right) {
        left += (lane() % 8 + lane() / 16 * 8) * kLeftStride + lane() / 8 % 2 * 8;
        right += (lane() % 16) * kRightStride + lane() / 16 * 8;
        multiply([&](int m, uint32_t (&a)[4]) { load_matrices_transposed(a, left + m * 16); },
                 [&](int n, uint32_t (&b)[4]) { load_matrices_transposed(b, right + n * 8); });
    }
    template <class Visit>
    __device__ void each_by_rows(const Visit& visit) {
#pragma unroll
        for (int m = 0; m < kM; ++m) {
#pragma unroll
            for (int n = 0; n < kN; ++n) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    float run[2] = {sum_[m][n][2 * half], sum_[m][n][2 * half + 1]};
                    visit(m * 16 + half * 8 + lane() / 4, n * 8 + lane() % 4 * 2, run);
                }
            }
        }
    }
    template <class Visit>
    __device__ void each_by_depths(const Visit& visit) {
        each_by_rows(visit);
    }

  private:
    __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

    template <class LoadLeft, class LoadRight>
    __device__ void multiply(const LoadLeft& load_left, const LoadRight& load_right) {
        uint32_t a[kM][4];
#pragma unroll
        for (int m = 0; m < kM; ++m) {
            load_left(m, a[m]);
        }
#pragma unroll
        for (int n = 0; n < kN; n += 2) {
            uint32_t b[4];
            load_right(n, b);
#pragma unroll
            for (int m = 0; m < kM; ++m) {
                multiply_add<T>(sum_[m][n], a[m], b[0], b[1]);
                multiply_add<T>(sum_[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }

    float sum_[kM][kN][4] = {};
};

// A block of warps, kDown x kAcross.
template <class T_, int kDown, int kAcross>
struct ConvBlock {
    using T = T_;
    using Sums = WarpSums<T>;
    static constexpr int kWarps = kDown * kAcross, kThreads = kWarps * kWarp;
    static constexpr int kRows = kDown * Sums::kRows, kColumns = kAcross * Sums::kColumns;
    static constexpr int kBlocks = 65536 / (kThreads * (kThreads == 256 ? 128 : 168));  // of a multiprocessor, at least

    __device__ static int thread() { return static_cast<int>(threadIdx.x); }
    __device__ static int first_row() { return thread() / kWarp / kAcross * Sums::kRows; }
    __device__ static int first_column() { return thread() / kWarp % kAcross * Sums::kColumns; }
};

// Numbers of a grid that is all in one dimension, the innermost first.
class BlockNumbers {
  public:
    __device__ int next(int64_t count) {
        const auto base = static_cast<unsigned>(count);
        const unsigned own = rest_ % base;
        rest_ /= base;
        return static_cast<int>(own);
    }

  private:
    unsigned rest_ = blockIdx.x;
};

constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;

}  // namespace pykernels::cuda
