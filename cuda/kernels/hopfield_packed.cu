// Hopfield networks by the bits of their patterns: a block has a row, and all its sweeps. A field is the sum of the
// overlaps, each with the sign that the pattern has at the unit; a flip changes every overlap.
#include "cuda/core/hopfield.cuh"
#include "cuda/kernels/hopfield.h"

namespace pykernels::cuda {
namespace {

// For each unit the patterns that have it set, 32 of them a thread.
__global__ void __launch_bounds__(kRowThreads) sets_kernel(const __grid_constant__ HopfieldPacked args) {
    const int64_t words = hopfield_words(args.count), unit_words = (args.units + 63) / 64;
    const int64_t i = int64_t{blockIdx.x} * kRowThreads + threadIdx.x;
    if (i >= args.units * words) {
        return;
    }
    const int64_t unit = i % args.units, word = i / args.units;
    uint32_t set = 0;
    for (int64_t k = 0; k < 32 && word * 32 + k < args.count; ++k) {
        const int64_t bits = args.patterns[(word * 32 + k) * unit_words + unit / 64];
        set |= static_cast<uint32_t>(bits >> (unit % 64) & 1) << k;
    }
    args.sets[unit * words + word] = set;
}

template <class T>
__device__ int sign_of(T value) {
    const auto wide = to_accumulator(value);
    return (wide > 0 ? 1 : 0) - (wide < 0 ? 1 : 0);
}

// A block's row.
template <class T>
struct PackedRow {
    using A = Accumulator<T>;

    const HopfieldPacked& args;
    uint32_t *above, *below;  // [words of units]
    int32_t* overlaps;        // [count]

    __device__ PackedRow(const HopfieldPacked& call, int64_t row) : args(call) {
        const int64_t words = hopfield_words(args.units);
        above = args.signs + row * 2 * words;
        below = above + words;
        overlaps = args.overlaps + row * args.count;
    }

    // The overlaps of a state with all patterns. Ends with a barrier.
    __device__ void overlap(const T* state) const {
        const int64_t words = hopfield_words(args.units), unit_words = (args.units + 63) / 64;
        for (int64_t word = threadIdx.x; word < words; word += kRowThreads) {
            uint32_t high = 0, low = 0;
            for (int64_t i = 0; i < 32 && word * 32 + i < args.units; ++i) {
                const int sign = sign_of(state[word * 32 + i]);
                high |= static_cast<uint32_t>(sign > 0) << i;
                low |= static_cast<uint32_t>(sign < 0) << i;
            }
            above[word] = high;
            below[word] = low;
        }
        block_barrier();
        const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
        for (int64_t k = warp; k < args.count; k += kRowWarps) {
            int sum = 0;
            for (int64_t word = lane; word < words; word += kWarp) {
                const auto bits = static_cast<uint32_t>(args.patterns[k * unit_words + word / 2] >> (word % 2 * 32));
                sum += population_count(bits & above[word]) + population_count(~bits & below[word]) -
                       population_count(~bits & above[word]) - population_count(bits & below[word]);
            }
#pragma unroll
            for (int apart = kWarp / 2; apart > 0; apart /= 2) {
                sum += shuffle_xor(sum, apart);
            }
            if (lane == 0) {
                overlaps[k] = sum;
            }
        }
        block_barrier();
    }
    __device__ A field(int64_t unit, T state) const {
        const int64_t words = hopfield_words(args.count);
        int32_t sum = 0;
        for (int64_t word = 0; word < words; ++word) {
            const uint32_t set = args.sets[unit * words + word];
            const int64_t left = args.count - word * 32, here = left < 32 ? left : 32;
            for (int64_t k = 0; k < here; ++k) {
                const int32_t overlap = overlaps[word * 32 + k];
                sum += (set >> k & 1) != 0 ? overlap : -overlap;
            }
        }
        return static_cast<A>(sum - static_cast<int32_t>(args.count) * sign_of(state));
    }
    // A unit's state rose by `step`.
    __device__ void change(int64_t unit, int32_t step) const {
        const int64_t words = hopfield_words(args.count);
        for (int64_t k = threadIdx.x; k < args.count; k += kRowThreads) {
            overlaps[k] += (args.sets[unit * words + k / 32] >> (k % 32) & 1) != 0 ? step : -step;
        }
    }
};

template <class T>
__global__ void __launch_bounds__(kRowThreads) packed_in_order_kernel(const __grid_constant__ HopfieldPacked args) {
    using A = Accumulator<T>;
    int* const room = reinterpret_cast<int*>(shared_memory());
    const int64_t row = blockIdx.x;
    const PackedRow<T> rows(args, row);
    const T* const given = static_cast<const T*>(args.state) + row * args.units;
    T* const state = static_cast<T*>(args.out) + row * args.units;
    for (int64_t i = threadIdx.x; i < args.units; i += kRowThreads) {
        state[i] = given[i];
    }
    rows.overlap(given);
    int64_t sweep = 0;
    bool changed = true;
    for (; changed && sweep < args.most; ++sweep) {
        const int64_t* const order = args.order.data + sweep * args.order.sweep_stride + row * args.order.row_stride;
        changed = sweep_in_order<T>(
            order, args.units, state, room, [&](int64_t unit) { return rows.field(unit, state[unit]); },
            [&](int64_t unit, A before, A after) {
                rows.change(unit, static_cast<int32_t>(after) - ((before > A(0) ? 1 : 0) - (before < A(0) ? 1 : 0)));
            });
    }
    if (threadIdx.x == 0) {
        args.sweeps[row] = sweep;
        args.period[row] = changed ? 0 : 1;
    }
}

template <class T>
__global__ void __launch_bounds__(kRowThreads) packed_at_once_kernel(const __grid_constant__ HopfieldPacked args) {
    using A = Accumulator<T>;
    int* const room = reinterpret_cast<int*>(shared_memory());
    const int64_t row = blockIdx.x, size = args.batch * args.units;
    const PackedRow<T> rows(args, row);
    T* const kept = static_cast<T*>(args.kept) + row * args.units;
    const T* now = static_cast<const T*>(args.state) + row * args.units;
    const T* before = now;
    int64_t sweep = 0;
    int period = 0;
    do {
        T* const next = kept + sweep % 3 * size;
        rows.overlap(now);
        int same = 3;
        for (int64_t i = threadIdx.x; i < args.units; i += kRowThreads) {
            const A was = to_accumulator(now[i]), is = hopfield_sign<A>(rows.field(i, now[i]), was);
            same &= ~((is_change(is, was) ? 1 : 0) | (is_change(is, to_accumulator(before[i])) ? 2 : 0));
            next[i] = to_storage<T>(is);
        }
        const int one = least_of_block(same & 1, room);
        block_barrier();
        const int two = least_of_block(same >> 1, room);
        block_barrier();
        period = one != 0 ? 1 : two != 0 && sweep > 0 ? 2 : 0;
        before = now;
        now = next;
        ++sweep;
    } while (period == 0 && sweep < args.most);
    for (int64_t i = threadIdx.x; i < args.units; i += kRowThreads) {
        static_cast<T*>(args.out)[row * args.units + i] = now[i];
    }
    if (threadIdx.x == 0) {
        args.sweeps[row] = sweep;
        args.period[row] = period;
    }
}

}  // namespace

cudaError_t hopfield_packed(const HopfieldPacked& args, cudaStream_t stream) {
    const dim3 threads(kRowThreads);
    const int64_t words = args.units * hopfield_words(args.count);
    if (words > 0) {
        const dim3 grid(static_cast<unsigned>((words + kRowThreads - 1) / kRowThreads));
        if (cudaError_t error = launch(sets_kernel, grid, threads, 0, stream, args); error != cudaSuccess) {
            return error;
        }
    }
    return for_types(args.dtype, [&]<class T>() {
        return launch(args.at_once ? packed_at_once_kernel<T> : packed_in_order_kernel<T>,
                      dim3(static_cast<unsigned>(args.batch)), threads, kSweepShared, stream, args);
    });
}

}  // namespace pykernels::cuda
