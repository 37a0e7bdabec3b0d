// Large products C (M x N) = A B, blocked for the caches: one thread's part. The sum over k is a chain of fused
// multiply-adds for each kDepthBlock of it, added up in ascending order: the same bits for any number of threads.
#pragma once

#include <initializer_list>

#include "core/gemm.h"
#include "core/parallel.h"

namespace pykernels {

inline constexpr int64_t kDepthBlock = 512;   // so deep are the packed panels of B
inline constexpr int64_t kRowBlock = 192;     // rows of A that pass a panel before the next panel comes
inline constexpr int64_t kColumnBlock = 256;  // columns of B packed at once: half of the second-level cache

// A row by row, `stride` elements apart.
template <typename T>
struct RowsOfA {
    const T* data;
    int64_t stride;
    template <int Rows>
    RowPointers<T, Rows> tile(int64_t m, int64_t k) const {
        RowPointers<T, Rows> pointers;
        for (int i = 0; i < Rows; ++i) pointers.row[i] = data + (m + i) * stride + k;
        return pointers;
    }
};

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

// B: row k is at rows[k] and has `columns` values.
template <typename T>
struct Factor {
    const T* const* rows;
    int64_t columns;
};

// Rows of an A and where their part of C goes; several share one packed B.
template <typename T, typename A>
struct Part {
    A a;
    Range rows;
    T* out;
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

// out[row, columns] = A B over k in [0, depth) for every part, or += if `accumulate`; rows of C are `stride` apart.
// This thread's columns only. packed(panel, column, vectors, depth) sees every panel of B once, in ascending k.
template <typename T, typename A, typename Packed>
void product(std::initializer_list<Part<T, A>> parts, const Factor<T>& b, const Range& columns, int64_t depth,
             int64_t stride, bool accumulate, const Packed& packed) {
    constexpr int width = kWidth<T>;
    int64_t tiles = 0;
    for (const auto& part : parts) tiles += (part.rows.size() + kTileRows - 1) / kTileRows;
    if (tiles <= 0 || columns.size() <= 0) return;
    const int64_t block = std::min<int64_t>(kColumnBlock, (columns.size() + width - 1) / width * width);
    const Buffer<T> packed_b(std::min(kDepthBlock, std::max<int64_t>(depth, 1)) * block);
    for (int64_t n0 = columns.begin; n0 < columns.end; n0 += kColumnBlock) {
        const int64_t n1 = std::min(n0 + kColumnBlock, columns.end);
        for (int64_t k0 = 0; k0 < std::max<int64_t>(depth, 1); k0 += kDepthBlock) {
            const int64_t deep = std::min(kDepthBlock, depth - k0), after = k0 + deep;
            const bool first = k0 == 0 && !accumulate;
            const Panels<T> panels{n1 - n0, deep};
            for (int64_t p = 0; p < panels.count(); ++p) {
                T* panel = packed_b + panels.offset(p);
                pack_rows<T>([&](int64_t k) { return b.rows[k0 + k]; }, deep, n0 + panels.column(p), n1,
                             panels.vectors(p), panel);
                packed(panel, n0 + panels.column(p), panels.vectors(p), deep);
            }
            int64_t update = 0;
            for (const auto& part : parts)
                for (int64_t m0 = part.rows.begin; m0 < part.rows.end; m0 += kRowBlock) {
                    const int64_t height = std::min(kRowBlock, part.rows.end - m0);
                    for (int64_t p = 0; p < panels.count(); ++p) {
                        const int64_t column = n0 + panels.column(p);
                        const T* panel = packed_b + panels.offset(p);
                        with_vectors(panels.vectors(p), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                            const int64_t used = std::min<int64_t>(Vectors * width, n1 - column);
                            for_row_tiles(height, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                                detail::prefetch_rows(b.rows, after, std::min(after + deep, depth), {n0, n1}, update++,
                                                      panels.count() * tiles);
                                detail::update<T, Rows, Vectors>(part.a.template tile<Rows>(m0 + row, k0), panel, deep,
                                                                 part.out + (m0 + row) * stride + column, stride, used,
                                                                 first);
                            });
                        });
                    }
                }
        }
    }
}

// C = A B (or C += A B), a thread's share of its larger side.
template <typename T, typename A>
void product_share(const A& a, int64_t rows, const Factor<T>& b, int64_t depth, T* c, bool accumulate, int64_t part,
                   int64_t parts) {
    Range mine{0, rows}, columns{0, b.columns};
    if (rows / kTileRows >= b.columns / (kTileVectors * kWidth<T>)) {
        mine = share(rows, part, parts, kTileRows);
    } else {
        columns = share(b.columns, part, parts, kWidth<T>);
    }
    product<T, A>({{a, mine, c}}, b, columns, depth, b.columns, accumulate, [](T*, int64_t, int, int64_t) {});
}

// A matrix of row pointers and, for each, the product's destination (null: not wanted).
template <typename T>
struct Right {
    const T* const* rows;
    int64_t size;
    T* out;
};

// right.out[i][j] = sum over r of left[r][i] * right.rows[r][j] for both rights, and sums[i] = sum over r of left[r][i]
// (null: not wanted); a thread's share of the i. This is the gradient of weights from those of what they fed and from
// what they read. Computed with i as columns, since long runs of them can be copied as they are, then turned.
template <typename T>
void outer_products_share(const Factor<T>& left, const Right<T>& first, const Right<T>& second, int64_t depth, T* sums,
                          int64_t part, int64_t parts) {
    constexpr int width = kWidth<T>;
    const Range own = share(left.columns, part, parts, width);
    if (own.size() <= 0) return;
    const int64_t first_size = first.out ? first.size : 0, second_size = second.out ? second.size : 0;
    const Buffer<T> turned((first_size + second_size) * own.size());
    if (sums) std::fill(sums + own.begin, sums + own.end, T(0));
    T* second_turned = turned + first_size * own.size();
    product<T, ColumnsOfA<T>>({{{first.rows}, {0, first_size}, turned - own.begin},
                               {{second.rows}, {0, second_size}, second_turned - own.begin}},
                              left, own, depth, own.size(), false,
                              [&](const T* panel, int64_t column, int vectors, int64_t deep) {
                                  for (int v = 0; sums && v < vectors; ++v) {
                                      const int64_t at = column + v * width;
                                      const int used = static_cast<int>(std::min<int64_t>(width, own.end - at));
                                      Vec<T> sum = load_as<T>(sums + at, used);
                                      for (int64_t k = 0; k < deep; ++k)
                                          sum = sum + Vec<T>::loadu(panel + (k * vectors + v) * width);
                                      store_as<T>(sums + at, sum, used);
                                  }
                              });
    constexpr int64_t together = 16;
    const auto turn = [&](const T* from, int64_t size, T* out) {
        for (int64_t j = 0; j < size; j += together)
            pack_transposed<T>(from + j * own.size(), own.size(), std::min(together, size - j), own.size(),
                               out + own.begin * size + j, size);
    };
    turn(turned, first_size, first.out);
    turn(second_turned, second_size, second.out);
}

// Compiled once, in product.cpp.
#define PYKERNELS_PRODUCTS(KEYWORD, T)                                                                            \
    KEYWORD template void product_share(const RowsOfA<T>&, int64_t, const Factor<T>&, int64_t, T*, bool, int64_t, \
                                        int64_t);                                                                 \
    KEYWORD template void outer_products_share(const Factor<T>&, const Right<T>&, const Right<T>&, int64_t, T*,   \
                                               int64_t, int64_t);
PYKERNELS_PRODUCTS(extern, float)
PYKERNELS_PRODUCTS(extern, double)

}  // namespace pykernels
