// Twin of cuda/core/mma.cuh. The fragments are laid out as the instructions have them; a copy arrives when it is waited
// for and not before, and until then there are not-a-numbers where it goes.
#pragma once

#include "cuda/core/common.cuh"

namespace pykernels::cuda {

template <class T>
uint32_t pack_pair(float first, float second) {
    return to_storage<T>(first).bits | static_cast<uint32_t>(to_storage<T>(second).bits) << 16;
}

namespace detail {

template <class T>
float half_of(uint32_t pair, int which) {
    return to_accumulator(T{static_cast<uint16_t>(pair >> (16 * which))});
}

struct ProductLane {
    float a[4][2], b[2][2];
    float* c;
};

// Every product is exact in float, and the sums of one instruction go in any order on the device.
inline void warp_product(void* const* lanes) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < kWarp; ++lane) {
        const auto& own = *static_cast<const ProductLane*>(lanes[lane]);
        const int g = lane / 4, q = lane % 4;
        for (int i = 0; i < 4; ++i) {
            for (int half = 0; half < 2; ++half) {
                a[g + i % 2 * 8][i / 2 * 8 + 2 * q + half] = own.a[i][half];
                if (i < 2) {
                    b[i * 8 + 2 * q + half][g] = own.b[i][half];
                }
            }
        }
    }
    for (int lane = 0; lane < kWarp; ++lane) {
        float* c = static_cast<const ProductLane*>(lanes[lane])->c;
        for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            float sum = c[i];
            for (int k = 0; k < 16; ++k) {
                sum += a[row][k] * b[k][column];
            }
            c[i] = sum;
        }
    }
}

struct MatrixLane {
    const unsigned char* row;
    uint32_t* fragment;
};

template <bool kTransposed>
void warp_load(void* const* lanes) {
    for (int lane = 0; lane < kWarp; ++lane) {
        uint32_t* fragment = static_cast<const MatrixLane*>(lanes[lane])->fragment;
        const int g = lane / 4, q = lane % 4;
        for (int i = 0; i < 4; ++i) {
            uint16_t pair[2];
            for (int half = 0; half < 2; ++half) {
                const int row = kTransposed ? 2 * q + half : g, column = kTransposed ? g : 2 * q + half;
                std::memcpy(&pair[half], static_cast<const MatrixLane*>(lanes[8 * i + row])->row + 2 * column, 2);
            }
            fragment[i] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
        }
    }
}

inline void check_aligned(const void* pointer, const Place& place) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) {
        cuda_on_cpu::fail("not aligned to 16 bytes", place);
    }
}

}  // namespace detail

template <class T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Place place = Place::current()) {
    detail::ProductLane own{{}, {}, c};
    for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 4; ++i) {
            own.a[i][half] = detail::half_of<T>(a[i], half);
        }
        own.b[0][half] = detail::half_of<T>(b0, half);
        own.b[1][half] = detail::half_of<T>(b1, half);
    }
    cuda_on_cpu::together(&own, detail::warp_product, place);
}

inline void load_matrices(uint32_t (&fragment)[4], const void* row, Place place = Place::current()) {
    detail::check_aligned(row, place);
    detail::MatrixLane own{static_cast<const unsigned char*>(row), fragment};
    cuda_on_cpu::together(&own, detail::warp_load<false>, place);
}
inline void load_matrices_transposed(uint32_t (&fragment)[4], const void* row, Place place = Place::current()) {
    detail::check_aligned(row, place);
    detail::MatrixLane own{static_cast<const unsigned char*>(row), fragment};
    cuda_on_cpu::together(&own, detail::warp_load<true>, place);
}

inline void copy_later(void* to, const void* from, int bytes, Place place = Place::current()) {
    detail::check_aligned(to, place);
    detail::check_aligned(from, place);
    cuda_on_cpu::copy_later(to, from, static_cast<size_t>(bytes), 16);
}
inline void copy_later_cached(void* to, const void* from, int bytes, Place place = Place::current()) {
    copy_later(to, from, bytes, place);
}
inline void end_copy_group() { cuda_on_cpu::end_copy_group(); }
template <int kPending>
void wait_for_copies() {
    cuda_on_cpu::wait_for_copies(kPending);
}

}  // namespace pykernels::cuda
