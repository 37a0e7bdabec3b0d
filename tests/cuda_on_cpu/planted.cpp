// Small kernels for the tests of the executor: each is right as written, and wrong in one way when a bug is planted.
//   planted KERNEL BUG SEED
// prints the results, or "error: <report>" and exits with 3.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>

#include "cuda/core/common.cuh"

namespace {

using namespace pykernels::cuda;

constexpr int kThreads = 64;
constexpr int kBlocks = 3;

// out = in reversed within each block, through shared memory.
// Bugs: no_barrier; shared_overrun, global_overrun (one element beyond); early_exit, two_barriers (divergence);
// uninitialised (one element is never written).
__global__ void reverse(float* out, const float* in, std::string bug) {
    auto* shared = reinterpret_cast<float*>(shared_memory());
    const int i = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x) * kThreads;
    if (!(bug == "uninitialised" && i == 5)) {
        shared[i + (bug == "shared_overrun" ? 1 : 0)] = in[first + i];
    }
    if (bug == "early_exit" && i == 7) {
        return;
    }
    if (bug == "two_barriers" && i < 32) {
        block_barrier();
    } else if (bug != "no_barrier") {
        block_barrier();
    }
    out[first + i + (bug == "global_overrun" ? 1 : 0)] = shared[kThreads - 1 - i];
}

// out[0..32) = sum of the first 32 inputs. Bugs: wrong_shuffle (one lane distance left out), half_warp (not all lanes
// come), outside_lane (reads a lane that does not take part), late_lane (one lane goes to a barrier instead).
__global__ void warp_sum(float* out, const float* in, std::string bug) {
    const int lane = static_cast<int>(threadIdx.x);
    float sum = in[lane];
    if (bug == "half_warp" && lane >= 16) {
        return;
    }
    if (bug == "late_lane" && lane == 31) {
        block_barrier();
    }
    const unsigned lanes = bug == "outside_lane" ? (lane < 16 ? 0xffffu : 0xffff0000u) : kFullWarp;
    for (int lane_xor = 1; lane_xor < 32; lane_xor *= 2) {
        if (!(bug == "wrong_shuffle" && lane_xor == 4)) {
            sum += shuffle_xor(sum, lane_xor, lanes);
        }
    }
    out[lane] = sum;
}

// Each block adds up its inputs, then every block reads what its neighbour found. Bugs: no_barrier; absent_block (one
// block does not come); plain_launch (not cooperative).
__global__ void neighbour(float* out, const float* in, float* sums, unsigned long long* counter, std::string bug) {
    const int block = static_cast<int>(blockIdx.x);
    if (threadIdx.x == 0) {
        sums[block] = 0;
        for (int i = 0; i < kThreads; ++i) {
            sums[block] += in[block * kThreads + i];
        }
    }
    if (bug == "absent_block" && block == 1) {
        return;
    }
    if (bug != "no_barrier") {
        grid_barrier(counter, gridDim.x);
    }
    out[block * kThreads + static_cast<int>(threadIdx.x)] = sums[(block + 1) % kBlocks];
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4) {
        return 2;
    }
    const std::string kernel = argv[1], bug = argv[2];
    cuda_on_cpu::settings().seed = std::strtoull(argv[3], nullptr, 10);
    constexpr int kCount = kThreads * kBlocks;
    const auto in = std::make_unique<float[]>(kCount), out = std::make_unique<float[]>(kCount);
    const auto sums = std::make_unique<float[]>(kBlocks);
    for (int i = 0; i < kCount; ++i) {
        in[i] = static_cast<float>(i);
        out[i] = -1;
    }
    unsigned long long counter = 0;
    const size_t shared_bytes = kThreads * sizeof(float);
    cudaError_t error = cudaErrorInvalidValue;
    if (kernel == "reverse") {
        error = launch(reverse, dim3(kBlocks), dim3(kThreads), shared_bytes, nullptr, out.get(), in.get(), bug);
    } else if (kernel == "warp_sum") {
        error = launch(warp_sum, dim3(1), dim3(32), 0, nullptr, out.get(), in.get(), bug);
    } else if (kernel == "neighbour" && bug == "plain_launch") {
        error = launch(neighbour, dim3(kBlocks), dim3(kThreads), 0, nullptr, out.get(), in.get(), sums.get(), &counter,
                       bug);
    } else if (kernel == "neighbour") {
        error = launch_cooperative(neighbour, dim3(kBlocks), dim3(kThreads), 0, nullptr, out.get(), in.get(),
                                   sums.get(), &counter, bug);
    } else if (kernel == "round") {  // the 16-bit types: bits of what is read back from each
        for (const double value : {0.0, -0.0, 1.0, 0.1, -2.7, 65504.0, 65519.9, 65520.0, 1e-8, 3e-8, 6e-8, 6.1e-5,
                                   6.0999e-5, 1.00048828125, 1.00146484375, 1e30, 3.4e38, -1e-40}) {
            const auto narrow = static_cast<float>(value);
            std::printf("%.9g %.9g %.9g\n", narrow, to_accumulator(to_storage<fp16>(narrow)),
                        to_accumulator(to_storage<bf16>(narrow)));
        }
        return 0;
    }
    if (error != cudaSuccess) {
        std::printf("error: %s\n", cudaGetErrorString(error));
        return 3;
    }
    for (int i = 0; i < kCount; ++i) {
        std::printf("%.9g\n", out[i]);
    }
    return 0;
}
