// Maxima of contiguous planes with their places: element by element in the order of the window, so that the first of
// the largest is found; windows beside each other are lanes.
#include "kernels/pool_contiguous.h"

namespace pykernels {
namespace {

template <typename S, typename Place>
class Forward {
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    using Lines = PoolLines<Acc>;
    static constexpr int kW = kWidth<Acc>;

  public:
    explicit Forward(const MaxPoolForward<S>& call)
        : call_(call),
          s_(call.shape),
          c_(s_.columns),
          axes_(s_, false),
          reach_((c_.kernel - 1) * c_.dilation),
          span_((c_.out - 1) * c_.stride + reach_ + 1),
          across_((s_.depth.kernel - 1) * s_.depth.dilation + 1),
          along_((s_.rows.kernel - 1) * s_.rows.dilation + 1),
          in_lanes_(!c_.adaptive && c_.stride <= 2 && s_.places() <= kLanePlaces && reach_ <= c_.in + 64),
          in_place_(std::is_same_v<S, Acc> && c_.padding == 0 && span_ <= c_.in && c_.out >= kW) {
        if (!in_lanes_) return;
        length_ = c_.padding + std::max(c_.in, span_) + 3 * kW;
        in_lanes_ = in_place_ || Lines::fit(across_, along_, length_);
        first_ = Buffer<Acc>(c_.out + kW);
        std::fill_n(first_.get(), c_.out + kW, Acc(0));
        for (int64_t o = 0; o < c_.out && c_.start(o) < 0; ++o) {
            const PoolRange there = c_.taps(o);
            first_[o] = static_cast<Acc>(there.begin);
            if (there.begin >= there.end) in_lanes_ = false;  // (windows of nothing)
        }
    }

    void run() const {
        const int64_t rows = s_.planes() * s_.depth.out * s_.rows.out;
        const bool pairs = c_.dilation == 1 && c_.kernel > 1;
        parallel_region(threads_for(pool_work(s_), kPoolGrain), [&](const Team& team) {
            const Range own = share(rows, team.rank, team.size);
            if (!in_lanes_) {
                one_by_one(own);
            } else if (c_.stride == 1) {
                c_.kernel == 3 ? in_lanes<1, 3>(own) : in_lanes<1, 0>(own);
            } else if (pairs && c_.kernel == 2) {
                in_lanes<2, 2>(own);
            } else if (pairs && c_.kernel == 3) {
                in_lanes<2, 3>(own);
            } else {
                pairs ? in_lanes<2, 0>(own) : in_lanes<0, 0>(own);
            }
        });
    }

  private:
    template <typename T>
    struct Row {
        const T* data;
        int64_t first_place;
        bool missing;  // it may hold what is not a number
    };

    const S* input_row(int64_t plane, int64_t d, int64_t h) const {
        return call_.input + ((plane * s_.depth.in + d) * s_.rows.in + h) * c_.in;
    }

    // Calls row(rows, out, places) for each row of output; line(plane, d, h) is what `rows` are to hold of a row of
    // input, and whether it may be missing numbers.
    template <typename T, typename Line, typename Do>
    void each(const Range& own, const Line& line, const Do& row) const {
        std::vector<Row<T>> rows;
        each_row(own, s_.depth.out, s_.rows.out, [&](int64_t plane, int64_t d, int64_t h) {
            rows.clear();
            axes_.each_of_window(s_, d, h, [&](int64_t id, int64_t ih, int64_t first_place) {
                const auto [data, missing] = line(plane, id, ih);
                rows.push_back({data, first_place, missing});
            });
            const int64_t at = ((plane * s_.depth.out + d) * s_.rows.out + h) * c_.out;
            row(rows, call_.out + at, static_cast<Place*>(call_.places.data) + at);
        });
    }

    // Stride 1; stride 2, two neighbours at a time; or (0) stride 2 with places passed by. kKernel: columns, if known.
    template <int kStride, int kKernel>
    void in_lanes(const Range& own) const {
        const auto row = [&](const std::vector<Row<Acc>>& rows, S* out, Place* places) {
            const bool missing = std::any_of(rows.begin(), rows.end(), [](const auto& one) { return one.missing; });
            cover<Acc>(0, c_.out, [&](int64_t o, int used) {
                missing ? lanes<kStride, kKernel, true>(rows, o, used, out, places)
                        : lanes<kStride, kKernel, false>(rows, o, used, out, places);
            });
        };
        if constexpr (std::is_same_v<S, Acc>) {
            const auto line = [&](int64_t plane, int64_t d, int64_t h) {
                return std::pair(input_row(plane, d, h), true);
            };
            if (in_place_) return each<Acc>(own, line, row);
        }
        Lines lines(across_, along_, length_, MaximumOf<Acc>::kNothing);
        const auto line = [&](int64_t plane, int64_t d, int64_t h) {
            return lines.of((plane * s_.depth.in + d) * s_.rows.in + h, d, h, [&](Acc* to) {
                const S* from = input_row(plane, d, h);
                bool missing = false;
                cover<Acc>(0, c_.in, [&](int64_t i, int used) {
                    const V values = load_as<Acc>(from + i, used);
                    missing |= any_missing(values);
                    values.store(to + c_.padding + i, used);
                });
                return missing;
            });
        };
        each<Acc>(own, line, row);
    }

    template <int kStride, int kKernel, bool kMissing>
    void lanes(const std::vector<Row<Acc>>& rows, int64_t o, int used, S* out, Place* places) const {
        const int64_t kernel = kKernel ? kKernel : c_.kernel;
        const V one(Acc(1));
        V best(MaximumOf<Acc>::kNothing), place(Acc(0));
        if (!rows.empty()) place = V::loadu(first_ + o) + V(static_cast<Acc>(rows[0].first_place));
        for (const auto& row : rows) {
            const Acc* p = row.data + o * c_.stride;
            V tap(static_cast<Acc>(row.first_place));
            const auto take = [&](const V& next) {
                take_larger<kMissing>(next, tap, best, place);
                tap = tap + one;
            };
            if constexpr (kStride == 1) {
                for (int64_t k = 0; k < kernel; ++k) take(V::loadu(p + k * c_.dilation));
            } else if constexpr (kStride == 2) {
                for (int64_t k = 0; k + 1 < kernel; k += 2) {
                    const auto [even, odd] = load_pairs<Acc>(p + k, kW);
                    take(even);
                    take(odd);
                }
                // the last of an odd number is the odd one of a pair that starts before it: nothing behind it is read
                if (kernel % 2) take(load_pairs<Acc>(p + kernel - 2, kW).second);
            } else {
                for (int64_t k = 0; k < kernel; ++k) take(every_second(p + k * c_.dilation));
            }
        }
        store_as<Acc, S>(out + o, best, used);
        store_places(places + o, place, used);
    }

    static V every_second(const Acc* p) {
        alignas(64) Acc lanes[kW];
        for (int i = 0; i < kW; ++i) lanes[i] = p[2 * i];
        return V::loadu(lanes);
    }

    void one_by_one(const Range& own) const {
        const auto row = [&](const std::vector<Row<S>>& rows, S* out, Place* places) {
            for (int64_t o = 0; o < c_.out; ++o) one(rows, o, out, places);
        };
        each<S>(own, [&](int64_t plane, int64_t d, int64_t h) { return std::pair(input_row(plane, d, h), true); }, row);
    }

    void one(const std::vector<Row<S>>& rows, int64_t o, S* out, Place* places) const {
        const int64_t start = c_.start(o);
        const PoolRange there = c_.taps(o);
        Acc best = MaximumOf<Acc>::kNothing;
        int64_t place = rows.empty() || there.begin >= there.end ? 0 : rows[0].first_place + there.begin;
        for (const auto& row : rows)
            for (int64_t k = there.begin; k < there.end; ++k) {
                const Acc next = static_cast<Acc>(row.data[start + k * c_.dilation]);
                if (next > best || std::isnan(next)) best = next, place = row.first_place + k;
            }
        out[o] = static_cast<S>(best);
        places[o] = static_cast<Place>(place);
    }

    const MaxPoolForward<S>& call_;
    const PoolShape& s_;
    const PoolDimension& c_;
    const PoolAxes axes_;
    const int64_t reach_, span_, across_, along_;
    bool in_lanes_;
    const bool in_place_;  // rows need no line, as windows lie inside of them
    int64_t length_ = 0;
    Buffer<Acc> first_;  // the first column that each window has: its place where all elements are -infinity
};

}  // namespace

template <typename S>
void max_pool_with_places(const MaxPoolForward<S>& call) {
    call.places.wide ? Forward<S, int64_t>(call).run() : Forward<S, uint8_t>(call).run();
}
template void max_pool_with_places(const MaxPoolForward<float>&);
template void max_pool_with_places(const MaxPoolForward<double>&);
template void max_pool_with_places(const MaxPoolForward<c10::BFloat16>&);
template void max_pool_with_places(const MaxPoolForward<c10::Half>&);

}  // namespace pykernels
