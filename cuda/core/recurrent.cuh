// What the recurrent kernels share: the rows of a step, and the product of gathered state rows with a block's slice of
// a weight matrix. A kernel adds its own ending to the product. Plain device code over the primitives of common.cuh.
#pragma once

#include "cuda/core/common.cuh"
#include "cuda/kernels/steps.h"

namespace pykernels::cuda {

// Steps -------------------------------------------------------------------------------------------------------------

// Sequences running at step t; none outside 0 <= t < T.
__device__ inline int64_t batch_at(const Steps& steps, int64_t t) {
    if (t < 0 || t >= steps.count) {
        return 0;
    }
    return steps.offsets != nullptr ? steps.offsets[t + 1] - steps.offsets[t] : steps.batch;
}

// Row of sequence 0 at step t (0 <= t < T).
__device__ inline int64_t row_at(const Steps& steps, int64_t t) {
    return steps.offsets != nullptr ? steps.offsets[t] : t * steps.batch;
}

// A step and its neighbours in the order in which a kernel walks. Rows are valid only where the batch is not 0.
struct StepRows {
    int64_t row, batch;      // this step
    int64_t row_from, from;  // the step walked before
    int64_t row_to, to;      // the step walked next
};

__device__ inline StepRows rows_of_step(const Steps& steps, int64_t t, bool descending) {
    const int64_t t_from = descending ? t + 1 : t - 1;
    const int64_t t_to = descending ? t - 1 : t + 1;
    StepRows rows{0, batch_at(steps, t), 0, batch_at(steps, t_from), 0, batch_at(steps, t_to)};
    rows.row = rows.batch > 0 ? row_at(steps, t) : 0;
    rows.row_from = rows.from > 0 ? row_at(steps, t_from) : 0;
    rows.row_to = rows.to > 0 ? row_at(steps, t_to) : 0;
    return rows;
}

// The product ---------------------------------------------------------------------------------------------------------
//
// A block owns kBlockUnits units and, at one time, kBlockRows rows. Within a warp the lanes are kUnits units times
// kSlices slices of the inner dimension, which is walked in quads of four: lane (unit u, slice s) sums the quads
// s, s + kSlices, ... of kRows rows times kCols weight columns of its unit. A unit's columns (the four gates, say) thus
// meet in one thread, and so does its state. Weights lie in shared memory in the very order in which the lanes read
// them, [unit warp][pass][column][lane][4]: every access of a warp is one contiguous piece.

constexpr int kThreads = 256;
constexpr int kBlockWarps = kThreads / kWarp;

template <int kUnits_, int kRows_, int kUnitWarps_, int kTileK_>
struct TileShape {
    static constexpr int kUnits = kUnits_;          // units across the lanes of a warp
    static constexpr int kRows = kRows_;            // rows that a lane sums
    static constexpr int kUnitWarps = kUnitWarps_;  // warps side by side along the units
    static constexpr int kTileK = kTileK_;          // inner dimension staged at one time
    static constexpr int kRowWarps = kBlockWarps / kUnitWarps;
    static constexpr int kSlices = kWarp / kUnits;
    static constexpr int kPassK = 4 * kSlices;  // inner dimension that a warp covers with one quad a lane
    static constexpr int kBlockUnits = kUnits * kUnitWarps;
    static constexpr int kBlockRows = kRows * kRowWarps;
    static_assert(kRows <= kSlices && (kRows & (kRows - 1)) == 0 && kTileK % kPassK == 0);

    // Place of the calling thread.
    __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
    __device__ static int warp() { return static_cast<int>(threadIdx.x) / kWarp; }
    __device__ static int slice() { return lane() / kUnits; }
    __device__ static int unit_warp() { return warp() / kRowWarps; }
    __device__ static int first_row() { return warp() % kRowWarps * kRows; }
    // After a product the first kRows slices own one row each: this unit, this row.
    __device__ static bool owns() { return slice() < kRows; }
    __device__ static int unit() { return unit_warp() * kUnits + lane() % kUnits; }
    __device__ static int row() { return first_row() + slice(); }
};
using WideTile = TileShape<8, 4, 1, 128>;    // 8 units x 32 rows
using NarrowTile = TileShape<1, 1, 8, 256>;  // 8 units x 1 row: the whole warp works on one sum
constexpr int kBlockUnits = WideTile::kBlockUnits;
static_assert(NarrowTile::kBlockUnits == kBlockUnits);
constexpr int64_t kNarrowBatch = 4;  // up to this many sequences the narrow tile is used

// Element (unit, column, k) of a weight matrix.
template <class T>
struct WeightView {
    const T* data;
    int64_t unit_stride, col_stride, k_stride;
    int64_t units, inner;  // bounds of unit and k
};

template <class Tile>
__host__ __device__ constexpr int64_t passes_of(int64_t inner) {
    return (inner + Tile::kPassK - 1) / Tile::kPassK;
}

// Elements of shared memory that `inner` of a block's weights take.
template <class Tile, int kCols>
__host__ __device__ constexpr int64_t weight_slice_elements(int64_t inner) {
    return Tile::kUnitWarps * passes_of<Tile>(inner) * kCols * kWarp * 4;
}

// Copies the weights of units first_unit.. and k = first_k .. first_k + passes*kPassK, zeros outside the matrix.
template <class Tile, int kCols, class T>
__device__ void stage_weights(T* slice, const WeightView<T>& weights, int64_t first_unit, int64_t first_k, int passes) {
    const int quads = Tile::kUnitWarps * passes * kCols * kWarp;
    for (int index = static_cast<int>(threadIdx.x); index < quads; index += kThreads) {
        const int lane = index % kWarp;
        const int col = index / kWarp % kCols;
        const int pass = index / (kWarp * kCols) % passes;
        const int unit_warp = index / (kWarp * kCols) / passes;
        const int64_t unit = first_unit + unit_warp * Tile::kUnits + lane % Tile::kUnits;
        const int64_t k = first_k + 4 * (int64_t{pass} * Tile::kSlices + lane / Tile::kUnits);
        const T* source = weights.data + unit * weights.unit_stride + col * weights.col_stride + k * weights.k_stride;
        Quad<T> quad;
        if (unit < weights.units && k + 4 <= weights.inner && weights.k_stride == 1 && is_quad_aligned(source)) {
            quad = load_quad_constant(source);
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const bool inside = unit < weights.units && k + i < weights.inner;
                quad.value[i] = inside ? source[i * weights.k_stride] : to_storage<T>(0);
            }
        }
        reinterpret_cast<Quad<T>*>(slice)[index] = quad;
    }
}

// Copies k = first_k .. first_k + kTileK of the block's rows into tile [kBlockRows][kTileK], zeros outside.
// row_source(row) is where a row starts, or null for a row of zeros.
template <class Tile, class T, class RowSource>
__device__ void stage_rows(Accumulator<T>* tile, const RowSource& row_source, int64_t first_k, int64_t inner) {
    constexpr int kRowQuads = Tile::kTileK / 4;
    for (int index = static_cast<int>(threadIdx.x); index < Tile::kBlockRows * kRowQuads; index += kThreads) {
        const int64_t k = first_k + 4 * (index % kRowQuads);
        const T* source = k < inner ? row_source(index / kRowQuads) : nullptr;
        Quad<Accumulator<T>> quad{};
        if (source != nullptr && k + 4 <= inner && is_quad_aligned(source + k)) {
            const Quad<T> stored = load_quad_coherent(source + k);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                quad.value[i] = to_accumulator(stored.value[i]);
            }
        } else if (source != nullptr) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                quad.value[i] = k + i < inner ? to_accumulator(load_coherent(source + k + i)) : Accumulator<T>(0);
            }
        }
        reinterpret_cast<Quad<Accumulator<T>>*>(tile)[index] = quad;
    }
}

// Adds `passes` passes of rows x weights to the lane's sums.
template <class Tile, int kCols, class T>
__device__ inline void multiply(Accumulator<T> (&sum)[Tile::kRows][kCols], const Accumulator<T>* tile, const T* slice,
                                int passes) {
    using A = Accumulator<T>;
    const auto* row_quads = reinterpret_cast<const Quad<A>*>(tile + Tile::first_row() * Tile::kTileK) + Tile::slice();
    const auto* weight_quads = reinterpret_cast<const Quad<T>*>(slice) + Tile::lane();
    for (int pass = 0; pass < passes; ++pass) {
        A weight[kCols][4];
#pragma unroll
        for (int col = 0; col < kCols; ++col) {
            const Quad<T> stored = weight_quads[(pass * kCols + col) * kWarp];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                weight[col][i] = to_accumulator(stored.value[i]);
            }
        }
#pragma unroll
        for (int row = 0; row < Tile::kRows; ++row) {
            const Quad<A> state = row_quads[row * (Tile::kTileK / 4) + pass * Tile::kSlices];
#pragma unroll
            for (int col = 0; col < kCols; ++col) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    sum[row][col] += state.value[i] * weight[col][i];
                }
            }
        }
    }
}

// total[col] = sum over k of row_source(row)[k] * weights(unit, col, k) for the unit and row that the lane owns.
// `slice` holds the block's weights whole when `resident`, else it is room for one tile of them. All threads call.
template <class Tile, int kCols, class T, class RowSource>
__device__ void recurrent_product(Accumulator<T> (&total)[kCols], const RowSource& row_source,
                                  const WeightView<T>& weights, int64_t first_unit, bool resident, T* slice,
                                  Accumulator<T>* tile) {
    Accumulator<T> sum[Tile::kRows][kCols] = {};
    const int64_t all_passes = passes_of<Tile>(weights.inner);
    constexpr int kTilePasses = Tile::kTileK / Tile::kPassK;
    for (int64_t first_pass = 0; first_pass < all_passes; first_pass += kTilePasses) {
        const int64_t left = all_passes - first_pass;
        const int passes = left < kTilePasses ? static_cast<int>(left) : kTilePasses;
        const int64_t first_k = first_pass * Tile::kPassK;
        block_barrier();  // the last tile has been read
        stage_rows<Tile, T>(tile, row_source, first_k, weights.inner);
        if (!resident) {
            stage_weights<Tile, kCols>(slice, weights, first_unit, first_k, passes);
        }
        block_barrier();  // this tile has been written
        const int64_t pass_at = resident ? Tile::unit_warp() * all_passes + first_pass : Tile::unit_warp() * passes;
        multiply<Tile, kCols, T>(sum, tile, slice + pass_at * kCols * kWarp * 4, passes);
    }
    // Sum over the slices. While a lane still holds several rows it gives half of them away and keeps the others, so
    // that slice s ends with row s % kRows.
#pragma unroll
    for (int half = Tile::kRows / 2; half >= 1; half /= 2) {
        const bool upper = (Tile::slice() & half) != 0;
#pragma unroll
        for (int row = 0; row < half; ++row) {
#pragma unroll
            for (int col = 0; col < kCols; ++col) {
                const Accumulator<T> low = sum[row][col], high = sum[row + half][col];
                sum[row][col] = (upper ? high : low) + shuffle_xor(upper ? low : high, half * Tile::kUnits);
            }
        }
    }
#pragma unroll
    for (int col = 0; col < kCols; ++col) {
#pragma unroll
        for (int lane_xor = Tile::kRows * Tile::kUnits; lane_xor < kWarp; lane_xor *= 2) {
            sum[0][col] += shuffle_xor(sum[0][col], lane_xor);
        }
        total[col] = sum[0][col];
    }
}

// Functions of the endings --------------------------------------------------------------------------------------------

template <class A>
__device__ inline A logistic(A x) {
    return A(1) / (A(1) + exponential(-x));
}

// An element of an optional buffer: 0 where there is none.
template <class T>
__device__ inline Accumulator<T> load_or_zero(const T* data, int64_t index) {
    return data != nullptr ? to_accumulator(data[index]) : Accumulator<T>(0);
}

// How a recurrence is launched --------------------------------------------------------------------------------------

// grid.x = unit blocks, grid.y = row blocks, grid.z = directions.
struct RecurrentPlan {
    dim3 grid;
    size_t shared_bytes;
    bool cooperative;
    bool resident;  // weights stay in shared memory
};

// A barrier among the blocks that share rows: those with the same grid.y and grid.z. The counters lie in different
// cache lines.
constexpr int64_t kCounterStride = 16;

__device__ inline void rows_barrier(unsigned long long* counters) {
    grid_barrier(counters + (int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * kCounterStride, gridDim.x);
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t align_up(int64_t bytes) { return ceil_div(bytes, 256) * 256; }

// The most row blocks that a plan uses, for sizing the counters; a block strides over the rows beyond.
inline int64_t max_row_blocks(int64_t batch) { return batch < 1024 ? batch : 1024; }

inline int64_t counter_bytes(int64_t batch, int64_t directions) {
    return max_row_blocks(batch) * directions * kCounterStride * int64_t{sizeof(unsigned long long)};
}

// Chooses between: cooperative with resident weights, cooperative with streamed weights, a launch a step.
template <class Tile, class Kernel>
cudaError_t plan_recurrence(RecurrentPlan* plan, Kernel kernel, LaunchForm form, int64_t units, int64_t batch,
                            int64_t directions, size_t resident_bytes, size_t streamed_bytes) {
    const int64_t unit_blocks = ceil_div(units, Tile::kBlockUnits);
    int64_t row_blocks = ceil_div(batch, Tile::kBlockRows);
    row_blocks = row_blocks < max_row_blocks(batch) ? row_blocks : max_row_blocks(batch);
    size_t limit = 0;
    if (cudaError_t error = shared_memory_limit(&limit); error != cudaSuccess) {
        return error;
    }
    for (const bool resident : {true, false}) {
        const size_t bytes = resident ? resident_bytes : streamed_bytes;
        if (form == LaunchForm::per_step || bytes > limit) {
            continue;
        }
        int64_t blocks = 0;
        if (cudaError_t error = max_resident_blocks(kernel, kThreads, bytes, &blocks); error != cudaSuccess) {
            return error;
        }
        const int64_t rows_fit = blocks / (unit_blocks * directions);
        if (rows_fit >= 1) {
            const int64_t rows = rows_fit < row_blocks ? rows_fit : row_blocks;
            *plan = {dim3(static_cast<unsigned>(unit_blocks), static_cast<unsigned>(rows),
                          static_cast<unsigned>(directions)),
                     bytes, true, resident};
            return cudaSuccess;
        }
    }
    *plan = {
        dim3(static_cast<unsigned>(unit_blocks), static_cast<unsigned>(row_blocks), static_cast<unsigned>(directions)),
        streamed_bytes, false, false};
    return form == LaunchForm::cooperative ? cudaErrorCooperativeLaunchTooLarge : cudaSuccess;
}

// Launches phases 0 .. phases-1 of kernel(args, plan, counters, first phase, end phase), one launch or one each.
template <class Args>
cudaError_t launch_recurrence(void (*kernel)(Args, RecurrentPlan, unsigned long long*, int64_t, int64_t),
                              const RecurrentPlan& plan, const Args& args, unsigned long long* counters, int64_t phases,
                              cudaStream_t stream) {
    const dim3 block(kThreads);
    if (plan.cooperative) {
        const size_t bytes = plan.grid.y * plan.grid.z * kCounterStride * sizeof(unsigned long long);
        if (cudaError_t error = cudaMemsetAsync(counters, 0, bytes, stream); error != cudaSuccess) {
            return error;
        }
        return launch_cooperative(kernel, plan.grid, block, plan.shared_bytes, stream, args, plan, counters, int64_t{0},
                                  phases);
    }
    for (int64_t phase = 0; phase < phases; ++phase) {
        if (cudaError_t error =
                launch(kernel, plan.grid, block, plan.shared_bytes, stream, args, plan, counters, phase, phase + 1);
            error != cudaSuccess) {
            return error;
        }
    }
    return cudaSuccess;
}

}  // namespace pykernels::cuda
