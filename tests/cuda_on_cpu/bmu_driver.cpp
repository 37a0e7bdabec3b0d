// Runs best matching units and sums by unit on buffers that are exactly as large as the contract says, without torch:
//   bmu_driver SEED
// prints, for each of some calls, a hash of the result of every way there is to lay it out, which are all the same; a
// failed launch prints "error: <report>", exit 3. Where values are usual, few samples may need the second search.
#include "cuda/kernels/bmu_parts.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "cuda/core/common.cuh"
#include "cuda/kernels/unit_sums.h"
#include "driver.h"
#include "executor.h"

namespace {

using namespace driver;
using pykernels::Metric;

struct Drawn {
    DType dtype;
    Metric metric;
    int64_t samples, units, features;
    int neighbours;
    double apart, steps;  // values lie so far from zero, and have so many steps within one
    bool odd;             // some values are not finite
};

// Rows with room between them.
void* rows(Buffers& buffers, const Drawn& d, int64_t count, int64_t stride, uint64_t state) {
    const int64_t values = count > 0 ? (count - 1) * stride + d.features : 0;
    unsigned char* bytes = buffers.raw(std::max<int64_t>(values, 1) * storage_bytes(d.dtype));
    for (int64_t i = 0; i < values; ++i) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        double value = static_cast<double>(state >> 40) / (1 << 24);
        value = d.steps > 0 ? std::floor(value * d.steps) / d.steps : value;
        value += d.apart;
        if (d.odd && (state >> 20) % 97 == 0) {
            value = (state >> 30) % 2 == 0 ? NAN : INFINITY;
        }
        const auto put = [&]<class T>(T) {
            reinterpret_cast<T*>(bytes)[i] = to_storage<T>(static_cast<Accumulator<T>>(value));
        };
        d.dtype == DType::f64    ? put(double())
        : d.dtype == DType::f32  ? put(float())
        : d.dtype == DType::bf16 ? put(bf16())
                                 : put(fp16());
    }
    return bytes;
}

cudaError_t search(const Drawn& d, BmuWay way, int64_t multiprocessors, uint64_t* hash) {
    Buffers stored(d.dtype);
    const int64_t stride = d.features + 1, found = d.samples * d.neighbours;
    auto* index = reinterpret_cast<int64_t*>(stored.raw(found * 8));
    const Bmu args{d.dtype,
                   d.metric,
                   d.samples,
                   d.units,
                   d.features,
                   d.neighbours,
                   rows(stored, d, d.samples, stride, 1),
                   rows(stored, d, d.units, stride + 1, 2),
                   stride,
                   stride + 1,
                   stored.output(found),
                   index};
    const BmuPlan plan = plan_bmu(args, way, multiprocessors);
    void* const workspace = stored.raw(plan.workspace);
    const cudaError_t error = bmu(args, plan, workspace, nullptr);
    const bool usual = d.steps == 0 && !d.odd && d.features > 0 && 8 * d.neighbours < d.units;
    if (usual && way != BmuWay::exact && static_cast<const BmuStats*>(workspace)->doubts * 10 > 1ull * d.samples) {
        std::printf("error: most samples are in doubt\n");
    }
    *hash = stored.hash();
    for (int64_t i = 0; i < found && error == cudaSuccess; ++i) {
        *hash = *hash * 31 + static_cast<uint64_t>(index[i]);
    }
    return error;
}

int run(const Drawn& d) {
    std::vector<BmuWay> ways = {BmuWay::exact};
    ways.push_back(d.metric == Metric::kManhattan ? BmuWay::sums : BmuWay::products);
    if (d.metric != Metric::kManhattan && d.features <= 64 && d.neighbours <= 2) {
        ways.push_back(BmuWay::held);
    }
    for (const BmuWay way : ways) {
        for (const int64_t multiprocessors : {1, 3}) {
            if (multiprocessors > 1 && (way == BmuWay::products || way == BmuWay::sums)) {
                continue;  // the same
            }
            uint64_t hash = 0;
            if (const cudaError_t error = search(d, way, multiprocessors, &hash); error != cudaSuccess) {
                std::printf("error: %d %s\n", static_cast<int>(error), cudaGetErrorString(error));
                return 3;
            }
            std::printf("%016llx ", static_cast<unsigned long long>(hash));
        }
    }
    std::printf("\n");
    return 0;
}

int run_sums(DType dtype, int64_t samples, int64_t units, int64_t features, int64_t spread) {
    const Drawn d{dtype, Metric::kEuclidean, samples, units, features, 1, 0, 0, false};
    Buffers stored(DType::f64);
    std::vector<int64_t> index(static_cast<size_t>(samples)), order(index.size());
    for (int64_t i = 0; i < samples; ++i) {
        index[static_cast<size_t>(i)] = i * i % spread * 7 % units;
    }
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        return index[static_cast<size_t>(a)] < index[static_cast<size_t>(b)];
    });
    std::vector<int32_t> keys(index.size()), sorted(index.size());
    std::vector<int64_t> counts(static_cast<size_t>(units));
    int32_t wrong = 0;
    cudaError_t error = unit_keys({samples, units, index.data(), keys.data(), &wrong}, nullptr);
    for (size_t i = 0; i < sorted.size(); ++i) {
        sorted[i] = keys[static_cast<size_t>(order[i])];
    }
    UnitSums args{dtype,
                  samples,
                  units,
                  features,
                  rows(stored, d, samples, features + 2, 3),
                  features + 2,
                  sorted.data(),
                  order.data(),
                  static_cast<double*>(stored.output(units * features)),
                  counts.data(),
                  nullptr};
    args.workspace = stored.raw(unit_sums_workspace(args));
    error = error == cudaSuccess && wrong == 0 ? unit_sums(args, nullptr) : error;
    if (error != cudaSuccess || wrong != 0) {
        std::printf("error: %d %s\n", static_cast<int>(error), cudaGetErrorString(error));
        return 3;
    }
    uint64_t hash = stored.hash();
    for (const int64_t count : counts) {
        hash = hash * 31 + static_cast<uint64_t>(count);
    }
    std::printf("%016llx\n", static_cast<unsigned long long>(hash));
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        return 2;
    }
    constexpr auto kL2 = Metric::kEuclidean, kCosine = Metric::kCosine, kL1 = Metric::kManhattan;
    const std::vector<Drawn> drawings = {
        {DType::f32, kL2, 130, 136, 3, 1, 0, 0, false},   {DType::f32, kL2, 11, 150, 34, 2, 1e3, 0, false},
        {DType::f64, kL2, 12, 130, 50, 1, 1e6, 0, false}, {DType::bf16, kL2, 10, 70, 20, 1, 0, 0, false},
        {DType::f16, kCosine, 9, 60, 17, 2, 0, 0, false}, {DType::f32, kCosine, 10, 129, 70, 1, 0.1, 0, true},
        {DType::f32, kL2, 9, 90, 5, 3, 0, 4, false},      {DType::f32, kL2, 8, 70, 33, 1, 0, 0, true},
        {DType::f32, kL1, 130, 20, 37, 1, 5, 0, false},   {DType::f64, kL1, 6, 30, 6, 5, 0, 3, true},
        {DType::f32, kL2, 9, 12, 0, 2, 0, 0, false},      {DType::f32, kL2, 7, 8, 100, 8, 0, 0, false},
    };
    for (const Drawn& drawn : drawings) {
        cuda_on_cpu_configure(std::strtoull(argv[1], nullptr, 10), 2, 227 * 1024);
        if (const int code = run(drawn); code != 0) {
            return code;
        }
    }
    const auto sums = {run_sums(DType::f32, 700, 5, 35, 3), run_sums(DType::bf16, 300, 40, 3, 300),
                       run_sums(DType::f64, 512, 3, 2, 1), run_sums(DType::f16, 0, 4, 5, 1)};
    return *std::max_element(sums.begin(), sums.end());
}
