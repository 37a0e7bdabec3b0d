// Layer norm of a sum, forward. Input and residual are read once: the total stays in registers, as it is stored, while
// its mean, then the squares of what differs from it, are summed. Rows that are too long for that are read again.
#include "cuda/core/layer_norm.cuh"

namespace pykernels::cuda {
namespace {

template <class T, int kPack>
__device__ Pack<T, kPack> add_packs(const Pack<T, kPack>& input, const Pack<T, kPack>& residual, uint32_t kept,
                                    Accumulator<T> factor) {
    Accumulator<T> total[kPack];
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
        const Accumulator<T> scaled = input.at(e) * ((kept >> e & 1) != 0 ? factor : 0);
        total[e] = scaled + residual.at(e);
    }
    return Pack<T, kPack>::of(total);
}

template <class T, int kPack>
__device__ void put_normalized(const LayerNormForward& args, T* out, int64_t column, const Pack<T, kPack>& total,
                               Accumulator<T> mean, Accumulator<T> inverse) {
    using A = Accumulator<T>;
    const auto weight = parameter_at<T, kPack>(args.weight, column, A(1));
    const auto bias = parameter_at<T, kPack>(args.bias, column, A(0));
    A result[kPack];
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
        const A normalized = (total.at(e) - mean) * inverse;
        result[e] = normalized * weight.at(e) + bias.at(e);
    }
    store_pack(out + column, Pack<T, kPack>::of(result));
}

template <class A>
__device__ void put_stats(const LayerNormForward& args, int64_t row, A mean, A inverse) {
    static_cast<A*>(args.stats)[2 * row] = mean;
    static_cast<A*>(args.stats)[2 * row + 1] = inverse;
}

template <class A>
__device__ A inverse_deviation(const LayerNormForward& args, A squares) {
    return A(1) / square_root(squares / static_cast<A>(args.shape.columns) + static_cast<A>(args.epsilon));
}

template <class Row>
__global__ void __launch_bounds__(Row::kBlock) held_forward_kernel(const __grid_constant__ LayerNormForward args) {
    using T = typename Row::T;
    using A = typename Row::A;
    constexpr int kPack = Row::kPack;
    const LayerNormShape& shape = args.shape;
    const auto columns = static_cast<int>(shape.columns);
    const int64_t row = int64_t{blockIdx.x} * Row::kAtOnce + Row::place();
    if (row >= shape.rows) {
        return;
    }
    auto* scratch = reinterpret_cast<A*>(shared_memory());

    typename Row::Packs total = {};
    Row::load(total, row_of<T>(args.input, row), columns);
    if (args.total != nullptr) {
        typename Row::Packs residual = {};
        if (args.residual.data != nullptr) {
            Row::load(residual, row_of<T>(args.residual, row), columns);
        }
        const uint64_t kept = shape.dropout.below != 0 ? kept_of_row<Row>(shape.dropout, row, columns) : ~uint64_t{0};
        const auto factor = static_cast<A>(shape.dropout.kept);
        T* to = static_cast<T*>(args.total) + row * shape.columns;
        Row::each(columns, [&](int held, int column) {
            total[held] = add_packs(total[held], residual[held], static_cast<uint32_t>(kept >> held * kPack), factor);
            store_pack(to + column, total[held]);
        });
    }

    Row::stay(total);
    A sum[1] = {};
    Row::each(columns, [&](int held, int) {
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
            sum[0] += total[held].at(e);
        }
    });
    sum_over_row<Row::kThreads>(sum, scratch);
    const A mean = sum[0] / static_cast<A>(columns);
    Row::stay(total);
    A squares[1] = {};
    Row::each(columns, [&](int held, int) {
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
            const A off = total[held].at(e) - mean;
            squares[0] += off * off;
        }
    });
    sum_over_row<Row::kThreads>(squares, scratch + Row::kWarps);
    const A inverse = inverse_deviation(args, squares[0]);
    if (Row::thread() == 0) {
        put_stats(args, row, mean, inverse);
    }
    Row::stay(total);
    T* out = static_cast<T*>(args.out) + row * shape.columns;
    Row::each(columns,
              [&](int held, int column) { put_normalized<T, kPack>(args, out, column, total[held], mean, inverse); });
}

// A block a row.
template <class T, int kPack>
__global__ void __launch_bounds__(kStreamThreads)
    streamed_forward_kernel(const __grid_constant__ LayerNormForward args) {
    using A = Accumulator<T>;
    constexpr int64_t kStep = int64_t{kStreamThreads} * kPack;
    const LayerNormShape& shape = args.shape;
    const int64_t row = blockIdx.x, columns = shape.columns, own = int64_t{threadIdx.x} * kPack;
    auto* scratch = reinterpret_cast<A*>(shared_memory());
    const T *input = row_of<T>(args.input, row), *residual = row_of<T>(args.residual, row);
    T* total = args.total != nullptr ? static_cast<T*>(args.total) + row * columns : nullptr;

    A sum[1] = {};
    for (int64_t first = 0; first < columns; first += kStep) {
        const int64_t column = first + own;
        const uint32_t kept = shape.dropout.below != 0
                                  ? kept_of_pack<kPack>(shape.dropout, static_cast<uint32_t>(row), column)
                                  : ~uint32_t{0};
        if (column >= columns) {
            continue;
        }
        auto here = load_pack<kPack>(input + column);
        if (total != nullptr) {
            Pack<T, kPack> other = {};
            if (args.residual.data != nullptr) {
                other = load_pack_once<kPack>(residual + column);
            }
            here = add_packs(here, other, kept, static_cast<A>(shape.dropout.kept));
            store_pack(total + column, here);
        }
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
            sum[0] += here.at(e);
        }
    }
    sum_over_row<kStreamThreads>(sum, scratch);
    const A mean = sum[0] / static_cast<A>(columns);
    const T* from = total != nullptr ? total : input;  // what the thread itself has written
    A squares[1] = {};
    for (int64_t column = own; column < columns; column += kStep) {
        const auto here = load_pack<kPack>(from + column);
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
            const A off = here.at(e) - mean;
            squares[0] += off * off;
        }
    }
    sum_over_row<kStreamThreads>(squares, scratch + kStreamThreads / kWarp);
    const A inverse = inverse_deviation(args, squares[0]);
    if (threadIdx.x == 0) {
        put_stats(args, row, mean, inverse);
    }
    for (int64_t column = own; column < columns; column += kStep) {
        const auto here = load_pack<kPack>(from + column);
        put_normalized<T, kPack>(args, static_cast<T*>(args.out) + row * columns, column, here, mean, inverse);
    }
}

template <class T, int kPack>
struct Forward {
    using A = Accumulator<T>;
    const LayerNormForward& args;
    cudaStream_t stream;

    template <int kHeld, int kThreads>
    bool holds() const {
        return args.shape.columns <= HeldRow<T, kPack, kHeld, kThreads>::kColumns;
    }
    template <int kHeld, int kThreads>
    cudaError_t held() const {
        using Row = HeldRow<T, kPack, kHeld, kThreads>;
        const dim3 grid(static_cast<unsigned>((args.shape.rows + Row::kAtOnce - 1) / Row::kAtOnce));
        const size_t shared = Row::kWarps > 1 ? 2 * Row::kWarps * sizeof(A) : 0;
        return launch(held_forward_kernel<Row>, grid, dim3(Row::kBlock), shared, stream, args);
    }
    cudaError_t run() const {
        constexpr int kMany = kPack == 1 ? 16 : 8;
        if constexpr (kPack > 1) {
            if (holds<2, kWarp>()) {
                return held<2, kWarp>();
            }
            if (holds<4, kWarp>()) {
                return held<4, kWarp>();
            }
        }
        if (holds<kMany, kWarp>()) {
            return held<kMany, kWarp>();
        }
        if constexpr (kPack > 1) {
            if (holds<2, 256>()) {
                return held<2, 256>();
            }
            if (holds<4, 256>()) {
                return held<4, 256>();
            }
        }
        if (holds<kMany, 256>()) {
            return held<kMany, 256>();
        }
        if (holds<kMany, 512>()) {
            return held<kMany, 512>();
        }
        return launch(streamed_forward_kernel<T, kPack>, dim3(static_cast<unsigned>(args.shape.rows)),
                      dim3(kStreamThreads), 2 * kStreamThreads / kWarp * sizeof(A), stream, args);
    }
};

}  // namespace

cudaError_t layer_norm_forward(const LayerNormForward& args, cudaStream_t stream) {
    const LayerNormShape& shape = args.shape;
    if (shape.rows == 0) {
        return cudaSuccess;
    }
    const int64_t row_bytes = shape.columns * storage_bytes(shape.dtype);
    const bool packs = has_packs(shape, args.input) && has_packs(shape, args.residual) &&
                       has_packs(args.weight.data, 0) && has_packs(args.bias.data, 0) &&
                       has_packs(args.out, row_bytes) && has_packs(args.total, row_bytes);
    return for_types(shape.dtype, [&]<class T>() {
        return packs ? Forward<T, kWholePack<T>>{args, stream}.run() : Forward<T, 1>{args, stream}.run();
    });
}

}  // namespace pykernels::cuda
