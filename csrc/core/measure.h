// Facts about the loaded build, and loops that measure this machine's limits and the product core against them.
#pragma once

#include <string>

#include "core/types.h"

namespace pykernels {

std::string instruction_set();
std::string compiler();
bool has_bf16_products();

// GFLOP/s of independent multiply-adds in registers.
double measure_fma_peak(int threads, double seconds);

// GFLOP/s of the product core; `prepacked` leaves packing B out of the time. dtype: float32, float64, bfloat16
// (prepacked).
double measure_gemm(int64_t M, int64_t N, int64_t K, int threads, double seconds, const std::string& dtype,
                    bool prepacked);

}  // namespace pykernels
