// The product core. B is packed in panels of a few vectors; a register tile multiplies rows of A with a panel; the
// kernel's own ending takes the tile row by row from the first-level cache, where it lies just after.
//
//   panel layout   panel p covers kTileVectors vectors of columns; inside it [k][column], zero-padded to whole vectors;
//                  the last panel of a matrix holds only the vectors it needs.
//   summation      every output element is one chain of fused multiply-adds over k in ascending order, whatever the
//                  tile's shape and the number of threads (kSplit chains where a caller asks for it).
#pragma once

#include <algorithm>
#include <utility>

#include "core/math.h"
#include "core/scratch.h"
#include "core/vec.h"

namespace pykernels {

// Rows of A anywhere in memory, k contiguous.
template <typename Op, int Rows>
struct RowPointers {
    const Op* row[Rows];
    const Op* at(int m, int64_t k) const { return row[m] + k; }
};

// Stops the compiler from loading a panel vector again for each row.
template <typename Register>
[[gnu::always_inline]] inline void keep_in_register([[maybe_unused]] Register& r) {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
    if constexpr (requires { r.values; }) {
        asm("" : "+v"(r.values));
    } else {
        asm("" : "+v"(r));
    }
#endif
}

// A panel's rows of B, `stride` apart.
template <typename Op>
struct PanelRows {
    const Op* data;
    int64_t stride;
    const Op* at(int64_t k) const { return data + k * stride; }
};

// The register tile, a few rows of a few vectors of sums.
template <typename Op, int Rows, int Vectors>
struct Tile {
    using O = Operand<Op>;
    using Acc = AccOf<Op>;
    static constexpr int width = kWidth<Acc>;
    Vec<Acc> sum[Rows][Vectors];

    // From rows `stride` elements apart, 0 for the same row everywhere; from zeros where `start` is null.
    [[gnu::always_inline]] void begin(const Acc* start, int64_t stride) {
#pragma GCC unroll 8
        for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v)
                sum[m][v] = start ? Vec<Acc>::loadu(start + m * stride + v * width) : Vec<Acc>(Acc(0));
    }
    // sum += A (Rows x depth) * B (depth x Vectors).
    template <typename A, typename B>
    [[gnu::always_inline]] void add(const A& rows, const B& panel, int64_t depth) {
        for (int64_t k = 0; k < depth; ++k) {
            const Op* const row = panel.at(k);
            typename O::Register b[Vectors];
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) {
                b[v] = O::load(row + v * width);
                if constexpr (Rows > 1 && (Rows + 1) * Vectors < kRegisters) keep_in_register(b[v]);
            }
#pragma GCC unroll 8
            for (int m = 0; m < Rows; ++m) {
                const auto value = O::broadcast(rows.at(m, k));
#pragma GCC unroll 8
                for (int v = 0; v < Vectors; ++v) sum[m][v] = O::multiply_add(value, b[v], sum[m][v]);
            }
        }
    }
    [[gnu::always_inline]] void end(Acc* out, int64_t stride) const {
#pragma GCC unroll 8
        for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) sum[m][v].store(out + m * stride + v * width);
    }
};

// out = start + A (Rows x depth) * panel (depth x Vectors), row by row `stride` elements apart; start null for zeros,
// start_stride 0 for the same row everywhere, panel_stride more than a row where only some vectors of a panel are
// taken. A function of its own, never inlined, so that nothing else competes for the registers that hold the tile.
template <typename Op, int Rows, int Vectors, typename A>
[[gnu::noinline]] void multiply(const A& a, const Op* panel, int64_t depth, const AccOf<Op>* start,
                                int64_t start_stride, AccOf<Op>* out, int64_t stride,
                                int64_t panel_stride = int64_t(Vectors) * kWidth<AccOf<Op>>) {
    const A rows = a;
    Tile<Op, Rows, Vectors> tile;
    tile.begin(start, start_stride);
    tile.add(rows, PanelRows<Op>{panel, panel_stride}, depth);
    tile.end(out, stride);
}

// Ends a tile as `multiply` does.
template <typename Acc>
struct StoreSums {
    Acc* out;
    int64_t stride;
    template <typename T>
    [[gnu::always_inline]] void operator()(const T& tile) const {
        tile.end(out, stride);
    }
};

// The same for any B, and an ending of the caller's: end(tile), with the sums still in registers.
template <typename Op, int Rows, int Vectors, typename A, typename B, typename End>
[[gnu::noinline]] void multiply_to(const A& a, const B& b, int64_t depth, const AccOf<Op>* start, int64_t start_stride,
                                   const End& end) {
    const A rows = a;
    const B panel = b;
    Tile<Op, Rows, Vectors> tile;
    tile.begin(start, start_stride);
    tile.add(rows, panel, depth);
    end(tile);
}

// The same with A in `count` runs along the summed dimension: run(r) has the rows (.at(m, k)) and the depth (.depth) of
// one of them.
template <typename Op, int Rows, int Vectors, typename Runs, typename End>
[[gnu::noinline]] void multiply_runs(const Runs& runs, int64_t count, const Op* panel, const AccOf<Op>* start,
                                     int64_t start_stride, const End& end) {
    constexpr int64_t panel_stride = int64_t(Vectors) * kWidth<AccOf<Op>>;
    Tile<Op, Rows, Vectors> tile;
    tile.begin(start, start_stride);
    for (int64_t r = 0; r < count; ++r) {
        const auto rows = runs.run(r);
        tile.add(rows, PanelRows<Op>{panel, panel_stride}, rows.depth);
        panel += rows.depth * panel_stride;
    }
    end(tile);
}

// Rows of B anywhere: row k at base + offset[k].
template <typename Op>
struct ScatteredRows {
    const Op* base;
    const int64_t* offset;
    const Op* at(int64_t k) const { return base + offset[k]; }
};

// The same for a single row, in kSplit interleaved chains: one row alone cannot fill the multiply-add pipeline.
inline constexpr int kSplit = 4;
template <typename Op, int Vectors>
[[gnu::noinline]] void multiply_split(const Op* row, const Op* panel, int64_t depth, const AccOf<Op>* start,
                                      AccOf<Op>* out) {
    using O = Operand<Op>;
    using Acc = AccOf<Op>;
    constexpr int width = kWidth<Acc>;
    Vec<Acc> chain[kSplit][Vectors];
#pragma GCC unroll 8
    for (int s = 0; s < kSplit; ++s)
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v)
            chain[s][v] = s == 0 && start ? Vec<Acc>::loadu(start + v * width) : Vec<Acc>(Acc(0));
    int64_t k = 0;
    for (; k + kSplit <= depth; k += kSplit) {
#pragma GCC unroll 8
        for (int s = 0; s < kSplit; ++s) {
            const auto value = O::broadcast(row + k + s);
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v)
                chain[s][v] = O::multiply_add(value, O::load(panel + ((k + s) * Vectors + v) * width), chain[s][v]);
        }
    }
    for (; k < depth; ++k) {
        const auto value = O::broadcast(row + k);
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v)
            chain[0][v] = O::multiply_add(value, O::load(panel + (k * Vectors + v) * width), chain[0][v]);
    }
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v)
        ((chain[0][v] + chain[1][v]) + (chain[2][v] + chain[3][v])).store(out + v * width);
}

// Dot products of x with `count` rows of a matrix, `stride` apart and not packed: one vector of sums. For a few rows of
// x, where packing the matrix would cost more than it saves.
template <typename T, typename S>
Vec<T> dot_rows(const S* rows, int64_t stride, int count, const T* x, int64_t depth) {
    constexpr int width = kWidth<T>;
    alignas(64) T sums[width * width], transposed[width * width];
    const int64_t whole = depth / width * width;
    const int rest = static_cast<int>(depth - whole);
    for (int j0 = 0; j0 < width; j0 += 4) {
        Vec<T> sum[4] = {Vec<T>(T(0)), Vec<T>(T(0)), Vec<T>(T(0)), Vec<T>(T(0))};
        const int used = std::min(4, count - j0);
        const auto add = [&](int j, int64_t k, const Vec<T>& part, int lanes) {
            sum[j] = at::vec::fmadd(load_as<T>(rows + (j0 + j) * stride + k, lanes), part, sum[j]);
        };
        if (used == 4) {
            for (int64_t k = 0; k < whole; k += width) {
                const auto part = Vec<T>::loadu(x + k);
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) add(j, k, part, width);
            }
            if (rest)
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) add(j, whole, load_as<T>(x + whole, rest), rest);
        } else {
            for (int j = 0; j < used; ++j)
                for (int64_t k = 0; k < depth; k += width) {
                    const int lanes = static_cast<int>(std::min<int64_t>(width, depth - k));
                    add(j, k, load_as<T>(x + k, lanes), lanes);
                }
        }
        for (int j = 0; j < 4; ++j) sum[j].store(sums + (j0 + j) * width);
    }
    at::vec::transpose_mxn<T>(sums, width, transposed, width, width, width);
    Vec<T> part[4];
    for (int j = 0; j < 4; ++j) part[j] = Vec<T>::loadu(transposed + j * width);
    for (int j = 4; j < width; ++j) part[j % 4] = part[j % 4] + Vec<T>::loadu(transposed + j * width);
    return (part[0] + part[1]) + (part[2] + part[3]);
}

// Calls visit(std::integral_constant<int, n>, first_row) over `rows` rows in tiles of nearly equal height n <= Max. A
// tile of one row occurs only when rows == 1.
template <int Max = kTileRows, typename Visit>
[[gnu::always_inline]] inline void for_row_tiles(int64_t rows, const Visit& visit) {
    if (rows <= 0) return;
    const int64_t tiles = (rows + Max - 1) / Max, height = rows / tiles, higher = rows % tiles;
    int64_t row = 0;
    for (int64_t i = 0; i < tiles; ++i) {
        const int n = static_cast<int>(height + (i < higher));
        [&]<int... N>(std::integer_sequence<int, N...>) {
            (void)((n == N + 1 && (visit(std::integral_constant<int, N + 1>{}, row), true)) || ...);
        }(std::make_integer_sequence<int, Max>{});
        row += n;
    }
}

// Calls visit(std::integral_constant<int, n>) with the number of vectors n <= kTileVectors.
template <typename Visit>
[[gnu::always_inline]] inline void with_vectors(int vectors, const Visit& visit) {
    [&]<int... N>(std::integer_sequence<int, N...>) {
        (void)((vectors == N + 1 && (visit(std::integral_constant<int, N + 1>{}), true)) || ...);
    }(std::make_integer_sequence<int, kTileVectors>{});
}

// A matrix's columns as panels of `per_panel` vectors.
template <typename Op>
struct Panels {
    static constexpr int width = kWidth<AccOf<Op>>;
    int64_t columns, depth;
    int per_panel = kTileVectors;

    // Panels of the width that gives `parts` workers, each with a run of panels, the least to do in the busiest one.
    static Panels for_parts(int64_t columns, int64_t depth, int64_t parts) {
        Panels best{columns, depth, kTileVectors};
        double least = 0;
        for (int wide = kTileVectors; wide >= 1; --wide) {
            const Panels panels{columns, depth, wide};
            double busiest = 0;
            for (int64_t part = 0; part < parts; ++part) {
                double work = 0;
                for (int64_t p = panels.count() * part / parts; p < panels.count() * (part + 1) / parts; ++p)
                    work += panels.vectors(p) + 0.25;  // a quarter of a vector's work to begin and end a panel
                busiest = std::max(busiest, work);
            }
            if (wide == kTileVectors || busiest < least) {
                least = busiest;
                best = panels;
            }
        }
        return best;
    }
    int64_t span() const { return int64_t(width) * per_panel; }
    int64_t count() const { return (columns + span() - 1) / span(); }
    int64_t column(int64_t panel) const { return panel * span(); }
    int vectors(int64_t panel) const {
        return static_cast<int>((std::min(columns - column(panel), span()) + width - 1) / width);
    }
    int64_t offset(int64_t panel) const { return column(panel) * depth; }
    int64_t size() const { return (columns + width - 1) / width * width * depth; }
};

// Packs `depth` rows of B, each a contiguous run of columns found by row(k), into one panel of `vectors` vectors.
template <typename T, typename Row>
void pack_rows(const Row& row, int64_t depth, int64_t column, int64_t columns, int vectors, T* panel) {
    const int64_t padded = int64_t(vectors) * kWidth<T>, used = std::min(columns - column, padded);
    for (int64_t k = 0; k < depth; ++k, panel += padded) {
        const T* source = row(k) + column;
        if (used == padded) {
            for (int v = 0; v < vectors; ++v) Vec<T>::loadu(source + v * kWidth<T>).store(panel + v * kWidth<T>);
        } else {
            std::copy(source, source + used, panel);
            std::fill(panel + used, panel + padded, T(0));
        }
    }
}

// Packs `count` rows of a row-major matrix (k contiguous, `stride` apart) as columns first … first+count of a panel of
// `columns` columns: panel[k][first + j] = source[j * stride + k].
template <typename Op>
void pack_transposed(const Op* source, int64_t stride, int64_t count, int64_t depth, Op* panel, int64_t columns) {
    constexpr int64_t block = 16;
    if constexpr (sizeof(Op) == 4) {
        using F = float;  // only bits are moved
        for (int64_t k = 0; k < depth; k += block)
            at::vec::transpose_mxn<F>(reinterpret_cast<const F*>(source + k), stride,
                                      reinterpret_cast<F*>(panel + k * columns), columns, static_cast<int>(count),
                                      static_cast<int>(std::min(block, depth - k)));
    } else {
        for (int64_t k0 = 0; k0 < depth; k0 += block)
            for (int64_t j = 0; j < count; ++j)
                for (int64_t k = k0; k < std::min(k0 + block, depth); ++k)
                    panel[k * columns + j] = source[j * stride + k];
    }
}

}  // namespace pykernels
