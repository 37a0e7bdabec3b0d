// Gradients of pooling for contiguous planes, row by row of the input: each thread adds up what its own rows are due, in
// the order of the windows.
#include "kernels/pool_contiguous.h"

namespace pykernels {
namespace {

// A row of gradients, and of their places.
template <typename S, typename Place>
struct Given {
    const S* grad;
    const Place* places;
    int64_t first_place;
};

template <typename S, typename Place>
class MaxBackward {
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    using Rows = std::vector<Given<S, Place>>;

  public:
    explicit MaxBackward(const MaxPoolBackward<S>& call) : call_(call), s_(call.shape), c_(s_.columns) {
        regular_ = !c_.adaptive && c_.stride <= 2 && s_.places() <= kLanePlaces;
        if (!regular_) return;
        // steps of `stride` positions, of which all windows that may hold them exist
        const int64_t reach = (c_.kernel - 1) * c_.dilation;
        begin_ = std::max((c_.padding + c_.stride - 1) / c_.stride, reach / c_.stride);
        end_ = std::max(begin_, std::min(c_.out, (c_.in + c_.padding) / c_.stride));
    }

    void run() const {
        const int64_t rows = s_.planes() * s_.depth.in * s_.rows.in;
        parallel_region(threads_for(pool_work(s_), kPoolGrain), [&](const Team& team) {
            const Range own = share(rows, team.rank, team.size);
            if (!regular_) {
                scatter(own);
            } else if (c_.stride == 1) {
                gather<1, 0>(own);
            } else if (c_.kernel == 2 && c_.dilation == 1) {
                gather<2, 2>(own);
            } else {
                c_.kernel == 3 && c_.dilation == 1 ? gather<2, 3>(own) : gather<2, 0>(own);
            }
        });
    }

  private:
    template <typename Row>
    void each(const Range& own, const Row& row) const {
        Rows rows;
        each_row(own, s_.depth.in, s_.rows.in, [&](int64_t plane, int64_t d, int64_t h) {
            rows.clear();
            each_holder(s_, d, h, [&](int64_t od, int64_t oh, int64_t first_place) {
                const int64_t at = ((plane * s_.depth.out + od) * s_.rows.out + oh) * c_.out;
                rows.push_back({call_.grad_out + at, static_cast<const Place*>(call_.places.data) + at, first_place});
            });
            row(call_.grad_input + ((plane * s_.depth.in + d) * s_.rows.in + h) * c_.in, rows);
        });
    }

    template <int kStride, int kKernel>
    void gather(const Range& own) const {
        each(own, [&](S* out, const Rows& rows) {
            const int64_t first = std::min(begin_ * kStride - c_.padding, c_.in);
            const int64_t last = std::max(first, std::min(end_ * kStride - c_.padding, c_.in));
            for (int64_t i = 0; i < first; ++i) out[i] = one(rows, i);
            cover<Acc>(begin_, end_, [&](int64_t j, int used) { many<kStride, kKernel>(rows, j, used, out); });
            for (int64_t i = last; i < c_.in; ++i) out[i] = one(rows, i);
        });
    }

    S one(const Rows& rows, int64_t i) const {
        const PoolRange holders = c_.holders(i);
        Acc sum = 0;
        for (const auto& row : rows)
            for (int64_t o = holders.begin; o < holders.end; ++o)
                if (const int64_t k = c_.tap(o, i); k >= 0 && static_cast<int64_t>(row.places[o]) == row.first_place + k)
                    sum += static_cast<Acc>(row.grad[o]);
        return static_cast<S>(sum);
    }

    // Windows in ascending order: the last column of a window first.
    template <int kStride, int kKernel>
    void many(const Rows& rows, int64_t j, int used, S* out) const {
        const int64_t kernel = kKernel ? kKernel : c_.kernel;
        V sums[kStride];
        for (V& sum : sums) sum = V(Acc(0));
        for (const auto& row : rows) {
            const auto add = [&](int64_t k, V& sum) {
                const int64_t from = j - k * c_.dilation / kStride;
                sum = add_where(load_places<Acc>(row.places + from, used), static_cast<Acc>(row.first_place + k),
                                load_as<Acc>(row.grad + from, used), sum);
            };
            for (int64_t k = kernel - 1; k >= 0; --k) add(k, sums[kStride == 1 ? 0 : k * c_.dilation % 2]);
        }
        S* to = out + j * kStride - c_.padding;
        if constexpr (kStride == 1) {
            store_as<Acc, S>(to, sums[0], used);
        } else {
            store_pairs_of<Acc, S>(to, sums[0], sums[1], used);
        }
    }

    void scatter(const Range& own) const {
        const Buffer<Acc> line(c_.in);
        each(own, [&](S* out, const Rows& rows) {
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
    bool regular_;
    int64_t begin_ = 0, end_ = 0;
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
        each_holder(s_, d, h, [&](int64_t od, int64_t oh, int64_t) {
            const int64_t count = call_.divisor.instead
                                      ? call_.divisor.instead
                                      : s_.depth.count(od, call_.divisor.padded) * s_.rows.count(oh, call_.divisor.padded);
            rows.push_back({call_.grad_out + ((plane * s_.depth.out + od) * s_.rows.out + oh) * c_.out,
                            static_cast<Acc>(count)});
        });
        const bool alike = std::all_of(rows.begin(), rows.end(), [&](const Row& r) { return r.count == rows[0].count; });
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
    bool regular_;
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
