// Distances in double precision, of one pair of rows at a time, and the nearest of some units by them.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "core/vec.h"
#include "kernels/bmu.h"

namespace pykernels {

namespace detail {

// Values as doubles; the lanes beyond `count` are zero.
template <typename S>
inline Vec<double> doubles_at(const S* p, int count) {
#if defined(CPU_CAPABILITY_AVX512)
    if constexpr (std::is_same_v<S, float>)
        return _mm512_cvtps_pd(_mm256_maskz_loadu_ps(static_cast<__mmask8>((1u << count) - 1), p));
#elif defined(CPU_CAPABILITY_AVX2)
    if constexpr (std::is_same_v<S, float>)
        if (count == kWidth<double>) return _mm256_cvtps_pd(_mm_loadu_ps(p));
#endif
    if constexpr (std::is_same_v<S, double>) {
        return load_as<double>(p, count);
    } else {
        double lanes[kWidth<double>] = {};
        for (int i = 0; i < count; ++i) lanes[i] = static_cast<double>(p[i]);
        return Vec<double>::loadu(lanes);
    }
}

// The sum over features of what add(sum, x, w) adds.
template <typename S, typename Add>
inline double sum_over(const S* x, const S* w, int64_t features, const Add& add) {
    Vec<double> sum(0.0);
    each_vector<double>(features,
                        [&](int64_t d, int used) { sum = add(sum, doubles_at(x + d, used), doubles_at(w + d, used)); });
    return sum_of_lanes(sum);
}

}  // namespace detail

// What units are ordered by: the distance, squared where it is Euclidean.
template <typename S>
double exact_measure(Metric metric, const S* x, const S* w, int64_t features) {
    using D = Vec<double>;
    using detail::sum_over;
    if (metric == Metric::kEuclidean)
        return sum_over(x, w, features, [](const D& sum, const D& a, const D& b) {
            const D apart = a - b;
            return at::vec::fmadd(apart, apart, sum);
        });
    if (metric == Metric::kManhattan)
        return sum_over(x, w, features, [](const D& sum, const D& a, const D& b) { return sum + (a - b).abs(); });
    const auto product = [](const D& sum, const D& a, const D& b) { return at::vec::fmadd(a, b, sum); };
    const double norms = std::sqrt(sum_over(x, x, features, product)) * std::sqrt(sum_over(w, w, features, product));
    if (norms == 0) return 1;
    const double apart = 1 - sum_over(x, w, features, product) / norms;
    return apart < 0 ? 0 : apart;  // (NaN stays)
}

inline double distance_of(Metric metric, double measure) {
    return metric == Metric::kEuclidean ? std::sqrt(measure) : measure;
}

// The nearest units so far: by their measure, then by their number; what is not a number is farther than all that is.
class Nearest {
  public:
    explicit Nearest(int wanted) : wanted_(wanted) {}
    void consider(double measure, int64_t unit) {
        if (count_ == wanted_ && !before(measure, unit, count_ - 1)) return;
        int at = count_ < wanted_ ? count_++ : count_ - 1;
        for (; at > 0 && before(measure, unit, at - 1); --at) {
            measure_[at] = measure_[at - 1];
            unit_[at] = unit_[at - 1];
        }
        measure_[at] = measure;
        unit_[at] = unit;
    }
    double measure(int i) const { return measure_[i]; }
    int64_t unit(int i) const { return unit_[i]; }

  private:
    bool before(double measure, int64_t unit, int i) const {
        if (std::isnan(measure) != std::isnan(measure_[i])) return std::isnan(measure_[i]);
        return measure < measure_[i] || (!(measure > measure_[i]) && unit < unit_[i]);
    }
    int wanted_, count_ = 0;
    std::array<double, kMostNeighbours> measure_;
    std::array<int64_t, kMostNeighbours> unit_;
};

// Writes what was found for a sample.
template <typename S>
void write_nearest(const Bmu<S>& call, int64_t sample, const Nearest& nearest) {
    for (int i = 0; i < call.neighbours; ++i) {
        const int64_t to = sample * call.neighbours + i;
        call.distance[to] = static_cast<typename Bmu<S>::Acc>(distance_of(call.metric, nearest.measure(i)));
        call.index[to] = nearest.unit(i);
    }
}

// The nearest of all units.
template <typename S>
void search_exactly(const Bmu<S>& call, int64_t sample) {
    Nearest nearest(call.neighbours);
    const S* x = call.input + sample * call.input_stride;
    for (int64_t unit = 0; unit < call.units; ++unit)
        nearest.consider(exact_measure(call.metric, x, call.codebook + unit * call.codebook_stride, call.features),
                         unit);
    write_nearest(call, sample, nearest);
}

}  // namespace pykernels
