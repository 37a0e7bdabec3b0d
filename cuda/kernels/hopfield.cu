// Hopfield networks by their weight: fields of all units as a tiled product that ends in signs, and sweeps in order by
// one block a row, whose fields follow the flips.
#include "cuda/kernels/hopfield.h"

#include <algorithm>

#include "csrc/core/shuffle.h"
#include "cuda/core/hopfield.cuh"

namespace pykernels::cuda {
namespace {

// A block has kTile rows of as many units, a thread kOwn by kOwn of them, and kDeep summed units at a time.
constexpr int kTile = 64, kOwn = 4, kDeep = 16, kAcross = kTile / kOwn;
static_assert(kAcross * kAcross == kRowThreads);

// A tile of rows as [kDeep][kTile], zeros outside.
template <class T>
__device__ void stage(Accumulator<T>* tile, const T* rows, int64_t first, int64_t count, int64_t k0, int64_t depth) {
    for (int i = static_cast<int>(threadIdx.x); i < kTile * kDeep; i += kRowThreads) {
        const int64_t row = first + i / kDeep, k = k0 + i % kDeep;
        tile[i % kDeep * (kTile + 1) + i / kDeep] =
            row < count && k < depth ? to_accumulator(rows[row * depth + k]) : Accumulator<T>(0);
    }
}

template <class T, bool kRaw>
__global__ void __launch_bounds__(kRowThreads, 1) fields_kernel(const __grid_constant__ HopfieldFields args) {
    using A = Accumulator<T>;
    A* const rows = reinterpret_cast<A*>(shared_memory());
    A* const columns = rows + kDeep * (kTile + 1);
    const auto* state = static_cast<const T*>(args.state);
    const int64_t tiles = (args.units + kTile - 1) / kTile;
    const int64_t row0 = blockIdx.x / tiles * kTile, unit0 = blockIdx.x % tiles * kTile;
    const int across = static_cast<int>(threadIdx.x) % kAcross, down = static_cast<int>(threadIdx.x) / kAcross;
    A sum[kOwn][kOwn] = {};
    for (int64_t k0 = 0; k0 < args.units; k0 += kDeep) {
        block_barrier();  // the last tile has been read
        stage(rows, state, row0, args.batch, k0, args.units);
        stage(columns, static_cast<const T*>(args.weight), unit0, args.units, k0, args.units);
        block_barrier();
#pragma unroll
        for (int k = 0; k < kDeep; ++k) {
            A y[kOwn], w[kOwn];
#pragma unroll
            for (int i = 0; i < kOwn; ++i) {
                y[i] = rows[k * (kTile + 1) + down + i * kAcross];
                w[i] = columns[k * (kTile + 1) + across + i * kAcross];
            }
#pragma unroll
            for (int i = 0; i < kOwn; ++i) {
#pragma unroll
                for (int j = 0; j < kOwn; ++j) {
                    sum[i][j] += y[i] * w[j];
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
#pragma unroll
        for (int j = 0; j < kOwn; ++j) {
            const int64_t row = row0 + down + i * kAcross, unit = unit0 + across + j * kAcross;
            if (row < args.batch && unit < args.units) {
                const int64_t at = row * args.units + unit;
                if constexpr (kRaw) {
                    static_cast<A*>(args.next)[at] = sum[i][j];
                } else {
                    static_cast<T*>(args.next)[at] =
                        to_storage<T>(hopfield_sign<A>(sum[i][j], to_accumulator(state[at])));
                }
            }
        }
    }
}

template <class T>
__global__ void __launch_bounds__(kRowThreads) ending_kernel(const __grid_constant__ HopfieldEnding args) {
    using A = Accumulator<T>;
    int* const room = reinterpret_cast<int*>(shared_memory());
    const int64_t row = blockIdx.x, first = row * args.units;
    const T* const now = static_cast<const T*>(args.now) + first;
    T* const next = static_cast<T*>(args.next) + first;
    const bool ended = args.period[row] != 0;
    int same = 3;  // bit 0: as it was, bit 1: as it was before that
    for (int64_t i = threadIdx.x; i < args.units; i += kRowThreads) {
        if (ended) {
            next[i] = now[i];
            continue;
        }
        const A is = to_accumulator(next[i]), was = to_accumulator(now[i]);
        same &= ~(is_change(is, was) ? 1 : 0);
        if (args.before != nullptr) {
            same &= ~(is_change(is, to_accumulator(static_cast<const T*>(args.before)[first + i])) ? 2 : 0);
        }
    }
    const int one = least_of_block(same & 1, room);
    block_barrier();
    const int two = least_of_block(same >> 1, room);
    if (threadIdx.x == 0 && !ended) {
        args.sweeps[row] = args.sweep + 1;
        args.period[row] = one != 0 ? 1 : two != 0 && args.before != nullptr ? 2 : 0;
    }
}

// How many rows go on, by one block.
__global__ void __launch_bounds__(kRowThreads) going_kernel(const int64_t* period, int64_t batch, int64_t* going) {
    int* const room = reinterpret_cast<int*>(shared_memory());
    int ended = 1;
    for (int64_t row = threadIdx.x; row < batch; row += kRowThreads) {
        ended &= period[row] != 0 ? 1 : 0;
    }
    const int all = least_of_block(ended, room);
    if (threadIdx.x == 0) {
        *going = all != 0 ? 0 : 1;
    }
}

__global__ void __launch_bounds__(kWarp) orders_kernel(uint64_t key, int64_t count, int64_t units, int64_t* orders) {
    const int64_t number = int64_t{blockIdx.x} * kWarp + threadIdx.x;
    if (number < count) {
        shuffle(key, static_cast<uint32_t>(number), units, orders + number * units);
    }
}

template <class T>
__global__ void __launch_bounds__(kRowThreads) in_order_kernel(const __grid_constant__ HopfieldInOrder args) {
    using A = Accumulator<T>;
    int* const room = reinterpret_cast<int*>(shared_memory());
    const int64_t row = blockIdx.x;
    A* const fields = static_cast<A*>(args.fields) + row * args.units;
    T* const state = static_cast<T*>(args.state) + row * args.units;
    int64_t sweep = 0;
    bool changed = true;
    for (; changed && sweep < args.most; ++sweep) {
        const int64_t* const order = args.order.data + sweep * args.order.sweep_stride + row * args.order.row_stride;
        changed = sweep_in_order<T>(
            order, args.units, state, room, [&](int64_t unit) { return fields[unit]; },
            [&](int64_t unit, A before, A after) {
                const T* const outgoing = static_cast<const T*>(args.outgoing) + unit * args.units;
                for (int64_t i = threadIdx.x; i < args.units; i += kRowThreads) {
                    fields[i] += (after - before) * to_accumulator(outgoing[i]);
                }
            });
    }
    if (threadIdx.x == 0) {
        args.sweeps[row] = sweep;
        args.period[row] = changed ? 0 : 1;
    }
}

dim3 blocks(int64_t count) { return dim3(static_cast<unsigned>(count)); }

}  // namespace

cudaError_t hopfield_fields(const HopfieldFields& args, cudaStream_t stream) {
    const auto tiles = [](int64_t count) { return (count + kTile - 1) / kTile; };
    return for_types(args.dtype, [&]<class T>() {
        return launch(args.raw ? fields_kernel<T, true> : fields_kernel<T, false>,
                      blocks(tiles(args.batch) * tiles(args.units)), dim3(kRowThreads),
                      2 * kDeep * (kTile + 1) * sizeof(Accumulator<T>), stream, args);
    });
}

cudaError_t hopfield_ending(const HopfieldEnding& args, cudaStream_t stream) {
    const cudaError_t error = for_types(args.dtype, [&]<class T>() {
        return launch(ending_kernel<T>, blocks(args.batch), dim3(kRowThreads), kSweepShared, stream, args);
    });
    if (error != cudaSuccess) {
        return error;
    }
    return launch(going_kernel, dim3(1), dim3(kRowThreads), kSweepShared, stream, args.period, args.batch, args.going);
}

cudaError_t hopfield_orders(uint64_t key, int64_t count, int64_t units, int64_t* orders, cudaStream_t stream) {
    return launch(orders_kernel, blocks((count + kWarp - 1) / kWarp), dim3(kWarp), 0, stream, key, count, units,
                  orders);
}

cudaError_t hopfield_in_order(const HopfieldInOrder& args, cudaStream_t stream) {
    return for_types(args.dtype, [&]<class T>() {
        return launch(in_order_kernel<T>, blocks(args.batch), dim3(kRowThreads), kSweepShared, stream, args);
    });
}

}  // namespace pykernels::cuda
