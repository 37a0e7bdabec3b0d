// Maxima and means of windows.
#include <cmath>

#include "cuda/core/pool.cuh"

namespace pykernels::cuda {
namespace {

// Visits what a window holds, in the order of its places: visit(offset of the pack, place).
template <int kPack, class Int, class Visit>
__device__ inline void each_element(const PoolGrid<Int>& g, const PoolPosition<Int>& at, const Visit& visit) {
    const auto depth = g.depth.taps(at.d), rows = g.rows.taps(at.h), columns = g.columns.taps(at.w);
    const Int front = g.depth.start(at.d), top = g.rows.start(at.h), left = g.columns.start(at.w);
    const int64_t step = int64_t{g.channels} * g.columns.dilation * kPack;
    for (Int kd = depth.begin; kd < depth.end; ++kd) {
        for (Int kh = rows.begin; kh < rows.end; ++kh) {
            const int64_t row =
                ((at.n * g.depth.in + front + kd * g.depth.dilation) * g.rows.in + top + kh * g.rows.dilation) *
                    g.columns.in +
                left;
            int64_t offset = (row * g.channels + at.c) * kPack + columns.begin * step;
            int64_t place = (int64_t{kd} * g.rows.kernel + kh) * g.columns.kernel + columns.begin;
            for (Int kw = columns.begin; kw < columns.end; ++kw, offset += step, ++place) {
                visit(offset, place);
            }
        }
    }
}

template <class T, int kPack, class Int, class Place>
__global__ void __launch_bounds__(kItemThreads, 1)
    max_forward_kernel(const __grid_constant__ PoolGrid<Int> g, const T* input, T* out, Place* places, int64_t count) {
    using A = Accumulator<T>;
    using Number = std::conditional_t<sizeof(Place) == 1, int32_t, int64_t>;
    const int64_t i = thread_of_grid();
    if (i >= count) {
        return;
    }
    const auto at = position_of<Int>(i, g.depth.out, g.rows.out, g.columns.out, g.channels);
    A best[kPack];
    Number place[kPack];
    bool first = true;
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
        best[e] = -static_cast<A>(INFINITY);
        place[e] = 0;
    }
    each_element<kPack>(g, at, [&](int64_t offset, int64_t k) {
        const auto here = load_pack<kPack>(input + offset);
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
            const A value = here.at(e);
            if (first || value > best[e] || value != value) {
                best[e] = value;
                place[e] = static_cast<Number>(k);
            }
        }
        first = false;
    });
    store_pack(out + i * kPack, Pack<T, kPack>::of(best));
    if (places != nullptr) {
        Neighbours<Place, kPack> pack;
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
            pack.value[e] = static_cast<Place>(place[e]);
        }
        reinterpret_cast<Neighbours<Place, kPack>*>(places)[i] = pack;
    }
}

template <class T, int kPack, class Int>
__global__ void __launch_bounds__(kItemThreads, 1)
    avg_forward_kernel(const __grid_constant__ PoolGrid<Int> g, PoolDivisor divisor, const T* input, T* out,
                       int64_t count) {
    using A = Accumulator<T>;
    const int64_t i = thread_of_grid();
    if (i >= count) {
        return;
    }
    const auto at = position_of<Int>(i, g.depth.out, g.rows.out, g.columns.out, g.channels);
    A sum[kPack] = {};
    each_element<kPack>(g, at, [&](int64_t offset, int64_t) {
        const auto here = load_pack<kPack>(input + offset);
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
            sum[e] += here.at(e);
        }
    });
    const int64_t elements = divisor.instead != 0
                                 ? divisor.instead
                                 : int64_t{g.depth.count(at.d, divisor.padded)} * g.rows.count(at.h, divisor.padded) *
                                       g.columns.count(at.w, divisor.padded);
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
        sum[e] /= static_cast<A>(elements);
    }
    store_pack(out + i * kPack, Pack<T, kPack>::of(sum));
}

}  // namespace

cudaError_t max_pool_forward(const MaxPoolForward& args, cudaStream_t stream) {
    const PoolShape& s = args.shape;
    const uintptr_t aligned = address(args.input) | address(args.out) | address(args.places.data);
    return for_pool(args.dtype, s, aligned, [&]<class T, int kPack, class Int>() {
        const int64_t count = s.planes() * s.out_plane() / kPack;
        const auto start = [&]<class Place>() {
            return launch_items(max_forward_kernel<T, kPack, Int, Place>, count, stream, grid_of<Int>(s, kPack),
                                static_cast<const T*>(args.input), static_cast<T*>(args.out),
                                static_cast<Place*>(args.places.data), count);
        };
        return args.places.wide ? start.template operator()<int64_t>() : start.template operator()<uint8_t>();
    });
}

cudaError_t avg_pool_forward(const AvgPoolForward& args, cudaStream_t stream) {
    const PoolShape& s = args.shape;
    const uintptr_t aligned = address(args.input) | address(args.out);
    return for_pool(args.dtype, s, aligned, [&]<class T, int kPack, class Int>() {
        const int64_t count = s.planes() * s.out_plane() / kPack;
        return launch_items(avg_forward_kernel<T, kPack, Int>, count, stream, grid_of<Int>(s, kPack), args.divisor,
                            static_cast<const T*>(args.input), static_cast<T*>(args.out), count);
    });
}

}  // namespace pykernels::cuda
