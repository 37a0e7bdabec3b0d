// Layer normalisation of one row, and its derivative. All sums in one order, whatever the number of threads.
#pragma once

#include <cmath>

#include "core/vec.h"

namespace pykernels {

template <typename T>
struct RowStats {
    T mean, scale;  // 1 / sqrt(variance + epsilon)
};

template <typename T, typename S>
RowStats<T> row_stats(const S* row, int64_t count, T epsilon) {
    Vec<T> sum(T(0)), squares(T(0));
    each_vector<T>(count, [&](int64_t i, int used) { sum = sum + load_as<T>(row + i, used); });
    const T mean = sum_of_lanes(sum) / static_cast<T>(count);
    each_vector<T>(count, [&](int64_t i, int used) {
        const Vec<T> off = first_lanes(load_as<T>(row + i, used) - Vec<T>(mean), used);
        squares = at::vec::fmadd(off, off, squares);
    });
    return {mean, T(1) / std::sqrt(sum_of_lanes(squares) / static_cast<T>(count) + epsilon)};
}

// From grad(i, lanes) of what came out before gain and shift, normalized(i, lanes) and the scale to what came in:
// take(i, lanes, gradient).
template <typename T, typename Grad, typename Normalized, typename Take>
[[gnu::always_inline]] inline void row_norm_backward(int64_t count, T scale, const Grad& grad,
                                                     const Normalized& normalized, const Take& take) {
    Vec<T> sum(T(0)), along(T(0));
    each_vector<T>(count, [&](int64_t i, int used) {
        const Vec<T> g = grad(i, used);
        sum = sum + g;
        along = at::vec::fmadd(g, normalized(i, used), along);
    });
    const Vec<T> mean(sum_of_lanes(sum) / static_cast<T>(count)), slope(sum_of_lanes(along) / static_cast<T>(count));
    each_vector<T>(count, [&](int64_t i, int used) {
        const Vec<T> flat = grad(i, used) - mean;
        take(i, used, Vec<T>(scale) * at::vec::fnmadd(normalized(i, used), slope, flat));
    });
}

}  // namespace pykernels
