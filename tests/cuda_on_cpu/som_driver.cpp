// Runs the learning of a map on buffers that are exactly as large as the contract says, without torch:
//   som_driver SEED
// prints, for each of some calls, a hash of the codebook and the distances for some numbers of blocks, which are the
// same; a failed launch prints "error: <report>", exit 3.
#include "cuda/kernels/som.h"

#include <cstdio>

#include "driver.h"
#include "executor.h"

namespace {

using namespace driver;
using pykernels::Metric;
using pykernels::Neighbourhood;

struct Drawn {
    DType dtype;
    int64_t samples, rows, columns, features;
    Metric metric;
    Neighbourhood neighbourhood;
    bool bounded;
};

cudaError_t run(const Drawn& d, uint64_t* hash) {
    Buffers stored(d.dtype);
    const int64_t units = d.rows * d.columns;
    auto* coordinates = reinterpret_cast<double*>(stored.raw(units * 16));
    auto* sigma = reinterpret_cast<double*>(stored.raw(d.samples * 16));
    for (int64_t unit = 0; unit < units; ++unit) {
        coordinates[2 * unit] = static_cast<double>(unit / d.columns);
        coordinates[2 * unit + 1] = static_cast<double>(unit % d.columns);
    }
    for (int64_t n = 0; n < d.samples; ++n) {
        sigma[n] = 2.0 / static_cast<double>(n + 1);
        sigma[d.samples + n] = 0.5;
    }
    const void* bounds = nullptr;
    if (d.bounded) {
        unsigned char* zeros = stored.raw(2 * d.features * storage_bytes(d.dtype));
        std::memset(zeros, 0, static_cast<size_t>(2 * d.features * storage_bytes(d.dtype)));
        bounds = zeros;
    }
    SomLearn args{d.dtype,
                  d.samples,
                  units,
                  d.features,
                  d.metric,
                  d.neighbourhood,
                  2,
                  {static_cast<double>(d.rows), 0},
                  stored.drawn(d.samples * d.features),
                  coordinates,
                  sigma,
                  sigma + d.samples,
                  bounds,
                  stored.in_place(units * d.features),
                  stored.output(d.samples),
                  nullptr};
    args.workspace = stored.raw(som_workspace(args));
    const cudaError_t error = som_learn(args, nullptr);
    *hash = stored.hash();
    return error;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        return 2;
    }
    constexpr auto kBell = Neighbourhood::kGaussian, kBubble = Neighbourhood::kBubble,
                   kHat = Neighbourhood::kMexicanHat;
    const std::vector<Drawn> drawings = {
        {DType::f32, 9, 5, 7, 6, Metric::kEuclidean, kBell, false},
        {DType::f64, 35, 4, 4, 3, Metric::kManhattan, kBubble, true},
        {DType::f32, 5, 10, 11, 601, Metric::kCosine, kHat, false},
        {DType::f64, 3, 2, 3, 2100, Metric::kEuclidean, kBell, false},
    };
    struct Layout {
        int64_t blocks;
        uint64_t shared;
    };
    for (const Drawn& drawn : drawings) {
        for (const Layout layout : {Layout{1, 227 << 10}, {3, 227 << 10}, {2, 40 << 10}}) {
            cuda_on_cpu_configure(std::strtoull(argv[1], nullptr, 10), layout.blocks, layout.shared);
            uint64_t hash = 0;
            if (const cudaError_t error = run(drawn, &hash); error != cudaSuccess) {
                std::printf("error: %d %s\n", static_cast<int>(error), cudaGetErrorString(error));
                return 3;
            }
            std::printf("%016llx ", static_cast<unsigned long long>(hash));
        }
        std::printf("\n");
    }
    return 0;
}
