// One side of a restricted Boltzmann machine given the other: product, bias, logistic function and draw in one kernel.
#include "csrc/core/philox.h"
#include "cuda/core/rbm.cuh"
#include "cuda/kernels/rbm.h"

namespace pykernels::cuda {
namespace {

template <class A>
__device__ inline A logistic(A value) {
    return A(1) / (A(1) + exponential(-value));
}

// What a row's columns c, c + 16, c + 32, c + 48 of a block of 64 draw: uniform in [0, 1), or standard normal.
template <class A>
__device__ inline void draw_four(const RbmLayer& args, int64_t block, int64_t row, int column, A (&drawn)[4]) {
    uint32_t numbers[4];
    const auto place = static_cast<uint32_t>(block * 16 + column), line = args.first_row + static_cast<uint32_t>(row);
    philox(args.key, uint64_t{line} << 32 | place, args.stream, numbers);
    const A unit = A(1) / A(1 << 24);
    if (!args.gaussian) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            drawn[n] = static_cast<A>(numbers[n] >> 8) * unit;
        }
        return;
    }
#pragma unroll
    for (int n = 0; n < 4; n += 2) {
        const A first = static_cast<A>((numbers[n] >> 8) + 1) * unit,
                second = static_cast<A>(numbers[n + 1] >> 8) * unit;
        const A radius = square_root(A(-1.3862943611198906) * logarithm2(first));  // -2 ln(2)
        A sine, cosine;
        sine_cosine_pi(A(2) * second, &sine, &cosine);
        drawn[n] = radius * cosine;
        drawn[n + 1] = radius * sine;
    }
}

template <class T, int kRows, bool kTransposed>
__global__ void __launch_bounds__(kRbmThreads, 1) layer_kernel(const __grid_constant__ RbmLayer args) {
    using A = Accumulator<T>;
    const T* const input = static_cast<const T*>(args.input);
    const T* const weight = static_cast<const T*>(args.weight);
    const int64_t first_row = int64_t{blockIdx.x} * (kRows * kRbmSide),
                  first_column = int64_t{blockIdx.y} * kRbmColumns;
    A sum[kRows][4] = {};
    rbm_product<kRows, true, !kTransposed>(
        sum, args.inputs,
        [&](int line, int64_t k) {
            const int64_t row = first_row + line;
            return row < args.rows && k < args.inputs ? to_accumulator(input[row * args.input_stride + k]) : A(0);
        },
        [&](int line, int64_t k) {
            const int64_t column = first_column + line;
            const int64_t at = kTransposed ? k * args.outputs + column : column * args.inputs + k;
            return column < args.outputs && k < args.inputs ? to_accumulator(weight[at]) : A(0);
        });

    const A inverse = static_cast<A>(1 / args.temperature);
    const A deviation = square_root(static_cast<A>(args.temperature));
    T* const means = static_cast<T*>(args.mean);
    T* const samples = static_cast<T*>(args.sample);
    A bias[4];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
        const int64_t column = first_column + rbm_column() + kRbmSide * n;
        const bool has_one = args.bias != nullptr && column < args.outputs;
        bias[n] = has_one ? to_accumulator(static_cast<const T*>(args.bias)[column]) : A(0);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
        const int64_t row = first_row + rbm_row() + kRbmSide * i;
        if (row >= args.rows) {
            break;
        }
        A drawn[4] = {};
        if (samples != nullptr) {
            draw_four(args, blockIdx.y, row, rbm_column(), drawn);
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            const int64_t column = first_column + rbm_column() + kRbmSide * n, at = row * args.outputs + column;
            if (column >= args.outputs) {
                break;
            }
            const A given = sum[i][n] + bias[n], mean = args.gaussian ? given : logistic(given * inverse);
            if (means != nullptr) {
                means[at] = to_storage<T>(mean);
            }
            if (samples != nullptr) {
                // (what is no number stays none)
                const A on = (drawn[n] < mean ? A(1) : A(0)) + (mean - mean);
                samples[at] = to_storage<T>(args.gaussian ? mean + deviation * drawn[n] : on);
            }
        }
    }
}

constexpr int kTall = 4;  // rows of a thread where there are many

template <class T, int kRows, bool kTransposed>
cudaError_t start(const RbmLayer& args, cudaStream_t stream) {
    constexpr int64_t kTileRows = kRows * kRbmSide;
    const dim3 grid(static_cast<unsigned>((args.rows + kTileRows - 1) / kTileRows),
                    static_cast<unsigned>((args.outputs + kRbmColumns - 1) / kRbmColumns));
    return launch(layer_kernel<T, kRows, kTransposed>, grid, dim3(kRbmThreads),
                  rbm_shared_bytes<Accumulator<T>, kRows>(), stream, args);
}

}  // namespace

cudaError_t rbm_layer(const RbmLayer& args, cudaStream_t stream) {
    if (args.rows == 0 || args.outputs == 0) {
        return cudaSuccess;
    }
    return for_types(args.dtype, [&]<class T>() {
        if (args.rows > 2 * kRbmSide) {
            return args.transposed ? start<T, kTall, true>(args, stream) : start<T, kTall, false>(args, stream);
        }
        return args.transposed ? start<T, 1, true>(args, stream) : start<T, 1, false>(args, stream);
    });
}

}  // namespace pykernels::cuda
