// The windows of pooling along one dimension: fixed ones, or adaptive ones that share the input among themselves.
#pragma once

#include <cstdint>

#include "core/everywhere.h"

namespace pykernels {

using std::int64_t;

struct PoolRange {
    int64_t begin, end;
};

struct PoolDimension {
    int64_t in = 1, out = 1;
    int64_t kernel = 1;  // places of a window; of the longest one if they are adaptive
    int64_t stride = 1, padding = 0, dilation = 1;
    bool adaptive = false;

    // Where the window's first place lies: negative inside the padding.
    PYKERNELS_EVERYWHERE int64_t start(int64_t o) const { return adaptive ? o * in / out : o * stride - padding; }

    // The window's places that lie in the input; none where begin >= end.
    PYKERNELS_EVERYWHERE PoolRange taps(int64_t o) const {
        const int64_t first = start(o);
        if (adaptive) return {0, ((o + 1) * in + out - 1) / out - first};
        const int64_t left = in - first;  // positive
        const int64_t end = (left + dilation - 1) / dilation;
        return {first < 0 ? (dilation - 1 - first) / dilation : 0, end < kernel ? end : kernel};
    }

    // The windows that may hold position i: all those that do, and with dilation others.
    PYKERNELS_EVERYWHERE PoolRange holders(int64_t i) const {
        if (adaptive) return {i * out / in, ((i + 1) * out + in - 1) / in};
        const int64_t reach = (kernel - 1) * dilation, padded = i + padding, last = padded / stride + 1;
        return {padded <= reach ? 0 : (padded - reach + stride - 1) / stride, last < out ? last : out};
    }

    // Which place of window o position i is; -1 where dilation passes it by.
    PYKERNELS_EVERYWHERE int64_t tap(int64_t o, int64_t i) const {
        const int64_t off = i - start(o);
        return off % dilation == 0 ? off / dilation : -1;
    }

    // Elements that a mean is over: of the window, or with `padded` also of the padding in it.
    PYKERNELS_EVERYWHERE int64_t count(int64_t o, bool padded) const {
        if (adaptive || !padded) {
            const PoolRange there = taps(o);
            return there.end - there.begin;
        }
        const int64_t left = in + padding - start(o);
        return kernel < left ? kernel : left;
    }

    // The window is the whole input.
    PYKERNELS_EVERYWHERE bool is_whole() const {
        return !adaptive && out == 1 && kernel == in && padding == 0 && dilation == 1;
    }
};

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

// Offsets of at most this many places are kept in a byte.
inline constexpr int64_t kBytePlaces = 256;

}  // namespace pykernels
