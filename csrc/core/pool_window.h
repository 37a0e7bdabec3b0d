// The windows of pooling along one dimension: fixed ones, or adaptive ones that share the input among themselves.
#pragma once

#include <cstdint>

#include "core/everywhere.h"

namespace pykernels {

using std::int64_t;

template <typename Int>
struct PoolRangeOf {
    Int begin, end;
};

// Int: wide enough for (out + 1) * in and for what windows with their padding span.
template <typename Int>
struct PoolDimensionOf {
    using PoolRange = PoolRangeOf<Int>;

    Int in = 1, out = 1;
    Int kernel = 1;  // places of a window; of the longest one if they are adaptive
    Int stride = 1, padding = 0, dilation = 1;
    bool adaptive = false;

    // Where the window's first place lies: negative inside the padding.
    PYKERNELS_EVERYWHERE Int start(Int o) const { return adaptive ? o * in / out : o * stride - padding; }

    // The window's places that lie in the input; none where begin >= end.
    PYKERNELS_EVERYWHERE PoolRange taps(Int o) const {
        const Int first = start(o);
        if (adaptive) return {0, ((o + 1) * in + out - 1) / out - first};
        const Int left = in - first;  // positive
        const Int end = (left + dilation - 1) / dilation;
        return {first < 0 ? (dilation - 1 - first) / dilation : 0, end < kernel ? end : kernel};
    }

    // The windows that may hold position i: all those that do, and with dilation others.
    PYKERNELS_EVERYWHERE PoolRange holders(Int i) const {
        if (adaptive) return {i * out / in, ((i + 1) * out + in - 1) / in};
        const Int reach = (kernel - 1) * dilation, padded = i + padding, last = padded / stride + 1;
        return {padded <= reach ? 0 : (padded - reach + stride - 1) / stride, last < out ? last : out};
    }

    // Which place of window o position i is; -1 where dilation passes it by.
    PYKERNELS_EVERYWHERE Int tap(Int o, Int i) const {
        const Int off = i - start(o);
        return off % dilation == 0 ? off / dilation : -1;
    }

    // Elements that a mean is over: of the window, or with `padded` also of the padding in it.
    PYKERNELS_EVERYWHERE Int count(Int o, bool padded) const {
        if (adaptive || !padded) {
            const PoolRange there = taps(o);
            return there.end - there.begin;
        }
        const Int left = in + padding - start(o);
        return kernel < left ? kernel : left;
    }

    // The window is the whole input.
    PYKERNELS_EVERYWHERE bool is_whole() const {
        return !adaptive && out == 1 && kernel == in && padding == 0 && dilation == 1;
    }
};

using PoolRange = PoolRangeOf<int64_t>;
using PoolDimension = PoolDimensionOf<int64_t>;

struct PoolShape {
    int64_t batch = 1, channels = 1;
    PoolDimension depth, rows, columns;
    bool channels_last = false;

    PYKERNELS_EVERYWHERE int64_t planes() const { return batch * channels; }
    PYKERNELS_EVERYWHERE int64_t in_plane() const { return depth.in * rows.in * columns.in; }
    PYKERNELS_EVERYWHERE int64_t out_plane() const { return depth.out * rows.out * columns.out; }
    // Places of the (longest) window, numbered with the last dimension fastest.
    PYKERNELS_EVERYWHERE int64_t places() const { return depth.kernel * rows.kernel * columns.kernel; }
};

// Of windows of at most this many places, a place is kept in a byte.
inline constexpr int64_t kBytePlaces = 256;

struct PoolPlaces {
    void* data = nullptr;  // like the output, uint8 or, wide, int64; null where they are not wanted
    bool wide = false;
};

// What a mean divides by.
struct PoolDivisor {
    bool padded = false;  // the padding counts
    int64_t instead = 0;  // if not zero, this number
};

}  // namespace pykernels
