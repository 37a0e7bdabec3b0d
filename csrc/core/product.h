// Large products C (M x N) = A B, blocked for the caches: one thread's part. The sum over k is a chain of fused
// multiply-adds for each kDepthBlock of it, added up in ascending order: the same bits for any number of threads.
#pragma once

#include "core/gemm.h"
#include "core/parallel.h"

namespace pykernels {

inline constexpr int64_t kDepthBlock = 256;   // so deep are the packed blocks of A and B
inline constexpr int64_t kRowBlock = 192;     // rows of A packed at once: runs long enough for the prefetcher
inline constexpr int64_t kColumnBlock = 512;  // columns of B packed at once: with A, they fill the second-level cache

// A found row by row: row(m) points at depth contiguous values. Multiplied in place.
template <typename T, typename Row>
struct RowsOfA {
    Row row;
    static constexpr bool packs = false;
};

// A found column by column: column(k) points at contiguous rows, null for zeros. Packed before use.
template <typename T, typename Column>
struct ColumnsOfA {
    Column column;
    static constexpr bool packs = true;
};

template <typename T, typename Row>
RowsOfA<T, Row> rows_of_a(Row row) {
    return {row};
}
template <typename T, typename Column>
ColumnsOfA<T, Column> columns_of_a(Column column) {
    return {column};
}

// One B with its C: row k of B is at rows[k] (null for zeros) and has `columns` values. C = A B, or C += A B.
template <typename T>
struct Factor {
    const T* const* rows;
    int64_t columns;
    T* out;  // [rows of A, columns], `stride` apart
    int64_t stride;
    bool accumulate;
};

namespace detail {

// Columns k0 … k0+depth of A, rows first … first+Rows, as [k][Rows]. Whole vectors are copied where they may be read
// and the next column overwrites what was too much; `out` has room for one vector more than it needs.
template <typename T, int Rows, typename A>
void pack_tile(const A& a, int64_t first, int64_t rows, int64_t k0, int64_t depth, T* out) {
    const bool whole = rows - first >= kWidth<T>;
    for (int64_t k = 0; k < depth; ++k, out += Rows) {
        const T* source = a.column(k0 + k);
        if (source == nullptr) {
            std::fill_n(out, Rows, T(0));
        } else if (whole && Rows <= kWidth<T>) {
            Vec<T>::loadu(source + first).store(out);
        } else {
            std::copy_n(source + first, Rows, out);
        }
    }
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

// C[rows, columns] = A B over k in [0, depth), for the given ranges; `packed` is a workspace.
template <typename T, typename A>
void product(const A& a, const Factor<T>& b, const Range& rows, const Range& columns, int64_t depth,
             const Buffer<T>& packed_a, const Buffer<T>& packed_b) {
    constexpr int width = kWidth<T>;
    for (int64_t n0 = columns.begin; n0 < columns.end; n0 += kColumnBlock) {
        const int64_t n1 = std::min(n0 + kColumnBlock, columns.end);
        for (int64_t k0 = 0; k0 < std::max<int64_t>(depth, 1); k0 += kDepthBlock) {
            const int64_t deep = std::min(kDepthBlock, depth - k0);
            const bool first = k0 == 0 && !b.accumulate;
            const Panels<T> panels{n1 - n0, deep};
            for (int64_t p = 0; p < panels.count(); ++p)
                pack_rows<T>([&](int64_t k) { return b.rows[k0 + k]; }, deep, n0 + panels.column(p), n1,
                             panels.vectors(p), packed_b + panels.offset(p));
            for (int64_t m0 = rows.begin; m0 < rows.end; m0 += kRowBlock) {
                const int64_t height = std::min(kRowBlock, rows.end - m0);
                if constexpr (A::packs)
                    for_row_tiles(height, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                        detail::pack_tile<T, Rows>(a, m0 + row, rows.end, k0, deep, packed_a + row * deep);
                    });
                for (int64_t p = 0; p < panels.count(); ++p) {
                    const int64_t column = n0 + panels.column(p);
                    const T* panel = packed_b + panels.offset(p);
                    with_vectors(panels.vectors(p), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                        const int64_t used = std::min<int64_t>(Vectors * width, n1 - column);
                        for_row_tiles(height, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                            T* out = b.out + (m0 + row) * b.stride + column;
                            if constexpr (A::packs) {
                                detail::update<T, Rows, Vectors>(PackedRows<T, Rows>{packed_a + row * deep}, panel,
                                                                 deep, out, b.stride, used, first);
                            } else {
                                RowPointers<T, Rows> pointers;
                                for (int m = 0; m < Rows; ++m) pointers.row[m] = a.row(m0 + row + m) + k0;
                                detail::update<T, Rows, Vectors>(pointers, panel, deep, out, b.stride, used, first);
                            }
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
    const int64_t panel = kTileVectors * kWidth<T>;
    Range mine_rows{0, rows}, mine_columns{0, b.columns};
    if (rows / kTileRows >= b.columns / panel) {
        mine_rows = share(rows, part, parts, kTileRows);
    } else {
        mine_columns = share(b.columns, part, parts, panel);
    }
    if (mine_rows.size() <= 0 || mine_columns.size() <= 0) return;
    const int64_t deep = std::min(kDepthBlock, std::max<int64_t>(depth, 1));
    const int64_t block = std::min<int64_t>(kColumnBlock, (mine_columns.size() + panel - 1) / panel * panel);
    const Buffer<T> packed_b(deep * block);
    const Buffer<T> packed_a(A::packs ? deep * std::min(kRowBlock, mine_rows.size()) + kWidth<T> : 0);
    product<T>(a, b, mine_rows, mine_columns, depth, packed_a, packed_b);
}

}  // namespace pykernels
