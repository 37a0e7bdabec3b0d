// What the variants' forward and backward share: where rows lie, zoneout, and the sums over a row that layer
// normalisation takes. Plain device code over the primitives of common.cuh.
#pragma once

#include "cuda/core/recurrence.cuh"
#include "cuda/kernels/variant.h"

namespace pykernels::cuda {

// Where direction d's row `row` of a buffer [D, N, width] starts.
__device__ inline int64_t saved_at(const RecurrentLayer& layer, int64_t d, int64_t row, int64_t width) {
    return (d * layer.steps.rows + row) * width;
}

// Where direction d's part of row `row` of a buffer [N, D * width] starts.
__device__ inline int64_t part_at(const RecurrentLayer& layer, int64_t d, int64_t row, int64_t width) {
    return (row * layer.directions + d) * width;
}

// The phases of a step with one product: with layer_norm the rest needs whole rows.
template <bool kNorm, class Product, class Rows>
using OneProduct = std::conditional_t<kNorm, PhaseList<Product, Rows>, PhaseList<Product>>;

// Zoneout -----------------------------------------------------------------------------------------------------------

__host__ __device__ inline bool is_active(const Zoneout& zoneout) {
    return zoneout.stay != nullptr || zoneout.share != 0;
}

// A state that stays does so exactly: it is chosen, not computed.
template <class A>
__device__ A after_zoneout(const Zoneout& zoneout, int64_t element, A before, A fresh) {
    if (zoneout.stay != nullptr) {
        return zoneout.stay[element] != 0 ? before : fresh;
    }
    return zoneout.share != 0 ? fresh + A(zoneout.share) * (before - fresh) : fresh;
}

template <class A>
struct Shared {
    A fresh, before;
};

// A gradient's parts for the fresh state and for the one before.
template <class A>
__device__ Shared<A> share_gradient(const Zoneout& zoneout, int64_t element, A gradient) {
    if (zoneout.stay != nullptr) {
        return zoneout.stay[element] != 0 ? Shared<A>{A(0), gradient} : Shared<A>{gradient, A(0)};
    }
    if (zoneout.share == 0) {
        return {gradient, A(0)};
    }
    const A before = A(zoneout.share) * gradient;
    return {gradient - before, before};
}

// Sums over a row ---------------------------------------------------------------------------------------------------

// Replaces each value by its sum over all threads of the block, always in the same order.
template <int kCount, class A>
__device__ void sum_over_block(A (&value)[kCount], A* scratch) {
    static_assert(kCount * kBlockWarps <= kScratch);
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
        for (int lane_xor = kWarp / 2; lane_xor >= 1; lane_xor /= 2) {
            value[i] += shuffle_xor(value[i], lane_xor);
        }
        if (lane == 0) {
            scratch[i * kBlockWarps + warp] = value[i];
        }
    }
    block_barrier();  // the sums of the warps have been written
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        value[i] = scratch[i * kBlockWarps];
#pragma unroll
        for (int other = 1; other < kBlockWarps; ++other) {
            value[i] += scratch[i * kBlockWarps + other];
        }
    }
    block_barrier();  // the sums of the warps have been read
}

template <class A>
struct Moments {
    A mean, inverse;  // inverse: 1 / deviation
    __device__ A normalized(A value) const { return (value - mean) * inverse; }
};

// Of value(u, part) over all units and kParts parts: the mean first, then the squares of what differs from it.
template <int kParts, class A, class Value>
__device__ Moments<A> moments_of(int64_t units, const Value& value, A* scratch) {
    const A count = static_cast<A>(units * kParts);
    A sum[1] = {};
    for (int64_t u = threadIdx.x; u < units; u += kThreads) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
            sum[0] += value(u, part);
        }
    }
    sum_over_block(sum, scratch);
    const A mean = sum[0] / count;
    A square[1] = {};
    for (int64_t u = threadIdx.x; u < units; u += kThreads) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
            const A difference = value(u, part) - mean;
            square[0] += difference * difference;
        }
    }
    sum_over_block(square, scratch);
    return {mean, A(1) / square_root(square[0] / count + A(kNormEpsilon))};
}

// Back through a normalisation, of a row's values: from gradient * gain of each, its mean, and that of its product with
// the normalised value.
template <class A>
struct NormGradient {
    A inverse, mean, along;
    __device__ A of(A gradient, A normalized) const { return inverse * (gradient - mean - normalized * along); }
};

}  // namespace pykernels::cuda
