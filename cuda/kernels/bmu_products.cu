// Scores of tiles by products: three of 16-bit numbers make one of numbers that have 22 bits.
#include "cuda/core/bmu_tiles.cuh"

namespace pykernels::cuda {
namespace {

class ProductSums {
  public:
    // A stage is summed by itself: what the instruction cuts off is a share of that sum alone.
    __device__ void add(const unsigned char* samples, const unsigned char* units) {
        const int lane = static_cast<int>(threadIdx.x) % kWarp;
        samples += lane % 16 * kStageStride + lane / 16 * 16;
        units += (lane / 16 * 8 + lane % 8) * kStageStride + lane / 8 % 2 * 16;
        float sum[4][4][4] = {};
#pragma unroll
        for (int chunk = 0; chunk < kStageBytes; chunk += kRowChunkBytes) {
            uint32_t upper[4][4], lower[4][4];
#pragma unroll
            for (int m = 0; m < 4; ++m) {
                load_matrices(upper[m], samples + m * 16 * kStageStride + chunk);
                load_matrices(lower[m], samples + m * 16 * kStageStride + chunk + kRowChunkBytes / 2);
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                uint32_t unit[4], unit_lower[4];
                load_matrices(unit, units + half * 16 * kStageStride + chunk);
                load_matrices(unit_lower, units + half * 16 * kStageStride + chunk + kRowChunkBytes / 2);
                // (the small ones first; and eight sums in turn, as each waits for itself)
                const auto multiply = [&](const uint32_t (&left)[4][4], const uint32_t (&right)[4]) {
#pragma unroll
                    for (int m = 0; m < 4; ++m) {
#pragma unroll
                        for (int t = 0; t < 2; ++t) {
                            multiply_add<fp16>(sum[m][2 * half + t], left[m], right[2 * t], right[2 * t + 1]);
                        }
                    }
                };
                multiply(lower, unit);
                multiply(upper, unit_lower);
                multiply(upper, unit);
            }
        }
#pragma unroll
        for (int m = 0; m < 4; ++m) {
#pragma unroll
            for (int n = 0; n < 4; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    total_[m][n][e] += sum[m][n][e];
                }
            }
        }
    }
    __device__ float at(int i, int j) const { return total_[i / 2][j / 2][i % 2 * 2 + j % 2]; }

  private:
    float total_[4][4][4] = {};
};

}  // namespace

cudaError_t bmu_search_products(const BmuSearch& search, cudaStream_t stream) {
    return launch_bmu_tiles<ProductSums>(search, stream);
}

}  // namespace pykernels::cuda
