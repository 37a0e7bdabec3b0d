// Attention, backward, without matrix instructions: every dtype and head size. As the forward, a block has 64 columns
// of a gradient, and where there are more, each block finds the weights again.
#include "cuda/core/attention_simple.cuh"
#include "cuda/kernels/attention_parts.h"

namespace pykernels::cuda {
namespace {

// A tile's weights and the gradients of its scores.
template <class T>
struct SlopeTile {
    SimpleFragment<T> weights, slopes;

    template <bool kSlopes>
    __device__ void find(const AttentionBackward& args, const Example& example, int b, int h, int first_row,
                         int first_key, bool back_through_softcap) {
        using A = Accumulator<T>;
        const AttentionShape& shape = args.shape;
        const int g = group_of(shape, h);
#pragma unroll
        for (int i = 0; i < kSimpleOwn; ++i) {
#pragma unroll
            for (int j = 0; j < kSimpleOwn; ++j) {
                weights[i][j] = slopes[i][j] = 0;
            }
        }
        simple_dots<T>(weights, RowsOfHead<T>(args.query, b, h, first_row, example.rows),
                       RowsOfHead<T>(args.key, b, g, first_key, example.keys), shape.depth);
        if constexpr (kSlopes) {
            simple_dots<T>(slopes, RowsOfHead<T>(args.grad_out, b, h, first_row, example.rows),
                           RowsOfHead<T>(args.value, b, g, first_key, example.keys), shape.value_depth);
        }
        const SlopeRule<T> rule(args, b, h, back_through_softcap);
        const Dropout dropout(shape, b, h);
        const TileView view = example.tile(first_row, first_key);
        const int64_t item = int64_t{b} * shape.heads + h;
#pragma unroll
        for (int i = 0; i < kSimpleOwn; ++i) {
            const int row = line_y() + kSimpleLines * i;
            const bool there = row < view.rows;
            const int64_t at = item * shape.rows + first_row + row;
            const A taken = taken_from_exponents(there ? static_cast<const A*>(args.lse)[at] : kNothing<A>);
            const A delta = there ? static_cast<const A*>(args.delta)[at] : A(0);
            uint32_t numbers[4] = {};
            if (rule.drops) {
                dropout.draw(first_row + row, first_key, line_x(), numbers);
            }
#pragma unroll
            for (int j = 0; j < kSimpleOwn; ++j) {
                const int key = line_x() + kSimpleLines * j;
                rule.apply(weights[i][j], slopes[i][j], view.sees(row, key), numbers[j] >= dropout.below,
                           first_row + row, first_key + key, taken, delta);
            }
        }
    }
};

template <class T>
__global__ void __launch_bounds__(kSimpleThreads, kSimpleBlocks<T>)
    simple_queries_kernel(const __grid_constant__ AttentionBackward args, int row_blocks) {
    const AttentionShape& shape = args.shape;
    const BlockPlace place(row_blocks, shape.heads);
    const int b = place.outer, h = place.head, first_row = (row_blocks - 1 - place.inner) * kSimpleTile;
    const int64_t first_column = int64_t{blockIdx.y} * kSimpleTile;
    const Example example(shape, b);
    const Span blocks = blocks_of(example.keys_seen({first_row, first_row + kSimpleTile}), kSimpleTile);
    SimpleFragment<T> sums = {};
    for (int block = blocks.begin; block < blocks.end; ++block) {
        SlopeTile<T> tile;
        tile.template find<true>(args, example, b, h, first_row, block * kSimpleTile, true);
        keep_weights<T>(tile.slopes);
        const RowsOfHead<T> keys(args.key, b, group_of(shape, h), block * kSimpleTile, example.keys);
        simple_weighted<T, false>(sums, keys, first_column, shape.depth);
    }
    put_tile<T>(args.grad_query, b, h, first_row, shape.rows, first_column, shape.depth, sums,
                static_cast<Accumulator<T>>(shape.scale));
}

// The gradient of the keys, or else of the values.
template <class T, bool kOfKeys>
__global__ void __launch_bounds__(kSimpleThreads, kSimpleBlocks<T>)
    simple_keys_kernel(const __grid_constant__ AttentionBackward args, int key_blocks) {
    const AttentionShape& shape = args.shape;
    const BlockPlace place(key_blocks, shape.groups);
    const int b = place.outer, g = place.head, first_key = place.inner * kSimpleTile;
    const int64_t first_column = int64_t{blockIdx.y} * kSimpleTile;
    const int64_t columns = kOfKeys ? shape.depth : shape.value_depth;
    const int heads_of_group = static_cast<int>(shape.heads) / static_cast<int>(shape.groups);
    const Example example(shape, b);
    const Span blocks = blocks_of(example.rows_seeing({first_key, first_key + kSimpleTile}), kSimpleTile);
    SimpleFragment<T> sums = {};
    for (int h = g * heads_of_group; h < (g + 1) * heads_of_group; ++h) {
        for (int block = blocks.begin; block < blocks.end; ++block) {
            SlopeTile<T> tile;
            tile.template find<kOfKeys>(args, example, b, h, block * kSimpleTile, first_key, true);
            if constexpr (kOfKeys) {
                keep_weights<T>(tile.slopes);
            } else {
                keep_weights<T>(tile.weights);
            }
            const RowsOfHead<T> rows(kOfKeys ? args.query : args.grad_out, b, h, block * kSimpleTile, example.rows);
            simple_weighted<T, true>(sums, rows, first_column, columns);
        }
    }
    put_tile<T>(kOfKeys ? args.grad_key : args.grad_value, b, g, first_key, shape.keys, first_column, columns, sums,
                kOfKeys ? static_cast<Accumulator<T>>(shape.scale) : Accumulator<T>(1));
}

template <class T>
__global__ void __launch_bounds__(kSimpleThreads, kSimpleBlocks<T>)
    simple_mask_kernel(const __grid_constant__ AttentionBackward args, int row_blocks, int key_blocks) {
    using A = Accumulator<T>;
    const MaskPart part(args, row_blocks, key_blocks);
    const int first_key = part.key_block * kSimpleTile;
    SimpleFragment<T> sums = {};
    part.walk(args, kSimpleTile, kSimpleTile, [&](const Example& example, int b, int h, int block) {
        SlopeTile<T> tile;
        tile.template find<true>(args, example, b, h, block * kSimpleTile, first_key, false);
#pragma unroll
        for (int i = 0; i < kSimpleOwn * kSimpleOwn; ++i) {
            sums[i / kSimpleOwn][i % kSimpleOwn] += tile.slopes[i / kSimpleOwn][i % kSimpleOwn];
        }
    });
    A* target = part.target<A>(args);
    if (args.grad_mask_row != 0) {
#pragma unroll
        for (int i = 0; i < kSimpleOwn * kSimpleOwn; ++i) {
            const int row = part.row_blocks.begin * kSimpleTile + line_y() + i / kSimpleOwn * kSimpleLines;
            const int key = first_key + line_x() + i % kSimpleOwn * kSimpleLines;
            if (row < args.shape.rows && key < args.shape.keys) {
                target[row * args.grad_mask_row + key] = sums[i / kSimpleOwn][i % kSimpleOwn];
            }
        }
        return;
    }
    keep_weights<T>(sums);
    block_barrier();  // the sums have been written
    auto& shared = SimpleShared<A>::get();
    const int key = static_cast<int>(threadIdx.x);
    if (key < kSimpleTile && first_key + key < args.shape.keys) {
        A sum = 0;
        for (int row = 0; row < kSimpleTile; ++row) {
            sum += shared.weight(row, key);
        }
        target[first_key + key] = sum;
    }
}

template <class T>
constexpr size_t kSharedBytes = sizeof(SimpleShared<Accumulator<T>>);

}  // namespace

cudaError_t simple_attention_query_gradient(const AttentionBackward& args, cudaStream_t stream) {
    const AttentionShape& shape = args.shape;
    const int row_blocks = tiles_of(shape.rows, kSimpleTile), column_blocks = tiles_of(shape.depth, kSimpleTile);
    const dim3 grid(static_cast<unsigned>(row_blocks * shape.batch * shape.heads),
                    static_cast<unsigned>(column_blocks));
    return column_blocks == 0 ? cudaSuccess : for_types(shape.dtype, [&]<class T>() {
        return launch(simple_queries_kernel<T>, grid, dim3(kSimpleThreads), kSharedBytes<T>, stream, args, row_blocks);
    });
}

cudaError_t simple_attention_key_gradient(const AttentionBackward& args, cudaStream_t stream) {
    const AttentionShape& shape = args.shape;
    const int key_blocks = tiles_of(shape.keys, kSimpleTile);
    return for_types(shape.dtype, [&]<class T>() {
        const auto start = [&](auto* kernel, const HeadsOut& gradient, int64_t columns) {
            const dim3 grid(static_cast<unsigned>(key_blocks * shape.batch * shape.groups),
                            static_cast<unsigned>(tiles_of(columns, kSimpleTile)));
            return gradient.data == nullptr || columns == 0
                       ? cudaSuccess
                       : launch(kernel, grid, dim3(kSimpleThreads), kSharedBytes<T>, stream, args, key_blocks);
        };
        const cudaError_t error = start(simple_keys_kernel<T, true>, args.grad_key, shape.depth);
        return error != cudaSuccess ? error : start(simple_keys_kernel<T, false>, args.grad_value, shape.value_depth);
    });
}

cudaError_t simple_attention_mask_gradient(const AttentionBackward& args, cudaStream_t stream) {
    const AttentionShape& shape = args.shape;
    const int row_blocks = tiles_of(shape.rows, kSimpleTile), key_blocks = tiles_of(shape.keys, kSimpleTile);
    const dim3 grid(static_cast<unsigned>(MaskPart::blocks(args, row_blocks, key_blocks)));
    return grid.x == 0 ? cudaSuccess : for_types(shape.dtype, [&]<class T>() {
        return launch(simple_mask_kernel<T>, grid, dim3(kSimpleThreads), kSharedBytes<T>, stream, args, row_blocks,
                      key_blocks);
    });
}

}  // namespace pykernels::cuda
