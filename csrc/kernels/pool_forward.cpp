// Pooling of contiguous planes where no places are kept: maxima and means, line by line.
#include "kernels/pool_contiguous.h"
#include "kernels/pool_plane.h"

namespace pykernels {
namespace {

// Runs row(plane, od, oh, line, pointers) for every row of output.
template <typename Join, typename Acc, typename S, typename Row>
void by_rows(const PoolShape& s, const S* input, const Row& row) {
    const int64_t rows = s.planes() * s.depth.out * s.rows.out;
    const PoolAxes axes(s, false);
    parallel_region(threads_for(pool_work(s), kPoolGrain), [&](const Team& team) {
        PoolLine<Join, Acc> line(s.columns);
        std::vector<const S*> pointers;
        each_row(share(rows, team.rank, team.size), s.depth.out, s.rows.out, [&](int64_t plane, int64_t d, int64_t h) {
            pointers.clear();
            const S* from = input + plane * s.in_plane();
            axes.each_of_window(s, d, h, [&](int64_t id, int64_t ih, int64_t) {
                pointers.push_back(from + (id * s.rows.in + ih) * s.columns.in);
            });
            row(((plane * s.depth.out + d) * s.rows.out + h) * s.columns.out, d, h, line, pointers);
        });
    });
}

template <typename S>
void max_forward(const MaxPoolForward<S>& call) {
    using Acc = Accumulator<S>;
    by_rows<MaximumOf<Acc>, Acc>(
        call.shape, call.input, [&](int64_t at, int64_t, int64_t, auto& line, const std::vector<const S*>& rows) {
            S* out = call.out + at;
            line.pool(rows.data(), std::ssize(rows),
                      [&](int64_t o, const Vec<Acc>& found, int used) { store_as<Acc, S>(out + o, found, used); });
        });
}

template <typename S>
void avg_forward(const AvgPoolForward<S>& call) {
    using Acc = Accumulator<S>;
    const PoolShape& s = call.shape;
    const Buffer<Acc> counts(s.columns.out);
    for (int64_t o = 0; o < s.columns.out; ++o)
        counts[o] = static_cast<Acc>(call.divisor.instead ? 1 : s.columns.count(o, call.divisor.padded));
    by_rows<SumOf<Acc>, Acc>(
        s, call.input, [&](int64_t at, int64_t d, int64_t h, auto& line, const std::vector<const S*>& rows) {
            const int64_t count = call.divisor.instead
                                      ? call.divisor.instead
                                      : s.depth.count(d, call.divisor.padded) * s.rows.count(h, call.divisor.padded);
            const Vec<Acc> of_rows(static_cast<Acc>(count));
            S* out = call.out + at;
            line.pool(rows.data(), std::ssize(rows), [&](int64_t o, const Vec<Acc>& sum, int used) {
                store_as<Acc, S>(out + o, sum / (of_rows * load_as<Acc>(counts + o, used)), used);
            });
        });
}

// Whether the only window is the whole dimension.
bool is_whole(const PoolDimension& d) {
    if (d.out != 1 || d.in < 1 || d.start(0) != 0 || (d.dilation > 1 && d.in > 1)) return false;
    const auto taps = d.taps(0);
    return taps.begin == 0 && taps.end == d.in;
}

// Means of whole planes: sums of runs, then of these.
template <typename S>
class PlaneMeans {
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    static constexpr int64_t kRun = 4096;

  public:
    explicit PlaneMeans(const AvgPoolForward<S>& call)
        : call_(call), s_(call.shape), size_(s_.in_plane()), runs_((size_ + kRun - 1) / kRun) {}

    static bool fits(const PoolShape& s) { return is_whole(s.depth) && is_whole(s.rows) && is_whole(s.columns); }

    void run() const {
        const Buffer<Acc> sums(s_.planes() * runs_);
        const bool padded = call_.divisor.padded;
        const int64_t count = call_.divisor.instead
                                  ? call_.divisor.instead
                                  : s_.depth.count(0, padded) * s_.rows.count(0, padded) * s_.columns.count(0, padded);
        parallel_region(threads_for(pool_work(s_), kPoolGrain), [&](const Team& team) {
            const Range own = share(s_.planes() * runs_, team.rank, team.size);
            for (int64_t i = own.begin; i < own.end; ++i) {
                const int64_t first = i % runs_ * kRun;
                sums[i] = sum(call_.input + i / runs_ * size_ + first, std::min(kRun, size_ - first));
            }
            if (runs_ > 1) team.wait();
            const Range planes = runs_ > 1 ? share(s_.planes(), team.rank, team.size) : own;
            for (int64_t p = planes.begin; p < planes.end; ++p) {
                Acc total(0);
                for (int64_t r = 0; r < runs_; ++r) total += sums[p * runs_ + r];
                call_.out[p] = static_cast<S>(total / static_cast<Acc>(count));
            }
        });
    }

  private:
    static Acc sum(const S* from, int64_t count) {
        constexpr int width = kWidth<Acc>, together = 4;
        V sums[together] = {V(Acc(0)), V(Acc(0)), V(Acc(0)), V(Acc(0))};
        int64_t i = 0;
        for (; i + together * width <= count; i += together * width)
            for (int j = 0; j < together; ++j) sums[j] = sums[j] + load_as<Acc>(from + i + j * width);
        each_vector<Acc>(count - i,
                         [&](int64_t at, int used) { sums[0] = sums[0] + load_as<Acc>(from + i + at, used); });
        return sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
    }

    const AvgPoolForward<S>& call_;
    const PoolShape& s_;
    int64_t size_, runs_;
};

template <typename S>
void choose_max(const MaxPoolForward<S>& call) {
    if (call.shape.channels_last) return pool_channels_last(call);
    call.places.data ? max_pool_with_places(call) : max_forward(call);
}
template <typename S>
void choose_avg(const AvgPoolForward<S>& call) {
    if (call.shape.channels_last) return pool_channels_last(call);
    PlaneMeans<S>::fits(call.shape) ? PlaneMeans<S>(call).run() : avg_forward(call);
}

}  // namespace

void max_pool_forward(const MaxPoolForward<float>& call) { choose_max(call); }
void max_pool_forward(const MaxPoolForward<double>& call) { choose_max(call); }
void max_pool_forward(const MaxPoolForward<c10::BFloat16>& call) { choose_max(call); }
void max_pool_forward(const MaxPoolForward<c10::Half>& call) { choose_max(call); }
void avg_pool_forward(const AvgPoolForward<float>& call) { choose_avg(call); }
void avg_pool_forward(const AvgPoolForward<double>& call) { choose_avg(call); }
void avg_pool_forward(const AvgPoolForward<c10::BFloat16>& call) { choose_avg(call); }
void avg_pool_forward(const AvgPoolForward<c10::Half>& call) { choose_avg(call); }

}  // namespace pykernels
