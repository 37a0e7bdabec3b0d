// The radial basis layer: sums of squared differences in tiles, the exponential as their ending. (Differences, where
// the processor's kernel has products: nothing to centre, and no digits lost far from the origin.)
#include "cuda/kernels/radial_basis.h"

#include "cuda/core/rbm.cuh"

namespace pykernels::cuda {
namespace {

struct SquareApart {
    template <class A>
    __device__ A operator()(A sum, A a, A b) const {
        const A apart = a - b;
        return sum + apart * apart;
    }
};

template <class T, int kRows>
__global__ void __launch_bounds__(kRbmThreads, 1) radial_basis_kernel(const __grid_constant__ RadialBasis args) {
    using A = Accumulator<T>;
    const T* const input = static_cast<const T*>(args.input);
    const T* const center = static_cast<const T*>(args.center);
    const int64_t first_row = int64_t{blockIdx.x} * (kRows * kRbmSide),
                  first_column = int64_t{blockIdx.y} * kRbmColumns;
    A sum[kRows][4] = {};
    rbm_product<kRows, true, true>(
        sum, args.features,
        [&](int line, int64_t k) {
            const int64_t row = first_row + line;
            return row < args.samples && k < args.features ? to_accumulator(input[row * args.input_stride + k]) : A(0);
        },
        [&](int line, int64_t k) {
            const int64_t row = first_column + line;
            return row < args.centers && k < args.features ? to_accumulator(center[row * args.center_stride + k])
                                                           : A(0);
        },
        SquareApart{});
    const A scale = -static_cast<A>(args.gamma);
    T* const out = static_cast<T*>(args.out);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
        const int64_t row = first_row + rbm_row() + kRbmSide * i;
        if (row >= args.samples) {
            break;
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            const int64_t column = first_column + rbm_column() + kRbmSide * n;
            if (column >= args.centers) {
                break;
            }
            out[row * args.centers + column] = to_storage<T>(exponential(scale * sum[i][n]));
        }
    }
}

template <class T, int kRows>
cudaError_t start(const RadialBasis& args, cudaStream_t stream) {
    constexpr int64_t kTileRows = kRows * kRbmSide;
    const dim3 grid(static_cast<unsigned>((args.samples + kTileRows - 1) / kTileRows),
                    static_cast<unsigned>((args.centers + kRbmColumns - 1) / kRbmColumns));
    return launch(radial_basis_kernel<T, kRows>, grid, dim3(kRbmThreads), rbm_shared_bytes<Accumulator<T>, kRows>(),
                  stream, args);
}

}  // namespace

cudaError_t radial_basis(const RadialBasis& args, cudaStream_t stream) {
    if (args.samples == 0 || args.centers == 0) {
        return cudaSuccess;
    }
    return for_types(args.dtype, [&]<class T>() {
        return args.samples > 2 * kRbmSide ? start<T, 4>(args, stream) : start<T, 1>(args, stream);
    });
}

}  // namespace pykernels::cuda
