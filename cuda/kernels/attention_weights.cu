// Attention's weights, where somebody wants to see them: scores once more, and their exponentials relative to the
// logarithm of the sum that the forward found. A block has 64 rows and 64 keys, of one head or of all in turn.
#include <climits>

#include "cuda/core/attention_simple.cuh"

namespace pykernels::cuda {
namespace {

// Adds the weights of a tile to sums; `scores`: products. They go by the tile in shared memory, of which each thread
// has its own elements, so that one row at a time is worked on.
template <class T>
__device__ void add_weights(SimpleFragment<T>& sums, const SimpleFragment<T>& scores, const AttentionWeights& args,
                            const TileView& view, int b, int h, int first_row, int first_key) {
    using A = Accumulator<T>;
    auto& shared = SimpleShared<A>::get();
    const AttentionShape& shape = args.shape;
    const Exponents<T> exponents(shape, args.mask, b, h);
    const Dropout dropout(shape, b, h);
    const A* lse = static_cast<const A*>(args.lse) + (b * shape.heads + h) * shape.rows + first_row;
    keep_weights<T>(scores);
#pragma unroll 1
    for (int row = line_y(); row < kSimpleTile; row += kSimpleLines) {
        const Span seen = view.of_row(row);
        const A taken = seen.empty() ? A(0) : taken_from_exponents(lse[row]);
        uint32_t numbers[4] = {};
        if (dropout.below != 0) {
            dropout.draw(first_row + row, first_key, line_x(), numbers);
        }
#pragma unroll
        for (int j = 0; j < kSimpleOwn; ++j) {
            const int key = line_x() + kSimpleLines * j;
            A weight = 0;  // of what is not seen
            if (key >= seen.begin && key < seen.end) {
                A slope, exponent = shared.weight(row, key) * exponents.factor;
                if (!exponents.plain) {
                    exponent = exponents.of(shared.weight(row, key), first_row + row, first_key + key, slope);
                }
                weight = weight_of<T>(exponent - taken);
                if (dropout.below != 0) {
                    weight *= numbers[j] >= dropout.below ? static_cast<A>(shape.kept) : A(0);
                }
            }
            shared.weight(row, key) = weight;
        }
    }
#pragma unroll
    for (int i = 0; i < kSimpleOwn; ++i) {
#pragma unroll
        for (int j = 0; j < kSimpleOwn; ++j) {
            sums[i][j] += shared.weight(line_y() + kSimpleLines * i, line_x() + kSimpleLines * j);
        }
    }
}

template <class T>
__global__ void __launch_bounds__(kSimpleThreads, kSimpleBlocks<T>)
    weights_kernel(const __grid_constant__ AttentionWeights args, int row_blocks, int key_blocks) {
    using A = Accumulator<T>;
    const AttentionShape& shape = args.shape;
    const BlockPlace place(row_blocks * key_blocks, args.average ? 1 : shape.heads);
    const int b = place.outer, first_row = place.inner / key_blocks * kSimpleTile;
    const int first_key = place.inner % key_blocks * kSimpleTile;
    const Example example(shape, b);
    const TileView view = example.tile(first_row, first_key);
    const Span seen = example.keys_seen({first_row, first_row + kSimpleTile});
    const bool sees = seen.begin < first_key + kSimpleTile && seen.end > first_key && !seen.empty();
    const Span heads = args.average ? Span{0, static_cast<int>(shape.heads)} : Span{place.head, place.head + 1};

    SimpleFragment<T> sums = {};
    for (int h = heads.begin; h < heads.end && sees; ++h) {
        SimpleFragment<T> scores = {};
        simple_dots<T>(scores, RowsOfHead<T>(args.query, b, h, first_row, example.rows),
                       RowsOfHead<T>(args.key, b, group_of(shape, h), first_key, example.keys), shape.depth);
        add_weights<T>(sums, scores, args, view, b, h, first_row, first_key);
    }
    const A share = args.average && shape.heads > 0 ? A(1) / static_cast<A>(shape.heads) : A(1);
    put_tile<T>(args.out, b, place.head, first_row, shape.rows, first_key, shape.keys, sums, share);
}

}  // namespace

cudaError_t attention_weights(const AttentionWeights& args, cudaStream_t stream) {
    const AttentionShape& shape = args.shape;
    const int row_blocks = tiles_of(shape.rows, kSimpleTile), key_blocks = tiles_of(shape.keys, kSimpleTile);
    const int64_t tiles = int64_t{row_blocks} * key_blocks;
    const int64_t items = shape.batch * (args.average ? 1 : shape.heads);
    if (tiles * items == 0) {
        return cudaSuccess;
    }
    if (tiles > INT_MAX / items) {
        return cudaErrorInvalidConfiguration;
    }
    return for_types(shape.dtype, [&]<class T>() {
        return launch(weights_kernel<T>, dim3(static_cast<unsigned>(tiles * items)), dim3(kSimpleThreads),
                      sizeof(SimpleShared<Accumulator<T>>), stream, args, row_blocks, key_blocks);
    });
}

}  // namespace pykernels::cuda
