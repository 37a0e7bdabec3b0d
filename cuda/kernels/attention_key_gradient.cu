// Attention, backward, in 16-bit types: the gradients of keys and values. A block has 64 keys of one head of keys; it
// walks over the rows that see them, of every head that reads them, with the scores on their side: keys are a warp's
// own rows. Rows of the next tile arrive while the block works on this one. Nothing is added to by two blocks.
#include "cuda/core/attention_tiles.cuh"
#include "cuda/kernels/attention_parts.h"

namespace pykernels::cuda {
namespace {

template <int kD>
struct KeyTile {
    static constexpr int kRows = kD <= 64 ? 64 : 32, kN = kRows / 8;
    // keys and values, then twice queries and grad_out, then twice what is taken from exponents, and delta
    static constexpr size_t kSharedBytes = size_t{2} * (2 * kOwnKeys + 4 * kRows) * kTileStride<kD> + 4 * 4 * kRows;
};

// One row of a tile: on its way from memory to shared memory.
struct RowNumbers {
    float taken, delta;
    __device__ void load(const AttentionBackward& args, const Example& example, int64_t item, int row) {
        const bool there = row < example.rows;
        const int64_t at = item * args.shape.rows + row;
        taken = taken_from_exponents(there ? static_cast<const float*>(args.lse)[at] : kNothing<float>);
        delta = there ? static_cast<const float*>(args.delta)[at] : 0.0f;
    }
};

template <class T, int kD, bool kKeys, bool kValues>
__global__ void __launch_bounds__(kTileThreads, 2)
    keys_kernel(const __grid_constant__ AttentionBackward args, int key_blocks) {
    using Tile = KeyTile<kD>;
    constexpr int kRows = Tile::kRows, kN = Tile::kN, kStride = kTileStride<kD>;
    const AttentionShape& shape = args.shape;
    const BlockPlace place(key_blocks, shape.groups);
    const int b = place.outer, g = place.head, first_key = place.inner * kOwnKeys;
    const int heads_of_group = static_cast<int>(shape.heads) / static_cast<int>(shape.groups);
    const Example example(shape, b);
    const Span blocks = blocks_of(example.rows_seeing({first_key, first_key + kOwnKeys}), kRows);
    const int row_blocks = blocks.end - blocks.begin, count = row_blocks * heads_of_group;
    const auto head_at = [&](int i) { return g * heads_of_group + i / row_blocks; };
    const auto row_at = [&](int i) { return (blocks.begin + i % row_blocks) * kRows; };

    T* keys = reinterpret_cast<T*>(shared_memory());
    T *values = keys + kOwnKeys * kStride, *row_tiles = values + kOwnKeys * kStride;
    auto* numbers = reinterpret_cast<float*>(row_tiles + 4 * kRows * kStride);
    const int thread = static_cast<int>(threadIdx.x);
    RowNumbers next;
    const auto stage_rows = [&](int i) {
        const int h = head_at(i), row = row_at(i), there = example.rows - row;
        T* queries = row_tiles + i % 2 * 2 * kRows * kStride;
        stage_tile<T, kRows, kD>(queries, head_of<T>(args.query, b, h) + int64_t{row} * args.query.row_stride,
                                 args.query.row_stride, there, shape.depth);
        stage_tile<T, kRows, kD>(queries + kRows * kStride,
                                 head_of<T>(args.grad_out, b, h) + int64_t{row} * args.grad_out.row_stride,
                                 args.grad_out.row_stride, there, shape.value_depth);
        end_copy_group();
    };
    const auto load_numbers = [&](int i) {
        if (thread < kRows) {
            next.load(args, example, b * shape.heads + head_at(i), row_at(i) + thread);
        }
    };
    const auto keep_numbers = [&](int i) {
        if (thread < kRows) {
            numbers[i % 2 * 2 * kRows + thread] = next.taken;
            numbers[i % 2 * 2 * kRows + kRows + thread] = next.delta;
        }
    };
    if (count > 0) {
        stage_tile<T, kOwnKeys, kD>(keys, head_of<T>(args.key, b, g) + int64_t{first_key} * args.key.row_stride,
                                    args.key.row_stride, example.keys - first_key, shape.depth);
        if constexpr (kKeys) {
            stage_tile<T, kOwnKeys, kD>(values,
                                        head_of<T>(args.value, b, g) + int64_t{first_key} * args.value.row_stride,
                                        args.value.row_stride, example.keys - first_key, shape.value_depth);
        }
        stage_rows(0);
        load_numbers(0);
        keep_numbers(0);
    }

    const int own = first_own_key(), depth_steps = steps_of(shape.depth), value_steps = steps_of(shape.value_depth);
    Fragments<1, kKeys ? kD / 8 : 1> grad_keys = {};
    Fragments<1, kValues ? kD / 8 : 1> grad_values = {};
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
        wait_for_copies<0>();
        block_barrier();  // the rows are there, and those before have been used
        if (i + 1 < count) {
            stage_rows(i + 1);
        }
        const int h = head_at(i), first_row = row_at(i);
        const T *queries = row_tiles + i % 2 * 2 * kRows * kStride, *grad_rows = queries + kRows * kStride;
        const float *taken = numbers + i % 2 * 2 * kRows, *delta = taken + kRows;
        Fragments<1, kN> weights = {}, slopes = {};
        add_dots<T, 1, kN, kD, 16>(weights, keys + own * kStride, queries, depth_steps);
        if constexpr (kKeys) {
            add_dots<T, 1, kN, kD, 16>(slopes, values + own * kStride, grad_rows, value_steps);
        }
        const SlopeRule<T> rule(args, b, h, true);
        const TileView view = example.tile(first_row, first_key);
        const uint32_t kept = rule.drops ? kept_of_keys<kN>(Dropout(shape, b, h), first_row, first_key) : ~0u;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int key = own + lane_row() + half * 16;
            const Span seeing = view.of_key(key);
            const int begin = seeing.begin - lane_column(), end = seeing.end - lane_column();
#pragma unroll
            for (int n = 0; n < kN; ++n) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int at = n * 8 + e, row = at + lane_column(), c = 2 * half + e;
                    rule.apply(weights[0][n][c], slopes[0][n][c], at >= begin && at < end,
                               (kept >> (4 * n + c) & 1u) != 0, first_row + row, first_key + key, taken[row],
                               delta[row]);
                }
            }
        }
        if (i + 1 < count) {
            load_numbers(i + 1);  // they arrive during the products
        }
        if constexpr (kValues) {
            add_weighted<T, 1, kN, kD>(grad_values, weights, grad_rows);
        }
        if constexpr (kKeys) {
            add_weighted<T, 1, kN, kD>(grad_keys, slopes, queries);
        }
        if (i + 1 < count) {
            keep_numbers(i + 1);
        }
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int key = first_key + own + lane_row() + half * 16;
        if (key >= shape.keys) {
            continue;
        }
        if (kKeys && args.grad_key.data != nullptr) {
            store_row<T>(head_of<T>(args.grad_key, b, g) + key * args.grad_key.row_stride, grad_keys[0], half,
                         static_cast<float>(shape.scale), shape.depth);
        }
        if (kValues && args.grad_value.data != nullptr) {
            store_row<T>(head_of<T>(args.grad_value, b, g) + key * args.grad_value.row_stride, grad_values[0], half,
                         1.0f, shape.value_depth);
        }
    }
}

}  // namespace

cudaError_t attention_key_gradient(const AttentionBackward& args, cudaStream_t stream) {
    const AttentionShape& shape = args.shape;
    const int key_blocks = tiles_of(shape.keys, kOwnKeys);
    const auto start = [&]<class T, int kD, bool kKeys, bool kValues>() {
        return launch_tiles(keys_kernel<T, kD, kKeys, kValues>, key_blocks * shape.batch * shape.groups,
                            KeyTile<kD>::kSharedBytes, stream, args, key_blocks);
    };
    const cudaError_t error = for_tiles(shape, [&]<class T, int kD>() {
        if constexpr (kD <= 128) {
            return start.template operator()<T, kD, true, true>();
        } else {  // there are not the registers for both
            cudaError_t part = cudaSuccess;
            if (args.grad_key.data != nullptr) {
                part = start.template operator()<T, kD, true, false>();
            }
            if (part == cudaSuccess && args.grad_value.data != nullptr) {
                part = start.template operator()<T, kD, false, true>();
            }
            return part;
        }
    });
    return error == cudaErrorNotSupported ? simple_attention_key_gradient(args, stream) : error;
}

}  // namespace pykernels::cuda
