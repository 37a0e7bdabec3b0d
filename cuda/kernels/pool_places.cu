// What kept places are for beside gradients: elements at them, and indices of them.
#include "cuda/core/pool.cuh"

namespace pykernels::cuda {
namespace {

// out: the input's elements (T), or where there is none the indices into planes (int64_t).
template <class T, class Place>
__global__ void __launch_bounds__(kItemThreads, 1)
    at_places_kernel(const __grid_constant__ PoolGrid<int64_t> g, const Place* places, const T* input, T* out,
                     int64_t* indices, int64_t count) {
    const int64_t i = thread_of_grid();
    if (i >= count) {
        return;
    }
    const auto at = position_of<int64_t>(i, g.depth.out, g.rows.out, g.columns.out, g.channels);
    const auto holds = [](const PoolDimension& d, int64_t o) {
        const PoolRange there = d.taps(o);
        return there.begin < there.end;
    };
    const auto inside = [](const PoolDimension& d, int64_t o, int64_t k) {
        const int64_t position = d.start(o) + k * d.dilation;
        return position < 0 ? 0 : position < d.in ? position : d.in - 1;
    };
    const int64_t kept = static_cast<int64_t>(places[i]), k = kept < 0 ? 0 : kept;
    const int64_t kd = k / g.columns.kernel / g.rows.kernel, kh = k / g.columns.kernel % g.rows.kernel;
    const int64_t index = (inside(g.depth, at.d, kd) * g.rows.in + inside(g.rows, at.h, kh)) * g.columns.in +
                          inside(g.columns, at.w, k % g.columns.kernel);
    if (indices != nullptr) {
        indices[i] = index;
        return;
    }
    const int64_t from = (at.n * g.depth.in * g.rows.in * g.columns.in + index) * g.channels + at.c;
    const bool there = holds(g.depth, at.d) && holds(g.rows, at.h) && holds(g.columns, at.w);
    out[i] = there ? input[from] : to_storage<T>(0);
}

template <class T>
cudaError_t at_places(const PoolShape& s, const PoolPlaces& places, const void* input, void* out, int64_t* indices,
                      cudaStream_t stream) {
    const int64_t count = s.planes() * s.out_plane();
    const auto start = [&]<class Place>() {
        return launch_items(at_places_kernel<T, Place>, count, stream, grid_of<int64_t>(s, 1),
                            static_cast<const Place*>(places.data), static_cast<const T*>(input), static_cast<T*>(out),
                            indices, count);
    };
    return places.wide ? start.template operator()<int64_t>() : start.template operator()<uint8_t>();
}

}  // namespace

cudaError_t max_pool_gather(const MaxPoolGather& args, cudaStream_t stream) {
    return for_types(args.dtype, [&]<class T>() {
        return at_places<T>(args.shape, args.places, args.input, args.out, nullptr, stream);
    });
}

cudaError_t max_pool_indices(const MaxPoolIndices& args, cudaStream_t stream) {
    return at_places<float>(args.shape, args.places, nullptr, nullptr, args.indices, stream);
}

}  // namespace pykernels::cuda
