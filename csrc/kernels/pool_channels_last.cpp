// Pooling where the channels of one position lie beside each other: they are the lanes, windows are walked element by
// element.
#include <cmath>

#include "kernels/pool_contiguous.h"

namespace pykernels {
namespace {

// Calls visit.template operator()<n>(c, lanes) for runs of n vectors of channels.
template <typename Acc, int kMost, typename Visit>
[[gnu::always_inline]] inline void each_run(int64_t channels, const Visit& visit) {
    constexpr int width = kWidth<Acc>;
    int64_t c = 0;
    for (; c + kMost * width <= channels; c += kMost * width) visit.template operator()<kMost>(c, width);
    cover<Acc>(c, channels, [&](int64_t i, int used) { visit.template operator()<1>(i, used); });
}

// The elements of one window, or the rows of all windows of a row of output.
struct Elements {
    PoolRange depth, rows, columns;
    int64_t first;  // the offset of the place 0, 0, 0
};

// From one place of a window to the next, in elements.
struct Steps {
    int64_t depth, rows, columns;

    explicit Steps(const PoolShape& s)
        : depth(s.rows.in * s.columns.in * s.channels * s.depth.dilation),
          rows(s.columns.in * s.channels * s.rows.dilation),
          columns(s.channels * s.columns.dilation) {}
};

// Visits the rows of a window in the order of their places: visit(offset of the row's first place, kd, kh).
template <typename Visit>
[[gnu::always_inline]] inline void each_row_of(const Elements& e, const Steps& step, const Visit& visit) {
    for (int64_t kd = e.depth.begin; kd < e.depth.end; ++kd)
        for (int64_t kh = e.rows.begin; kh < e.rows.end; ++kh)
            visit(e.first + kd * step.depth + kh * step.rows, kd, kh);
}

// Runs row(offset of the output, d, h, elements but their columns) for every row of output.
template <typename Row>
void each_row_of_windows(const PoolShape& s, const Team& team, const Row& row) {
    const PoolAxes axes(s, false);
    const Range own = share(s.batch * s.depth.out * s.rows.out, team.rank, team.size);
    each_row(own, s.depth.out, s.rows.out, [&](int64_t n, int64_t d, int64_t h) {
        const int64_t top = (n * s.depth.in + axes.depth.start(d)) * s.rows.in + axes.rows.start(h);
        row(((n * s.depth.out + d) * s.rows.out + h) * s.columns.out * s.channels, d, h,
            Elements{axes.depth.taps(d), axes.rows.taps(h), {}, top * s.columns.in * s.channels});
    });
}

// Runs window(offset of the output, d, h, w, elements) for every window.
template <typename Window>
void each_window(const PoolShape& s, const Window& window) {
    const PoolAxis width(s.columns, false);
    parallel_region(threads_for(pool_work(s), kPoolGrain), [&](const Team& team) {
        each_row_of_windows(s, team, [&](int64_t at, int64_t d, int64_t h, const Elements& row) {
            Elements e = row;
            for (int64_t w = 0; w < s.columns.out; ++w, at += s.channels) {
                e.columns = width.taps(w);
                e.first = row.first + width.start(w) * s.channels;
                window(at, d, h, w, e);
            }
        });
    });
}

// Puts the windows' elements together; kApart: those of each row of a window first, so that long sums are exact to more
// places. finish(d, h, w) makes the result of what was found.
template <typename Join, bool kApart, typename S, typename Finish>
void put_together(const PoolShape& s, const S* input, S* out, const Finish& finish) {
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    const Steps step(s);
    each_window(s, [&](int64_t at, int64_t d, int64_t h, int64_t w, const Elements& e) {
        const auto finished = finish(d, h, w);
        each_run<Acc, 4>(s.channels, [&]<int kRun>(int64_t c, int used) {
            V found[kRun], row[kRun];
            for (V& one : found) one = V(Join::kNothing);
            each_row_of(e, step, [&](int64_t offset, int64_t, int64_t) {
                const S* p = input + offset + c;
                for (int i = 0; kApart && i < kRun; ++i) row[i] = V(Join::kNothing);
                V* const to = kApart ? row : found;
                for (int64_t k = e.columns.begin; k < e.columns.end; ++k)
                    for (int i = 0; i < kRun; ++i)
                        to[i] = Join::join(load_as<Acc>(p + k * step.columns + i * kWidth<Acc>, used), to[i]);
                for (int i = 0; kApart && i < kRun; ++i) found[i] = Join::join(row[i], found[i]);
            });
            for (int i = 0; i < kRun; ++i) store_as<Acc, S>(out + at + c + i * kWidth<Acc>, finished(found[i]), used);
        });
    });
}

template <typename S, typename Place>
void max_with_places(const MaxPoolForward<S>& call) {
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    const PoolShape& s = call.shape;
    const Steps step(s);
    Place* const places = static_cast<Place*>(call.places.data);
    each_window(s, [&](int64_t at, int64_t, int64_t, int64_t, const Elements& e) {
        const auto empty = [](const PoolRange& there) { return there.begin >= there.end; };
        const auto place_of = [&](int64_t kd, int64_t kh) { return (kd * s.rows.kernel + kh) * s.columns.kernel; };
        const bool nothing = empty(e.depth) || empty(e.rows) || empty(e.columns);
        const int64_t first = nothing ? 0 : place_of(e.depth.begin, e.rows.begin) + e.columns.begin;
        each_run<Acc, 4>(s.channels, [&]<int kRun>(int64_t c, int used) {
            V best[kRun], place[kRun];
            for (V& one : best) one = V(MaximumOf<Acc>::kNothing);
            for (V& one : place) one = V(static_cast<Acc>(first));
            each_row_of(e, step, [&](int64_t offset, int64_t kd, int64_t kh) {
                const S* p = call.input + offset + c;
                for (int64_t k = e.columns.begin; k < e.columns.end; ++k) {
                    const V tap(static_cast<Acc>(place_of(kd, kh) + k));
                    for (int i = 0; i < kRun; ++i)
                        take_larger<true>(load_as<Acc>(p + k * step.columns + i * kWidth<Acc>, used), tap, best[i],
                                          place[i]);
                }
            });
            for (int i = 0; i < kRun; ++i) {
                store_as<Acc, S>(call.out + at + c + i * kWidth<Acc>, best[i], used);
                store_places(places + at + c + i * kWidth<Acc>, place[i], used);
            }
        });
    });
}

// The same for windows of more places than lanes can count.
template <typename S>
void max_one_by_one(const MaxPoolForward<S>& call) {
    using Acc = Accumulator<S>;
    const PoolShape& s = call.shape;
    const Steps step(s);
    int64_t* const places = static_cast<int64_t*>(call.places.data);
    each_window(s, [&](int64_t at, int64_t, int64_t, int64_t, const Elements& e) {
        for (int64_t c = 0; c < s.channels; ++c) {
            Acc best = MaximumOf<Acc>::kNothing;
            int64_t place = -1;
            each_row_of(e, step, [&](int64_t offset, int64_t kd, int64_t kh) {
                const int64_t first = (kd * s.rows.kernel + kh) * s.columns.kernel;
                for (int64_t k = e.columns.begin; k < e.columns.end; ++k) {
                    const Acc next = static_cast<Acc>(call.input[offset + c + k * step.columns]);
                    if (place < 0 || next > best || std::isnan(next)) best = next, place = first + k;
                }
            });
            call.out[at + c] = static_cast<S>(best);
            places[at + c] = std::max<int64_t>(place, 0);
        }
    });
}

// The windows that hold a position: each of some rows of windows with each of some of their columns. `at` of both,
// added, is where a window's gradient lies; first_place and tap, added, the position's place in it.
struct WindowRow {
    int64_t at, d, h, first_place;
};
struct WindowColumn {
    int64_t at, w, tap;
};
struct Holders {
    const std::vector<WindowRow>& rows;
    const WindowColumn *begin, *end;

    template <typename Visit>
    [[gnu::always_inline]] void each(const Visit& visit) const {
        for (const auto& row : rows)
            for (const auto* column = begin; column < end; ++column) visit(row, *column);
    }
};

// Runs position(offset, holders) for every position of the input.
template <typename Position>
void each_position(const PoolShape& s, const Position& position) {
    const PoolAxes axes(s, true);
    const PoolAxis width(s.columns, true);
    std::vector<WindowColumn> columns;
    std::vector<int64_t> first(s.columns.in + 1);  // of each position's
    for (int64_t w = 0; w < s.columns.in; ++w) {
        first[w] = std::ssize(columns);
        for (int64_t ow = width.holders(w).begin; ow < width.holders(w).end; ++ow)
            if (const int64_t k = width.tap(ow, w); k >= 0) columns.push_back({ow * s.channels, ow, k});
    }
    first[s.columns.in] = std::ssize(columns);
    parallel_region(threads_for(pool_work(s), kPoolGrain), [&](const Team& team) {
        std::vector<WindowRow> above;
        const Range own = share(s.batch * s.depth.in * s.rows.in, team.rank, team.size);
        each_row(own, s.depth.in, s.rows.in, [&](int64_t n, int64_t d, int64_t h) {
            above.clear();
            axes.each_holder(s, d, h, [&](int64_t od, int64_t oh, int64_t place) {
                const int64_t row = (n * s.depth.out + od) * s.rows.out + oh;
                above.push_back({row * s.columns.out * s.channels, od, oh, place});
            });
            int64_t at = ((n * s.depth.in + d) * s.rows.in + h) * s.columns.in * s.channels;
            for (int64_t w = 0; w < s.columns.in; ++w, at += s.channels)
                position(at, Holders{above, columns.data() + first[w], columns.data() + first[w + 1]});
        });
    });
}

template <typename S, typename Place>
void max_gradient(const MaxPoolBackward<S>& call) {
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    const Place* const places = static_cast<const Place*>(call.places.data);
    each_position(call.shape, [&](int64_t at, const Holders& holders) {
        each_run<Acc, 4>(call.shape.channels, [&]<int kRun>(int64_t c, int used) {
            V sum[kRun];
            for (V& one : sum) one = V(Acc(0));
            holders.each([&](const WindowRow& row, const WindowColumn& column) {
                for (int i = 0; i < kRun; ++i) {
                    const int64_t from = row.at + column.at + c + i * kWidth<Acc>;
                    sum[i] = add_where(places + from, row.first_place + column.tap,
                                       load_as<Acc>(call.grad_out + from, used), sum[i], used);
                }
            });
            for (int i = 0; i < kRun; ++i) store_as<Acc, S>(call.grad_input + at + c + i * kWidth<Acc>, sum[i], used);
        });
    });
}

template <typename S>
void max_gradient_one_by_one(const MaxPoolBackward<S>& call) {
    using Acc = Accumulator<S>;
    const int64_t* const places = static_cast<const int64_t*>(call.places.data);
    each_position(call.shape, [&](int64_t at, const Holders& holders) {
        for (int64_t c = 0; c < call.shape.channels; ++c) {
            Acc sum(0);
            holders.each([&](const WindowRow& row, const WindowColumn& column) {
                const int64_t from = row.at + column.at + c;
                if (places[from] == row.first_place + column.tap) sum += static_cast<Acc>(call.grad_out[from]);
            });
            call.grad_input[at + c] = static_cast<S>(sum);
        }
    });
}

// What a mean divides by.
template <typename Acc>
Acc divisor_of(const PoolShape& s, const PoolDivisor& divisor, int64_t d, int64_t h, int64_t w) {
    if (divisor.instead) return static_cast<Acc>(divisor.instead);
    return static_cast<Acc>(s.depth.count(d, divisor.padded) * s.rows.count(h, divisor.padded) *
                            s.columns.count(w, divisor.padded));
}

template <typename S>
void mean_gradient(const AvgPoolBackward<S>& call) {
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    const PoolShape& s = call.shape;
    const auto counts = [&](const PoolDimension& d) {
        std::vector<int64_t> of(d.out);
        for (int64_t o = 0; o < d.out; ++o) of[o] = d.count(o, call.divisor.padded);
        return of;
    };
    const auto depth = counts(s.depth), rows = counts(s.rows), columns = counts(s.columns);
    each_position(s, [&](int64_t at, const Holders& holders) {
        each_run<Acc, 4>(s.channels, [&]<int kRun>(int64_t c, int used) {
            V sum[kRun];
            for (V& one : sum) one = V(Acc(0));
            holders.each([&](const WindowRow& row, const WindowColumn& column) {
                const int64_t count = depth[row.d] * rows[row.h] * columns[column.w];
                const V share(Acc(1) / static_cast<Acc>(call.divisor.instead ? call.divisor.instead : count));
                for (int i = 0; i < kRun; ++i) {
                    const V grad = load_as<Acc>(call.grad_out + row.at + column.at + c + i * kWidth<Acc>, used);
                    sum[i] = at::vec::fmadd(grad, share, sum[i]);
                }
            });
            for (int i = 0; i < kRun; ++i) store_as<Acc, S>(call.grad_input + at + c + i * kWidth<Acc>, sum[i], used);
        });
    });
}

}  // namespace

template <typename Call>
void pool_channels_last(const Call& call) {
    using S = typename Call::Storage;
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    const PoolShape& s = call.shape;
    if constexpr (std::is_same_v<Call, MaxPoolForward<S>>) {
        if (call.places.data && s.places() > kLanePlaces) return max_one_by_one(call);
        if (call.places.data)
            return call.places.wide ? max_with_places<S, int64_t>(call) : max_with_places<S, uint8_t>(call);
        const auto as_it_is = [](int64_t, int64_t, int64_t) { return [](const V& found) { return found; }; };
        put_together<MaximumOf<Acc>, false>(s, call.input, call.out, as_it_is);
    } else if constexpr (std::is_same_v<Call, MaxPoolBackward<S>>) {
        if (s.places() > kLanePlaces) return max_gradient_one_by_one(call);
        call.places.wide ? max_gradient<S, int64_t>(call) : max_gradient<S, uint8_t>(call);
    } else if constexpr (std::is_same_v<Call, AvgPoolForward<S>>) {
        const auto mean = [&](int64_t d, int64_t h, int64_t w) {
            return [by = V(divisor_of<Acc>(s, call.divisor, d, h, w))](const V& sum) { return sum / by; };
        };
        s.places() > 64 ? put_together<SumOf<Acc>, true>(s, call.input, call.out, mean)
                        : put_together<SumOf<Acc>, false>(s, call.input, call.out, mean);
    } else {
        mean_gradient(call);
    }
}

#define PYKERNELS_POOL(S)                                        \
    template void pool_channels_last(const MaxPoolForward<S>&);  \
    template void pool_channels_last(const MaxPoolBackward<S>&); \
    template void pool_channels_last(const AvgPoolForward<S>&);  \
    template void pool_channels_last(const AvgPoolBackward<S>&);
PYKERNELS_POOL(float)
PYKERNELS_POOL(double)
PYKERNELS_POOL(c10::BFloat16)
PYKERNELS_POOL(c10::Half)
#undef PYKERNELS_POOL

}  // namespace pykernels
