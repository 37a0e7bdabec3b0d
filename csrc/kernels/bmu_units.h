// The codebook as the search reads it. Of two units that one is nearer whose score is larger: w x - w w / 2 where
// distances are Euclidean, w x / |w| for the cosine, -sum |w - x|; x and w are taken from the codebook's mean, so that
// how far all of it lies from the origin costs no digits.
#pragma once

#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "core/parallel.h"
#include "core/scratch.h"
#include "core/vec.h"
#include "kernels/bmu.h"

namespace pykernels {

template <typename T>
class Units {
  public:
    static constexpr int width = kWidth<T>;

    template <typename S>
    explicit Units(const Bmu<S>& call)
        : metric(call.metric),
          features(call.features),
          stride((call.features + width - 1) / width * width),
          groups((call.units + kTileRows - 1) / kTileRows),
          rows_(groups * kTileRows * stride),
          start_(groups * kTileRows),
          centre_(stride) {
        std::fill(centre_.get(), centre_.get() + stride, T(0));
    }

    // One thread's part; all threads of the team come here, and find the units complete when they leave.
    template <typename S>
    void prepare(const Bmu<S>& call, const Team& team) {
        if (metric == Metric::kEuclidean) {
            const Range mine = share(features, team.rank, team.size, width);
            find_centre(call, mine);
            team.wait();
        }
        T largest = 0;
        const Range mine = share(groups * kTileRows, team.rank, team.size);
        for (int64_t unit = mine.begin; unit < mine.end; ++unit) largest = std::max(largest, place(call, unit));
        for (T seen = norm_.load(); seen < largest && !norm_.compare_exchange_weak(seen, largest);) continue;
        team.wait();
    }

    const T* row(int64_t unit) const { return rows_ + unit * stride; }
    const T* start(int64_t unit) const { return start_ + unit; }
    const T* centre() const { return centre_; }
    // Errors of a score are this times (|x| norm + norm^2), or less: those of a chain of sums, several times over.
    T rounding() const {
        const T unit = std::numeric_limits<T>::epsilon() / 2;
        return unit * (8 + 4 * std::sqrt(static_cast<T>(features)));
    }
    T norm() const { return norm_.load(std::memory_order_relaxed); }  // the largest of a unit
    bool overflowed() const { return overflowed_.load(std::memory_order_relaxed); }

    const Metric metric;
    const int64_t features, stride, groups;  // groups of kTileRows units; the last is filled up with units that lose

  private:
    template <typename S>
    void find_centre(const Bmu<S>& call, const Range& mine) {
        const T weight = T(1) / static_cast<T>(call.units);
        for (int64_t unit = 0; unit < call.units; ++unit) {
            const S* w = call.codebook + unit * call.codebook_stride;
            for (int64_t d = mine.begin; d < mine.end; ++d) centre_[d] += static_cast<T>(w[d]);
        }
        for (int64_t d = mine.begin; d < mine.end; ++d) {
            centre_[d] *= weight;
            if (!std::isfinite(centre_[d])) centre_[d] = 0;
        }
    }

    // Gives the unit's norm. A unit that has no finite score loses here.
    template <typename S>
    T place(const Bmu<S>& call, int64_t unit) {
        T* to = rows_ + unit * stride;
        std::fill(to, to + stride, T(0));
        start_[unit] = -std::numeric_limits<T>::infinity();
        if (unit >= call.units) return 0;
        const S* w = call.codebook + unit * call.codebook_stride;
        double squares = 0, size = 0;
        bool finite = true;
        for (int64_t d = 0; d < features; ++d) {
            to[d] = static_cast<T>(w[d]) - centre_[d];
            squares += double(to[d]) * double(to[d]);
            size += std::abs(double(to[d]));
            finite = finite && std::isfinite(static_cast<T>(w[d]));
        }
        if (metric == Metric::kCosine && finite) {
            const double scale = squares > 0 ? 1 / std::sqrt(squares) : 0;
            for (int64_t d = 0; d < features; ++d) to[d] = static_cast<T>(to[d] * scale);
            start_[unit] = 0;
            if (std::isfinite(squares)) return squares > 0;
        }
        const bool sums = metric == Metric::kManhattan;
        const T half = static_cast<T>(squares / 2), norm = static_cast<T>(sums ? size : std::sqrt(squares));
        if (finite && std::isfinite(half) && std::isfinite(norm * norm)) {
            start_[unit] = sums ? T(0) : -half;
            return norm;
        }
        std::fill(to, to + stride, T(0));
        start_[unit] = -std::numeric_limits<T>::infinity();
        if (finite) overflowed_.store(true, std::memory_order_relaxed);
        return 0;
    }

    const Buffer<T> rows_, start_, centre_;
    std::atomic<T> norm_{0};
    std::atomic<bool> overflowed_{false};
};

}  // namespace pykernels
