// Attention, forward, in 16-bit types. A block has some rows of one head; it walks over the keys they see, with running
// maximum and sum. Keys of the next block and values of this one arrive while the block works.
#include "cuda/core/attention_tiles.cuh"
#include "cuda/kernels/attention_parts.h"

namespace pykernels::cuda {
namespace {

// kPlain: without mask, softcap and dropout.
template <int kD, bool kPlain>
struct ForwardTile {
    static constexpr int kM = kD <= 128 && kPlain ? 2 : 1;  // times 16 rows of a warp
    static constexpr int kKeys = kPlain && kD >= 128 ? 32 : 64, kN = kKeys / 8;
    static constexpr int kRows = kTileWarps * 16 * kM;
    static constexpr size_t kSharedBytes = size_t{2} * (kRows + 2 * kKeys) * kTileStride<kD>;
};

// A lane's rows: the largest exponent so far, and the sum of weights relative to it (of the lane's own columns).
template <int kM>
struct Running {
    float highest[kM][2], total[kM][2];
};

// Products, where they are more than scaled: to exponents, and what is not seen to nothing.
template <class T, bool kPlain, int kM, int kN>
__device__ void to_exponents(Fragments<kM, kN>& scores, const Exponents<T>& exponents, const TileView& view, int own,
                             int first_row, int first_key) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = own + m * 16 + half * 8 + lane_row();
            const Span seen = view.of_row(row);
            const int begin = seen.begin - lane_column(), end = seen.end - lane_column();
#pragma unroll
            for (int n = 0; n < kN; ++n) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int key = n * 8 + lane_column() + e;
                    float& score = scores[m][n][2 * half + e];
                    if (n * 8 + e < begin || n * 8 + e >= end) {
                        score = kNothing<float>;
                    } else if (!kPlain && !exponents.plain) {
                        float slope;
                        score = exponents.of(score, first_row + row, first_key + key, slope);
                    }
                }
            }
        }
    }
}

// Exponents to weights relative to the new maximum; what was summed before is scaled down to it.
template <int kM, int kN, int kColumns>
__device__ void soften(Fragments<kM, kN>& scores, float factor, Running<kM>& running, Fragments<kM, kColumns>& sums) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float here = kNothing<float>;
#pragma unroll
            for (int n = 0; n < kN; ++n) {
                here = maximum(here, maximum(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
            }
            const float before = running.highest[m][half];
            const float highest = maximum(before, largest_of_row(here) * factor);
            const float from = highest == kNothing<float> ? 0.0f : highest;
            const float down = fast_exponential2(before - from);
            float total = running.total[m][half] * down;
#pragma unroll
            for (int n = 0; n < kN; ++n) {
#pragma unroll
                for (int c = 2 * half; c < 2 * half + 2; ++c) {
                    scores[m][n][c] = fast_exponential2(scores[m][n][c] * factor - from);
                    total += scores[m][n][c];
                }
            }
            running.highest[m][half] = highest;
            running.total[m][half] = total;
#pragma unroll
            for (int n = 0; n < kColumns; ++n) {
                sums[m][n][2 * half] *= down;
                sums[m][n][2 * half + 1] *= down;
            }
        }
    }
}

template <class T, int kD, bool kPlain>
__global__ void __launch_bounds__(kTileThreads, 2)
    forward_kernel(const __grid_constant__ AttentionForward args, int row_blocks) {
    using Tile = ForwardTile<kD, kPlain>;
    constexpr int kM = Tile::kM, kN = Tile::kN, kRows = Tile::kRows, kKeys = Tile::kKeys;
    const AttentionShape& shape = args.shape;
    const BlockPlace place(row_blocks, shape.heads);
    const int b = place.outer, h = place.head;
    // The longest first: under a causal mask, the last.
    const int first_row = (row_blocks - 1 - place.inner) * kRows;
    const Example example(shape, b);
    const Span blocks = blocks_of(example.keys_seen({first_row, first_row + kRows}), kKeys);

    T* queries = reinterpret_cast<T*>(shared_memory());
    T *keys = queries + kRows * kTileStride<kD>, *values = keys + kKeys * kTileStride<kD>;
    const T* key_head = head_of<T>(args.key, b, group_of(shape, h));
    const T* value_head = head_of<T>(args.value, b, group_of(shape, h));
    const auto stage_keys = [&](int block) {
        stage_tile<T, kKeys, kD>(keys, key_head + int64_t{block} * kKeys * args.key.row_stride, args.key.row_stride,
                                 example.keys - block * kKeys, shape.depth);
        end_copy_group();
    };
    if (!blocks.empty()) {
        stage_tile<T, kRows, kD>(queries, head_of<T>(args.query, b, h) + first_row * args.query.row_stride,
                                 args.query.row_stride, example.rows - first_row, shape.depth);
        stage_keys(blocks.begin);
    }

    const Exponents<T> exponents(shape, args.mask, b, h);
    const Dropout dropout(shape, b, h);
    const int own = warp_of_block() * 16 * kM, steps = steps_of(shape.depth);
    Fragments<kM, kD / 8> sums = {};
    Running<kM> running;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
        running.highest[m][0] = running.highest[m][1] = kNothing<float>;
        running.total[m][0] = running.total[m][1] = 0;
    }
#pragma unroll 1
    for (int block = blocks.begin; block < blocks.end; ++block) {
        const int first_key = block * kKeys;
        wait_for_copies<0>();
        block_barrier();  // the keys are there, and the values before have been used
        stage_tile<T, kKeys, kD>(values, value_head + int64_t{first_key} * args.value.row_stride, args.value.row_stride,
                                 example.keys - first_key, shape.value_depth);
        end_copy_group();
        Fragments<kM, kN> scores = {};
        add_dots<T, kM, kN, kD>(scores, queries + own * kTileStride<kD>, keys, steps);
        const TileView view = example.tile(first_row, first_key);
        if ((!kPlain && !exponents.plain) || !view.whole(own, 16 * kM, kKeys)) {
            to_exponents<T, kPlain, kM, kN>(scores, exponents, view, own, first_row, first_key);
        }
        soften<kM, kN, kD / 8>(scores, exponents.factor, running, sums);
        if (!kPlain && dropout.below != 0) {
            const auto factor = static_cast<float>(shape.kept);
#pragma unroll
            for (int m = 0; m < kM; ++m) {
                const uint32_t kept = kept_of_rows<kN>(dropout, first_row + own + m * 16 + lane_row(), first_key);
#pragma unroll
                for (int i = 0; i < 4 * kN; ++i) {
                    scores[m][i / 4][i % 4] *= (kept >> i & 1u) != 0 ? factor : 0.0f;
                }
            }
        }
        wait_for_copies<0>();
        block_barrier();  // the values are there, and the keys have been used
        if (block + 1 < blocks.end) {
            stage_keys(block + 1);
        }
        add_weighted<T, kM, kN, kD>(sums, scores, values);
    }

    T* out = head_of<T>(args.out, b, h);
    float* lse = static_cast<float*>(args.lse) + place.item() * shape.rows;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first_row + own + m * 16 + half * 8 + lane_row();
            const float total = sum_of_row(running.total[m][half]);
            if (row < shape.rows) {
                store_row<T>(out + row * args.out.row_stride, sums[m], half, total == 0 ? 0.0f : 1 / total,
                             shape.value_depth);
                if (lane_column() == 0) {
                    lse[row] = total == 0 ? kNothing<float>
                                          : (running.highest[m][half] + logarithm2(total)) * static_cast<float>(kLn2);
                }
            }
        }
    }
}

}  // namespace

cudaError_t attention_forward(const AttentionForward& args, cudaStream_t stream) {
    const AttentionShape& shape = args.shape;
    if (shape.batch * shape.heads * shape.rows == 0) {
        return cudaSuccess;
    }
    const auto start = [&]<class T, int kD, bool kPlain>() {
        using Tile = ForwardTile<kD, kPlain>;
        const int row_blocks = tiles_of(shape.rows, Tile::kRows);
        return launch_tiles(forward_kernel<T, kD, kPlain>, row_blocks * shape.batch * shape.heads, Tile::kSharedBytes,
                            stream, args, row_blocks);
    };
    const cudaError_t error = for_tiles(shape, [&]<class T, int kD>() {
        return is_plain(shape, args.mask) && shape.dropout_below == 0 ? start.template operator()<T, kD, true>()
                                                                      : start.template operator()<T, kD, false>();
    });
    return error == cudaErrorNotSupported ? simple_attention_forward(args, stream) : error;
}

}  // namespace pykernels::cuda
