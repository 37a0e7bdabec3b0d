// The gradients of layer norm's weight and bias: over runs of rows, where the rows' own kernel has not done it, and
// over the runs.
#include "cuda/core/layer_norm.cuh"
#include "cuda/kernels/layer_norm_parts.h"

namespace pykernels::cuda {
namespace {

constexpr int kColumnThreads = 256;
constexpr int kSlices = 32;  // of the runs; a warp has one

// A block has a run of rows, and a thread a pack of columns.
template <class T, int kPack>
__global__ void __launch_bounds__(kColumnThreads)
    column_runs_kernel(const __grid_constant__ LayerNormBackward args, int64_t run) {
    using A = Accumulator<T>;
    const LayerNormShape& shape = args.shape;
    const int64_t column = (int64_t{blockIdx.x} * kColumnThreads + threadIdx.x) * kPack;
    if (column >= shape.columns) {
        return;
    }
    A for_weight[kPack] = {}, for_bias[kPack] = {};
    const int64_t begin = int64_t{blockIdx.y} * run, end = begin + run < shape.rows ? begin + run : shape.rows;
    for (int64_t row = begin; row < end && args.grad_out.data != nullptr; ++row) {
        const auto grad = load_pack_once<kPack>(row_of<T>(args.grad_out, row) + column);
        const auto total = load_pack_once<kPack>(row_of<T>(args.total, row) + column);
        const A mean = static_cast<const A*>(args.stats)[2 * row];
        const A inverse = static_cast<const A*>(args.stats)[2 * row + 1];
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
            const A gradient = grad.at(e);
            for_weight[e] += gradient * ((total.at(e) - mean) * inverse);
            for_bias[e] += gradient;
        }
    }
    const int64_t at = int64_t{blockIdx.y} * shape.columns + column;
    if (args.weight_runs != nullptr) {
        store_pack(static_cast<A*>(args.weight_runs) + at, Pack<A, kPack>::of(for_weight));
    }
    if (args.bias_runs != nullptr) {
        store_pack(static_cast<A*>(args.bias_runs) + at, Pack<A, kPack>::of(for_bias));
    }
}

struct RunsOf {
    const void* runs;
    LayerNormParameterGradient to;
};
struct AddRuns {
    RunsOf of[2];
    int64_t runs, columns;
};

// A block has 32 columns of one gradient. Each warp adds up a slice of the runs, and the first one the slices.
template <class T>
__global__ void __launch_bounds__(kSlices* kWarp) add_runs_kernel(const __grid_constant__ AddRuns args) {
    using A = Accumulator<T>;
    const RunsOf of = blockIdx.y == 0 ? args.of[0] : args.of[1];
    const int lane = static_cast<int>(threadIdx.x) % kWarp, slice = static_cast<int>(threadIdx.x) / kWarp;
    const int64_t column = int64_t{blockIdx.x} * kWarp + lane;
    const int64_t length = (args.runs + kSlices - 1) / kSlices, begin = slice * length;
    const int64_t end = begin + length < args.runs ? begin + length : args.runs;
    auto* sums = reinterpret_cast<A*>(shared_memory());
    A sum = 0;
    if (column < args.columns) {
        const A* runs = static_cast<const A*>(of.runs) + column;
#pragma unroll 8
        for (int64_t run = begin; run < end; ++run) {
            sum += runs[run * args.columns];
        }
    }
    sums[slice * kWarp + lane] = sum;
    block_barrier();  // the sums of the slices have been written
    if (slice != 0 || column >= args.columns) {
        return;
    }
#pragma unroll
    for (int other = 1; other < kSlices; ++other) {
        sum += sums[other * kWarp + lane];
    }
    if (of.to.wide) {
        static_cast<A*>(of.to.data)[column] = sum;
    } else {
        static_cast<T*>(of.to.data)[column] = to_storage<T>(sum);
    }
}

}  // namespace

cudaError_t layer_norm_column_runs(const LayerNormBackward& args, bool packs, cudaStream_t stream) {
    if (args.weight_runs == nullptr && args.bias_runs == nullptr) {
        return cudaSuccess;
    }
    const auto start = [&]<class T, int kPack>() {
        const int64_t columns = (args.shape.columns + kPack - 1) / kPack;
        const dim3 grid(static_cast<unsigned>((columns + kColumnThreads - 1) / kColumnThreads),
                        static_cast<unsigned>(layer_norm_runs(args.shape.rows)));
        return launch(column_runs_kernel<T, kPack>, grid, dim3(kColumnThreads), 0, stream, args,
                      layer_norm_run(args.shape.rows));
    };
    return for_types(args.shape.dtype, [&]<class T>() {
        return packs ? start.template operator()<T, kWholePack<T>>() : start.template operator()<T, 1>();
    });
}

cudaError_t layer_norm_add_runs(const LayerNormBackward& args, cudaStream_t stream) {
    AddRuns add{{}, layer_norm_runs(args.shape.rows), args.shape.columns};
    unsigned count = 0;
    if (args.grad_weight.data != nullptr) {
        add.of[count++] = {args.weight_runs, args.grad_weight};
    }
    if (args.grad_bias.data != nullptr) {
        add.of[count++] = {args.bias_runs, args.grad_bias};
    }
    if (count == 0) {
        return cudaSuccess;
    }
    return for_types(args.shape.dtype, [&]<class T>() {
        const dim3 grid(static_cast<unsigned>((add.columns + kWarp - 1) / kWarp), count);
        return launch(add_runs_kernel<T>, grid, dim3(kSlices * kWarp), kSlices * kWarp * sizeof(Accumulator<T>), stream,
                      add);
    });
}

}  // namespace pykernels::cuda
