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

template <typename S>
void choose_max(const MaxPoolForward<S>& call) {
    if (call.shape.channels_last) return pool_channels_last(call);
    call.places.data ? max_pool_with_places(call) : max_forward(call);
}
template <typename S>
void choose_avg(const AvgPoolForward<S>& call) {
    call.shape.channels_last ? pool_channels_last(call) : avg_forward(call);
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
