// Scores of tiles by sums of what differs.
#include "cuda/core/bmu_tiles.cuh"

namespace pykernels::cuda {
namespace {

struct alignas(16) FourFloats {
    float value[4];
};

class DifferenceSums {
  public:
    __device__ void add(const unsigned char* samples, const unsigned char* units) {
        const int lane = static_cast<int>(threadIdx.x) % kWarp;
        samples += lane / 4 * kStageStride;
        units += lane % 4 * 2 * kStageStride;
#pragma unroll 1
        for (int d = 0; d < kStageBytes; d += 16) {
            FourFloats x[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                x[i] = *reinterpret_cast<const FourFloats*>(samples + i * 8 * kStageStride + d);
            }
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const auto w = *reinterpret_cast<const FourFloats*>(units + (j / 2 * 8 + j % 2) * kStageStride + d);
#pragma unroll
                for (int i = 0; i < 8; ++i) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        total_[i][j] += absolute(x[i].value[e] - w.value[e]);
                    }
                }
            }
        }
    }
    __device__ float at(int i, int j) const { return -total_[i][j]; }

  private:
    float total_[8][8] = {};
};

}  // namespace

cudaError_t bmu_search_sums(const BmuSearch& search, cudaStream_t stream) {
    return launch_bmu_tiles<DifferenceSums>(search, stream);
}

}  // namespace pykernels::cuda
