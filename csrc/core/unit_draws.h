// Random numbers of the units of a layer, row by row in vectors: element j of row i of draw n has number (j % 64) / 16
// of Philox's counter {(j / 64) * 16 + j % 16, i, n, 0}, as dropout has (core/dropout.h).
#pragma once

#include "core/philox_vector.h"
#include "core/vec.h"

namespace pykernels {

inline constexpr int64_t kDrawColumns = 64;  // one counter's four numbers lie in one run of so many columns
inline constexpr int64_t kDrawRows = 4;      // that may be written beyond the last one, less one

struct UnitDraws {
    uint64_t key;
    uint32_t row, stream;  // of the first row
};

namespace detail {

// Of kDrawRows rows or fewer (the return value): numbers[64 r + j] for columns 64 block + j.
inline int philox_rows(const UnitDraws& draws, uint32_t block, uint32_t row, uint32_t* numbers) {
#ifdef PYKERNELS_PHILOX_LANES
    using L = PhiloxLanes;
    using Register = L::Register;
    constexpr int many = L::kRegisters, per_row = 16 / L::kLanes, rows = many / per_row;
    static_assert(rows >= 1 && rows <= kDrawRows);
    const Register a = L::all(0xD2511F53), b = L::all(0xCD9E8D57);
    Register c0[many], c1[many], c2[many], c3[many];
#pragma GCC unroll 4
    for (int i = 0; i < many; ++i) {
        c0[i] = L::add(L::all(block * 16 + static_cast<uint32_t>(i % per_row * L::kLanes)), L::count());
        c1[i] = L::all(row + static_cast<uint32_t>(i / per_row));
        c2[i] = L::all(draws.stream);
        c3[i] = L::all(0);
    }
    philox_rounds(draws.key, [&](uint32_t k0, uint32_t k1) {
        const Register key0 = L::all(k0), key1 = L::all(k1);
#pragma GCC unroll 4
        for (int i = 0; i < many; ++i) {
            const Register even = L::multiply(a, c0[i]), odd = L::multiply(a, L::odd(c0[i]));
            const Register other_even = L::multiply(b, c2[i]), other_odd = L::multiply(b, L::odd(c2[i]));
            c0[i] = L::exclusive_or(L::upper(other_even, other_odd), c1[i], key0);
            c1[i] = L::lower(other_even, other_odd);
            c2[i] = L::exclusive_or(L::upper(even, odd), c3[i], key1);
            c3[i] = L::lower(even, odd);
        }
    });
#pragma GCC unroll 4
    for (int i = 0; i < many; ++i) {
        uint32_t* to = numbers + i / per_row * kDrawColumns + i % per_row * L::kLanes;
        L::store(to, c0[i]);
        L::store(to + 16, c1[i]);
        L::store(to + 32, c2[i]);
        L::store(to + 48, c3[i]);
    }
    return rows;
#else
    for (uint32_t i = 0; i < 16; ++i) {
        uint32_t c[4] = {block * 16 + i, row, draws.stream, 0};
        philox_rounds(draws.key, [&](uint32_t k0, uint32_t k1) { philox_round(c[0], c[1], c[2], c[3], k0, k1); });
        for (int n = 0; n < 4; ++n) numbers[n * 16 + i] = c[n];
    }
    return 1;
#endif
}

// The upper 24 bits, which every dtype here holds, plus `more`, in units of 2^-24.
template <typename T>
inline void fractions(const uint32_t* numbers, int32_t more, T* to, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        to[i] = static_cast<T>(static_cast<int32_t>(numbers[i] >> 8) + more) * T(0x1p-24);
}

// Pairs of numbers as pairs of independent normal variables (Box and Muller): numbers 0 and 1 of a counter, 2 and 3.
template <typename T>
inline void normal_row(const uint32_t* numbers, T* to) {
    alignas(64) T radii[16], angles[16];
    for (int pair = 0; pair < 2; ++pair, numbers += 32, to += 32) {
        fractions(numbers, 1, radii, 16);  // never zero
        fractions(numbers + 16, 0, angles, 16);
        for (int i = 0; i < 16; i += kWidth<T>) {
            const auto radius = (Vec<T>::loadu(radii + i).log() * Vec<T>(T(-2))).sqrt();
            const auto angle = Vec<T>::loadu(angles + i) * Vec<T>(T(6.283185307179586));
            (radius * angle.cos()).store(to + i);
            (radius * angle.sin()).store(to + 16 + i);
        }
    }
}

}  // namespace detail

// to[64 r + j] of columns 64 block + j and rows r < rows: uniform in [0, 1), or standard normal. There is room for
// `rows` + kDrawRows - 1 rows.
template <typename T>
void draw_units(const UnitDraws& draws, bool normal, int64_t block, int64_t row, int64_t rows, T* to) {
    alignas(64) uint32_t numbers[kDrawRows * kDrawColumns];
    for (int64_t r = 0; r < rows;) {
        const int got = detail::philox_rows(draws, static_cast<uint32_t>(block),
                                            draws.row + static_cast<uint32_t>(row + r), numbers);
        if (normal) {
            for (int i = 0; i < got; ++i) detail::normal_row(numbers + i * kDrawColumns, to + (r + i) * kDrawColumns);
        } else {
            detail::fractions(numbers, 0, to + r * kDrawColumns, got * kDrawColumns);
        }
        r += got;
    }
}

}  // namespace pykernels
