// What the pooling kernels of contiguous planes share: which rows a row of output is of, and the other way round.
#pragma once

#include <vector>

#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/pool.h"
#include "kernels/pool_vector.h"

namespace pykernels {

constexpr double kPoolGrain = 1 << 15;  // elements looked at that are worth a thread

// Visits the rows [begin, end) of dense [planes, depth, rows]: visit(plane, d, h).
template <typename Visit>
void each_row(const Range& own, int64_t depth, int64_t rows, const Visit& visit) {
    if (own.begin >= own.end) return;
    int64_t h = own.begin % rows, d = own.begin / rows % depth, plane = own.begin / rows / depth;
    for (int64_t i = own.begin; i < own.end; ++i) {
        visit(plane, d, h);
        if (++h == rows) {
            h = 0;
            if (++d == depth) d = 0, ++plane;
        }
    }
}

// Rows beside the number that their places have in a window.
template <typename S>
struct PoolRow {
    const S* data;
    int64_t first_place;
};

// The rows of input that the windows of row (od, oh) of output lie in, in ascending order.
template <typename S>
void rows_of_windows(const PoolShape& s, const S* plane, int64_t od, int64_t oh, std::vector<PoolRow<S>>& rows) {
    rows.clear();
    const PoolRange depth = s.depth.taps(od), height = s.rows.taps(oh);
    const int64_t top = s.rows.start(oh);
    for (int64_t kd = depth.begin; kd < depth.end; ++kd) {
        const S* slice = plane + (s.depth.start(od) + kd * s.depth.dilation) * s.rows.in * s.columns.in;
        for (int64_t kh = height.begin; kh < height.end; ++kh)
            rows.push_back({slice + (top + kh * s.rows.dilation) * s.columns.in,
                            (kd * s.rows.kernel + kh) * s.columns.kernel});
    }
}

// Calls visit(od, oh, first_place) for the rows of output whose windows hold row (id, ih) of input, in ascending order.
template <typename Visit>
void each_holder(const PoolShape& s, int64_t id, int64_t ih, const Visit& visit) {
    const PoolRange depth = s.depth.holders(id), height = s.rows.holders(ih);
    for (int64_t od = depth.begin; od < depth.end; ++od) {
        const int64_t kd = s.depth.tap(od, id);
        if (kd < 0) continue;
        for (int64_t oh = height.begin; oh < height.end; ++oh)
            if (const int64_t kh = s.rows.tap(oh, ih); kh >= 0)
                visit(od, oh, (kd * s.rows.kernel + kh) * s.columns.kernel);
    }
}

inline double pool_work(const PoolShape& s) {
    const double windows = static_cast<double>(s.planes()) * static_cast<double>(s.out_plane());
    const double elements = static_cast<double>(s.planes()) * static_cast<double>(s.in_plane());
    return std::max(elements, windows * std::min(static_cast<double>(s.depth.kernel) * s.rows.kernel * s.columns.kernel,
                                                 static_cast<double>(s.in_plane())));
}

// Parts of the kernels in files of their own, for the storage types of pool.h.
template <typename S>
void max_pool_with_places(const MaxPoolForward<S>& call);
template <typename Call>
void pool_channels_last(const Call& call);

}  // namespace pykernels
