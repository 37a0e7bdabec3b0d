// Plain names that the glue and the kernels share. No torch, no device code.
#pragma once

#include <cstdint>

namespace pykernels::cuda {

// What a buffer stores. Sums are kept in float for f32, bf16 and f16, and in double for f64.
enum class DType : int32_t { f32, f64, bf16, f16 };

constexpr int64_t storage_bytes(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }
constexpr int64_t accumulator_bytes(DType dtype) { return dtype == DType::f64 ? 8 : 4; }

// How a kernel with a dependency between steps is launched.
enum class LaunchForm : int32_t {
    automatic,    // one cooperative launch where its blocks are resident together, else one launch a step
    cooperative,  // one cooperative launch, or an error
    per_step,     // one launch for each phase of a step
};

}  // namespace pykernels::cuda
