// Means and draws of a side's units from sums that have just been made: bias, logistic function and draw, block by
// block of the columns that one round of the random numbers covers.
#pragma once

#include "core/gemm.h"
#include "core/parallel.h"
#include "core/unit_draws.h"
#include "kernels/rbm.h"

namespace pykernels {

inline constexpr int64_t kRbmRows = 48;  // rows whose draws lie beside a panel of weights in the first-level cache

// Panels whose width divides kDrawColumns and which give `parts` workers, each with a run of them, the least to do in
// the busiest one.
template <typename T>
Panels<T> rbm_panels(int64_t columns, int64_t depth, int64_t parts) {
    static_assert(kDrawColumns % (kTileVectors * kWidth<T>) == 0);
    Panels<T> best{columns, depth, kTileVectors};
    double least = 0;
    for (int wide = kTileVectors; wide >= 1; wide /= 2) {
        const Panels<T> panels{columns, depth, wide};
        const double most = static_cast<double>((panels.count() + parts - 1) / parts) * (wide + 0.5);
        if (wide == kTileVectors || most < least) {
            least = most;
            best = panels;
        }
    }
    return best;
}

// Fills panel p with columns of a matrix [depth, columns] or, turned, [columns, depth].
template <typename T>
void pack_panel(const Panels<T>& panels, int64_t p, const T* matrix, bool turned, T* packed) {
    const int64_t column = panels.column(p), width = panels.vectors(p) * int64_t(kWidth<T>);
    const int64_t used = std::min(width, panels.columns - column);
    T* panel = packed + panels.offset(p);
    if (!turned)
        return pack_rows<T>([&](int64_t k) { return matrix + k * panels.columns; }, panels.depth, column,
                            panels.columns, panels.vectors(p), panel);
    if (used < width) std::fill(panel, panel + panels.depth * width, T(0));
    constexpr int64_t together = 16;
    for (int64_t j = 0; j < used; j += together)
        pack_transposed<T>(matrix + (column + j) * panels.depth, panels.depth, std::min(together, used - j),
                           panels.depth, panel + j, width);
}

// What a thread needs to finish units: room, and how they behave.
template <typename T>
class UnitEnding {
  public:
    using V = Vec<T>;

    explicit UnitEnding(const RbmUnits& units)
        : gaussian_(units.gaussian),
          inverse_(static_cast<T>(1 / units.temperature)),
          deviation_(static_cast<T>(std::sqrt(units.temperature))),
          draws_((kRbmRows + kDrawRows) * kDrawColumns) {}

    // For `rows` rows and panels [first, last): put(row, column, vectors lanes used ...) as below. rows_at(m) gives A's
    // tile; bias has whole vectors. draws null: nothing is drawn.
    template <typename RowsAt, typename Put>
    void run(const Panels<T>& panels, const T* packed, const Range& own, int64_t rows, const RowsAt& rows_at,
             const T* bias, const UnitDraws* draws, const Put& put) const {
        const int64_t per_block = kDrawColumns / panels.span();
        for (int64_t p0 = own.begin; p0 < own.end;) {
            const int64_t block = p0 / per_block, p1 = std::min((block + 1) * per_block, own.end);
            for (int64_t r0 = 0; r0 < rows; r0 += kRbmRows) {
                const int64_t height = std::min(kRbmRows, rows - r0);
                if (draws) draw_units<T>(*draws, gaussian_, block, r0, height, draws_);
                for (int64_t p = p0; p < p1; ++p) {
                    const int64_t column = panels.column(p);
                    const T* drawn = draws ? draws_ + column % kDrawColumns : nullptr;
                    with_vectors(panels.vectors(p), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                        for_row_tiles(height, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                            alignas(64) T sums[Rows * Vectors * kWidth<T>];
                            multiply<T, Rows, Vectors>(rows_at.template operator()<Rows>(r0 + row),
                                                       packed + panels.offset(p), panels.depth, bias + column, 0, sums,
                                                       Vectors * kWidth<T>);
                            for (int m = 0; m < Rows; ++m)
                                finish<Vectors>(sums + m * Vectors * kWidth<T>,
                                                drawn ? drawn + (row + m) * kDrawColumns : nullptr,
                                                [&](int v, const V& mean, const V& sample) {
                                                    put(r0 + row + m, column + v * kWidth<T>, mean, sample);
                                                });
                        });
                    });
                }
            }
            p0 = p1;
        }
    }

  private:
    template <int Vectors, typename Each>
    [[gnu::always_inline]] void finish(const T* sums, const T* drawn, const Each& each) const {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            V mean = V::loadu(sums + v * kWidth<T>), sample(T(0));
            if (!gaussian_) mean = sigmoid(mean * V(inverse_));
            if (drawn) {
                const V draw = V::loadu(drawn + v * kWidth<T>);
                // (what is no number stays none)
                sample = gaussian_ ? at::vec::fmadd(draw, V(deviation_), mean) : draw.lt(mean) + (mean - mean);
            }
            each(v, mean, sample);
        }
    }

    bool gaussian_;
    T inverse_, deviation_;
    Buffer<T> draws_;
};

}  // namespace pykernels
