// Distances in double precision, of one pair of rows at a time, and the nearest of some units by them.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/bmu.h"

namespace pykernels {

namespace detail {

inline constexpr int kChains = 8;  // partial sums, that the compiler keeps side by side

// The sum over features of term(x, w), in kChains interleaved chains.
template <typename S, typename Term>
double sum_of_terms(const S* x, const S* w, int64_t features, const Term& term) {
    double sum[kChains] = {};
    int64_t d = 0;
    for (; d + kChains <= features; d += kChains)
        for (int j = 0; j < kChains; ++j) sum[j] += term(static_cast<double>(x[d + j]), static_cast<double>(w[d + j]));
    for (int j = 0; d + j < features; ++j) sum[j] += term(static_cast<double>(x[d + j]), static_cast<double>(w[d + j]));
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

}  // namespace detail

// What units are ordered by: the distance, squared where it is Euclidean.
template <typename S>
double exact_measure(Metric metric, const S* x, const S* w, int64_t features) {
    using detail::sum_of_terms;
    if (metric == Metric::kEuclidean)
        return sum_of_terms(x, w, features, [](double a, double b) { return (a - b) * (a - b); });
    if (metric == Metric::kManhattan)
        return sum_of_terms(x, w, features, [](double a, double b) { return std::abs(a - b); });
    const double dot = sum_of_terms(x, w, features, [](double a, double b) { return a * b; });
    const double of_x = sum_of_terms(x, x, features, [](double a, double b) { return a * b; });
    const double of_w = sum_of_terms(w, w, features, [](double a, double b) { return a * b; });
    const double norms = std::sqrt(of_x) * std::sqrt(of_w);
    if (norms == 0) return 1;
    const double apart = 1 - dot / norms;
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
