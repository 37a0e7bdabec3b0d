// Attention, backward: its parts in order.
#include "cuda/core/attention.cuh"
#include "cuda/kernels/attention_parts.h"

namespace pykernels::cuda {
namespace {

constexpr int kDeltaThreads = 256, kDeltaRows = kDeltaThreads / kWarp;

// What every gradient of a row's scores has in common: its weights' gradients in the mean. A warp has a row.
template <class T>
__global__ void __launch_bounds__(kDeltaThreads)
    delta_kernel(const __grid_constant__ AttentionBackward args, int row_blocks) {
    using A = Accumulator<T>;
    const BlockPlace place(row_blocks, args.shape.heads);
    const int row = place.inner * kDeltaRows + static_cast<int>(threadIdx.x) / kWarp;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    A sum = 0;
    // What lies beyond the example's rows is not read.
    if (row < Example(args.shape, place.outer).rows) {
        const T* out = head_of<T>(args.out, place.outer, place.head) + row * args.out.row_stride;
        const T* grad = head_of<T>(args.grad_out, place.outer, place.head) + row * args.grad_out.row_stride;
        for (int64_t column = lane; column < args.shape.value_depth; column += kWarp) {
            sum += to_accumulator(out[column]) * to_accumulator(grad[column]);
        }
    }
#pragma unroll
    for (int lane_xor = kWarp / 2; lane_xor >= 1; lane_xor /= 2) {
        sum += shuffle_xor(sum, lane_xor);
    }
    if (row < args.shape.rows && lane == 0) {
        const int64_t at = place.item() * args.shape.rows + row;
        static_cast<A*>(args.delta)[at] =
            sum - (args.grad_lse != nullptr ? static_cast<const A*>(args.grad_lse)[at] : A(0));
    }
}

}  // namespace

cudaError_t attention_delta(const AttentionBackward& args, cudaStream_t stream) {
    const int row_blocks = tiles_of(args.shape.rows, kDeltaRows);
    const dim3 grid(static_cast<unsigned>(row_blocks * args.shape.batch * args.shape.heads));
    return for_types(args.shape.dtype, [&]<class T>() {
        return launch(delta_kernel<T>, grid, dim3(kDeltaThreads), 0, stream, args, row_blocks);
    });
}

cudaError_t attention_backward(const AttentionBackward& args, cudaStream_t stream) {
    const AttentionShape& shape = args.shape;
    const bool rows = shape.batch * shape.heads * shape.rows > 0, keys = shape.batch * shape.groups * shape.keys > 0;
    cudaError_t error = rows ? attention_delta(args, stream) : cudaSuccess;
    if (error == cudaSuccess && rows && args.grad_query.data != nullptr) {
        error = attention_query_gradient(args, stream);
    }
    if (error == cudaSuccess && keys && (args.grad_key.data != nullptr || args.grad_value.data != nullptr)) {
        error = attention_key_gradient(args, stream);
    }
    if (error == cudaSuccess && args.grad_mask != nullptr && shape.keys > 0) {
        error = attention_mask_gradient(args, stream);
    }
    return error;
}

}  // namespace pykernels::cuda
