// The product of gathered state rows with a block's slice of a weight matrix: the core of every recurrence, which adds
// its own ending. Plain device code over the primitives of common.cuh.
#pragma once

#include "cuda/core/common.cuh"

namespace pykernels::cuda {

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

// Element (unit, column, k) of a weight matrix. k may start in the middle of the inner dimension and go round it.
template <class T>
struct WeightView {
    const T* data;
    int64_t unit_stride, col_stride, k_stride;
    int64_t units, inner;  // bounds of unit and k
    int64_t rotation = 0;  // k = 0 is element `rotation`, k = inner - 1 the one before it
};

// y = x W^T: column c of unit u is row c*units + u of W [columns*units, inner].
template <class T>
__host__ __device__ WeightView<T> rows_of(const T* weight, int64_t units, int64_t inner) {
    return {weight, inner, units * inner, 1, units, inner};
}

// y = x W: the only column of unit u is column u of W [inner, units].
template <class T>
__host__ __device__ WeightView<T> columns_of(const T* weight, int64_t units, int64_t inner, int64_t rotation = 0) {
    return {weight, 1, 0, units, units, inner, rotation};
}

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
        const T* source = weights.data + unit * weights.unit_stride + col * weights.col_stride;
        const bool in_order = weights.k_stride == 1 && weights.rotation == 0;
        Quad<T> quad;
        if (unit < weights.units && k + 4 <= weights.inner && in_order && is_quad_aligned(source + k)) {
            quad = load_quad_constant(source + k);
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const bool inside = unit < weights.units && k + i < weights.inner;
                const int64_t turned = k + i + weights.rotation;
                const int64_t element = turned < weights.inner ? turned : turned - weights.inner;
                quad.value[i] = inside ? source[element * weights.k_stride] : to_storage<T>(0);
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

}  // namespace pykernels::cuda
