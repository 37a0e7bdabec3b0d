// Patches of an image as columns, and columns added up as an image. Nothing is computed twice or added by two threads:
// unfold's threads have neighbouring places and write what some lines of taps read there, fold's have a pixel and add
// up what reads it, in the order of the taps. The planes of all images and channels are alike.
#include "cuda/kernels/unfold.h"

#include <algorithm>
#include <numeric>

#include "cuda/core/items.cuh"

namespace pykernels::cuda {
namespace {

// Where there are so many threads, one of unfold has all taps of its places (or else a line of them), and one of fold
// its pixel in so many planes (or else in one).
constexpr int64_t kManyThreads = int64_t{1} << 18;
constexpr int kManyPlanes = 4;

// One dimension. Tap k reads pixel i from place (i + padding - k * dilation) / stride, if that has no remainder: so do
// the taps `period` apart, from places `apart` apart. (Beyond the kernel it does not matter how far.)
template <class Int>
struct Axis {
    Int in, out, kernel, stride, padding, dilation, period, apart;

    explicit Axis(const ConvDimension& d)
        : in(static_cast<Int>(d.input)),
          out(static_cast<Int>(d.output)),
          kernel(static_cast<Int>(d.kernel)),
          stride(static_cast<Int>(d.stride)),
          padding(static_cast<Int>(d.before)),
          dilation(static_cast<Int>(d.dilation)),
          period(static_cast<Int>(std::min(d.stride / std::gcd(d.stride, d.dilation), d.kernel))),
          apart(static_cast<Int>(d.dilation / std::gcd(d.stride, d.dilation))) {}

    // The pixel that the first tap reads at a place.
    __device__ Int first(Int place) const { return place * stride - padding; }
    __device__ bool holds(Int pixel) const { return pixel >= 0 && pixel < in; }
};

template <class Int>
struct Planes {
    Axis<Int> depth, rows, columns;

    explicit Planes(const ConvShape& s) : depth(s.dim[0]), rows(s.dim[1]), columns(s.dim[2]) {}

    __device__ Int pixels() const { return depth.in * rows.in * columns.in; }
    __device__ Int places() const { return depth.out * rows.out * columns.out; }
    __device__ Int lines() const { return depth.kernel * rows.kernel; }
};

template <class T, int kPack, class Int>
__global__ void __launch_bounds__(kItemThreads, 1)
    unfold_kernel(const __grid_constant__ Planes<Int> planes, Int groups, const T* __restrict__ image,
                  T* __restrict__ columns, int64_t count) {
    const int64_t i = thread_of_grid();
    if (i >= count) {
        return;
    }
    const Axis<Int>&depth = planes.depth, &rows = planes.rows, &across = planes.columns;
    const Int places = planes.places(), lines = planes.lines();
    Digits<Int> item(i);
    const Int place = item.take(places / kPack) * kPack;
    Int line = groups == 1 ? 0 : item.take(groups);
    const Int end = groups == 1 ? lines : line + 1;
    const int64_t plane = static_cast<int64_t>(item.rest());
    image += plane * planes.pixels();
    columns += (plane * lines + line) * across.kernel * places + place;

    Int front[kPack], top[kPack], left[kPack];
    Digits<Int> at(place);
    Int w = at.take(across.out), h = rows.out == 1 ? 0 : at.take(rows.out), d = static_cast<Int>(at.rest());
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
        front[e] = depth.first(d);
        top[e] = rows.first(h);
        left[e] = across.first(w);
        if (++w == across.out) {
            w = 0;
            if (++h == rows.out) {
                h = 0;
                ++d;
            }
        }
    }
    Int kd = line == 0 ? 0 : line / rows.kernel, kh = line - kd * rows.kernel;
    for (; line < end; ++line) {
        bool there[kPack];
        Int source[kPack];
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
            const Int z = front[e] + kd * depth.dilation, y = top[e] + kh * rows.dilation;
            there[e] = depth.holds(z) && rows.holds(y);
            source[e] = there[e] ? (z * rows.in + y) * across.in : 0;
        }
        for (Int kw = 0; kw < across.kernel; ++kw, columns += places) {
            Neighbours<T, kPack> read;
#pragma unroll
            for (int e = 0; e < kPack; ++e) {
                const Int x = left[e] + kw * across.dilation;
                read.value[e] = there[e] && across.holds(x) ? image[source[e] + x] : to_storage<T>(0);
            }
            *reinterpret_cast<Neighbours<T, kPack>*>(columns) = read;
        }
        if (++kh == rows.kernel) {
            kh = 0;
            ++kd;
        }
    }
}

// The first of the taps that read a pixel, and from which place; kernel if there are none.
template <class Int>
struct Reader {
    Int tap = 0, place;

    __device__ Reader(const Axis<Int>& axis, Int pixel) {
        const Int padded = pixel + axis.padding;
        if (axis.stride > 1) {
            while (tap < axis.kernel && (padded - tap * axis.dilation) % axis.stride != 0) {
                tap = tap + 1 < axis.period ? tap + 1 : axis.kernel;
            }
        }
        place = (padded - tap * axis.dilation) / axis.stride;
        while (tap < axis.kernel && place >= axis.out) {
            next(axis);
        }
    }
    __device__ bool more(const Axis<Int>& axis) const { return tap < axis.kernel && place >= 0; }
    __device__ void next(const Axis<Int>& axis) {
        tap += axis.period;
        place -= axis.apart;
    }
};

// The same pixel of some planes: so many reads are under way.
template <class T, int kPlanes, class Int>
__global__ void __launch_bounds__(kItemThreads, 1)
    fold_kernel(const __grid_constant__ Planes<Int> planes, const T* __restrict__ columns, T* __restrict__ image,
                int64_t all, int64_t count) {
    const int64_t i = thread_of_grid();
    if (i >= count) {
        return;
    }
    const Axis<Int>&depth = planes.depth, &rows = planes.rows, &across = planes.columns;
    const Int places = planes.places(), pixels = planes.pixels();
    Digits<Int> item(i);
    const Int w = item.take(across.in), h = rows.in == 1 ? 0 : item.take(rows.in);
    const Int d = depth.in == 1 ? 0 : item.take(depth.in);
    const int64_t first_plane = static_cast<int64_t>(item.rest()) * kPlanes;
    const T* plane[kPlanes];
#pragma unroll
    for (int p = 0; p < kPlanes; ++p) {
        const int64_t number = first_plane + p < all ? first_plane + p : first_plane;
        plane[p] = columns + number * planes.lines() * across.kernel * places;
    }
    const Reader<Int> first_row(rows, h), first(across, w);
    const Int step = across.period * places - across.apart;
    Accumulator<T> sum[kPlanes] = {};
    for (Reader<Int> z(depth, d); z.more(depth); z.next(depth)) {
        for (Reader<Int> y = first_row; y.more(rows); y.next(rows)) {
            const Int tap = (z.tap * rows.kernel + y.tap) * across.kernel + first.tap;
            Int from = tap * places + (z.place * rows.out + y.place) * across.out + first.place;
            for (Reader<Int> x = first; x.more(across); x.next(across), from += step) {
#pragma unroll
                for (int p = 0; p < kPlanes; ++p) {
                    sum[p] += to_accumulator(plane[p][from]);
                }
            }
        }
    }
    image += first_plane * pixels + (d * rows.in + h) * across.in + w;
#pragma unroll
    for (int p = 0; p < kPlanes; ++p) {
        if (first_plane + p < all) {
            image[int64_t{p} * pixels] = to_storage<T>(sum[p]);
        }
    }
}

// Whether positions and what is inside a plane fit into 32 bits, and threads, without a sign, too.
bool is_narrow(const ConvShape& s) {
    constexpr int64_t kMost = int64_t{1} << 30;
    for (const ConvDimension& d : s.dim) {
        if (d.input + d.before >= kMost || d.output + 1 >= kMost / d.stride || d.dilation >= kMost ||
            (d.kernel - 1) * d.dilation >= kMost) {
            return false;
        }
    }
    const int64_t planes = s.batch * s.in_channels, lines = s.dim[0].kernel * s.dim[1].kernel;
    return s.taps() * s.places() < kMost && planes * s.pixels() < 4 * kMost && planes * lines * s.places() < 4 * kMost;
}

template <class Run>
cudaError_t for_width(DType dtype, const ConvShape& s, const Run& run) {
    const bool narrow = is_narrow(s);
    return for_types(dtype, [&]<class T>() {
        return narrow ? run.template operator()<T, int32_t>() : run.template operator()<T, int64_t>();
    });
}

}  // namespace

cudaError_t unfold(const Unfold& args, cudaStream_t stream) {
    const ConvShape& s = args.shape;
    return for_width(args.dtype, s, [&]<class T, class Int>() {
        const auto start = [&]<int kPack>() {
            const int64_t threads = s.batch * s.in_channels * (s.places() / kPack);
            const int64_t groups = threads >= kManyThreads ? 1 : s.dim[0].kernel * s.dim[1].kernel;
            return launch_items(unfold_kernel<T, kPack, Int>, threads * groups, stream, Planes<Int>(s),
                                static_cast<Int>(groups), static_cast<const T*>(args.image),
                                static_cast<T*>(args.columns), threads * groups);
        };
        if constexpr (sizeof(Int) == 4) {
            constexpr int kWhole = 16 / static_cast<int>(sizeof(T));
            if (s.places() % kWhole == 0 && address(args.columns) % 16 == 0) {
                return start.template operator()<kWhole>();
            }
        }
        return start.template operator()<1>();
    });
}

cudaError_t fold(const Fold& args, cudaStream_t stream) {
    const ConvShape& s = args.shape;
    return for_width(args.dtype, s, [&]<class T, class Int>() {
        const int64_t planes = s.batch * s.in_channels;
        const auto start = [&]<int kPlanes>() {
            const int64_t threads = (planes + kPlanes - 1) / kPlanes * s.pixels();
            return launch_items(fold_kernel<T, kPlanes, Int>, threads, stream, Planes<Int>(s),
                                static_cast<const T*>(args.columns), static_cast<T*>(args.image), planes, threads);
        };
        if constexpr (sizeof(Int) == 4) {
            if (planes * s.pixels() >= kManyThreads * kManyPlanes) {
                return start.template operator()<kManyPlanes>();
            }
        }
        return start.template operator()<1>();
    });
}

}  // namespace pykernels::cuda
