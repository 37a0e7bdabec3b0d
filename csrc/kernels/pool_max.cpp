// Maxima of contiguous planes with their places: element by element in the order of the window, so that the first of
// the largest is found; windows beside each other are lanes.
#include "kernels/pool_contiguous.h"

namespace pykernels {
namespace {

template <typename S, typename Place>
class Forward {
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    static constexpr int kW = kWidth<Acc>;

  public:
    explicit Forward(const MaxPoolForward<S>& call) : call_(call), s_(call.shape), c_(s_.columns) {
        if (c_.adaptive || c_.stride > 2 || s_.places() > kLanePlaces) return;
        // windows from `begin` to `end` have all their columns inside
        begin_ = std::min((c_.padding + c_.stride - 1) / c_.stride, c_.out);
        const int64_t left = c_.in + c_.padding - (c_.kernel - 1) * c_.dilation - 1;
        end_ = left < 0 ? begin_ : std::clamp(left / c_.stride + 1, begin_, c_.out);
    }

    void run() const {
        const int64_t rows = s_.planes() * s_.depth.out * s_.rows.out;
        const bool pairs = c_.dilation == 1 && c_.kernel > 1;
        parallel_region(threads_for(pool_work(s_), kPoolGrain), [&](const Team& team) {
            const Range own = share(rows, team.rank, team.size);
            if (c_.stride == 1) {
                run<1, 0>(own);
            } else if (pairs && c_.kernel == 2) {
                run<2, 2>(own);
            } else if (pairs && c_.kernel == 3) {
                run<2, 3>(own);
            } else {
                pairs ? run<2, 0>(own) : run<0, 0>(own);
            }
        });
    }

  private:
    using Row = PoolRow<S>;

    // Stride 1; stride 2, two neighbours at a time; or (0) stride 2 with places passed by. kKernel: columns, if known.
    template <int kStride, int kKernel>
    void run(const Range& own) const {
        std::vector<Row> rows;
        each_row(own, s_.depth.out, s_.rows.out, [&](int64_t plane, int64_t d, int64_t h) {
            rows_of_windows(s_, call_.input + plane * s_.in_plane(), d, h, rows);
            const int64_t at = ((plane * s_.depth.out + d) * s_.rows.out + h) * c_.out;
            S* out = call_.out + at;
            Place* places = static_cast<Place*>(call_.places.data) + at;
            for (int64_t o = 0; o < begin_; ++o) one(rows, o, out, places);
            cover<Acc>(begin_, end_, [&](int64_t o, int used) { many<kStride, kKernel>(rows, o, used, out, places); });
            for (int64_t o = end_; o < c_.out; ++o) one(rows, o, out, places);
        });
    }

    void one(const std::vector<Row>& rows, int64_t o, S* out, Place* places) const {
        const int64_t start = c_.start(o);
        const PoolRange there = c_.taps(o);
        Acc best = MaximumOf<Acc>::kNothing;
        int64_t place = rows.empty() || there.begin >= there.end ? 0 : rows[0].first_place + there.begin;
        for (const Row& row : rows)
            for (int64_t k = there.begin; k < there.end; ++k) {
                const Acc next = static_cast<Acc>(row.data[start + k * c_.dilation]);
                if (next > best || std::isnan(next)) best = next, place = row.first_place + k;
            }
        out[o] = static_cast<S>(best);
        places[o] = static_cast<Place>(place);
    }

    template <int kStride, int kKernel>
    void many(const std::vector<Row>& rows, int64_t o, int used, S* out, Place* places) const {
        const int64_t start = c_.start(o), kernel = kKernel ? kKernel : c_.kernel;
        V best(MaximumOf<Acc>::kNothing), place(rows.empty() ? Acc(0) : static_cast<Acc>(rows[0].first_place));
        for (const Row& row : rows) {
            const S* p = row.data + start;
            const Acc first = static_cast<Acc>(row.first_place);
            if constexpr (kStride == 1) {
                for (int64_t k = 0; k < kernel; ++k)
                    take_larger(load_as<Acc>(p + k * c_.dilation, used), first + static_cast<Acc>(k), best, place);
            } else if constexpr (kStride == 2) {
                for (int64_t k = 0; k + 1 < kernel; k += 2) {
                    const auto [even, odd] = load_pairs<Acc>(p + k, used);
                    take_larger(even, first + static_cast<Acc>(k), best, place);
                    take_larger(odd, first + static_cast<Acc>(k + 1), best, place);
                }
                // the last of an odd number is the odd one of a pair that starts before it: nothing behind it is read
                if (kernel % 2)
                    take_larger(load_pairs<Acc>(p + kernel - 2, used).second, first + static_cast<Acc>(kernel - 1), best,
                                place);
            } else {
                for (int64_t k = 0; k < kernel; ++k)
                    take_larger(every_second(p + k * c_.dilation, used), first + static_cast<Acc>(k), best, place);
            }
        }
        store_as<Acc, S>(out + o, best, used);
        store_places(places + o, place, used);
    }

    static V every_second(const S* p, int count) {
        alignas(64) Acc lanes[kW] = {};
        for (int i = 0; i < count; ++i) lanes[i] = static_cast<Acc>(p[2 * i]);
        return V::loadu(lanes);
    }

    const MaxPoolForward<S>& call_;
    const PoolShape& s_;
    const PoolDimension& c_;
    int64_t begin_ = 0, end_ = 0;
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
