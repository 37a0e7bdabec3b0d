// Weights in the order in which the products with patches read them.
#include "cuda/kernels/conv_parts.h"

namespace pykernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTurn = 32;  // rows and columns that a block turns

template <class T>
__global__ void __launch_bounds__(kThreads) weight_rows_kernel(const __grid_constant__ ConvWeightRows args) {
    const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    const int64_t row = index / args.row, column = index % args.row;
    if (row >= args.rows) {
        return;
    }
    const T* from = static_cast<const T*>(args.from) + row * args.channels * args.taps;
    const int64_t tap = column / args.filled, channel = column % args.filled;
    const int64_t at = args.channels_last ? tap * args.channels + channel : channel * args.taps + tap;
    static_cast<T*>(args.to)[index] = tap < args.taps && channel < args.channels ? from[at] : to_storage<T>(0);
}

// Where a tap is among the kernel's, whose lattices are one after the other.
__device__ inline int64_t place_of_tap(const ConvWeightTurn& args, int64_t tap) {
    const int64_t line = tap / args.kernel[2];
    const int64_t number[3] = {line / args.kernel[1], line % args.kernel[1], tap % args.kernel[2]};
    int before[3], taps[3], own[3];  // along each dimension: taps of other lattices, taps of this one, its number there
#pragma unroll
    for (int a = 0; a < 3; ++a) {
        const int whole = args.kernel[a] / args.period[a], more = args.kernel[a] % args.period[a];
        const int first = static_cast<int>(number[a]) % args.period[a];
        before[a] = first * whole + (first < more ? first : more);
        taps[a] = whole + (first < more ? 1 : 0);
        own[a] = static_cast<int>(number[a]) / args.period[a];
    }
    const int64_t start = (int64_t{before[0]} * args.kernel[1] + int64_t{taps[0]} * before[1]) * args.kernel[2] +
                          int64_t{taps[0]} * taps[1] * before[2];
    return start + (int64_t{own[0]} * taps[1] + own[1]) * taps[2] + own[2];
}

// A block has 32 rows and 32 of the columns beside each other in memory.
template <class T>
__global__ void __launch_bounds__(kThreads)
    weight_turn_kernel(const __grid_constant__ ConvWeightTurn args, int64_t row_blocks, int64_t column_blocks) {
    constexpr int kLines = kThreads / kTurn;
    T* tile = reinterpret_cast<T*>(shared_memory());
    const int64_t taps = int64_t{args.kernel[0]} * args.kernel[1] * args.kernel[2], columns = args.channels * taps;
    const int64_t block = blockIdx.x, group = block / column_blocks / row_blocks;
    const int64_t first_row = block / column_blocks % row_blocks * kTurn, first_column = block % column_blocks * kTurn;
    const int lane = static_cast<int>(threadIdx.x) % kTurn, line = static_cast<int>(threadIdx.x) / kTurn;
    const T* from = static_cast<const T*>(args.from) + group * args.rows * columns;
#pragma unroll
    for (int i = line; i < kTurn; i += kLines) {
        const int64_t row = first_row + i, column = first_column + lane;
        const bool inside = row < args.rows && column < columns;
        tile[i * (kTurn + 1) + lane] = inside ? from[row * columns + column] : to_storage<T>(0);
    }
    block_barrier();  // the block's weights are there
#pragma unroll
    for (int i = line; i < kTurn; i += kLines) {
        const int64_t row = first_row + lane, column = first_column + i;
        if (row < args.filled && column < columns) {
            const int64_t channel = args.channels_last ? column % args.channels : column / taps;
            const int64_t place = place_of_tap(args, args.channels_last ? column / args.channels : column % taps);
            const int64_t to = ((group * args.channels + channel) * taps + place) * args.filled + row;
            static_cast<T*>(args.to)[to] = tile[lane * (kTurn + 1) + i];
        }
    }
}

}  // namespace

cudaError_t conv_weight_rows(const ConvWeightRows& args, DType dtype, cudaStream_t stream) {
    const int64_t blocks = (args.rows * args.row + kThreads - 1) / kThreads;
    if (blocks == 0) {
        return cudaSuccess;
    }
    return for_types(dtype, [&]<class T>() {
        return launch(weight_rows_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, args);
    });
}

cudaError_t conv_weight_turn(const ConvWeightTurn& args, DType dtype, cudaStream_t stream) {
    const int64_t columns = args.channels * args.kernel[0] * args.kernel[1] * args.kernel[2];
    const int64_t row_blocks = (args.filled + kTurn - 1) / kTurn, column_blocks = (columns + kTurn - 1) / kTurn;
    const int64_t blocks = args.groups * row_blocks * column_blocks;
    if (blocks == 0) {
        return cudaSuccess;
    }
    return for_types(dtype, [&]<class T>() {
        return launch(weight_turn_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                      kTurn * (kTurn + 1) * sizeof(T), stream, args, row_blocks, column_blocks);
    });
}

}  // namespace pykernels::cuda
