// From one layout of images to the other, for the products that are faster in the other one.
#pragma once

#include <algorithm>

#include "core/gemm.h"
#include "core/parallel.h"
#include "kernels/conv_parts.h"

namespace pykernels {

// `count` matrices of `rows` rows of `columns` elements, each turned over.
template <typename S>
void turn_over(const S* from, int64_t count, int64_t rows, int64_t columns, S* to) {
    constexpr int64_t strip = 16;
    const int64_t strips = (rows + strip - 1) / strip;
    const double work = static_cast<double>(count * rows) * static_cast<double>(columns) * 2;
    parallel_region(threads_for(work, kConvGrain), [&](const Team& team) {
        const Range own = share(count * strips, team.rank, team.size);
        for (int64_t i = own.begin; i < own.end; ++i) {
            const int64_t matrix = i / strips * rows * columns, row = i % strips * strip;
            pack_transposed<S>(from + matrix + row * columns, columns, std::min(strip, rows - row), columns,
                               to + matrix + row, rows);
        }
    });
}

}  // namespace pykernels
