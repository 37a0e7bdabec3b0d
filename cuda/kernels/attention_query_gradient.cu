// Attention, backward, in 16-bit types: the gradient of the queries. A block has 64 rows of one head; it walks over the
// keys they see and finds their weights again, so that nothing is added to by two blocks. Keys and values of the next
// tile arrive while the block works on this one.
#include "cuda/core/attention_backward.cuh"
#include "cuda/kernels/attention_parts.h"

namespace pykernels::cuda {
namespace {

template <int kD>
struct QueryTile {
    static constexpr int kRows = 16 * kTileWarps, kKeys = kD <= 64 ? 64 : 32, kN = kKeys / 8;
    // queries and grad_out, then twice keys and values
    static constexpr size_t kSharedBytes = size_t{2} * (2 * kRows + 4 * kKeys) * kTileStride<kD>;
};

template <class T, int kD>
__global__ void __launch_bounds__(kTileThreads, 2)
    queries_kernel(const __grid_constant__ AttentionBackward args, int row_blocks) {
    using Tile = QueryTile<kD>;
    constexpr int kRows = Tile::kRows, kKeys = Tile::kKeys, kN = Tile::kN, kStride = kTileStride<kD>;
    const AttentionShape& shape = args.shape;
    const BlockPlace place(row_blocks, shape.heads);
    const int b = place.outer, h = place.head, g = group_of(shape, h);
    const int first_row = (row_blocks - 1 - place.inner) * kRows;  // the longest first
    const Example example(shape, b);
    const Span blocks = blocks_of(example.keys_seen({first_row, first_row + kRows}), kKeys);

    T* queries = reinterpret_cast<T*>(shared_memory());
    T *grad_rows = queries + kRows * kStride, *key_tiles = grad_rows + kRows * kStride;
    const auto stage_keys = [&](int block) {
        const int first_key = block * kKeys, there = example.keys - first_key;
        T* keys = key_tiles + (block - blocks.begin) % 2 * 2 * kKeys * kStride;
        stage_tile<T, kKeys, kD>(keys, head_of<T>(args.key, b, g) + first_key * args.key.row_stride,
                                 args.key.row_stride, there, shape.depth);
        stage_tile<T, kKeys, kD>(keys + kKeys * kStride,
                                 head_of<T>(args.value, b, g) + first_key * args.value.row_stride,
                                 args.value.row_stride, there, shape.value_depth);
        end_copy_group();
    };
    if (!blocks.empty()) {
        const int there = example.rows - first_row;
        stage_tile<T, kRows, kD>(queries, head_of<T>(args.query, b, h) + first_row * args.query.row_stride,
                                 args.query.row_stride, there, shape.depth);
        stage_tile<T, kRows, kD>(grad_rows, head_of<T>(args.grad_out, b, h) + first_row * args.grad_out.row_stride,
                                 args.grad_out.row_stride, there, shape.value_depth);
        stage_keys(blocks.begin);
    }

    const SlopeRule<T> rule(args, b, h, true);
    const int own = warp_of_block() * 16;
    OwnRows rows;
    rows.load(args, example, place.item(), first_row + own);
    Fragments<1, kD / 8> sums = {};
#pragma unroll 1
    for (int block = blocks.begin; block < blocks.end; ++block) {
        wait_for_copies<0>();
        block_barrier();  // the keys are there, and those before have been used
        if (block + 1 < blocks.end) {
            stage_keys(block + 1);
        }
        const T *keys = key_tiles + (block - blocks.begin) % 2 * 2 * kKeys * kStride, *values = keys + kKeys * kStride;
        Fragments<1, kN> products = {}, slopes = {};
        add_dots<T, 1, kN, kD>(products, queries + own * kStride, keys, steps_of(shape.depth));
        add_dots<T, 1, kN, kD>(slopes, grad_rows + own * kStride, values, steps_of(shape.value_depth));
        to_slopes<T, kN>(products, slopes, rule, Dropout(shape, b, h), rows, example.tile(first_row, block * kKeys),
                         own, first_row, block * kKeys);
        add_weighted<T, 1, kN, kD>(sums, slopes, keys);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = first_row + own + half * 8 + lane_row();
        if (row < shape.rows) {
            store_row<T>(head_of<T>(args.grad_query, b, h) + row * args.grad_query.row_stride, sums[0], half,
                         static_cast<float>(shape.scale), shape.depth);
        }
    }
}

}  // namespace

cudaError_t attention_query_gradient(const AttentionBackward& args, cudaStream_t stream) {
    const AttentionShape& shape = args.shape;
    const cudaError_t error = for_tiles(shape, [&]<class T, int kD>() {
        const int row_blocks = tiles_of(shape.rows, QueryTile<kD>::kRows);
        return launch_tiles(queries_kernel<T, kD>, row_blocks * shape.batch * shape.heads, QueryTile<kD>::kSharedBytes,
                            stream, args, row_blocks);
    });
    return error == cudaErrorNotSupported ? simple_attention_query_gradient(args, stream) : error;
}

}  // namespace pykernels::cuda
