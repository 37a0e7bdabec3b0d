// Attention, forward, without matrix instructions. A block has 64 rows of one head and 64 columns of its values; where
// there are more columns, each block of them finds the weights again.
#include <algorithm>

#include "cuda/core/attention_simple.cuh"
#include "cuda/kernels/attention_parts.h"

namespace pykernels::cuda {
namespace {

// Over the 16 threads that share a row.
template <class A>
__device__ A largest_of_line(A value) {
#pragma unroll
    for (int lane_xor = kSimpleLines / 2; lane_xor >= 1; lane_xor /= 2) {
        value = maximum(value, shuffle_xor(value, lane_xor));
    }
    return value;
}
template <class A>
__device__ A sum_of_line(A value) {
#pragma unroll
    for (int lane_xor = kSimpleLines / 2; lane_xor >= 1; lane_xor /= 2) {
        value += shuffle_xor(value, lane_xor);
    }
    return value;
}

template <class T>
__global__ void __launch_bounds__(kSimpleThreads, kSimpleBlocks<T>)
    simple_forward_kernel(const __grid_constant__ AttentionForward args, int row_blocks) {
    using A = Accumulator<T>;
    const AttentionShape& shape = args.shape;
    const BlockPlace place(row_blocks, shape.heads);
    const int b = place.outer, h = place.head;
    const int first_row = (row_blocks - 1 - place.inner) * kSimpleTile;
    const int64_t first_column = int64_t{blockIdx.y} * kSimpleTile;
    const int group = group_of(shape, h);
    const Example example(shape, b);
    const Span blocks = blocks_of(example.keys_seen({first_row, first_row + kSimpleTile}), kSimpleTile);
    const Exponents<T> exponents(shape, args.mask, b, h);
    const Dropout dropout(shape, b, h);
    const RowsOfHead<T> queries(args.query, b, h, first_row, example.rows);

    SimpleFragment<T> sums = {};
    A highest[kSimpleOwn], total[kSimpleOwn];
#pragma unroll
    for (int i = 0; i < kSimpleOwn; ++i) {
        highest[i] = kNothing<A>;
        total[i] = 0;
    }
    for (int block = blocks.begin; block < blocks.end; ++block) {
        const int first_key = block * kSimpleTile;
        const TileView view = example.tile(first_row, first_key);
        SimpleFragment<T> scores = {};
        simple_dots<T>(scores, queries, RowsOfHead<T>(args.key, b, group, first_key, example.keys), shape.depth);
#pragma unroll
        for (int i = 0; i < kSimpleOwn; ++i) {
            const int row = line_y() + kSimpleLines * i;
            const Span seen = view.of_row(row);
            A here = kNothing<A>;
#pragma unroll
            for (int j = 0; j < kSimpleOwn; ++j) {
                const int key = line_x() + kSimpleLines * j;
                if (key < seen.begin || key >= seen.end) {
                    scores[i][j] = kNothing<A>;
                } else if (exponents.plain) {
                    scores[i][j] *= exponents.factor;
                } else {
                    A slope;
                    scores[i][j] = exponents.of(scores[i][j], first_row + row, first_key + key, slope);
                }
                here = maximum(here, scores[i][j]);
            }
            const A before = highest[i];
            highest[i] = maximum(before, largest_of_line(here));
            const A from = highest[i] == kNothing<A> ? A(0) : highest[i], down = weight_of<T>(before - from);
            total[i] *= down;
#pragma unroll
            for (int j = 0; j < kSimpleOwn; ++j) {
                sums[i][j] *= down;
                const A weight = weight_of<T>(scores[i][j] - from);
                total[i] += weight;
                scores[i][j] = weight;
            }
            if (dropout.below != 0) {
                uint32_t numbers[4];
                dropout.draw(first_row + row, first_key, line_x(), numbers);
#pragma unroll
                for (int j = 0; j < kSimpleOwn; ++j) {
                    scores[i][j] *= numbers[j] >= dropout.below ? static_cast<A>(shape.kept) : A(0);
                }
            }
        }
        keep_weights<T>(scores);
        simple_weighted<T, false>(sums, RowsOfHead<T>(args.value, b, group, first_key, example.keys), first_column,
                                  shape.value_depth);
    }
#pragma unroll
    for (int i = 0; i < kSimpleOwn; ++i) {
        const A whole = sum_of_line(total[i]);
        const int row = first_row + line_y() + kSimpleLines * i;
#pragma unroll
        for (int n = 0; n < kSimpleOwn; ++n) {  // the values may not have been numbers
            sums[i][n] = whole == 0 ? A(0) : sums[i][n] / whole;
        }
        if (row < shape.rows && line_x() == 0 && blockIdx.y == 0) {
            static_cast<A*>(args.lse)[place.item() * shape.rows + row] =
                whole == 0 ? kNothing<A> : (highest[i] + logarithm2(whole)) * static_cast<A>(kLn2);
        }
    }
    put_tile<T>(args.out, b, h, first_row, shape.rows, first_column, shape.value_depth, sums, A(1));
}

}  // namespace

cudaError_t simple_attention_forward(const AttentionForward& args, cudaStream_t stream) {
    const AttentionShape& shape = args.shape;
    const int row_blocks = tiles_of(shape.rows, kSimpleTile), column_blocks = tiles_of(shape.value_depth, kSimpleTile);
    const dim3 grid(static_cast<unsigned>(row_blocks * shape.batch * shape.heads),
                    static_cast<unsigned>(std::max(column_blocks, 1)));
    return for_types(shape.dtype, [&]<class T>() {
        return launch(simple_forward_kernel<T>, grid, dim3(kSimpleThreads), sizeof(SimpleShared<Accumulator<T>>),
                      stream, args, row_blocks);
    });
}

}  // namespace pykernels::cuda
