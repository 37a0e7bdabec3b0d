// From the best groups to the nearest units, in double precision; and the search among all units.
#include "cuda/core/bmu.cuh"

namespace pykernels::cuda {
namespace {

constexpr int kThreads = 256, kPairs = kThreads / kPairLanes;
static_assert(kPairs == kScanGroups && kPairs == kWarp);

// How far apart scores have to be for the order of their groups to be certain: twice the error of a score, or below
// zero where there is no such margin. In a product the instructions cut off, at the end of the sum of a stage and
// before, and the products of the lower numbers are left out; then sums of stages are added up.
__device__ inline double margin(const BmuSearch& search, double size) {
    constexpr double kDigit = 0x1p-24, kLeast = 0x1p-100, kMost = 1e37;
    const double norm = float_of(search.stats->norm), features = static_cast<double>(search.call.features);
    if (search.stats->overflowed != 0 || !(size < kMost) || !(size * norm < kMost) || !(norm * norm < kMost)) {
        return -1;
    }
    if (search.call.metric == Metric::kManhattan) {
        return 2 * kDigit * (8 + 4 * square_root(features)) * (size + norm) + kLeast;
    }
    const double product = (128 + features / 32) * kDigit * size * norm;
    const double square = search.call.metric == Metric::kEuclidean ? 4 * kDigit * norm * norm : 0;
    return 2 * (product + square) + kLeast;
}

// Eight lanes have a sample.
template <class T, int kHeld>
__global__ void __launch_bounds__(kThreads, 1) finish_kernel(const __grid_constant__ BmuSearch search) {
    const Bmu& call = search.call;
    const PairLanes lanes;
    int64_t sample = int64_t{blockIdx.x} * kPairs + static_cast<int>(threadIdx.x) / kPairLanes;
    const bool there = sample < search.count;
    sample = there ? sample : search.count - 1;
    BestGroups<kHeld> best;
    for (int64_t part = lanes.place(); part < search.parts; part += kPairLanes) {
        best.add(BestGroups<kHeld>::place(search, part, sample));
    }
#pragma unroll 1
    for (int lane_xor = 1; lane_xor < kPairLanes; lane_xor *= 2) {
        best.merge(lane_xor);
    }
    if (!there) {
        return;
    }
    const double apart = margin(search, search.size[sample]);
    float gap = 0;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
        const float after = best.value[i] - best.value[i + 1];
        gap = i + 1 == call.neighbours ? after : gap;
    }
    sample += search.first;
    if (!(apart >= 0 && gap > apart)) {
        if (lanes.place() == 0) {
            search.doubts[atomic_add(&search.stats->doubts, 1)] = sample;
        }
        return;
    }
    Nearest<kHeld> nearest;
    const T* x = input_row<T>(call, sample);
#pragma unroll 1
    for (int i = 0; i < call.neighbours; ++i) {
#pragma unroll 1
        for (int member = 0; member < kGroup; ++member) {
            const int64_t unit = unit_of_group(best.number[0], member);
            if (unit < call.units) {
                nearest.consider({lanes.measure(call.metric, x, codebook_row<T>(call, unit), call.features), unit});
            }
        }
#pragma unroll
        for (int j = 0; j + 1 < kHeld; ++j) {
            best.number[j] = best.number[j + 1];
        }
    }
    if (lanes.place() == 0) {
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            if (i < call.neighbours) {
                put_nearest<T>(call, sample, i, nearest.of[i]);
            }
        }
    }
}

// put(i, unit): the nearest of what the warp's lanes have, by its first lane.
template <int kHeld, class Put>
__device__ void merge_warp(Nearest<kHeld>& own, int neighbours, const Put& put) {
    for (int i = 0; i < neighbours; ++i) {
        MeasuredUnit best = own.of[0];
#pragma unroll
        for (int lane_xor = 1; lane_xor < kWarp; lane_xor *= 2) {
            const MeasuredUnit other{shuffle_xor(best.measure, lane_xor), shuffle_xor(best.unit, lane_xor)};
            best = other.before(best) ? other : best;
        }
        if (own.of[0].unit == best.unit) {
#pragma unroll
            for (int j = 0; j + 1 < kHeld; ++j) {
                own.of[j] = own.of[j + 1];
            }
            own.of[kHeld - 1] = MeasuredUnit::none();
        }
        if (static_cast<int>(threadIdx.x) % kWarp == 0) {
            put(i, best);
        }
    }
}

// The nearest of all units, or of a part of them, for samples of the list or for all.
template <class T, int kHeld>
__global__ void __launch_bounds__(kThreads, 1)
    exact_kernel(const __grid_constant__ BmuSearch search, const int64_t* list) {
    const Bmu& call = search.call;
    const PairLanes lanes;
    const int pair = static_cast<int>(threadIdx.x) / kPairLanes;
    auto* found = reinterpret_cast<MeasuredUnit*>(shared_memory());
    const int64_t items = list != nullptr ? static_cast<int64_t>(search.stats->doubts) : call.samples * search.parts;
    for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
        const int64_t part = item % search.parts;
        const int64_t sample = list != nullptr ? list[item] : item / search.parts;
        const int64_t end = (part + 1) * call.units / search.parts;
        const T* x = input_row<T>(call, sample);
        Nearest<kHeld> nearest;
        for (int64_t unit = part * call.units / search.parts + pair; unit < end; unit += kPairs) {
            nearest.consider({lanes.measure(call.metric, x, codebook_row<T>(call, unit), call.features), unit});
        }
        if (lanes.place() == 0) {
#pragma unroll
            for (int i = 0; i < kHeld; ++i) {
                found[pair * kHeld + i] = nearest.of[i];
            }
        }
        block_barrier();  // the pairs' units have been written
        if (threadIdx.x < kWarp) {
#pragma unroll
            for (int i = 0; i < kHeld; ++i) {
                nearest.of[i] = found[static_cast<int>(threadIdx.x) * kHeld + i];
            }
            merge_warp(nearest, call.neighbours, [&](int i, const MeasuredUnit& unit) {
                if (search.parts > 1) {
                    static_cast<MeasuredUnit*>(search.nearest)[item * call.neighbours + i] = unit;
                } else {
                    put_nearest<T>(call, sample, i, unit);
                }
            });
        }
        block_barrier();  // they have been read
    }
}

// A warp has a sample: the nearest of those of all parts.
template <class T, int kHeld>
__global__ void __launch_bounds__(kThreads, 1) join_parts_kernel(const __grid_constant__ BmuSearch search) {
    const Bmu& call = search.call;
    const int64_t sample = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
    if (sample >= call.samples) {
        return;
    }
    const int64_t count = search.parts * call.neighbours;
    const auto* from = static_cast<const MeasuredUnit*>(search.nearest) + sample * count;
    Nearest<kHeld> nearest;
    for (int64_t i = threadIdx.x % kWarp; i < count; i += kWarp) {
        nearest.consider(from[i]);
    }
    merge_warp(nearest, call.neighbours,
               [&](int i, const MeasuredUnit& unit) { put_nearest<T>(call, sample, i, unit); });
}

template <class T, int kHeld>
cudaError_t launch_exact(const BmuSearch& search, const int64_t* list, int64_t blocks, cudaStream_t stream) {
    return launch(exact_kernel<T, kHeld>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                  kPairs * kHeld * sizeof(MeasuredUnit), stream, search, list);
}

// Calls run.template operator()<T, kHeld>().
template <class Run>
cudaError_t for_search(const BmuSearch& search, const Run& run) {
    return for_types(search.call.dtype, [&]<class T>() {
        return for_held(search.held, [&]<int kHeld>() { return run.template operator()<T, kHeld>(); });
    });
}

}  // namespace

cudaError_t bmu_finish(const BmuSearch& search, cudaStream_t stream) {
    const auto blocks = static_cast<unsigned>((search.count + kPairs - 1) / kPairs);
    return for_search(search, [&]<class T, int kHeld>() {
        return launch(finish_kernel<T, kHeld>, dim3(blocks), dim3(kThreads), 0, stream, search);
    });
}

cudaError_t bmu_decide(const BmuSearch& search, int64_t blocks, cudaStream_t stream) {
    BmuSearch whole = search;
    whole.parts = 1;
    return for_search(
        search, [&]<class T, int kHeld>() { return launch_exact<T, kHeld>(whole, whole.doubts, blocks, stream); });
}

cudaError_t bmu_scan(const BmuSearch& search, cudaStream_t stream) {
    return for_search(search, [&]<class T, int kHeld>() {
        cudaError_t error = launch_exact<T, kHeld>(search, nullptr, search.call.samples * search.parts, stream);
        if (error == cudaSuccess && search.parts > 1) {
            const int64_t blocks = (search.call.samples + kThreads / kWarp - 1) / (kThreads / kWarp);
            error = launch(join_parts_kernel<T, kHeld>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream,
                           search);
        }
        return error;
    });
}

}  // namespace pykernels::cuda
