// What the kernels of Hopfield networks share: a block has a row.
#pragma once

#include "cuda/core/for_types.cuh"

namespace pykernels::cuda {

constexpr int kRowThreads = 256;
constexpr int kRowWarps = kRowThreads / kWarp;

// The sign of a field, or the state where there is none.
template <class A>
__device__ inline A hopfield_sign(A field, A state) {
    return field > A(0) ? A(1) : field < A(0) ? A(-1) : state;
}
// Whether that is another state.
template <class A>
__device__ inline bool is_change(A after, A before) {
    return after != before && after == after;
}

// The least of the threads' numbers, for all of them; `room` is shared, for one of each warp. Ends with all threads
// having read it, once they have come to the next barrier.
__device__ inline int least_of_block(int number, int* room) {
#pragma unroll
    for (int apart = kWarp / 2; apart > 0; apart /= 2) {
        const int other = shuffle_xor(number, apart);
        number = other < number ? other : number;
    }
    const int thread = static_cast<int>(threadIdx.x);
    if (thread % kWarp == 0) {
        room[thread / kWarp] = number;
    }
    block_barrier();
    int least = room[0];
#pragma unroll
    for (int warp = 1; warp < kRowWarps; ++warp) {
        least = room[warp] < least ? room[warp] : least;
    }
    return least;
}

// One sweep in order. All threads look at the next units together, and go on behind the first that changes:
// field_of(unit) is its field now, and change(unit, before, after) is called by all threads, between two barriers.
template <class T, class FieldOf, class Change>
__device__ bool sweep_in_order(const int64_t* order, int64_t units, T* state, int* room, const FieldOf& field_of,
                               const Change& change) {
    using A = Accumulator<T>;
    A* const values = reinterpret_cast<A*>(room + kRowWarps);  // before and after, of the unit that changes
    const int thread = static_cast<int>(threadIdx.x);
    bool changed = false;
    for (int64_t t = 0; t < units;) {
        A before = 0, after = 0;
        if (t + thread < units) {
            const int64_t unit = order[t + thread];
            before = to_accumulator(state[unit]);
            after = hopfield_sign<A>(field_of(unit), before);
        }
        const int first = least_of_block(is_change(after, before) ? thread : kRowThreads, room);
        if (first == thread) {
            values[0] = before;
            values[1] = after;
            state[order[t + thread]] = to_storage<T>(after);
        }
        block_barrier();
        if (first < kRowThreads) {
            change(order[t + first], values[0], values[1]);
            changed = true;
            block_barrier();
        }
        t += first < kRowThreads ? first + 1 : kRowThreads;
    }
    return changed;
}
constexpr size_t kSweepShared = kRowWarps * sizeof(int) + 2 * sizeof(double);

}  // namespace pykernels::cuda
