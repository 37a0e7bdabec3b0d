// What kept places are for beside gradients: elements at them, indices of them, and planes filled from indices.
#include <algorithm>
#include <array>

#include "kernels/pool_contiguous.h"

namespace pykernels {
namespace {

// Visits the outputs: visit(at, plane's first element, place to place, index in the plane, whether it holds anything).
template <typename Place, typename Visit>
void each_place(const PoolShape& s, const void* places, const Visit& visit) {
    // several channels beside each other, or one
    const int64_t beside = s.channels_last ? s.channels : 1, planes = s.planes() / std::max<int64_t>(beside, 1);
    const auto* place = static_cast<const Place*>(places);
    parallel_region(threads_for(static_cast<double>(s.planes()) * s.out_plane(), kPoolGrain), [&](const Team& team) {
        const Range own = share(planes * s.depth.out * s.rows.out, team.rank, team.size);
        each_row(own, s.depth.out, s.rows.out, [&](int64_t plane, int64_t d, int64_t h) {
            const int64_t row = ((plane * s.depth.out + d) * s.rows.out + h) * s.columns.out;
            const auto empty = [](const PoolDimension& one, int64_t o) {
                const PoolRange there = one.taps(o);
                return there.begin >= there.end;
            };
            const bool nothing = empty(s.depth, d) || empty(s.rows, h);
            const int64_t front = s.depth.start(d), top = s.rows.start(h);
            for (int64_t w = 0; w < s.columns.out; ++w) {
                const bool holds = !nothing && !empty(s.columns, w);
                for (int64_t c = 0; c < beside; ++c) {
                    const int64_t at = (row + w) * beside + c;
                    // (a place that no forward has written still stays inside the plane)
                    const auto k = std::max<int64_t>(0, static_cast<int64_t>(place[at]));
                    const int64_t kd = k / s.columns.kernel / s.rows.kernel, kh = k / s.columns.kernel % s.rows.kernel;
                    const auto inside = [](int64_t i, int64_t n) { return std::clamp<int64_t>(i, 0, n - 1); };
                    const int64_t i = inside(front + kd * s.depth.dilation, s.depth.in);
                    const int64_t j = inside(top + kh * s.rows.dilation, s.rows.in);
                    const int64_t l =
                        inside(s.columns.start(w) + k % s.columns.kernel * s.columns.dilation, s.columns.in);
                    const int64_t index = (i * s.rows.in + j) * s.columns.in + l;
                    visit(at, (plane * s.in_plane() + index) * beside + c, index, holds);
                }
            }
        });
    });
}

template <typename Visit>
void each_place(const PoolShape& s, const PoolPlaces& places, const Visit& visit) {
    places.wide ? each_place<int64_t>(s, places.data, visit) : each_place<uint8_t>(s, places.data, visit);
}

template <typename S>
void gather(const MaxPoolGather<S>& call) {
    each_place(call.shape, call.places,
               [&](int64_t at, int64_t from, int64_t, bool holds) { call.out[at] = holds ? call.input[from] : S(0); });
}

// Each thread owns a run of every plane's output and looks at all of that plane's indices, so that what is written
// last does not depend on them; where there are planes enough it owns whole ones.
template <typename S>
bool unpool(const MaxUnpool<S>& call) {
    const double work = static_cast<double>(call.planes) * call.channels * (call.in_plane + call.out_plane);
    std::atomic<bool> all_inside{true};
    parallel_region(threads_for(work, kPoolGrain), [&](const Team& team) {
        const bool whole = call.planes >= 2 * team.size;
        const Range planes = whole ? share(call.planes, team.rank, team.size) : Range{0, call.planes};
        const Range own = whole ? Range{0, call.out_plane} : share(call.out_plane, team.rank, team.size);
        bool inside = true;
        for (int64_t plane = planes.begin; plane < planes.end; ++plane) {
            S* out = call.out + plane * call.out_plane * call.channels;
            std::fill(out + own.begin * call.channels, out + own.end * call.channels, S(0));
            const int64_t first = plane * call.in_plane * call.channels;
            for (int64_t i = 0; i < call.in_plane; ++i)
                for (int64_t c = 0; c < call.channels; ++c) {
                    const int64_t at = first + i * call.channels + c, index = call.indices[at];
                    inside = inside && index >= 0 && index < call.out_plane;
                    if (index >= own.begin && index < own.end) out[index * call.channels + c] = call.input[at];
                }
        }
        if (!inside) all_inside = false;
    });
    return all_inside;
}

}  // namespace

void max_pool_gather(const MaxPoolGather<float>& call) { gather(call); }
void max_pool_gather(const MaxPoolGather<double>& call) { gather(call); }
void max_pool_gather(const MaxPoolGather<c10::BFloat16>& call) { gather(call); }
void max_pool_gather(const MaxPoolGather<c10::Half>& call) { gather(call); }
void max_pool_indices(const MaxPoolIndices& call) {
    each_place(call.shape, call.places, [&](int64_t at, int64_t, int64_t index, bool) { call.indices[at] = index; });
}
bool max_unpool(const MaxUnpool<float>& call) { return unpool(call); }
bool max_unpool(const MaxUnpool<double>& call) { return unpool(call); }
bool max_unpool(const MaxUnpool<c10::BFloat16>& call) { return unpool(call); }
bool max_unpool(const MaxUnpool<c10::Half>& call) { return unpool(call); }

}  // namespace pykernels
