// Rows as the search reads them: the codebook's centre, its units, and samples.
#include "cuda/core/bmu.cuh"
#include "cuda/core/mma.cuh"

namespace pykernels::cuda {
namespace {

constexpr int kCentreWarps = 32, kCentreUnits = 1024;  // the centre is that of so many units, spread evenly
constexpr int kRowThreads = 256, kRowWarps = kRowThreads / kWarp;

__device__ inline int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp() { return static_cast<int>(threadIdx.x) / kWarp; }

template <class A>
__device__ inline bool is_finite(A value) {
    return value - value == 0;
}

// Sums and such, the same in all lanes.
template <class Value, class Join>
__device__ inline Value over_warp(Value value, const Join& join) {
#pragma unroll
    for (int lane_xor = 1; lane_xor < kWarp; lane_xor *= 2) {
        value = join(value, shuffle_xor(value, lane_xor));
    }
    return value;
}
template <class Value>
__device__ inline Value warp_sum(Value value) {
    return over_warp(value, [](Value a, Value b) { return a + b; });
}

// A block has 32 features; each of its warps adds up every 32nd unit.
template <class T>
__global__ void __launch_bounds__(kCentreWarps* kWarp) centre_kernel(const __grid_constant__ BmuSearch search) {
    using A = Accumulator<T>;
    const Bmu& call = search.call;
    const int64_t d = int64_t{blockIdx.x} * kWarp + lane();
    const int64_t count = call.units < kCentreUnits ? call.units : kCentreUnits;
    auto* sums = reinterpret_cast<A*>(shared_memory());
    A sum = 0;
    if (d < call.features && call.metric != Metric::kCosine) {
#pragma unroll 4
        for (int64_t i = warp(); i < count; i += kCentreWarps) {
            const A value = to_accumulator(codebook_row<T>(call, i * call.units / count)[d]);
            sum += is_finite(value) ? value : A(0);
        }
    }
    sums[threadIdx.x] = sum;
    block_barrier();  // the sums of the warps have been written
    if (warp() != 0 || d >= call.features) {
        return;
    }
    for (int other = 1; other < kCentreWarps; ++other) {
        sum += sums[other * kWarp + lane()];
    }
    sum /= static_cast<A>(count);
    static_cast<A*>(search.centre)[d] = is_finite(sum) ? sum : A(0);
}

// Values of a row, taken from the centre.
template <class T>
struct Centred {
    using A = Accumulator<T>;
    const T* row;
    const A* centre;
    bool whole;  // for the cosine: neither centre nor rounding

    __device__ Centred(const BmuSearch& search, const T* values)
        : row(values), centre(static_cast<const A*>(search.centre)), whole(search.call.metric == Metric::kCosine) {}
    __device__ float narrow(int64_t d) const {
        const A value = to_accumulator(row[d]);
        return static_cast<float>(whole ? value : value - centre[d]);
    }
    __device__ double wide(int64_t d) const {
        return whole ? static_cast<double>(to_accumulator(row[d])) : static_cast<double>(narrow(d));
    }
};

// Norms of units, a warp for each: what they begin with, what they are multiplied by, and the largest of them. A unit
// that has no finite score loses.
template <class T>
__global__ void __launch_bounds__(kRowThreads) unit_norms_kernel(const __grid_constant__ BmuSearch search) {
    const Bmu& call = search.call;
    float largest = 0;
    bool overflowed = false;
    for (int64_t unit = int64_t{blockIdx.x} * kRowWarps + warp(); unit < search.units;
         unit += int64_t{gridDim.x} * kRowWarps) {
        double squares = 0, size = 0;
        int odd = 0;
        if (unit < call.units) {
            const Centred<T> values(search, codebook_row<T>(call, unit));
            for (int64_t d = lane(); d < call.features; d += kWarp) {
                const double value = values.wide(d);
                squares += value * value;
                size += absolute(value);
                odd |= is_finite(to_accumulator(values.row[d])) ? 0 : 1;
            }
        }
        squares = warp_sum(squares);
        size = warp_sum(size);
        const bool finite = warp_sum(odd) == 0 && unit < call.units;
        double scale = 1, start = 0, norm = size;
        if (call.metric == Metric::kCosine) {
            scale = squares > 0 ? 1 / square_root(squares) : 0;
            norm = squares > 0 ? 1 : 0;
        } else if (call.metric == Metric::kEuclidean) {
            start = -squares / 2;
            norm = square_root(squares);
        }
        const bool fits = finite && squares < 1e37 && size < 1e37;
        overflowed = overflowed || (finite && !fits);
        if (fits) {
            largest = maximum(largest, static_cast<float>(norm));
        }
        if (lane() == 0) {
            search.scale[unit] = fits ? scale : 0;
            auto* own = reinterpret_cast<float*>(search.unit_rows + unit * search.row_bytes +
                                                 int64_t{search.chunks} * kRowChunkBytes);
            *own = fits ? static_cast<float>(start) : -INFINITY;
        }
    }
    if (lane() == 0) {
        atomic_max(&search.stats->norm, bits_of(largest));
        if (overflowed) {
            atomic_or(&search.stats->overflowed, 1);
        }
    }
}

__device__ inline float as_upper(float value) { return to_accumulator(to_storage<fp16>(value)); }

struct alignas(8) FloatPair {
    float first, second;
};

// A warp writes a row's chunks: value(d), and zeros.
template <bool kProducts, class Value>
__device__ void put_row(unsigned char* row, int chunks, int64_t features, const Value& value) {
    for (int pair = lane(); pair < chunks * kRowChunk / 2; pair += kWarp) {
        const int64_t d = 2 * pair;
        const float first = d < features ? value(d) : 0.0f, second = d + 1 < features ? value(d + 1) : 0.0f;
        unsigned char* chunk = row + int64_t{pair / 8} * kRowChunkBytes;
        if constexpr (kProducts) {
            auto* to = reinterpret_cast<uint32_t*>(chunk) + pair % 8;
            to[0] = pack_pair<fp16>(first, second);
            to[kRowChunk / 2] = pack_pair<fp16>(first - as_upper(first), second - as_upper(second));
        } else {
            reinterpret_cast<FloatPair*>(chunk)[pair % 8] = {first, second};
        }
    }
}

template <class T, bool kProducts>
__global__ void __launch_bounds__(kRowThreads) unit_rows_kernel(const __grid_constant__ BmuSearch search) {
    const Bmu& call = search.call;
    const int64_t unit = int64_t{blockIdx.x} * kRowWarps + warp();
    if (unit >= search.units) {
        return;
    }
    const double scale = search.scale[unit];
    const float factor = kProducts ? RowScale(float_of(search.stats->norm)).factor() : 1.0f;
    const Centred<T> values(search, codebook_row<T>(call, unit < call.units ? unit : 0));
    put_row<kProducts>(search.unit_rows + unit * search.row_bytes, search.chunks, call.features, [&](int64_t d) {
        return scale == 0 ? 0.0f : static_cast<float>(values.wide(d) * scale) * factor;
    });
}

template <class T, bool kProducts>
__global__ void __launch_bounds__(kRowThreads) sample_rows_kernel(const __grid_constant__ BmuSearch search) {
    const Bmu& call = search.call;
    const int64_t sample = int64_t{blockIdx.x} * kRowWarps + warp();  // of the slice
    unsigned char* row = search.sample_rows + sample * search.row_bytes;
    auto* own = reinterpret_cast<float*>(row + int64_t{search.chunks} * kRowChunkBytes);
    if (sample >= search.count) {  // the last tile is filled up
        put_row<kProducts>(row, search.chunks, 0, [](int64_t) { return 0.0f; });
        if (lane() == 0) {
            *own = 0;
        }
        return;
    }
    const Centred<T> values(search, input_row<T>(call, search.first + sample));
    float largest = 0;
    if constexpr (kProducts) {
        for (int64_t d = lane(); d < call.features; d += kWarp) {
            largest = maximum(largest, absolute(values.narrow(d)));
        }
        largest = over_warp(largest, [](float a, float b) { return maximum(a, b); });
    }
    const RowScale scale(largest);
    float size = 0;
    for (int64_t d = lane(); d < call.features; d += kWarp) {
        const float value = values.narrow(d);
        size += kProducts ? value * scale.factor() * (value * scale.factor()) : absolute(value);
    }
    size = warp_sum(size);
    put_row<kProducts>(row, search.chunks, call.features,
                       [&](int64_t d) { return kProducts ? values.narrow(d) * scale.factor() : values.narrow(d); });
    if (lane() == 0) {
        *own = kProducts ? scale.inverse() * RowScale(float_of(search.stats->norm)).inverse() : 1.0f;
        search.size[sample] = kProducts ? square_root(size) * scale.inverse() : size;
    }
}

unsigned blocks_for(int64_t rows) { return static_cast<unsigned>((rows + kRowWarps - 1) / kRowWarps); }

}  // namespace

cudaError_t bmu_prepare_units(const BmuSearch& search, cudaStream_t stream) {
    const Bmu& call = search.call;
    return for_types(call.dtype, [&]<class T>() {
        const auto columns = static_cast<unsigned>((call.features + kWarp - 1) / kWarp);
        cudaError_t error = cudaSuccess;
        if (columns > 0) {
            error = launch(centre_kernel<T>, dim3(columns), dim3(kCentreWarps * kWarp),
                           kCentreWarps * kWarp * sizeof(Accumulator<T>), stream, search);
        }
        if (error == cudaSuccess) {
            const unsigned all = blocks_for(search.units);
            error = launch(unit_norms_kernel<T>, dim3(all < 256 ? all : 256), dim3(kRowThreads), 0, stream, search);
        }
        if (error == cudaSuccess) {
            const auto kernel = search.products ? unit_rows_kernel<T, true> : unit_rows_kernel<T, false>;
            error = launch(kernel, dim3(blocks_for(search.units)), dim3(kRowThreads), 0, stream, search);
        }
        return error;
    });
}

cudaError_t bmu_prepare_samples(const BmuSearch& search, cudaStream_t stream) {
    const int64_t rows = (search.count + kSampleTile - 1) / kSampleTile * kSampleTile;
    return for_types(search.call.dtype, [&]<class T>() {
        const auto kernel = search.products ? sample_rows_kernel<T, true> : sample_rows_kernel<T, false>;
        return launch(kernel, dim3(blocks_for(rows)), dim3(kRowThreads), 0, stream, search);
    });
}

}  // namespace pykernels::cuda
