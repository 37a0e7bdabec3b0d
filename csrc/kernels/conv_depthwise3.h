// Depthwise convolution of planar images with kernels of 3x3 and a padding of 1, stride 1 or 2: rows are read where
// they lie, and a row's three taps are made in registers.
#pragma once

#include <tuple>

#include "core/parallel.h"
#include "kernels/conv_parts.h"

namespace pykernels {

inline bool is_depthwise3(const ConvShape& s) {
    const auto fits = [&](const ConvDimension& d) {
        return d.kernel == 3 && d.dilation == 1 && d.before == 1 && d.stride == s.dim[1].stride && d.stride <= 2;
    };
    return !s.channels_last && s.in_channels == 1 && s.mode == PaddingMode::Zeros && fits(s.dim[1]) && fits(s.dim[2]) &&
           s.dim[0].kernel == 1 && s.dim[0].input == 1 && s.dim[0].output == 1 && s.dim[0].before == 0;
}

// Planes, of which `channels` have weights of their own.
struct Planes3 {
    int64_t planes, channels, height, width, places_h, places_w;
};

template <typename S>
class Depthwise3 {
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    static constexpr int kW = kWidth<Acc>, kTogether = 4;
    static constexpr int64_t kRows = 16;  // of a thread's pieces

  public:
    // `weights` [channels * outputs, 9]; each plane of the source has `outputs` of the result.
    template <int Step>
    static void forward(const Planes3& p, int64_t outputs, const S* source, const Acc* weights, const Acc* bias,
                        bool relu, S* out) {
        each_piece(p.planes * outputs, p.places_h, p.places_w, [&](int64_t plane, int64_t begin, int64_t end) {
            const int64_t output = plane % (p.channels * outputs);
            const S* const from = source + plane / outputs * p.height * p.width;
            V w[9];
            for (int t = 0; t < 9; ++t) w[t] = V(weights[output * 9 + t]);
            const V start(bias ? bias[output] : Acc(0));
            for (int64_t h = begin; h < end; h += kTogether)
                rows<Step>(p, from, w, start, relu, h, std::min<int64_t>(end - h, kTogether),
                           out + plane * p.places_h * p.places_w);
        });
    }

    // The gradient of the source of stride 2, one output a plane; `weights` as the forward takes them.
    static void backward2(const Planes3& p, const S* grad, const Acc* weights, S* out) {
        each_piece(p.planes, (p.height + 1) / 2, p.width, [&](int64_t plane, int64_t begin, int64_t end) {
            V w[9];
            for (int t = 0; t < 9; ++t) w[t] = V(weights[plane % p.channels * 9 + t]);
            const S* const from = grad + plane * p.places_h * p.places_w;
            S* const to = out + plane * p.height * p.width;
            for (int64_t h = begin; h < end; ++h) {
                const auto row = [&](int64_t o) { return o < p.places_h ? from + o * p.places_w : nullptr; };
                two_rows(p, row(h), row(h + 1), w, to + 2 * h * p.width, 2 * h + 1 < p.height);
            }
        });
    }

    // Adds what one plane gives to the gradients of its weights and bias, ten vectors of lanes.
    template <int Step>
    static void weight_sums(const Planes3& p, const S* source, const S* grad, Acc* to) {
        V sum[10];
        for (int t = 0; t < 10; ++t) sum[t] = V::loadu(to + t * kW);
        for (int64_t h = 0; h < p.places_h; ++h, grad += p.places_w) {
            const S* line[3];
            for (int i = 0; i < 3; ++i) line[i] = row_of(p, source, h * Step + i - 1);
            V before[3] = {V(Acc(0)), V(Acc(0)), V(Acc(0))};
            for (int64_t at = 0; at < p.places_w; at += kW) {
                const V g = read(grad + at, p.places_w - at);
                sum[9] = sum[9] + g;
#pragma GCC unroll 3
                for (int i = 0; i < 3; ++i) {
                    // what lies beyond the last place is not a tap's
                    const auto taps = load<Step>(line[i], p.width, at, before[i]);
                    const int used = lanes(p.places_w - at);
#pragma GCC unroll 3
                    for (int t = 0; t < 3; ++t)
                        sum[3 * i + t] = at::vec::fmadd(g, first_lanes(taps.tap[t], used), sum[3 * i + t]);
                }
            }
        }
        for (int t = 0; t < 10; ++t) sum[t].store(to + t * kW);
    }

  private:
    struct Taps {
        V tap[3];
    };

    static int lanes(int64_t count) { return static_cast<int>(std::clamp<int64_t>(count, 0, kW)); }
    // Zeros beyond so many.
    static V read(const S* from, int64_t count) { return count > 0 ? load_as<Acc>(from, lanes(count)) : V(Acc(0)); }
    static const S* row_of(const Planes3& p, const S* plane, int64_t h) {
        return h >= 0 && h < p.height ? plane + h * p.width : nullptr;
    }

    // What the taps of the places from `at` on read: zeros of a row that is not there. `before`: what the vector before
    // left for this one.
    template <int Step>
    [[gnu::always_inline]] static Taps load(const S* row, int64_t size, int64_t at, V& before) {
        V middle(Acc(0)), right(Acc(0));
        if (!row) {
            // zeros
        } else if constexpr (Step == 1) {
            middle = read(row + at, size - at);
            right = read(row + at + 1, size - at - 1);
        } else {
            std::tie(middle, right) =
                at::vec::deinterleave2(read(row + 2 * at, size - 2 * at), read(row + 2 * at + kW, size - 2 * at - kW));
        }
        const V last = Step == 1 ? middle : right, left = shift_in(before, last);
        before = last;
        return {{left, middle, right}};
    }

    // Up to kTogether rows of places from `h` on; a row of the source is read once for all of them.
    template <int Step>
    static void rows(const Planes3& p, const S* source, const V (&w)[9], const V& start, bool relu, int64_t h,
                     int64_t count, S* out) {
        constexpr int lines = (kTogether - 1) * Step + 3;
        const S* line[lines];
        V before[lines];
        for (int i = 0; i < lines; ++i) {
            line[i] = row_of(p, source, h * Step + i - 1);
            before[i] = V(Acc(0));
        }
        for (int64_t at = 0; at < p.places_w; at += kW) {
            V sum[kTogether] = {start, start, start, start};
#pragma GCC unroll 16
            for (int i = 0; i < lines; ++i) {
                if (i >= (count - 1) * Step + 3) break;
                const auto taps = load<Step>(line[i], p.width, at, before[i]);
#pragma GCC unroll 4
                for (int o = 0; o < kTogether; ++o) {
                    const int t = i - o * Step;
                    if (t < 0 || t > 2) continue;
#pragma GCC unroll 3
                    for (int j = 0; j < 3; ++j) sum[o] = at::vec::fmadd(taps.tap[j], w[3 * t + j], sum[o]);
                }
            }
            for (int o = 0; o < count; ++o) {
                if (relu) sum[o] = at::vec::maximum(sum[o], V(Acc(0)));
                store_as<Acc, S>(out + (h + o) * p.places_w + at, sum[o], lanes(p.places_w - at));
            }
        }
    }

    // Pixel 2m is tap 1 of place m; pixel 2m + 1 is tap 0 of place m + 1 and tap 2 of place m.
    static void two_rows(const Planes3& p, const S* upper, const S* lower, const V (&w)[9], S* to, bool second) {
        for (int64_t m = 0; 2 * m < p.width; m += kW) {
            const auto places = [&](const S* row, int64_t at) {
                return row ? read(row + at, p.places_w - at) : V(Acc(0));
            };
            const V here = places(upper, m), beside = places(upper, m + 1);
            put(p, w[4] * here, at::vec::fmadd(w[5], here, w[3] * beside), m, to);
            if (!second) continue;
            const V below = places(lower, m), across = places(lower, m + 1);
            const V even = at::vec::fmadd(w[7], here, w[1] * below);
            const V odd = at::vec::fmadd(w[8], here, at::vec::fmadd(w[6], beside, w[2] * below));
            put(p, even, at::vec::fmadd(w[0], across, odd), m, to + p.width);
        }
    }
    static void put(const Planes3& p, const V& even, const V& odd, int64_t m, S* row) {
        const auto [low, high] = at::vec::interleave2<Acc>(even, odd);
        store_as<Acc, S>(row + 2 * m, low, lanes(p.width - 2 * m));
        if (2 * m + kW < p.width) store_as<Acc, S>(row + 2 * m + kW, high, lanes(p.width - 2 * m - kW));
    }

    // Calls visit(plane, begin, end) for runs of rows.
    template <typename Visit>
    static void each_piece(int64_t planes, int64_t rows, int64_t columns, const Visit& visit) {
        const int64_t pieces = (rows + kRows - 1) / kRows;
        const double work = static_cast<double>(planes * rows) * static_cast<double>(columns) * 13;
        parallel_region(threads_for(work, kConvGrain), [&](const Team& team) {
            const Range own = share(planes * pieces, team.rank, team.size);
            for (int64_t i = own.begin; i < own.end; ++i) {
                const int64_t begin = i % pieces * kRows;
                visit(i / pieces, begin, std::min(begin + kRows, rows));
            }
        });
    }
};

}  // namespace pykernels
