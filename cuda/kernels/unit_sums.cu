// Sums by unit. Runs of the sorted samples are added up by a warp for each 32 features: a unit that lies in one run is
// done by that; of others, runs leave the part at their begin and the part that starts within them, and these are added
// up after.
#include "cuda/kernels/unit_sums.h"

#include "cuda/core/for_types.cuh"
#include "cuda/core/items.cuh"

namespace pykernels::cuda {
namespace {

constexpr int64_t kRun = 256;  // samples
constexpr int kAtOnce = 8;     // rows that are asked for before they are added
constexpr int kThreads = 256, kWarps = kThreads / kWarp;

__global__ void __launch_bounds__(kItemThreads, 1) keys_kernel(const __grid_constant__ UnitKeys args, int64_t count) {
    const int64_t i = thread_of_grid();
    if (i >= count) {
        return;
    }
    const int64_t unit = args.index[i];
    args.keys[i] = static_cast<int32_t>(unit);
    if (unit < 0 || unit >= args.units) {
        atomic_or(reinterpret_cast<unsigned*>(args.wrong), 1);
    }
}

__device__ inline int64_t begin_of_run(int64_t run) { return run * kRun; }

// Where a run leaves its parts: first what goes on from the run before, or begins where the run does.
__device__ inline double* part_of(const UnitSums& args, int64_t run, bool at_begin) {
    return static_cast<double*>(args.workspace) + (2 * run + (at_begin ? 0 : 1)) * args.features;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1) runs_kernel(const __grid_constant__ UnitSums args) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t pieces = (args.features + kWarp - 1) / kWarp;
    const int64_t item = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp, run = item / pieces;
    const int64_t d = item % pieces * kWarp + lane;
    const int64_t begin = begin_of_run(run);
    if (begin >= args.samples || d >= args.features) {
        return;
    }
    const int64_t end = begin + kRun < args.samples ? begin + kRun : args.samples;
    const T* column = static_cast<const T*>(args.input) + d;
    int64_t first = begin;  // of the unit's part
    int32_t unit = args.keys[begin];
    double sum = 0;
    const auto leave = [&](int64_t last) {
        const bool whole =
            (first == 0 || args.keys[first - 1] != unit) && (last == args.samples || args.keys[last] != unit);
        (whole ? args.sums + int64_t{unit} * args.features : part_of(args, run, first == begin))[d] = sum;
    };
    for (int64_t at = begin; at < end; at += kAtOnce) {
        int32_t key[kAtOnce];
        double value[kAtOnce];
        if (at + kAtOnce <= end) {
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                key[i] = args.keys[at + i];
                value[i] = to_accumulator(column[args.order[at + i] * args.input_stride]);
            }
        } else {
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                const int64_t place = at + i < end ? at + i : end - 1;
                key[i] = args.keys[place];
                value[i] = to_accumulator(column[args.order[place] * args.input_stride]);
            }
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            if (at + i < end) {
                if (key[i] != unit) {
                    leave(at + i);
                    first = at + i;
                    unit = key[i];
                    sum = 0;
                }
                sum += value[i];
            }
        }
    }
    leave(end);
}

// How many of the sorted units are below one.
__device__ inline int64_t samples_below(const UnitSums& args, int64_t unit) {
    int64_t low = 0, high = args.samples;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (args.keys[middle] < unit) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

// A thread has a feature of a unit.
__global__ void __launch_bounds__(kThreads, 1) units_kernel(const __grid_constant__ UnitSums args) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t pieces = args.features > 0 ? (args.features + kWarp - 1) / kWarp : 1;
    const int64_t item = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp, unit = item / pieces;
    const int64_t d = item % pieces * kWarp + lane;
    if (unit >= args.units) {
        return;
    }
    const int64_t begin = samples_below(args, unit), end = samples_below(args, unit + 1);
    if (d == 0) {
        args.counts[unit] = end - begin;
    }
    if (d >= args.features) {
        return;
    }
    if (begin == end) {
        args.sums[unit * args.features + d] = 0;
        return;
    }
    const int64_t run = begin / kRun, last = (end - 1) / kRun;
    if (run == last) {
        return;
    }
    double sum = part_of(args, run, begin % kRun == 0)[d];
#pragma unroll 8
    for (int64_t next = run + 1; next <= last; ++next) {
        sum += part_of(args, next, true)[d];
    }
    args.sums[unit * args.features + d] = sum;
}

}  // namespace

cudaError_t unit_keys(const UnitKeys& args, cudaStream_t stream) {
    cudaError_t error = cudaMemsetAsync(args.wrong, 0, sizeof(int32_t), stream);
    return error == cudaSuccess ? launch_items(keys_kernel, args.samples, stream, args, args.samples) : error;
}

size_t unit_sums_workspace(const UnitSums& args) {
    return static_cast<size_t>(2 * ((args.samples + kRun - 1) / kRun) * args.features) * sizeof(double);
}

cudaError_t unit_sums(const UnitSums& args, cudaStream_t stream) {
    const int64_t pieces = (args.features + kWarp - 1) / kWarp;
    const auto blocks = [](int64_t warps) { return dim3(static_cast<unsigned>((warps + kWarps - 1) / kWarps)); };
    cudaError_t error = cudaSuccess;
    if (const int64_t warps = (args.samples + kRun - 1) / kRun * pieces; warps > 0) {
        error = for_types(args.dtype, [&]<class T>() {
            return launch(runs_kernel<T>, blocks(warps), dim3(kThreads), 0, stream, args);
        });
    }
    if (const int64_t warps = args.units * (pieces > 0 ? pieces : 1); error == cudaSuccess && warps > 0) {
        error = launch(units_kernel, blocks(warps), dim3(kThreads), 0, stream, args);
    }
    return error;
}

}  // namespace pykernels::cuda
