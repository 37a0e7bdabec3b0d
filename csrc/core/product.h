// Large products C (M x N) = A B, blocked for the caches: one thread's part. The sum over k is a chain of fused
// multiply-adds for each kDepthBlock of it, added up in ascending order: the same bits for any number of threads.
#pragma once

#include "core/gemm.h"
#include "core/parallel.h"

namespace pykernels {

inline constexpr int64_t kDepthBlock = 512;   // so deep are the packed panels of B
inline constexpr int64_t kRowBlock = 192;     // rows of A that pass a panel before the next panel comes
inline constexpr int64_t kColumnBlock = 256;  // columns of B packed at once: half of the second-level cache

// A row by row: row(m) points at `depth` neighbours.
template <typename T, typename Row>
struct RowsOfA {
    Row row;
    template <int Rows>
    RowPointers<T, Rows> tile(int64_t m, int64_t k) const {
        RowPointers<T, Rows> pointers;
        for (int i = 0; i < Rows; ++i) pointers.row[i] = row(m + i) + k;
        return pointers;
    }
};
template <typename T, typename Row>
RowsOfA<T, Row> rows_of_a(Row row) {
    return {row};
}

// A column by column: columns[k] points at all its rows. Broadcast from where it is: nothing is packed.
template <typename T, int Rows>
struct ColumnPointers {
    const T* const* column;
    int64_t first;
    const T* at(int m, int64_t k) const { return column[k] + first + m; }
};
template <typename T>
struct ColumnsOfA {
    const T* const* columns;
    template <int Rows>
    ColumnPointers<T, Rows> tile(int64_t m, int64_t k) const {
        return {columns + k, m};
    }
};

// One B with its C: row k of B is at rows[k] and has `columns` values. C = A B, or C += A B.
template <typename T>
struct Factor {
    const T* const* rows;
    int64_t columns;
    T* out;  // [rows of A, columns], `stride` apart
    int64_t stride;
    bool accumulate;
};

namespace detail {

// Asks the second-level cache for part `i` of `parts` of the rows [k0, k1) of B that are packed next.
template <typename T>
inline void prefetch_rows(const T* const* rows, int64_t k0, int64_t k1, const Range& columns, int64_t i,
                          int64_t parts) {
    constexpr int64_t line = 64 / sizeof(T);
    for (int64_t k = k0 + (k1 - k0) * i / parts, end = k0 + (k1 - k0) * (i + 1) / parts; k < end; ++k)
        for (int64_t n = columns.begin; n < columns.end; n += line) __builtin_prefetch(rows[k] + n, 0, 2);
}

// Adds A panel to Rows x Vectors elements of C; `first` starts from zero instead.
template <typename T, int Rows, int Vectors, typename A>
inline void update(const A& a, const T* panel, int64_t depth, T* c, int64_t stride, int64_t columns, bool first) {
    constexpr int width = kWidth<T>;
    const bool whole = columns == Vectors * width;
    if (whole && first) return multiply<T, Rows, Vectors>(a, panel, depth, nullptr, 0, c, stride);
    // C comes from far away and is needed last: ask for it now.
    for (int m = 0; m < Rows; ++m)
        for (int v = 0; v < Vectors; ++v) __builtin_prefetch(c + m * stride + v * width, 1);
    alignas(64) T sum[Rows * Vectors * width];
    multiply<T, Rows, Vectors>(a, panel, depth, nullptr, 0, sum, Vectors * width);
    for (int m = 0; m < Rows; ++m) {
        const T* from = sum + m * Vectors * width;
        T* to = c + m * stride;
        if (whole) {
            for (int v = 0; v < Vectors; ++v)
                (Vec<T>::loadu(to + v * width) + Vec<T>::loadu(from + v * width)).store(to + v * width);
        } else {
            for (int64_t n = 0; n < columns; ++n) to[n] = first ? from[n] : to[n] + from[n];
        }
    }
}

}  // namespace detail

// C[rows, columns] = A B over k in [0, depth), for the given ranges: this thread's part.
template <typename T, typename A>
void product(const A& a, const Factor<T>& b, const Range& rows, const Range& columns, int64_t depth) {
    constexpr int width = kWidth<T>;
    if (rows.size() <= 0 || columns.size() <= 0) return;
    const int64_t block = std::min<int64_t>(kColumnBlock, (columns.size() + width - 1) / width * width);
    const Buffer<T> packed(std::min(kDepthBlock, std::max<int64_t>(depth, 1)) * block);
    for (int64_t n0 = columns.begin; n0 < columns.end; n0 += kColumnBlock) {
        const int64_t n1 = std::min(n0 + kColumnBlock, columns.end);
        for (int64_t k0 = 0; k0 < std::max<int64_t>(depth, 1); k0 += kDepthBlock) {
            const int64_t deep = std::min(kDepthBlock, depth - k0);
            const bool first = k0 == 0 && !b.accumulate;
            const Panels<T> panels{n1 - n0, deep};
            for (int64_t p = 0; p < panels.count(); ++p)
                pack_rows<T>([&](int64_t k) { return b.rows[k0 + k]; }, deep, n0 + panels.column(p), n1,
                             panels.vectors(p), packed + panels.offset(p));
            const int64_t updates = panels.count() * ((rows.size() + kTileRows - 1) / kTileRows), after = k0 + deep;
            int64_t update = 0;
            for (int64_t m0 = rows.begin; m0 < rows.end; m0 += kRowBlock) {
                const int64_t height = std::min(kRowBlock, rows.end - m0);
                for (int64_t p = 0; p < panels.count(); ++p) {
                    const int64_t column = n0 + panels.column(p);
                    const T* panel = packed + panels.offset(p);
                    with_vectors(panels.vectors(p), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                        const int64_t used = std::min<int64_t>(Vectors * width, n1 - column);
                        for_row_tiles(height, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                            detail::prefetch_rows(b.rows, after, std::min(after + deep, depth), {n0, n1}, update++,
                                                  updates);
                            detail::update<T, Rows, Vectors>(a.template tile<Rows>(m0 + row, k0), panel, deep,
                                                             b.out + (m0 + row) * b.stride + column, b.stride, used,
                                                             first);
                        });
                    });
                }
            }
        }
    }
}

// This thread's share of the larger side of C.
template <typename T, typename A>
void product_share(const A& a, const Factor<T>& b, int64_t rows, int64_t depth, int64_t part, int64_t parts) {
    if (rows / kTileRows >= b.columns / (kTileVectors * kWidth<T>)) {
        product<T>(a, b, share(rows, part, parts, kTileRows), {0, b.columns}, depth);
    } else {
        product<T>(a, b, {0, rows}, share(b.columns, part, parts, kWidth<T>), depth);
    }
}

// out[i][j] = sum over r of left[r][i] * right[r][j], a thread's share of the rows i: the gradient of a weight from
// those of what it fed and from what it read. Computed with i as columns, since a long run of them can be copied as it
// is, then turned.
template <typename T>
void outer_product_share(const T* const* left, int64_t left_size, const T* const* right, int64_t right_size,
                         int64_t depth, T* out, int64_t part, int64_t parts) {
    const Range own = share(left_size, part, parts, kWidth<T>);
    if (own.size() <= 0) return;
    const Buffer<T> turned(right_size * own.size());
    product<T>(ColumnsOfA<T>{right}, {left, left_size, turned - own.begin, own.size(), false}, {0, right_size}, own,
               depth);
    constexpr int64_t together = 16;
    for (int64_t j = 0; j < right_size; j += together)
        pack_transposed<T>(turned + j * own.size(), own.size(), std::min(together, right_size - j), own.size(),
                           out + own.begin * right_size + j, right_size);
}

}  // namespace pykernels
