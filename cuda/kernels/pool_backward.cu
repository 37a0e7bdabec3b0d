// Gradients of pooling: a thread has an element of the input (or a pack of channels) and adds up what the windows that
// hold it owe to it, in ascending order.
#include "cuda/core/pool.cuh"

namespace pykernels::cuda {
namespace {

// Visits the windows that hold a position: visit(offset of the pack, place of the position, d, h, w).
template <int kPack, class Int, class Visit>
__device__ inline void each_holder(const PoolGrid<Int>& g, const PoolPosition<Int>& at, const Visit& visit) {
    const auto depth = g.depth.holders(at.d), rows = g.rows.holders(at.h), columns = g.columns.holders(at.w);
    for (Int d = depth.begin; d < depth.end; ++d) {
        const Int kd = g.depth.tap(d, at.d);
        for (Int h = rows.begin; h < rows.end && kd >= 0; ++h) {
            const Int kh = g.rows.tap(h, at.h);
            const int64_t row = ((at.n * g.depth.out + d) * g.rows.out + h) * g.columns.out;
            for (Int w = columns.begin; w < columns.end && kh >= 0; ++w) {
                if (const Int kw = g.columns.tap(w, at.w); kw >= 0) {
                    visit(((row + w) * g.channels + at.c) * kPack,
                          (int64_t{kd} * g.rows.kernel + kh) * g.columns.kernel + kw, d, h, w);
                }
            }
        }
    }
}

template <class T, int kPack, class Int, class Place>
__global__ void __launch_bounds__(kItemThreads, 1)
    max_backward_kernel(const __grid_constant__ PoolGrid<Int> g, const T* grad_out, const Place* places, T* grad_input,
                        int64_t count) {
    using A = Accumulator<T>;
    const int64_t i = thread_of_grid();
    if (i >= count) {
        return;
    }
    const auto at = position_of<Int>(i, g.depth.in, g.rows.in, g.columns.in, g.channels);
    A sum[kPack] = {};
    each_holder<kPack>(g, at, [&](int64_t offset, int64_t place, Int, Int, Int) {
        const auto there = *reinterpret_cast<const Neighbours<Place, kPack>*>(places + offset);
        const auto grad = load_pack<kPack>(grad_out + offset);
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
            if (static_cast<int64_t>(there.value[e]) == place) {
                sum[e] += grad.at(e);
            }
        }
    });
    store_pack(grad_input + i * kPack, Pack<T, kPack>::of(sum));
}

template <class T, int kPack, class Int>
__global__ void __launch_bounds__(kItemThreads, 1)
    avg_backward_kernel(const __grid_constant__ PoolGrid<Int> g, PoolDivisor divisor, const T* grad_out, T* grad_input,
                        int64_t count) {
    using A = Accumulator<T>;
    const int64_t i = thread_of_grid();
    if (i >= count) {
        return;
    }
    const auto at = position_of<Int>(i, g.depth.in, g.rows.in, g.columns.in, g.channels);
    A sum[kPack] = {};
    each_holder<kPack>(g, at, [&](int64_t offset, int64_t, Int d, Int h, Int w) {
        const int64_t elements = divisor.instead != 0
                                     ? divisor.instead
                                     : int64_t{g.depth.count(d, divisor.padded)} * g.rows.count(h, divisor.padded) *
                                           g.columns.count(w, divisor.padded);
        const auto grad = load_pack<kPack>(grad_out + offset);
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
            sum[e] += grad.at(e) / static_cast<A>(elements);
        }
    });
    store_pack(grad_input + i * kPack, Pack<T, kPack>::of(sum));
}

}  // namespace

cudaError_t max_pool_backward(const MaxPoolBackward& args, cudaStream_t stream) {
    const PoolShape& s = args.shape;
    const uintptr_t aligned = address(args.grad_out) | address(args.grad_input) | address(args.places.data);
    return for_pool(args.dtype, s, aligned, [&]<class T, int kPack, class Int>() {
        const int64_t count = s.planes() * s.in_plane() / kPack;
        const auto start = [&]<class Place>() {
            return launch_items(max_backward_kernel<T, kPack, Int, Place>, count, stream, grid_of<Int>(s, kPack),
                                static_cast<const T*>(args.grad_out), static_cast<const Place*>(args.places.data),
                                static_cast<T*>(args.grad_input), count);
        };
        return args.places.wide ? start.template operator()<int64_t>() : start.template operator()<uint8_t>();
    });
}

cudaError_t avg_pool_backward(const AvgPoolBackward& args, cudaStream_t stream) {
    const PoolShape& s = args.shape;
    const uintptr_t aligned = address(args.grad_out) | address(args.grad_input);
    return for_pool(args.dtype, s, aligned, [&]<class T, int kPack, class Int>() {
        const int64_t count = s.planes() * s.in_plane() / kPack;
        return launch_items(avg_backward_kernel<T, kPack, Int>, count, stream, grid_of<Int>(s, kPack), args.divisor,
                            static_cast<const T*>(args.grad_out), static_cast<T*>(args.grad_input), count);
    });
}

}  // namespace pykernels::cuda
