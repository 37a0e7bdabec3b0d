// Sample-by-sample learning. Each block has some of the units, in its shared memory where they fit, and reads them once
// for each sample: a unit is moved towards the last one and measured against the next. Blocks tell each other their
// best units through global memory.
#include "cuda/kernels/som.h"

#include <algorithm>
#include <cmath>

#include "cuda/core/for_types.cuh"

namespace pykernels::cuda {
namespace {

constexpr int kMostThreads = 512, kMostWarps = kMostThreads / kWarp;
constexpr int64_t kMostSomBlocks = 256;
constexpr int64_t kGrain = 1 << 15;  // values of the codebook worth a block, with a grid barrier for each sample
constexpr int64_t kUsualBlocks = 128, kUsualBytes = 160 << 10;  // of a device, and of a block's shared memory
constexpr int64_t kStagedSamples = 32;                          // that wait in shared memory
constexpr int64_t kStagedBytes = 16 << 10;

// The best unit so far: the lowest of those equally far away; what is not a number never is.
template <class A>
struct Winner {
    A measure = static_cast<A>(INFINITY);
    int64_t unit = INT64_MAX;

    __device__ void consider(const Winner& other) {
        if (other.measure < measure || (other.measure == measure && other.unit < unit)) {
            *this = other;
        }
    }
    __device__ bool found() const { return unit != INT64_MAX; }
};

// How a call is laid out. Lanes: neighbouring ones that share a unit.
struct SomPlan {
    SomLearn call;
    int64_t blocks, own;  // units of a block
    int lanes;
    bool held;               // units stay in shared memory, rows `stride` apart
    int64_t stride, staged;  // samples that are staged at one time, or 0: they are read where they are
    int64_t row;             // values from one staged sample to the next, a multiple of four
    int threads;
    size_t shared;
    unsigned long long* counter;
    void* winners;  // [2, blocks]
};

template <class A>
struct SomShared {
    const SomPlan& plan;
    __device__ Winner<A>* winners(int64_t n) const {  // of the warps
        return reinterpret_cast<Winner<A>*>(shared_memory()) + n % 2 * kMostWarps;
    }
    __device__ A* samples() const { return reinterpret_cast<A*>(winners(0) + 2 * kMostWarps); }
    __device__ A* pulls() const {  // of the samples, two numbers each
        return samples() + (plan.staged > 0 ? (plan.staged + 1) * plan.row : 0);
    }
    __device__ A* units() const { return pulls() + (plan.staged > 0 ? 2 * (plan.staged + 1) : 0); }
};

// The best of the warp, in all lanes.
template <class A>
__device__ inline Winner<A> best_of_warp(Winner<A> best) {
#pragma unroll
    for (int lane_xor = 1; lane_xor < kWarp; lane_xor *= 2) {
        best.consider({shuffle_xor(best.measure, lane_xor), shuffle_xor(best.unit, lane_xor)});
    }
    return best;
}

// The best unit of sample n, in all threads. (What others still read of the sample before is not overwritten, as they
// are one sample behind at the most.)
template <class A>
__device__ Winner<A> best_of_all(const SomPlan& plan, const SomShared<A>& shared, int64_t n, const Winner<A>& own) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warps = plan.threads / kWarp;
    const Winner<A> of_warp = best_of_warp(own);
    if (lane == 0) {
        shared.winners(n)[threadIdx.x / kWarp] = of_warp;
    }
    block_barrier();  // the best of the warps have been written
    Winner<A> best = best_of_warp(lane < warps ? shared.winners(n)[lane] : Winner<A>{});
    if (plan.blocks > 1) {
        auto* winners = static_cast<Winner<A>*>(plan.winners) + n % 2 * plan.blocks;
        if (threadIdx.x == 0) {
            winners[blockIdx.x] = best;
        }
        grid_barrier(plan.counter, static_cast<unsigned long long>(plan.blocks));
        best = {};
        for (int64_t block = lane; block < plan.blocks; block += kWarp) {
            best.consider({load_coherent(&winners[block].measure), load_coherent(&winners[block].unit)});
        }
        best = best_of_warp(best);
    }
    return best;
}

// How sample n moves units: squares on the grid are compared with `reach`, or multiplied by it.
template <class A>
struct Pull {
    static constexpr A kRounding = std::is_same_v<A, double> ? A(0x1p-55) : A(0x1p-26);  // an eighth of a last digit
    A reach, rate;

    __device__ static Pull of(const SomLearn& call, int64_t n) {
        const double sigma = call.sigma[n], squares = sigma * sigma;
        const bool bubble = call.neighbourhood == Neighbourhood::kBubble;
        return {bubble ? static_cast<A>(squares * (1 + 1e-9)) * (1 + 64 * kRounding) : static_cast<A>(1 / squares),
                static_cast<A>(call.rate[n])};
    }
    // How far a unit moves.
    __device__ A step(const SomLearn& call, int64_t unit, int64_t best) const {
        A squares = 0;
#pragma unroll
        for (int axis = 0; axis < 2; ++axis) {
            const A period = static_cast<A>(call.periods[axis]);
            A apart = absolute(static_cast<A>(call.coordinates[2 * unit + axis]) -
                               static_cast<A>(call.coordinates[2 * best + axis]));
            if (period > 0) {
                apart = minimum(apart, period - apart);
            }
            squares += apart * apart;
        }
        A share;
        if (call.neighbourhood == Neighbourhood::kBubble) {
            share = squares > reach ? A(0) : A(1);
        } else {
            const A scaled = squares * reach;
            share = exponential(scaled * static_cast<A>(-0.5));
            if (call.neighbourhood == Neighbourhood::kMexicanHat) {
                share *= 1 - scaled * (A(1) / static_cast<A>(call.dimensions));
            }
        }
        const A step = share * rate;
        return absolute(step) > kRounding ? step : A(0);  // (less than what the sum would keep)
    }
};

// One unit: moved by a step towards x, unless that is zero, and measured against the next sample. Its lanes get the
// same measure.
template <class A, Metric kMetric>
__device__ A move_and_measure(const SomPlan& plan, A* w, A step, const A* x, const A* next, int place) {
    const auto features = static_cast<int>(plan.call.features);
    const A* low = static_cast<const A*>(plan.call.bounds);
    const bool moves = step != 0;
    A sum = 0, of_unit = 0, of_next = 0;
    const auto feature = [&](int d, A towards, A other) {
        A value = w[d];
        if (moves) {
            value += step * (towards - value);
            if (low != nullptr) {
                value = value < low[d] ? low[d] : value > low[features + d] ? low[features + d] : value;
            }
            w[d] = value;
        }
        if constexpr (kMetric == Metric::kCosine) {
            sum += other * value;
            of_unit += value * value;
            of_next += other * other;
        } else {
            const A apart = other - value;
            sum += kMetric == Metric::kEuclidean ? apart * apart : absolute(apart);
        }
    };
    if (plan.lanes == 1 && plan.staged > 0) {  // samples are read by fours
        int d = 0;
#pragma unroll 1
        for (; d + 4 <= features; d += 4) {
            const auto towards = *reinterpret_cast<const Quad<A>*>(x + d);
            const auto other = *reinterpret_cast<const Quad<A>*>(next + d);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                feature(d + e, towards.value[e], other.value[e]);
            }
        }
        for (; d < features; ++d) {
            feature(d, x[d], next[d]);
        }
    } else {
#pragma unroll 2
        for (int d = place; d < features; d += plan.lanes) {
            feature(d, x[d], next[d]);
        }
    }
    for (int lane_xor = 1; lane_xor < plan.lanes; lane_xor *= 2) {
        sum += shuffle_xor(sum, lane_xor);
        if constexpr (kMetric == Metric::kCosine) {
            of_unit += shuffle_xor(of_unit, lane_xor);
            of_next += shuffle_xor(of_next, lane_xor);
        }
    }
    if constexpr (kMetric != Metric::kCosine) {
        return sum;
    }
    const A norms = square_root(of_unit * of_next);
    return 1 - (norms > 0 ? sum / norms : norms * sum);  // (0, or not a number)
}

template <class A, Metric kMetric>
__global__ void __launch_bounds__(kMostThreads, 1) learn_kernel(const __grid_constant__ SomPlan plan) {
    const SomLearn& call = plan.call;
    const SomShared<A> shared{plan};
    const int64_t first = blockIdx.x * plan.own;
    const int64_t units = first + plan.own < call.units ? plan.own : call.units > first ? call.units - first : 0;
    A* codebook = static_cast<A*>(call.codebook) + first * call.features;
    const A* input = static_cast<const A*>(call.input);
    A* const own = plan.held ? shared.units() : codebook;
    const auto thread = static_cast<int>(threadIdx.x);
    // (A warp has whole units, and all its lanes come to each.)
    const int place = thread % plan.lanes, at_once = plan.threads / plan.lanes;
    const int of_thread = thread / plan.lanes, of_warp = thread / kWarp * (kWarp / plan.lanes);
    const auto copy_units = [&](A* to, int64_t to_stride, const A* from, int64_t from_stride) {
        for (int64_t i = thread; i < units * call.features; i += plan.threads) {
            const int64_t unit = i / call.features, d = i % call.features;
            to[unit * to_stride + d] = from[unit * from_stride + d];
        }
    };
    if (plan.held) {
        copy_units(own, plan.stride, codebook, call.features);
    }
    int64_t staged = 0;  // the first sample that is
    const auto stage = [&](int64_t from) {
        staged = from;
        const int64_t left = call.samples - from, count = left < plan.staged + 1 ? left : plan.staged + 1;
        for (int64_t i = thread; i < count * call.features; i += plan.threads) {
            shared.samples()[i / call.features * plan.row + i % call.features] = input[from * call.features + i];
        }
        for (int64_t i = thread; i < count; i += plan.threads) {
            const auto pull = Pull<A>::of(call, from + i);
            shared.pulls()[2 * i] = pull.reach;
            shared.pulls()[2 * i + 1] = pull.rate;
        }
    };
    const auto sample = [&](int64_t n) {
        return plan.staged > 0 ? shared.samples() + (n - staged) * plan.row : input + n * call.features;
    };
    if (plan.staged > 0) {
        stage(0);
    }
    block_barrier();  // units and samples are there

    // All units, after sample n and before sample n + 1.
    const auto pass = [&](int64_t n, int64_t best) {
        const A* x = sample(n >= 0 ? n : 0);
        const A* next = sample(n + 1 < call.samples ? n + 1 : n);  // (the last measures are of no use)
        Pull<A> pull{};
        if (n >= 0) {
            const A* numbers = shared.pulls() + 2 * (n - staged);
            pull = plan.staged > 0 ? Pull<A>{numbers[0], numbers[1]} : Pull<A>::of(call, n);
        }
        Winner<A> winner;
        for (int64_t begin = of_warp; begin < units; begin += at_once) {
            const int64_t unit = begin + of_thread - of_warp;
            const bool there = unit < units;
            A* w = own + (there ? unit : units - 1) * plan.stride;
            const A step = there && best != INT64_MAX ? pull.step(call, first + unit, best) : A(0);
            const A measure = move_and_measure<A, kMetric>(plan, w, step, x, next, place);
            if (there) {
                winner.consider({measure, first + unit});
            }
        }
        return winner;
    };
    Winner<A> winner = pass(-1, INT64_MAX);
    for (int64_t n = 0; n < call.samples; ++n) {
        const Winner<A> best = best_of_all(plan, shared, n, winner);
        if (blockIdx.x == 0 && thread == 0) {
            const A measure = call.metric == Metric::kEuclidean ? square_root(best.measure) : best.measure;
            static_cast<A*>(call.distance)[n] = !best.found() ? static_cast<A>(NAN) : measure < 0 ? A(0) : measure;
        }
        if (plan.staged > 0 && n + 1 == staged + plan.staged && n + 1 < call.samples) {
            winner = pass(n, best.unit);
            block_barrier();  // the samples have been used
            stage(n + 1);
            block_barrier();  // the next ones are there
        } else {
            winner = pass(n, best.unit);
        }
    }
    if (plan.held) {
        block_barrier();  // the units have moved
        copy_units(codebook, call.features, own, plan.stride);
    }
}

template <class A>
SomPlan plan_of(const SomLearn& call, int64_t most_blocks, size_t most_shared) {
    SomPlan plan{};
    plan.call = call;
    const auto up = [](int64_t count, int64_t of) { return (count + of - 1) / of; };
    const int64_t values = call.units * call.features, size = sizeof(A);
    const int64_t winners = 2 * kMostWarps * static_cast<int64_t>(sizeof(Winner<A>));
    plan.row = up(call.features, 4) * 4;
    plan.staged = std::min(kStagedSamples, kStagedBytes / std::max<int64_t>(plan.row * size, 1) - 1);
    plan.staged = std::max<int64_t>(plan.staged, 0);
    const int64_t samples = plan.staged > 0 ? (plan.staged + 1) * (plan.row + 2) * size : 0;
    const int64_t room = static_cast<int64_t>(most_shared) - winners - samples;
    // How lanes share a sum depends on nothing but the map. Where no device has room for it, neighbouring lanes read
    // neighbours.
    const int64_t usual = up(call.units, std::clamp<int64_t>(values / kGrain, 1, kUsualBlocks));
    const bool large = values * size > kUsualBlocks * kUsualBytes;
    plan.lanes = 1;
    while (plan.lanes < kWarp && plan.lanes < call.features && (large || usual * plan.lanes * 2 <= kMostThreads)) {
        plan.lanes *= 2;
    }
    // Of the numbers of blocks that are worth it the least whose units fit.
    const int64_t worth = std::clamp<int64_t>(values / kGrain, 1, std::min(most_blocks, call.units));
    const auto lay_out = [&](int64_t blocks) {
        plan.own = up(call.units, blocks);
        plan.blocks = up(call.units, plan.own);
        plan.stride = std::max<int64_t>(up(call.features, plan.lanes), 1);
        plan.stride = (plan.stride + (plan.stride % 2 == 0 ? 1 : 0)) * plan.lanes;  // neighbours in different banks
        plan.held = plan.own * plan.stride * size <= room;
    };
    lay_out(worth);
    for (int64_t blocks = worth; !plan.held && blocks < std::min(most_blocks, call.units);) {
        blocks = std::min({2 * blocks, most_blocks, call.units});
        lay_out(blocks);
    }
    if (!plan.held) {
        plan.stride = call.features;
    }
    plan.threads = static_cast<int>(std::clamp<int64_t>(up(plan.own * plan.lanes, kWarp) * kWarp, kWarp, kMostThreads));
    plan.shared = static_cast<size_t>(winners + samples + (plan.held ? plan.own * plan.stride * size : 0));
    return plan;
}

template <class A, Metric kMetric>
cudaError_t run(const SomLearn& call, cudaStream_t stream) {
    const auto kernel = learn_kernel<A, kMetric>;
    size_t shared = 0;
    int64_t blocks = 0;
    cudaError_t error = shared_memory_limit(&shared);
    if (error == cudaSuccess) {
        error = max_resident_blocks(kernel, kMostThreads, shared, &blocks);
    }
    if (error != cudaSuccess) {
        return error;
    }
    SomPlan plan = plan_of<A>(call, std::clamp<int64_t>(blocks, 1, kMostSomBlocks), shared);
    plan.counter = static_cast<unsigned long long*>(call.workspace);
    plan.winners = static_cast<unsigned char*>(call.workspace) + 16;
    const dim3 grid(static_cast<unsigned>(plan.blocks)), block(static_cast<unsigned>(plan.threads));
    if (plan.blocks == 1) {
        return launch(kernel, grid, block, plan.shared, stream, plan);
    }
    error = cudaMemsetAsync(plan.counter, 0, sizeof(*plan.counter), stream);
    return error == cudaSuccess ? launch_cooperative(kernel, grid, block, plan.shared, stream, plan) : error;
}

}  // namespace

size_t som_workspace(const SomLearn&) { return 16 + 2 * kMostSomBlocks * sizeof(Winner<double>); }

cudaError_t som_learn(const SomLearn& args, cudaStream_t stream) {
    if (args.samples == 0) {
        return cudaSuccess;
    }
    const auto start = [&]<class A>() {
        return args.metric == Metric::kEuclidean ? run<A, Metric::kEuclidean>(args, stream)
               : args.metric == Metric::kCosine  ? run<A, Metric::kCosine>(args, stream)
                                                 : run<A, Metric::kManhattan>(args, stream);
    };
    return args.dtype == DType::f64 ? start.template operator()<double>() : start.template operator()<float>();
}

}  // namespace pykernels::cuda
