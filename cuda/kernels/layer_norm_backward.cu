// Layer norm of a sum, backward. A block goes through a run of rows; each row's gradient and total are read once, and
// what they add to the gradients of weight and bias stays in registers until the run ends. Rows that are too long for
// that are read again, and once more by columns.
#include "cuda/core/layer_norm.cuh"
#include "cuda/kernels/layer_norm_parts.h"

namespace pykernels::cuda {
namespace {

template <class A>
struct RowStats {
    A mean, inverse;
    __device__ RowStats(const LayerNormBackward& args, int64_t row)
        : mean(static_cast<const A*>(args.stats)[2 * row]), inverse(static_cast<const A*>(args.stats)[2 * row + 1]) {}
    __device__ A normalized(A value) const { return (value - mean) * inverse; }
};

// Sums over a row of gradient times weight, and of that times the normalised value.
template <class T, int kPack>
__device__ void add_slopes(const LayerNormBackward& args, Accumulator<T> (&sums)[2], int64_t column,
                           const Pack<T, kPack>& grad, const Pack<T, kPack>& total,
                           const RowStats<Accumulator<T>>& stats) {
    using A = Accumulator<T>;
    const auto weight = parameter_at<T, kPack>(args.weight, column, A(1));
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
        const A weighted = grad.at(e) * weight.at(e);
        sums[0] += weighted;
        sums[1] += weighted * stats.normalized(total.at(e));
    }
}

// `means`: those sums, over the number of columns.
template <class T, int kPack>
__device__ void put_gradients(const LayerNormBackward& args, int64_t row, int64_t column, const Pack<T, kPack>& grad,
                              const Pack<T, kPack>& total, const RowStats<Accumulator<T>>& stats,
                              const Accumulator<T> (&means)[2], uint32_t kept) {
    using A = Accumulator<T>;
    Pack<T, kPack> passed = {};
    A of_total[kPack], of_input[kPack];
    if (args.grad_total.data != nullptr) {
        passed = load_pack_once<kPack>(row_of<T>(args.grad_total, row) + column);
    }
    const auto weight = parameter_at<T, kPack>(args.weight, column, A(1));
    const auto factor = static_cast<A>(args.shape.dropout.kept);
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
        A gradient = 0;
        if (args.grad_out.data != nullptr) {
            const A flat = grad.at(e) * weight.at(e) - means[0];
            gradient = stats.inverse * (flat - stats.normalized(total.at(e)) * means[1]);
        }
        gradient += passed.at(e);
        of_total[e] = gradient;
        of_input[e] = gradient * ((kept >> e & 1) != 0 ? factor : 0);
    }
    const int64_t at = row * args.shape.columns + column;
    store_pack(static_cast<T*>(args.grad_of_total) + at, Pack<T, kPack>::of(of_total));
    if (args.grad_input != nullptr) {
        store_pack(static_cast<T*>(args.grad_input) + at, Pack<T, kPack>::of(of_input));
    }
}

// The block's sums of a column, over its rows; each row's warp has its own, which are added in order.
template <class Row>
__device__ void put_run(void* runs, int64_t columns, const typename Row::A (&sums)[Row::kHeld][Row::kPack]) {
    using A = typename Row::A;
    if (runs == nullptr) {
        return;
    }
    const auto count = static_cast<int>(columns);
    A* to = static_cast<A*>(runs) + int64_t{blockIdx.x} * columns;
    A* own = to;
    if constexpr (Row::kAtOnce > 1) {
        block_barrier();  // the sums before have been read
        own = reinterpret_cast<A*>(shared_memory()) + Row::place() * count;
    }
    Row::each(count, [&](int held, int column) { store_pack(own + column, Pack<A, Row::kPack>::of(sums[held])); });
    if constexpr (Row::kAtOnce > 1) {
        block_barrier();  // the sums of the warps have been written
        const A* all = reinterpret_cast<const A*>(shared_memory());
        for (int column = static_cast<int>(threadIdx.x); column < count; column += Row::kBlock) {
            A sum = all[column];
#pragma unroll
            for (int warp = 1; warp < Row::kAtOnce; ++warp) {
                sum += all[warp * count + column];
            }
            to[column] = sum;
        }
    }
}

template <class Row, int kMinBlocks>
__global__ void __launch_bounds__(Row::kBlock, kMinBlocks)
    held_backward_kernel(const __grid_constant__ LayerNormBackward args, int64_t run) {
    using T = typename Row::T;
    using A = typename Row::A;
    constexpr int kPack = Row::kPack;
    const LayerNormShape& shape = args.shape;
    const auto columns = static_cast<int>(shape.columns);
    const int64_t begin = int64_t{blockIdx.x} * run, end = begin + run < shape.rows ? begin + run : shape.rows;
    auto* scratch = reinterpret_cast<A*>(shared_memory());
    A for_weight[Row::kHeld][kPack] = {}, for_bias[Row::kHeld][kPack] = {};

    for (int64_t row = begin + Row::place(); row < end; row += Row::kAtOnce) {
        typename Row::Packs grad = {}, total = {};
        const RowStats<A> stats(args, row);
        A means[2] = {};
        if (args.grad_out.data != nullptr) {
            Row::load(grad, row_of<T>(args.grad_out, row), columns);
            Row::load(total, row_of<T>(args.total, row), columns);
            Row::each(columns,
                      [&](int held, int column) { add_slopes(args, means, column, grad[held], total[held], stats); });
            // In turn: a row's sums are read while the next one's are written.
            sum_over_row<Row::kThreads>(means, scratch + (row - begin) % 2 * 2 * Row::kWarps);
            means[0] /= static_cast<A>(columns);
            means[1] /= static_cast<A>(columns);
        }
        Row::stay(grad);
        Row::stay(total);
        const uint64_t kept = shape.dropout.below != 0 ? kept_of_row<Row>(shape.dropout, row, columns) : ~uint64_t{0};
        Row::each(columns, [&](int held, int column) {
            put_gradients(args, row, column, grad[held], total[held], stats, means,
                          static_cast<uint32_t>(kept >> held * kPack));
            if (args.grad_out.data != nullptr) {
#pragma unroll
                for (int e = 0; e < kPack; ++e) {
                    const A gradient = grad[held].at(e);
                    for_weight[held][e] += gradient * stats.normalized(total[held].at(e));
                    for_bias[held][e] += gradient;
                }
            }
        });
    }
    put_run<Row>(args.weight_runs, shape.columns, for_weight);
    put_run<Row>(args.bias_runs, shape.columns, for_bias);
}

// A block a row.
template <class T, int kPack>
__global__ void __launch_bounds__(kStreamThreads)
    streamed_backward_kernel(const __grid_constant__ LayerNormBackward args) {
    using A = Accumulator<T>;
    constexpr int64_t kStep = int64_t{kStreamThreads} * kPack;
    const LayerNormShape& shape = args.shape;
    const int64_t row = blockIdx.x, columns = shape.columns, own = int64_t{threadIdx.x} * kPack;
    const T *grads = row_of<T>(args.grad_out, row), *totals = row_of<T>(args.total, row);
    const RowStats<A> stats(args, row);
    A means[2] = {};
    if (args.grad_out.data != nullptr) {
        for (int64_t column = own; column < columns; column += kStep) {
            add_slopes(args, means, column, load_pack<kPack>(grads + column), load_pack<kPack>(totals + column), stats);
        }
        sum_over_row<kStreamThreads>(means, reinterpret_cast<A*>(shared_memory()));
        means[0] /= static_cast<A>(columns);
        means[1] /= static_cast<A>(columns);
    }
    for (int64_t first = 0; first < columns; first += kStep) {
        const int64_t column = first + own;
        const uint32_t kept = shape.dropout.below != 0
                                  ? kept_of_pack<kPack>(shape.dropout, static_cast<uint32_t>(row), column)
                                  : ~uint32_t{0};
        if (column < columns) {
            Pack<T, kPack> grad = {}, total = {};
            if (args.grad_out.data != nullptr) {
                grad = load_pack<kPack>(grads + column);
                total = load_pack<kPack>(totals + column);
            }
            put_gradients(args, row, column, grad, total, stats, means, kept);
        }
    }
}

template <class T, int kPack>
struct Backward {
    using A = Accumulator<T>;
    const LayerNormBackward& args;
    cudaStream_t stream;

    // kMinBlocks: of a multiprocessor, as many as the registers of sums and packs leave room for.
    template <int kHeld, int kThreads>
    bool holds() const {
        return args.shape.columns <= HeldRow<T, kPack, kHeld, kThreads>::kColumns;
    }
    template <int kHeld, int kThreads, int kMinBlocks>
    cudaError_t held() const {
        using Row = HeldRow<T, kPack, kHeld, kThreads>;
        const bool sums = args.weight_runs != nullptr || args.bias_runs != nullptr;
        const size_t of_warps = Row::kAtOnce > 1 && sums ? Row::kAtOnce * static_cast<size_t>(args.shape.columns) : 0;
        const size_t shared = (Row::kWarps > 1 ? 4 * Row::kWarps : of_warps) * sizeof(A);
        const dim3 grid(static_cast<unsigned>(layer_norm_runs(args.shape.rows)));
        return launch(held_backward_kernel<Row, kMinBlocks>, grid, dim3(Row::kBlock), shared, stream, args,
                      layer_norm_run(args.shape.rows));
    }
    cudaError_t streamed() const {
        const cudaError_t error =
            launch(streamed_backward_kernel<T, kPack>, dim3(static_cast<unsigned>(args.shape.rows)),
                   dim3(kStreamThreads), 2 * kStreamThreads / kWarp * sizeof(A), stream, args);
        return error == cudaSuccess ? layer_norm_column_runs(args, kPack > 1, stream) : error;
    }
    cudaError_t run() const {
        if constexpr (kPack == 1) {
            constexpr int kFew = sizeof(T) == 8 ? 4 : 8;
            return holds<2 * kFew, kWarp>() ? held<2 * kFew, kWarp, 3>()
                   : holds<kFew, 512>()     ? held<kFew, 512, 1>()
                                            : streamed();
        } else if constexpr (sizeof(T) == 2) {
            return holds<2, kWarp>()   ? held<2, kWarp, 5>()
                   : holds<4, kWarp>() ? held<4, kWarp, 3>()
                   : holds<2, 256>()   ? held<2, 256, 2>()
                   : holds<2, 512>()   ? held<2, 512, 1>()
                   : holds<4, 384>()   ? held<4, 384, 1>()
                                       : streamed();
        } else {
            return holds<2, kWarp>()   ? held<2, kWarp, 5>()
                   : holds<8, kWarp>() ? held<8, kWarp, sizeof(T) == 8 ? 2 : 3>()
                   : holds<4, 256>()   ? held<4, 256, 2>()
                   : holds<4, 512>()   ? held<4, 512, 1>()
                                       : streamed();
        }
    }
};

}  // namespace

cudaError_t layer_norm_backward(const LayerNormBackward& args, cudaStream_t stream) {
    const LayerNormShape& shape = args.shape;
    if (shape.columns == 0) {
        return cudaSuccess;
    }
    const int64_t row_bytes = shape.columns * storage_bytes(shape.dtype);
    const bool packs = has_packs(shape, args.grad_out) && has_packs(shape, args.grad_total) &&
                       has_packs(shape, args.total) && has_packs(args.weight.data, 0) &&
                       has_packs(args.grad_of_total, row_bytes) && has_packs(args.grad_input, row_bytes);
    cudaError_t error = cudaSuccess;
    if (shape.rows > 0) {
        error = for_types(shape.dtype, [&]<class T>() {
            return packs ? Backward<T, kWholePack<T>>{args, stream}.run() : Backward<T, 1>{args, stream}.run();
        });
    }
    return error == cudaSuccess ? layer_norm_add_runs(args, stream) : error;
}

}  // namespace pykernels::cuda
