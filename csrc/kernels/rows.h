// What the backward of every recurrent kernel does with rows: the states they started from, and sums over all of them.
#pragma once

#include <vector>

#include "core/parallel.h"
#include "core/vec.h"
#include "kernels/recurrent.h"

namespace pykernels {

// The states that every row of direction d started from; null for zeros. `cells` and `c0` belong to a kind that has
// cell states.
template <typename T>
struct RowsBefore {
    std::vector<const T*> states, cells;
    std::vector<int64_t> start;  // every sequence's first row

    RowsBefore(const RecurrentShape& shape, int d, const T* y, const T* h0, bool has_cells, const T* all_cells,
               const T* c0)
        : states(shape.rows, nullptr), cells(has_cells ? shape.rows : 0, nullptr), start(shape.batch) {
        const int64_t out = shape.output();
        for (int64_t t = 0; t < shape.steps; ++t) {
            const int64_t last = d == 0 ? t - 1 : t + 1;
            const int64_t continued = last < 0 || last >= shape.steps ? 0 : std::min(shape.live(last), shape.live(t));
            for (int64_t b = 0; b < shape.live(t); ++b) {
                const int64_t row = shape.first(t) + b;
                if (b < continued) {
                    const int64_t from = shape.first(last) + b;
                    states[row] = y + (from * shape.directions + d) * out;
                    if (has_cells) cells[row] = all_cells + (d * shape.rows + from) * shape.hidden;
                } else {
                    if (h0) states[row] = h0 + (d * shape.batch + b) * out;
                    if (has_cells && c0) cells[row] = c0 + (d * shape.batch + b) * shape.hidden;
                    start[b] = row;
                }
            }
        }
    }
};

// `count` pointers, `stride` elements apart.
template <typename T>
std::vector<const T*> rows_at(const T* data, int64_t count, int64_t stride) {
    std::vector<const T*> rows(count);
    for (int64_t r = 0; r < count; ++r) rows[r] = data + r * stride;
    return rows;
}

// out[column] = sum over rows of load(row, column, lanes), row after row: long runs of memory, one order.
template <typename T, typename Load>
void sum_columns(int64_t rows, const Range& columns, const Load& load, T* out) {
    constexpr int width = kWidth<T>;
    std::fill(out + columns.begin, out + columns.end, T(0));
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = columns.begin; c < columns.end; c += width) {
            const int used = static_cast<int>(std::min<int64_t>(width, columns.end - c));
            store_as<T>(out + c, load_as<T>(out + c, used) + load(r, c, used), used);
        }
}

// The gradients of shift (null: not wanted) and gain: columns' sums of grad(row, column, lanes), and of that times
// normalized(row, column, lanes).
template <typename T, typename Grad, typename Normalized>
void norm_gradients(int64_t rows, const Range& columns, const Grad& grad, const Normalized& normalized, T* shift,
                    T* gain) {
    constexpr int width = kWidth<T>;
    if (shift) std::fill(shift + columns.begin, shift + columns.end, T(0));
    std::fill(gain + columns.begin, gain + columns.end, T(0));
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = columns.begin; c < columns.end; c += width) {
            const int used = static_cast<int>(std::min<int64_t>(width, columns.end - c));
            const Vec<T> g = grad(r, c, used);
            if (shift) store_as<T>(shift + c, load_as<T>(shift + c, used) + g, used);
            store_as<T>(gain + c, at::vec::fmadd(g, normalized(r, c, used), load_as<T>(gain + c, used)), used);
        }
}

}  // namespace pykernels
