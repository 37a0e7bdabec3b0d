// The primitives of mma.cuh, alone:
//   mma_driver WHAT SEED       WHAT: bf16, fp16 (a product), early (a copy is read before it is waited for),
//                              crooked (an address that is not aligned), half_warp (not all lanes come)
// prints the product of A [16, 48] and B [48, 8], A[m][k] = (m + 3k) % 13 - 6, B[k][n] = (5k + 2n) % 11 - 5: A as rows,
// half of B as rows of depth and half as rows of columns. An error prints its report, exit 3.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "cuda/core/mma.cuh"

namespace {

using namespace pykernels::cuda;

constexpr int kDepth = 48, kCopied = 8;  // values that one copy moves

// A [16][48], B transposed [8][48] (depths 0 to 15 of it are used), B [48][8] (16 to 47).
template <class T>
__global__ void product(float* out, const T* in, std::string bug) {
    const int lane = static_cast<int>(threadIdx.x), matrix = lane / 8, r = lane % 8;
    T* a = reinterpret_cast<T*>(shared_memory());
    T *across = a + 16 * kDepth, *down = across + 8 * kDepth;
    constexpr int kChunks = 32 * kDepth / kCopied;
    for (int chunk = lane; chunk < kChunks; chunk += kWarp) {
        copy_later(a + chunk * kCopied, in + chunk * kCopied, 16);
        if (chunk + kWarp >= kChunks / 2 && chunk < kChunks / 2) {
            end_copy_group();  // the first half of all
        }
    }
    end_copy_group();
    wait_for_copies<1>();
    if (bug != "early") {
        wait_for_copies<0>();
    }
    block_barrier();
    if (bug == "half_warp" && lane >= 16) {
        return;
    }
    float c[4] = {};
    for (int k = 0; k < kDepth; k += 16) {
        uint32_t left[4], right[4];
        load_matrices(left, a + (matrix % 2 * 8 + r) * kDepth + k + matrix / 2 * 8 + (bug == "crooked" ? 1 : 0));
        if (k == 0) {
            load_matrices(right, across + r * kDepth + matrix % 2 * 8);
        } else {
            load_matrices_transposed(right, down + (k + matrix % 2 * 8 + r) * 8);
        }
        multiply_add<T>(c, left, right[0], right[1]);
    }
    for (int i = 0; i < 4; ++i) {
        out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = c[i];
    }
    const uint32_t pair = pack_pair<T>(c[0], c[1]);
    if (to_accumulator(T{static_cast<uint16_t>(pair)}) != to_accumulator(to_storage<T>(c[0])) ||
        to_accumulator(T{static_cast<uint16_t>(pair >> 16)}) != to_accumulator(to_storage<T>(c[1]))) {
        out[lane] = -1;
    }
}

template <class T>
int run(const std::string& bug) {
    constexpr int kCount = 32 * kDepth;
    auto* in = static_cast<T*>(std::aligned_alloc(16, kCount * sizeof(T)));
    const std::unique_ptr<T, decltype(&std::free)> held(in, &std::free);
    const auto b = [](int k, int n) { return to_storage<T>(static_cast<float>((5 * k + 2 * n) % 11 - 5)); };
    for (int k = 0; k < kDepth; ++k) {
        for (int m = 0; m < 16; ++m) {
            in[m * kDepth + k] = to_storage<T>(static_cast<float>((m + 3 * k) % 13 - 6));
        }
        for (int n = 0; n < 8; ++n) {
            in[(16 + n) * kDepth + k] = b(k, n);
            in[24 * kDepth + k * 8 + n] = b(k, n);
        }
    }
    float out[128];
    if (launch(product<T>, dim3(1), dim3(kWarp), kCount * sizeof(T), nullptr, static_cast<float*>(out),
               static_cast<const T*>(in), bug) != cudaSuccess) {
        std::printf("error: %s\n", cudaGetErrorString(cudaErrorLaunchFailure));
        return 3;
    }
    for (const float value : out) {
        std::printf("%.9g\n", value);
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        return 2;
    }
    cuda_on_cpu::settings().seed = std::strtoull(argv[2], nullptr, 10);
    const std::string what = argv[1];
    return what == "fp16" ? run<fp16>(what) : run<bf16>(what);
}
