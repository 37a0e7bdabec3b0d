// Attention, backward, in 16-bit types: the gradient of what is added to the scores. A block has some rows and keys of
// what is not broadcast and sums over the rest, in order; the sums stay in registers.
#include "cuda/core/attention_backward.cuh"
#include "cuda/kernels/attention_parts.h"

namespace pykernels::cuda {
namespace {

template <int kD>
struct MaskTile {
    static constexpr int kRows = 16 * kTileWarps, kKeys = kD <= 128 ? 64 : 32, kN = kKeys / 8;
    // queries, grad_out, keys and values
    static constexpr size_t kSharedBytes = size_t{2} * 2 * (kRows + kKeys) * kTileStride<kD>;
    static_assert(kSharedBytes >= sizeof(float) * kTileWarps * kKeys);
};

template <class T, int kD>
__global__ void __launch_bounds__(kTileThreads, 2)
    mask_kernel(const __grid_constant__ AttentionBackward args, int row_blocks, int key_blocks) {
    using Tile = MaskTile<kD>;
    constexpr int kRows = Tile::kRows, kKeys = Tile::kKeys, kN = Tile::kN, kStride = kTileStride<kD>;
    const AttentionShape& shape = args.shape;
    const MaskPart part(args, row_blocks, key_blocks);
    const int own = warp_of_block() * 16, first_key = part.key_block * kKeys;
    T* queries = reinterpret_cast<T*>(shared_memory());
    T *grad_rows = queries + kRows * kStride, *keys = grad_rows + kRows * kStride, *values = keys + kKeys * kStride;

    Fragments<1, kN> sums = {};
    part.walk(args, kRows, kKeys, [&](const Example& example, int b, int h, int block) {
        const int first_row = block * kRows, g = group_of(shape, h);
        const auto stage = [&](T* tile, const HeadsIn& tensor, int head, auto size, int first, int end,
                               int64_t columns) {
            stage_tile<T, decltype(size)::value, kD>(tile, head_of<T>(tensor, b, head) + first * tensor.row_stride,
                                                     tensor.row_stride, end - first, columns);
        };
        using Rows = std::integral_constant<int, kRows>;
        using Keys = std::integral_constant<int, kKeys>;
        block_barrier();  // what was there before has been used
        stage(queries, args.query, h, Rows(), first_row, example.rows, shape.depth);
        stage(grad_rows, args.grad_out, h, Rows(), first_row, example.rows, shape.value_depth);
        stage(keys, args.key, g, Keys(), first_key, example.keys, shape.depth);
        stage(values, args.value, g, Keys(), first_key, example.keys, shape.value_depth);
        end_copy_group();
        OwnRows rows;
        rows.load(args, example, int64_t{b} * shape.heads + h, first_row + own);
        wait_for_copies<0>();
        block_barrier();  // rows and keys are there
        Fragments<1, kN> products = {}, slopes = {};
        add_dots<T, 1, kN, kD>(products, queries + own * kStride, keys, steps_of(shape.depth));
        add_dots<T, 1, kN, kD>(slopes, grad_rows + own * kStride, values, steps_of(shape.value_depth));
        to_slopes<T, kN>(products, slopes, SlopeRule<T>(args, b, h, false), Dropout(shape, b, h), rows,
                         example.tile(first_row, first_key), own, first_row, first_key);
#pragma unroll
        for (int i = 0; i < 4 * kN; ++i) {
            sums[0][i / 4][i % 4] += slopes[0][i / 4][i % 4];
        }
    });

    float* target = part.target<float>(args);
    if (args.grad_mask_row != 0) {
#pragma unroll
        for (int i = 0; i < 4 * kN; ++i) {
            const int row = part.row_blocks.begin * kRows + own + lane_row() + i % 4 / 2 * 8;
            const int key = first_key + i / 4 * 8 + lane_column() + i % 2;
            if (row < shape.rows && key < shape.keys) {
                target[row * args.grad_mask_row + key] = sums[0][i / 4][i % 4];
            }
        }
        return;
    }
    // One row for all: over the lanes of a warp, then over the warps.
    auto* of_warps = reinterpret_cast<float*>(shared_memory());
    block_barrier();  // the tiles have been used
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            float sum = sums[0][n][e] + sums[0][n][2 + e];
#pragma unroll
            for (int lane_xor = 4; lane_xor < kWarp; lane_xor *= 2) {
                sum += shuffle_xor(sum, lane_xor);
            }
            if (lane_row() == 0) {
                of_warps[warp_of_block() * kKeys + n * 8 + lane_column() + e] = sum;
            }
        }
    }
    block_barrier();  // the sums of the warps have been written
    for (int key = static_cast<int>(threadIdx.x); key < kKeys && first_key + key < shape.keys; key += kTileThreads) {
        float sum = 0;
#pragma unroll
        for (int warp = 0; warp < kTileWarps; ++warp) {
            sum += of_warps[warp * kKeys + key];
        }
        target[first_key + key] = sum;
    }
}

}  // namespace

cudaError_t attention_mask_gradient(const AttentionBackward& args, cudaStream_t stream) {
    const AttentionShape& shape = args.shape;
    const cudaError_t error = for_tiles(shape, [&]<class T, int kD>() {
        using Tile = MaskTile<kD>;
        const int row_blocks = tiles_of(shape.rows, Tile::kRows), key_blocks = tiles_of(shape.keys, Tile::kKeys);
        return launch_tiles(mask_kernel<T, kD>, MaskPart::blocks(args, row_blocks, key_blocks), Tile::kSharedBytes,
                            stream, args, row_blocks, key_blocks);
    });
    return error == cudaErrorNotSupported ? simple_attention_mask_gradient(args, stream) : error;
}

}  // namespace pykernels::cuda
