// Pooling of contiguous planes line by line: the rows of a window are put together first, column by column, into a line
// that is padded on both sides; then the line's columns. Both are vectors along the row.
#pragma once

#include "core/pool_window.h"
#include "core/scratch.h"
#include "kernels/pool_vector.h"

namespace pykernels {

// What the columns of one plane need, whatever the rows; one for each thread.
template <typename Join, typename Acc>
class PoolLine {
    static constexpr int kW = kWidth<Acc>;

  public:
    explicit PoolLine(const PoolDimension& columns)
        : c_(columns),
          // of long windows with as much padding, and of those that are far apart, no line is padded
          regular_(!c_.adaptive && c_.stride <= 2 && (c_.kernel - 1) * c_.dilation <= c_.in + 64),
          front_(regular_ ? c_.padding : 0),
          length_(front_ + std::max(c_.in, regular_ ? (c_.out - 1) * c_.stride + (c_.kernel - 1) * c_.dilation : 0) +
                  3 * kW),
          line_(length_),
          results_(regular_ ? 0 : c_.out + kW) {
        std::fill_n(line_.get(), length_, Join::kNothing);
    }

    // Puts rows together, then columns: finish(o, results, lanes) for all windows of one row of output.
    template <typename S, typename Finish>
    void pool(const S* const* rows, int64_t count, const Finish& finish) {
        if constexpr (std::is_same_v<S, Acc>) {
            if (count == 1 && !regular_) return columns_of(rows[0], finish);
        }
        Acc* line = line_ + front_;
        if (count == 0) std::fill_n(line, c_.in, Join::kNothing);
        if (count == 1) join_rows<1>(rows, count, line);
        if (count == 2) join_rows<2>(rows, count, line);
        if (count == 3) join_rows<3>(rows, count, line);
        if (count > 3) join_rows<0>(rows, count, line);
        if (!regular_) return columns_of(line, finish);
        if (c_.stride == 1) {
            join_columns<1>(finish);
        } else if (c_.dilation == 1 && c_.kernel > 1) {
            join_columns<2>(finish);
        } else {
            join_columns<0>(finish);
        }
    }

  private:
    template <int kCount, typename S>
    void join_rows(const S* const* rows, int64_t count, Acc* line) const {
        cover<Acc>(0, c_.in, [&](int64_t i, int used) {
            Vec<Acc> so_far = load_as<Acc>(rows[0] + i, used);
            for (int64_t r = 1; r < (kCount ? kCount : count); ++r)
                so_far = Join::join(load_as<Acc>(rows[r] + i, used), so_far);
            so_far.store(line + i, used);
        });
    }

    // Stride 1; stride 2, two neighbours at a time; or (0) stride 2 with places passed by.
    template <int kStride, typename Finish>
    void join_columns(const Finish& finish) const {
        cover<Acc>(0, c_.out, [&](int64_t o, int used) {
            const Acc* p = line_ + o * c_.stride;
            if constexpr (kStride == 1) {
                Vec<Acc> so_far = Vec<Acc>::loadu(p);
                for (int64_t k = 1; k < c_.kernel; ++k)
                    so_far = Join::join(Vec<Acc>::loadu(p + k * c_.dilation), so_far);
                finish(o, so_far, used);
            } else if constexpr (kStride == 2) {
                auto [so_far, odd] = load_pairs<Acc>(p, kW);
                so_far = Join::join(odd, so_far);
                for (int64_t k = 2; k < c_.kernel; k += 2) {
                    const auto [even, next] = load_pairs<Acc>(p + k, kW);
                    so_far = Join::join(even, so_far);
                    if (k + 1 < c_.kernel) so_far = Join::join(next, so_far);
                }
                finish(o, so_far, used);
            } else {
                Vec<Acc> so_far = load_pairs<Acc>(p, kW).first;
                for (int64_t k = 1; k < c_.kernel; ++k)
                    so_far = Join::join(load_pairs<Acc>(p + k * c_.dilation, kW).first, so_far);
                finish(o, so_far, used);
            }
        });
    }

    template <typename Finish>
    void columns_of(const Acc* line, const Finish& finish) const {
        for (int64_t o = 0; o < c_.out; ++o) {
            const PoolRange there = c_.taps(o);
            const Acc* p = line + c_.start(o) + there.begin * c_.dilation;
            results_[o] = join_run(p, there.end - there.begin);
        }
        cover<Acc>(0, c_.out, [&](int64_t o, int used) { finish(o, Vec<Acc>::loadu(results_ + o, used), used); });
    }
    Acc join_run(const Acc* p, int64_t count) const {
        Acc so_far = Join::kNothing;
        int64_t k = 0;
        if (count >= 2 * kW && c_.dilation == 1) {
            Vec<Acc> lanes = Vec<Acc>::loadu(p);
            for (k = kW; k + kW <= count; k += kW) lanes = Join::join(Vec<Acc>::loadu(p + k), lanes);
            so_far = join_lanes(lanes, [](Acc a, Acc b) { return Join::join(b, a); });
        }
        for (; k < count; ++k) so_far = Join::join(p[k * c_.dilation], so_far);
        return so_far;
    }

    PoolDimension c_;
    bool regular_;
    int64_t front_, length_;
    Buffer<Acc> line_, results_;
};

template <typename Acc>
using MaxPoolLine = PoolLine<MaximumOf<Acc>, Acc>;

// The maxima of one plane [rows.in, columns.in] whose rows start `stride` apart, for kernels that have just computed
// it; the line's columns are the plane's. `out` may not overlap the plane.
template <typename Acc>
void max_pool_plane(const Acc* plane, int64_t stride, const PoolDimension& rows, MaxPoolLine<Acc>& line, Acc* out,
                    int64_t out_stride) {
    constexpr int64_t kRows = 64;  // put together at a time
    for (int64_t o = 0; o < rows.out; ++o) {
        const PoolRange there = rows.taps(o);
        const auto row = [&](int64_t k) { return plane + (rows.start(o) + k * rows.dilation) * stride; };
        const auto put = [&](int64_t i, const Vec<Acc>& found, int used) {
            found.store(out + o * out_stride + i, used);
        };
        const auto put_more = [&](int64_t i, const Vec<Acc>& found, int used) {
            Acc* to = out + o * out_stride + i;
            MaximumOf<Acc>::join(found, Vec<Acc>::loadu(to, used)).store(to, used);
        };
        const Acc* pointers[kRows];
        for (int64_t k = there.begin; k == there.begin || k < there.end; k += kRows) {
            const int64_t count = std::max<int64_t>(0, std::min(kRows, there.end - k));
            for (int64_t i = 0; i < count; ++i) pointers[i] = row(k + i);
            k == there.begin ? line.pool(pointers, count, put) : line.pool(pointers, count, put_more);
        }
    }
}

}  // namespace pykernels
