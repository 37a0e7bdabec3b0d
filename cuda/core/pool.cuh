// What the pooling kernels share. A thread has one position and a pack of neighbouring channels of it; planes that are
// contiguous are positions of a single channel.
#pragma once

#include "cuda/core/items.cuh"
#include "cuda/kernels/pool.h"

namespace pykernels::cuda {

// The shape, in numbers for which dividing is cheap wherever they are small enough.
template <class Int_>
struct PoolGrid {
    using Int = Int_;
    PoolDimensionOf<Int> depth, rows, columns;
    int64_t batch;
    Int channels;  // packs
};

template <class Int>
PoolDimensionOf<Int> narrowed(const PoolDimension& d) {
    return {static_cast<Int>(d.in),
            static_cast<Int>(d.out),
            static_cast<Int>(d.kernel),
            static_cast<Int>(d.stride),
            static_cast<Int>(d.padding),
            static_cast<Int>(d.dilation),
            d.adaptive};
}

inline bool is_narrow(const PoolDimension& d) {
    constexpr int64_t kMost = int64_t{1} << 30;
    return d.in < kMost && d.out < kMost && d.stride < kMost &&
           (d.kernel - 1) * d.dilation < kMost - d.in - d.padding && (d.out + 1) * d.in < kMost &&
           (d.out + 1) < kMost / d.stride;
}

template <class Int>
PoolGrid<Int> grid_of(const PoolShape& s, int pack) {
    const int64_t batch = s.channels_last ? s.batch : s.planes(), channels = s.channels_last ? s.channels : 1;
    return {narrowed<Int>(s.depth), narrowed<Int>(s.rows), narrowed<Int>(s.columns), batch,
            static_cast<Int>(channels / pack)};
}

// One position of an output or input.
template <class Int>
struct PoolPosition {
    int64_t n;
    Int d, h, w, c;  // c: pack of channels
};

template <class Int>
__device__ inline PoolPosition<Int> position_of(int64_t item, Int depth, Int rows, Int columns, Int channels) {
    Digits<Int> digits(item);  // items of a narrow grid fit
    PoolPosition<Int> at;
    at.c = channels == 1 ? 0 : digits.take(channels);
    at.w = digits.take(columns);
    at.h = rows == 1 ? 0 : digits.take(rows);
    at.d = depth == 1 ? 0 : digits.take(depth);
    at.n = static_cast<int64_t>(digits.rest());
    return at;
}

// Calls run.template operator()<T, pack, Int>(): with packs where all tensors allow them and numbers are narrow.
// `aligned` has the tensors' addresses or'ed together.
template <class Run>
cudaError_t for_pool(DType dtype, const PoolShape& s, uintptr_t aligned, const Run& run) {
    constexpr int64_t kMost = int64_t{1} << 31;
    const bool narrow = is_narrow(s.depth) && is_narrow(s.rows) && is_narrow(s.columns) &&
                        s.planes() < kMost / s.in_plane() && s.planes() * s.out_plane() < kMost;
    return for_types(dtype, [&]<class T>() {
        constexpr int kWhole = sizeof(T) < 8 ? 16 / static_cast<int>(sizeof(T)) : 1;
        if constexpr (kWhole > 1) {
            if (narrow && s.channels_last && s.channels % kWhole == 0 && aligned % 16 == 0) {
                return run.template operator()<T, kWhole, int32_t>();
            }
        }
        return narrow ? run.template operator()<T, 1, int32_t>() : run.template operator()<T, 1, int64_t>();
    });
}

}  // namespace pykernels::cuda
