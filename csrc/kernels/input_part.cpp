#include "kernels/input_part.h"

#include "core/product.h"
#include "core/row_norm.h"
#include "kernels/rows.h"
#include "kernels/step_product.h"
#include "kernels/variant.h"

namespace pykernels {
namespace {

constexpr int64_t kChunkRows = 8 * kTileRows;  // their sums stay in the cache until they are finished
constexpr double kWorkPerThread = 1e5;         // multiply-adds

template <typename T>
double work_of(const InputPartCall<T>& call) {
    return static_cast<double>(call.rows) * static_cast<double>(call.directions * call.columns) *
           static_cast<double>(call.inputs);
}

// From a row of sums to what is put out.
template <typename T>
void finish_row(const InputPartForward<T>& call, int d, int64_t row, const T* sums) {
    using V = Vec<T>;
    const auto& weights = call.weights[d];
    const int64_t saved = d * call.rows + row;
    RowStats<T> stats{T(0), T(1)};
    if (weights.gain) stats = row_stats(sums, call.columns, T(kNormEpsilon));
    T* normalized = call.normalized ? call.normalized + saved * call.columns : nullptr;
    T* out = call.out + (row * call.directions + d) * call.columns;
    each_vector<T>(call.columns, [&](int64_t i, int used) {
        V value = load_as<T>(sums + i, used);
        if (weights.gain) {
            value = (value - V(stats.mean)) * V(stats.scale);
            if (normalized) store_as<T>(normalized + i, value, used);
            value = value * load_as<T>(weights.gain + i, used);
        }
        if (weights.bias) value = value + load_as<T>(weights.bias + i, used);
        store_as<T>(out + i, value, used);
    });
    if (call.stats) call.stats[saved] = stats.scale;
}

// A direction's share of the gradients of the parameters; grad_sums: of x W^T, rows `stride` apart.
template <typename T>
void parameter_gradients(const InputPartBackward<T>& call, int d, const T* grad_sums, int64_t stride, int64_t part,
                         int64_t parts) {
    const auto& wanted = call.gradients[d];
    const T* gain = call.weights[d].gain;
    outer_products_share<T>({rows_at<T>(grad_sums, call.rows, stride).data(), call.columns},
                            {rows_at<T>(call.x, call.rows, call.inputs).data(), call.inputs, wanted.weight},
                            {nullptr, 0, nullptr}, call.rows, gain ? nullptr : wanted.bias, part, parts);
    const Range own = share(call.columns, part, parts, kWidth<T>);
    const auto grad = [&](int64_t r, int64_t i, int used) {
        return load_as<T>(call.grad + (r * call.directions + d) * call.columns + i, used);
    };
    if (!gain) {
        // Without inputs there was no product to take the sums along.
        if (wanted.bias && call.inputs == 0) sum_columns<T>(call.rows, own, grad, wanted.bias);
        return;
    }
    norm_gradients<T>(
        call.rows, own, grad,
        [&](int64_t r, int64_t i, int used) {
            return load_as<T>(call.normalized + (d * call.rows + r) * call.columns + i, used);
        },
        wanted.bias, wanted.gain);
}

}  // namespace

template <typename T>
void input_part_forward(const InputPartForward<T>& call) {
    const int threads = threads_for(work_of(call), kWorkPerThread);
    for (int d = 0; d < call.directions; ++d) {
        const StepProduct<T> product(call.weights[d].weight, call.columns, call.inputs, true, 1);
        parallel_region(threads, [&](const Team& team) { product.pack(share(product.count(), team.rank, team.size)); });
        parallel_region(threads, [&](const Team& team) {
            const Range own = share(call.rows, team.rank, team.size, kTileRows);
            const Buffer<T> sums(std::min(kChunkRows, own.size()) * product.stride());
            for (int64_t row = own.begin; row < own.end; row += kChunkRows) {
                const int64_t count = std::min(kChunkRows, own.end - row);
                product.run({0, product.count()}, count, call.rows == 1, call.x + row * call.inputs, call.inputs, sums);
                for (int64_t r = 0; r < count; ++r) finish_row(call, d, row + r, sums + r * product.stride());
            }
        });
    }
}

template <typename T>
void input_part_backward(const InputPartBackward<T>& call) {
    const int threads = threads_for(2 * work_of(call), kWorkPerThread);
    const int64_t columns = call.columns;
    for (int d = 0; d < call.directions; ++d) {
        const auto& weights = call.weights[d];
        const T* grad = call.grad + d * columns;
        const int64_t stride = call.directions * columns;
        const Buffer<T> grad_sums(weights.gain ? call.rows * columns : 0);
        if (weights.gain)
            parallel_region(threads, [&](const Team& team) {
                const Range own = share(call.rows, team.rank, team.size);
                for (int64_t r = own.begin; r < own.end; ++r) {
                    const T* normalized = call.normalized + (d * call.rows + r) * columns;
                    row_norm_backward<T>(
                        columns, call.stats[d * call.rows + r],
                        [&](int64_t i, int used) {
                            return load_as<T>(grad + r * stride + i, used) * load_as<T>(weights.gain + i, used);
                        },
                        [&](int64_t i, int used) { return load_as<T>(normalized + i, used); },
                        [&](int64_t i, int used, const Vec<T>& value) {
                            store_as<T>(grad_sums + r * columns + i, value, used);
                        });
                }
            });
        const T* sums = weights.gain ? grad_sums.get() : grad;
        const int64_t sums_stride = weights.gain ? columns : stride;
        parallel_region(threads, [&](const Team& team) {
            if (call.grad_x)
                product_share(RowsOfA<T>{sums, sums_stride}, call.rows,
                              Factor<T>{rows_at<T>(weights.weight, columns, call.inputs).data(), call.inputs}, columns,
                              call.grad_x, d > 0, team.rank, team.size);
            if (call.want_weights) parameter_gradients(call, d, sums, sums_stride, team.rank, team.size);
        });
    }
}

template void input_part_forward(const InputPartForward<float>&);
template void input_part_forward(const InputPartForward<double>&);
template void input_part_backward(const InputPartBackward<float>&);
template void input_part_backward(const InputPartBackward<double>&);

}  // namespace pykernels
