// Runs the pooling kernels on buffers that are exactly as large as the contract says, without torch:
//   pool_driver SEED
// prints, for each of some calls, a hash of every output's bits; a failed launch prints "error: <report>", exit 3.
#include "cuda/kernels/pool.h"

#include <cstdio>

#include "driver.h"
#include "executor.h"

namespace {

using namespace driver;
using pykernels::PoolDimension;
using pykernels::PoolDivisor;
using pykernels::PoolPlaces;
using pykernels::PoolShape;

struct Drawn {
    DType dtype;
    int64_t batch, channels;
    PoolDimension depth, rows, columns;
    bool channels_last;
};

int run(const Drawn& d) {
    const PoolShape shape{d.batch, d.channels, d.depth, d.rows, d.columns, d.channels_last};
    const bool wide = shape.places() > pykernels::kBytePlaces;
    const int64_t in = shape.planes() * shape.in_plane(), out = shape.planes() * shape.out_plane();
    Buffers stored(d.dtype);
    const PoolPlaces places{stored.raw(out * (wide ? 8 : 1)), wide};
    auto* indices = reinterpret_cast<int64_t*>(stored.raw(out * 8));
    const void *input = stored.drawn(in), *grad = stored.drawn(out);
    const PoolDivisor divisor{true, 0};
    cudaError_t error = max_pool_forward({d.dtype, shape, input, stored.output(out), places}, nullptr);
    const auto then = [&](const auto& call) { error = error == cudaSuccess ? call() : error; };
    then([&] { return max_pool_backward({d.dtype, shape, grad, places, stored.output(in)}, nullptr); });
    then([&] { return max_pool_gather({d.dtype, shape, places, input, stored.output(out)}, nullptr); });
    then([&] { return max_pool_indices({shape, places, indices}, nullptr); });
    then([&] { return avg_pool_forward({d.dtype, shape, divisor, input, stored.output(out)}, nullptr); });
    then([&] { return avg_pool_backward({d.dtype, shape, divisor, grad, stored.output(in)}, nullptr); });
    if (error != cudaSuccess) {
        std::printf("error: %d %s\n", static_cast<int>(error), cudaGetErrorString(error));
        return 3;
    }
    uint64_t hash = stored.hash();
    for (int64_t i = 0; i < out; ++i) {
        hash = hash * 31 + static_cast<uint64_t>(indices[i]);
    }
    std::printf("%016llx\n", static_cast<unsigned long long>(hash));
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        return 2;
    }
    const PoolDimension one{}, threes{9, 5, 3, 2, 1, 1, false}, twos{8, 4, 2, 2, 0, 1, false};
    const PoolDimension adaptive{7, 3, 4, 1, 0, 1, true}, beyond{10, 4, 3, 3, 1, 1, false},
        long_one{40, 12, 18, 2, 0, 1, false};
    const std::vector<Drawn> drawings = {
        {DType::f32, 2, 3, one, threes, twos, false},       {DType::f32, 1, 8, one, threes, threes, true},
        {DType::bf16, 2, 16, one, twos, beyond, true},      {DType::f16, 1, 8, adaptive, twos, adaptive, true},
        {DType::f64, 1, 3, twos, beyond, threes, true},     {DType::bf16, 2, 3, one, adaptive, adaptive, false},
        {DType::f32, 1, 2, one, long_one, long_one, false},
    };
    for (const Drawn& drawn : drawings) {
        cuda_on_cpu_configure(std::strtoull(argv[1], nullptr, 10), 64, 227 * 1024);
        if (const int code = run(drawn); code != 0) {
            return code;
        }
    }
    return 0;
}
