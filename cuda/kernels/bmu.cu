// Best matching units: how a call is laid out, and its launches in order.
#include <algorithm>

#include "cuda/core/bmu.cuh"

namespace pykernels::cuda {
namespace {

constexpr int64_t kScannedSamples = 4;                         // so few are not worth the preparation of the units
constexpr int64_t kScannedWork = 1 << 16;                      // of a multiprocessor: values that are worth it
constexpr int64_t kMostFeatures = 1 << 24;                     // of a sum in single precision
constexpr int64_t kTileSlice = 1 << 16, kHeldSlice = 1 << 22;  // samples
constexpr int64_t kMostBest = 1 << 22;                         // of samples and parts, at one time

int64_t parts_of(int64_t count, int64_t of) { return (count + of - 1) / of; }

// Hands out pieces of the workspace, or adds up what they take.
class Space {
  public:
    explicit Space(void* begin) : begin_(static_cast<unsigned char*>(begin)) {}
    template <class T>
    void take(T*& piece, int64_t bytes) {
        piece = begin_ != nullptr ? reinterpret_cast<T*>(begin_ + used_) : nullptr;
        used_ += parts_of(bytes, 256) * 256;
    }
    size_t used() const { return static_cast<size_t>(used_); }

  private:
    unsigned char* begin_;
    int64_t used_ = 0;
};

BmuSearch search_of(const Bmu& call, const BmuPlan& plan, void* workspace, size_t* bytes) {
    BmuSearch search{};
    search.call = call;
    search.products = call.metric != Metric::kManhattan;
    search.held = call.neighbours <= 2 ? call.neighbours : 8;
    search.chunks = static_cast<int>(std::max<int64_t>(parts_of(std::min(call.features, kMostFeatures), kRowChunk), 1));
    search.row_bytes = int64_t{search.chunks} * kRowChunkBytes + kRowOwnBytes;
    search.slice = plan.slice;
    search.parts = plan.parts;
    search.units = parts_of(call.units, kUnitTile) * kUnitTile;
    Space space(workspace);
    if (plan.way == BmuWay::exact) {
        space.take(search.nearest, plan.parts > 1 ? call.samples * plan.parts * call.neighbours * 16 : 0);
    } else {
        const int64_t rows = parts_of(plan.slice, kSampleTile) * kSampleTile;
        space.take(search.stats, sizeof(BmuStats));
        space.take(search.centre, call.features * accumulator_bytes(call.dtype));
        space.take(search.scale, search.units * 8);
        space.take(search.unit_rows, search.units * search.row_bytes);
        space.take(search.sample_rows, plan.way == BmuWay::held ? 0 : rows * search.row_bytes);
        space.take(search.size, plan.slice * 4);
        space.take(search.best, plan.parts * plan.slice * (2 * search.held + 1) * 4);
        space.take(search.doubts, call.samples * 8);
    }
    *bytes = space.used();
    return search;
}

}  // namespace

BmuPlan plan_bmu(const Bmu& args, BmuWay way, int64_t multiprocessors) {
    BmuPlan plan{way, args.samples, 1, 0};
    const int64_t tiles = parts_of(args.units, kUnitTile);
    if (way == BmuWay::exact) {
        const int64_t wanted = parts_of(2 * multiprocessors, std::max<int64_t>(args.samples, 1));
        plan.parts = std::clamp<int64_t>(parts_of(args.units, 2 * kScanGroups), 1, wanted);
    } else if (way == BmuWay::held) {
        plan.slice = std::min(args.samples, kHeldSlice);
        const int64_t wanted = parts_of(2 * multiprocessors, parts_of(std::max<int64_t>(plan.slice, 1), kHeldSamples));
        plan.parts = std::clamp<int64_t>(parts_of(args.units, kHeldUnits), 1, wanted);
    } else {
        const int64_t most = std::clamp<int64_t>(kMostBest / tiles / kSampleTile, 1, kTileSlice / kSampleTile);
        plan.slice = std::min(args.samples, most * kSampleTile);
        plan.parts = tiles;
    }
    search_of(args, plan, nullptr, &plan.workspace);
    return plan;
}

cudaError_t plan_bmu(const Bmu& args, BmuPlan* plan) {
    int64_t multiprocessors = 0;
    const cudaError_t error = multiprocessor_count(&multiprocessors);
    const double work =
        static_cast<double>(args.samples) * static_cast<double>(args.units) * static_cast<double>(args.features + 16);
    BmuWay way = BmuWay::products;
    if (args.samples <= kScannedSamples || args.features > kMostFeatures ||
        work <= static_cast<double>(multiprocessors) * kScannedWork) {
        way = BmuWay::exact;
    } else if (args.metric == Metric::kManhattan) {
        way = BmuWay::sums;
    } else if (args.features <= kMostHeldChunks * kRowChunk && args.neighbours <= 2) {
        way = BmuWay::held;
    }
    *plan = plan_bmu(args, way, multiprocessors);
    return error;
}

cudaError_t bmu(const Bmu& args, const BmuPlan& plan, void* workspace, cudaStream_t stream) {
    if (args.samples == 0) {
        return cudaSuccess;
    }
    size_t bytes = 0;
    BmuSearch search = search_of(args, plan, workspace, &bytes);
    if (plan.way == BmuWay::exact) {
        return bmu_scan(search, stream);
    }
    int64_t multiprocessors = 0;
    cudaError_t error = multiprocessor_count(&multiprocessors);
    const auto then = [&](const auto& next) { error = error == cudaSuccess ? next() : error; };
    then([&] { return cudaMemsetAsync(search.stats, 0, sizeof(BmuStats), stream); });
    then([&] { return bmu_prepare_units(search, stream); });
    for (search.first = 0; search.first < args.samples; search.first += plan.slice) {
        search.count = std::min(plan.slice, args.samples - search.first);
        if (plan.way == BmuWay::held) {
            then([&] { return bmu_search_held(search, stream); });
        } else {
            then([&] { return bmu_prepare_samples(search, stream); });
            then([&] {
                return plan.way == BmuWay::sums ? bmu_search_sums(search, stream) : bmu_search_products(search, stream);
            });
        }
        then([&] { return bmu_finish(search, stream); });
    }
    then([&] { return bmu_decide(search, std::min(args.samples, 8 * multiprocessors), stream); });
    return error;
}

}  // namespace pykernels::cuda
