// Gradients of pooling for contiguous planes, row by row of the input: each thread adds up what its own rows are due,
// in the order of the windows.
#include <array>

#include "kernels/pool_contiguous.h"

namespace pykernels {
namespace {

template <typename S, typename Place>
class MaxBackward {
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    using Lines = PoolLines<Acc>;
    static constexpr int kW = kWidth<Acc>;

    // A row of gradients, of the type they are looked at in, and of their places.
    template <typename T>
    struct Row {
        const T* grad;
        const Place* places;
        int64_t first_place;
    };

  public:
    explicit MaxBackward(const MaxPoolBackward<S>& call)
        : call_(call), s_(call.shape), c_(s_.columns), axes_(s_, true), reach_((c_.kernel - 1) * c_.dilation) {
        in_lanes_ = !c_.adaptive && c_.stride <= 2 && s_.places() <= kLanePlaces && reach_ <= c_.in + 64;
        if (!in_lanes_) return;
        // windows side by side without a rest: nothing but the row itself is looked at
        in_place_ = std::is_same_v<S, Acc> && c_.padding == 0 && reach_ < c_.stride && c_.in == c_.out * c_.stride &&
                    c_.out >= kW;
        front_ = reach_ / c_.stride;
        steps_ = (c_.in + c_.padding - 1) / c_.stride + 1;
        length_ = whole(front_ + std::max(c_.out, steps_) + 2 * kW);
        in_lanes_ = in_place_ || Lines::fit(neighbours(s_.depth), neighbours(s_.rows), grads_and_places());
    }

    void run() const {
        const int64_t rows = s_.planes() * s_.depth.in * s_.rows.in;
        parallel_region(threads_for(pool_work(s_), kPoolGrain), [&](const Team& team) {
            const Range own = share(rows, team.rank, team.size);
            if (!in_lanes_) {
                scatter(own);
            } else if (c_.stride == 1) {
                c_.kernel == 3 && c_.dilation == 1 ? in_lanes<1, 3>(own) : in_lanes<1, 0>(own);
            } else if (c_.kernel == 2 && c_.dilation == 1) {
                in_lanes<2, 2>(own);
            } else {
                c_.kernel == 3 && c_.dilation == 1 ? in_lanes<2, 3>(own) : in_lanes<2, 0>(own);
            }
        });
    }

  private:
    // Windows of one dimension that may hold a position.
    static int64_t neighbours(const PoolDimension& d) {
        if (!d.adaptive) return std::min((d.kernel - 1) * d.dilation / d.stride + 1, d.out);
        return std::min(d.out / d.in + 2, d.out);
    }

    // The length of a line with both.
    int64_t grads_and_places() const {
        return length_ + whole(length_ * static_cast<int64_t>(sizeof(Place)) / static_cast<int64_t>(sizeof(Acc)));
    }
    // (so that both begin at multiples of 64 bytes)
    static int64_t whole(int64_t count) { return (count / 16 + 1) * 16; }

    // Calls row(out, rows) for each row of the input, `line` making of a row of output what is wanted in `rows`.
    template <typename T, typename Line, typename Do>
    void each(const Range& own, const Line& line, const Do& row) const {
        std::vector<Row<T>> rows;
        each_row(own, s_.depth.in, s_.rows.in, [&](int64_t plane, int64_t d, int64_t h) {
            rows.clear();
            axes_.each_holder(s_, d, h, [&](int64_t od, int64_t oh, int64_t first_place) {
                const auto [grad, places] = line(plane, od, oh);
                rows.push_back({grad, places, first_place});
            });
            row(call_.grad_input + ((plane * s_.depth.in + d) * s_.rows.in + h) * c_.in, rows);
        });
    }
    std::pair<const S*, const Place*> output_row(int64_t number) const {
        return {call_.grad_out + number * c_.out, static_cast<const Place*>(call_.places.data) + number * c_.out};
    }
    std::pair<const S*, const Place*> output_row(int64_t plane, int64_t d, int64_t h) const {
        return output_row((plane * s_.depth.out + d) * s_.rows.out + h);
    }

    template <int kStride, int kKernel>
    void in_lanes(const Range& own) const {
        if constexpr (std::is_same_v<S, Acc>) {
            if (in_place_) {
                const auto line = [&](int64_t plane, int64_t d, int64_t h) { return output_row(plane, d, h); };
                return each<Acc>(own, line, [&](Acc* out, const std::vector<Row<Acc>>& rows) {
                    cover<Acc>(0, c_.out, [&](int64_t j, int) {
                        const auto sums = lanes<kStride, kKernel>(rows, j);
                        if constexpr (kStride == 1) {
                            sums[0].store(out + j);
                        } else {
                            store_pairs_of<Acc, Acc>(out + 2 * j, sums[0], sums[1], kW);
                        }
                    });
                });
            }
        }
        // gradients, and behind them their places, with zeros on both sides for windows that are not there
        Lines lines(neighbours(s_.depth), neighbours(s_.rows), grads_and_places(), Acc(0));
        const auto line = [&](int64_t plane, int64_t d, int64_t h) {
            const int64_t number = (plane * s_.depth.out + d) * s_.rows.out + h;
            const auto make = [&](Acc* to) {
                const auto [grad, places] = output_row(number);
                cover<Acc>(0, c_.out, [to = to + front_, from = grad](int64_t o, int used) {
                    load_as<Acc>(from + o, used).store(to + o, used);
                });
                std::copy_n(places, c_.out, reinterpret_cast<Place*>(to + length_) + front_);
                return false;
            };
            const Acc* made = lines.of(number, d, h, make).data;
            return std::pair(made + front_, reinterpret_cast<const Place*>(made + length_) + front_);
        };
        const int64_t first = c_.padding / kStride;
        const Buffer<Acc> due((steps_ - first + kW) * kStride);
        each<Acc>(own, line, [&](S* out, const std::vector<Row<Acc>>& rows) {
            for (int64_t j = first; j < steps_; j += kW) {
                const auto sums = lanes<kStride, kKernel>(rows, j);
                if constexpr (kStride == 1) {
                    sums[0].store(due + j - first);
                } else {
                    store_pairs_of<Acc, Acc>(due + 2 * (j - first), sums[0], sums[1], kW);
                }
            }
            const Acc* from = due + c_.padding - first * kStride;
            cover<Acc>(0, c_.in,
                       [&](int64_t i, int used) { store_as<Acc, S>(out + i, load_as<Acc>(from + i, used), used); });
        });
    }

    // What `stride` positions from j * stride - padding on are due. Windows in ascending order: the last column of a
    // window first.
    template <int kStride, int kKernel>
    std::array<V, kStride> lanes(const std::vector<Row<Acc>>& rows, int64_t j) const {
        const int64_t kernel = kKernel ? kKernel : c_.kernel, dilation = kKernel ? 1 : c_.dilation;
        std::array<V, kStride> sums;
        sums.fill(V(Acc(0)));
        for (const auto& row : rows) {
            const auto add = [&](int64_t k, V& sum) {
                const int64_t from = j - k * dilation / kStride;
                sum = add_where(row.places + from, row.first_place + k, V::loadu(row.grad + from), sum, kW);
            };
            if constexpr (kStride == 2 && kKernel >= 2) {
                if constexpr (kKernel == 3) add(2, sums[0]);
                add(1, sums[1]);
                add(0, sums[0]);
            } else {
                for (int64_t k = kernel - 1; k >= 0; --k) add(k, sums[k * dilation % kStride]);
            }
        }
        return sums;
    }

    void scatter(const Range& own) const {
        const Buffer<Acc> line(c_.in);
        const auto given = [&](int64_t plane, int64_t d, int64_t h) { return output_row(plane, d, h); };
        each<S>(own, given, [&](S* out, const std::vector<Row<S>>& rows) {
            std::fill_n(line.get(), c_.in, Acc(0));
            for (const auto& row : rows)
                for (int64_t o = 0; o < c_.out; ++o) {
                    const int64_t k = static_cast<int64_t>(row.places[o]) - row.first_place;
                    if (k < 0 || k >= c_.kernel) continue;
                    const int64_t i = c_.start(o) + k * c_.dilation;
                    if (i >= 0 && i < c_.in) line[i] += static_cast<Acc>(row.grad[o]);
                }
            cover<Acc>(0, c_.in,
                       [&](int64_t i, int used) { store_as<Acc, S>(out + i, load_as<Acc>(line + i, used), used); });
        });
    }

    const MaxPoolBackward<S>& call_;
    const PoolShape& s_;
    const PoolDimension& c_;
    const PoolAxes axes_;
    const int64_t reach_;
    bool in_lanes_, in_place_ = false;
    int64_t front_ = 0, steps_ = 0, length_ = 0;
};

template <typename S>
class AvgBackward {
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    static constexpr int kW = kWidth<Acc>;

  public:
    explicit AvgBackward(const AvgPoolBackward<S>& call)
        : call_(call),
          s_(call.shape),
          c_(s_.columns),
          axes_(s_, true),
          regular_(!c_.adaptive && c_.stride <= 2 && c_.kernel <= c_.in + 64),
          counts_(c_.out) {
        for (int64_t o = 0; o < c_.out; ++o)
            counts_[o] = static_cast<Acc>(call.divisor.instead ? 1 : c_.count(o, call.divisor.padded));
    }

    void run() const {
        const int64_t rows = s_.planes() * s_.depth.in * s_.rows.in;
        parallel_region(threads_for(pool_work(s_), kPoolGrain), [&](const Team& team) {
            // gradients over their counts, with zeros on both sides; what the row of input is due
            const int64_t front = regular_ ? c_.kernel - 1 : 0;
            const Buffer<Acc> given(front + std::max(c_.out, c_.in + c_.padding) + 3 * kW), due(c_.in + 5 * kW);
            std::fill_n(given.get(), front + std::max(c_.out, c_.in + c_.padding) + 3 * kW, Acc(0));
            std::vector<Row> found;
            const auto row = [&](int64_t plane, int64_t d, int64_t h) {
                collect(plane, d, h, found, given + front);
                S* out = call_.grad_input + ((plane * s_.depth.in + d) * s_.rows.in + h) * c_.in;
                if (!regular_) return spread(given, due, out);
                c_.stride == 1 ? gather<1>(given + front, due, out) : gather<2>(given + front, due, out);
            };
            each_row(share(rows, team.rank, team.size), s_.depth.in, s_.rows.in, row);
        });
    }

  private:
    struct Row {
        const S* grad;
        Acc count;
    };

    // Adds up the rows of output that a row of input is in, each over its count.
    void collect(int64_t plane, int64_t d, int64_t h, std::vector<Row>& rows, Acc* given) const {
        rows.clear();
        axes_.each_holder(s_, d, h, [&](int64_t od, int64_t oh, int64_t) {
            const int64_t count = call_.divisor.instead ? call_.divisor.instead
                                                        : s_.depth.count(od, call_.divisor.padded) *
                                                              s_.rows.count(oh, call_.divisor.padded);
            rows.push_back(
                {call_.grad_out + ((plane * s_.depth.out + od) * s_.rows.out + oh) * c_.out, static_cast<Acc>(count)});
        });
        const bool alike =
            std::all_of(rows.begin(), rows.end(), [&](const Row& r) { return r.count == rows[0].count; });
        cover<Acc>(0, c_.out, [&](int64_t o, int used) {
            const V counts = load_as<Acc>(counts_ + o, used);
            V sum(Acc(0));
            if (alike) {
                for (const Row& row : rows) sum = sum + load_as<Acc>(row.grad + o, used);
                if (!rows.empty()) sum = sum / (V(rows[0].count) * counts);
            } else {
                for (const Row& row : rows) sum = sum + load_as<Acc>(row.grad + o, used) / (V(row.count) * counts);
            }
            sum.store(given + o, used);
        });
    }

    template <int kStride>
    void gather(const Acc* given, Acc* due, S* out) const {
        const int64_t first = c_.padding / kStride, last = (c_.in + c_.padding - 1) / kStride + 1;
        for (int64_t j = first; j < last; j += kW) {
            V sums[kStride];
            for (V& sum : sums) sum = V(Acc(0));
            for (int64_t k = c_.kernel - 1; k >= 0; --k)
                sums[k % kStride] = sums[k % kStride] + V::loadu(given + j - k / kStride);
            if constexpr (kStride == 1) {
                sums[0].store(due + j - first);
            } else {
                store_pairs_of<Acc, Acc>(due + 2 * (j - first), sums[0], sums[1], kW);
            }
        }
        put(due + c_.padding - first * kStride, out);
    }

    void spread(const Acc* given, Acc* due, S* out) const {
        std::fill_n(due, c_.in, Acc(0));
        for (int64_t o = 0; o < c_.out; ++o) {
            const PoolRange there = c_.taps(o);
            Acc* to = due + c_.start(o);
            for (int64_t k = there.begin; k < there.end; ++k) to[k] += given[o];
        }
        put(due, out);
    }

    void put(const Acc* due, S* out) const {
        cover<Acc>(0, c_.in,
                   [&](int64_t i, int used) { store_as<Acc, S>(out + i, load_as<Acc>(due + i, used), used); });
    }

    const AvgPoolBackward<S>& call_;
    const PoolShape& s_;
    const PoolDimension& c_;
    const PoolAxes axes_;
    const bool regular_;
    Buffer<Acc> counts_;
};

template <typename S>
void choose_max(const MaxPoolBackward<S>& call) {
    if (call.shape.channels_last) return pool_channels_last(call);
    call.places.wide ? MaxBackward<S, int64_t>(call).run() : MaxBackward<S, uint8_t>(call).run();
}
template <typename S>
void choose_avg(const AvgPoolBackward<S>& call) {
    call.shape.channels_last ? pool_channels_last(call) : AvgBackward<S>(call).run();
}

}  // namespace

void max_pool_backward(const MaxPoolBackward<float>& call) { choose_max(call); }
void max_pool_backward(const MaxPoolBackward<double>& call) { choose_max(call); }
void max_pool_backward(const MaxPoolBackward<c10::BFloat16>& call) { choose_max(call); }
void max_pool_backward(const MaxPoolBackward<c10::Half>& call) { choose_max(call); }
void avg_pool_backward(const AvgPoolBackward<float>& call) { choose_avg(call); }
void avg_pool_backward(const AvgPoolBackward<double>& call) { choose_avg(call); }
void avg_pool_backward(const AvgPoolBackward<c10::BFloat16>& call) { choose_avg(call); }
void avg_pool_backward(const AvgPoolBackward<c10::Half>& call) { choose_avg(call); }

}  // namespace pykernels
