// The matrix instruction of 16-bit types (sm_80 and later), how its operands come out of shared memory, and copies into
// shared memory that go on by themselves. As common.cuh, it has a twin in tests/cuda_on_cpu.
//
// Fragments of m16n8k16, of lane 4 g + q (q < 4); a register holds two neighbours, the lower half the first:
//   A [16 rows, 16 deep]: rows g and g + 8, columns 2q, 2q + 1 (registers 0, 1) and 8 more (2, 3)
//   B [16 deep, 8 columns]: column g, depths 2q, 2q + 1 (register 0) and 8 more (1)
//   C [16 rows, 8 columns], float: row g, columns 2q, 2q + 1 (0, 1); row g + 8 (2, 3)
#pragma once

#include "cuda/core/common.cuh"

namespace pykernels::cuda {

// Two values beside each other in one register, rounded to nearest even.
template <class T>
__device__ inline uint32_t pack_pair(float first, float second) {
    uint32_t pair;
    if constexpr (std::is_same_v<T, bf16>) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    } else {
        static_assert(std::is_same_v<T, fp16>);
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    }
    return pair;
}

// c += a b. All lanes of the warp call.
template <class T>
__device__ inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if constexpr (std::is_same_v<T, bf16>) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
        static_assert(std::is_same_v<T, fp16>);
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
}

// Four matrices of 8 x 8 values from shared memory. Lane 8 i + r gives where row r of matrix i begins (aligned to 16
// bytes); lane 4 g + q gets, in register i, elements 2q and 2q + 1 of row g of matrix i, or, transposed, of column g.
__device__ inline void load_matrices(uint32_t (&fragment)[4], const void* row) {
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(address)
                 : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&fragment)[4], const void* row) {
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(address)
                 : "memory");
}

// Begins to copy `bytes` (0 to 16) to shared memory and zeros up to 16; both ends are aligned to 16 bytes.
__device__ inline void copy_later(void* to, const void* from, int bytes) {
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}
// The same of data that the multiprocessor reads again before long: through its own cache.
__device__ inline void copy_later_cached(void* to, const void* from, int bytes) {
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}
// Ends a group: the thread's copies since the last one.
__device__ inline void end_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all but the last `kPending` of the thread's own groups have arrived. A barrier makes them seen by others.
template <int kPending>
__device__ inline void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace pykernels::cuda
