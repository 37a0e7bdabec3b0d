// The backward's tiles by matrix instructions, rows on the left: weights' gradients of some rows and keys of one head.
#pragma once

#include "cuda/core/attention_tiles.cuh"

namespace pykernels::cuda {

// What a lane keeps of its two rows g and g + 8 of a warp's own 16.
struct OwnRows {
    float taken[2], delta[2];

    // `item`: the number of the head among all. Rows beyond those of the example count for nothing.
    __device__ void load(const AttentionBackward& args, const Example& example, int64_t item, int first_row) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first_row + half * 8 + lane_row();
            const bool there = row < example.rows;
            const int64_t at = item * args.shape.rows + row;
            taken[half] = taken_from_exponents(there ? static_cast<const float*>(args.lse)[at] : kNothing<float>);
            delta[half] = there ? static_cast<const float*>(args.delta)[at] : 0.0f;
        }
    }
};

// grads: products of grad_out and values on the way in, the gradients of the scores on the way out. `own` is the warp's
// first row in its tile.
template <class T, int kN>
__device__ inline void to_slopes(Fragments<1, kN>& products, Fragments<1, kN>& grads, const SlopeRule<T>& rule,
                                 const Dropout& dropout, const OwnRows& rows, const TileView& view, int own,
                                 int first_row, int first_key) {
    const uint32_t kept = rule.drops ? kept_of_rows<kN>(dropout, first_row + own + lane_row(), first_key) : ~0u;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = own + half * 8 + lane_row();
        const Span seen = view.of_row(row);
        const int begin = seen.begin - lane_column(), end = seen.end - lane_column();
#pragma unroll
        for (int n = 0; n < kN; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int key = n * 8 + e, c = 2 * half + e;
                rule.apply(products[0][n][c], grads[0][n][c], key >= begin && key < end,
                           (kept >> (4 * n + c) & 1u) != 0, first_row + row, first_key + key + lane_column(),
                           rows.taken[half], rows.delta[half]);
            }
        }
    }
}

}  // namespace pykernels::cuda
