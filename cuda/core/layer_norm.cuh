// Rows that threads hold in registers, for layer norm: who has which columns, sums over a row, dropout's factors. Plain
// device code over the primitives of common.cuh.
//
// A row belongs to a warp, or to a block. Its columns come in packs of kPack neighbours, 16 bytes or a single column;
// thread t has packs t, t + kThreads and so on.
#pragma once

#include "csrc/core/philox.h"
#include "cuda/core/for_types.cuh"
#include "cuda/kernels/layer_norm.h"

namespace pykernels::cuda {

constexpr int kRowWarps = 4;         // of a block whose warps have rows of their own
constexpr int kStreamThreads = 512;  // of a row that is too long to be held
constexpr int kDropoutBlock = 64;    // columns that share 16 counters
constexpr int kDropoutCounters = 16;

template <class T>
constexpr int kWholePack = 16 / static_cast<int>(sizeof(T));

// kHeld packs a thread, at most; kThreads a row.
template <class T_, int kPack_, int kHeld_, int kThreads_>
struct HeldRow {
    using T = T_;
    using A = Accumulator<T>;
    static constexpr int kPack = kPack_, kHeld = kHeld_, kThreads = kThreads_;
    static constexpr int kWarps = kThreads / kWarp;
    static constexpr int kAtOnce = kThreads == kWarp ? kRowWarps : 1;  // rows of a block
    static constexpr int kBlock = kThreads * kAtOnce;
    static constexpr int64_t kColumns = int64_t{kThreads} * kHeld * kPack;
    using Packs = Pack<T, kPack>[kHeld];

    __device__ static int thread() { return static_cast<int>(threadIdx.x) % kThreads; }
    __device__ static int place() { return static_cast<int>(threadIdx.x) / kThreads; }  // among the block's rows
    __device__ static int column(int held) { return (held * kThreads + thread()) * kPack; }

    // Calls visit(held, column) for the packs that the thread has.
    template <class Visit>
    __device__ static void each(int columns, const Visit& visit) {
#pragma unroll
        for (int held = 0; held < kHeld; ++held) {
            if (const int first = column(held); first < columns) {
                visit(held, first);
            }
        }
    }
    __device__ static void load(Packs& packs, const T* row, int columns) {
        each(columns, [&](int held, int first) { packs[held] = load_pack_once<kPack>(row + first); });
    }
    __device__ static void stay(Packs& packs) {
#pragma unroll
        for (int held = 0; held < kHeld; ++held) {
            stay_packed(packs[held]);
        }
    }
};

template <class T>
__device__ inline const T* row_of(const LayerNormRows& rows, int64_t row) {
    return static_cast<const T*>(rows.data) + row * rows.stride;
}

// Of a weight or bias; `otherwise` where there is none.
template <class T, int kPack>
__device__ Pack<Accumulator<T>, kPack> parameter_at(const LayerNormParameter& parameter, int64_t column,
                                                    Accumulator<T> otherwise) {
    using A = Accumulator<T>;
    if (sizeof(T) != sizeof(A) && parameter.data != nullptr && parameter.wide) {
        return load_pack<kPack>(static_cast<const A*>(parameter.data) + column);
    }
    Pack<T, kPack> stored;
    if (parameter.data != nullptr) {
        stored = load_pack<kPack>(static_cast<const T*>(parameter.data) + column);
    }
    A values[kPack];
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
        values[e] = parameter.data != nullptr ? stored.at(e) : otherwise;
    }
    return Pack<A, kPack>::of(values);
}

// Replaces each value by its sum over a row's threads, always in the same order. `scratch` is of kCount * warps and
// still read until the next barrier of the block.
template <int kThreads, int kCount, class A>
__device__ void sum_over_row(A (&value)[kCount], A* scratch) {
    constexpr int kWarps = kThreads / kWarp;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
        for (int lane_xor = kWarp / 2; lane_xor >= 1; lane_xor /= 2) {
            value[i] += shuffle_xor(value[i], lane_xor);
        }
    }
    if constexpr (kWarps > 1) {
        if (static_cast<int>(threadIdx.x) % kWarp == 0) {
#pragma unroll
            for (int i = 0; i < kCount; ++i) {
                scratch[i * kWarps + static_cast<int>(threadIdx.x) / kWarp] = value[i];
            }
        }
        block_barrier();  // the sums of the warps have been written
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            value[i] = scratch[i * kWarps];
#pragma unroll
            for (int warp = 1; warp < kWarps; ++warp) {
                value[i] += scratch[i * kWarps + warp];
            }
        }
    }
}

// Which of the elements from `column` on dropout keeps, bit e for element e. The four numbers of a counter are those of
// columns 16 apart, so the lanes that have a block of 64 columns compute its counters together: a whole warp calls,
// with neighbouring packs.
template <int kPack>
__device__ uint32_t kept_of_pack(const DropoutRule& rule, uint32_t row, int64_t column) {
    const auto draw = [&](int place, uint32_t (&numbers)[4]) {
        const auto counter = static_cast<uint32_t>(column / kDropoutBlock * kDropoutCounters + place);
        philox(rule.key, uint64_t{row} << 32 | counter, 0, numbers);
    };
    uint32_t numbers[4];
    if constexpr (kPack == 1) {
        draw(static_cast<int>(column % kDropoutCounters), numbers);
        const int which = static_cast<int>(column % kDropoutBlock) / kDropoutCounters;
        const uint32_t first = which == 0 ? numbers[0] : numbers[1], last = which == 2 ? numbers[2] : numbers[3];
        return (which < 2 ? first : last) >= rule.below ? 1 : 0;
    } else {
        constexpr int kLanes = kDropoutBlock / kPack;  // of a block
        constexpr int kDrawing = kLanes < kDropoutCounters ? kLanes : kDropoutCounters;
        const int lane = static_cast<int>(threadIdx.x) % kLanes;
        uint32_t low = 0, high = 0;
#pragma unroll
        for (int i = 0; i < kDropoutCounters / kDrawing; ++i) {
            const int place = lane % kDrawing + i * kDrawing;
            draw(place, numbers);
            low |= (numbers[0] >= rule.below ? 1u : 0u) << place | (numbers[1] >= rule.below ? 0x10000u : 0u) << place;
            high |= (numbers[2] >= rule.below ? 1u : 0u) << place | (numbers[3] >= rule.below ? 0x10000u : 0u) << place;
        }
#pragma unroll
        for (int lane_xor = kDrawing / 2; lane_xor >= 1; lane_xor /= 2) {
            low |= shuffle_xor(low, lane_xor);
            high |= shuffle_xor(high, lane_xor);
        }
        const int first = lane * kPack;
        return (first < 32 ? low : high) >> first % 32 & ((1u << kPack) - 1);
    }
}

// The same of all packs of a held row: bit held * kPack + e. A loop, as ten rounds are long.
template <class Row>
__device__ uint64_t kept_of_row(const DropoutRule& rule, int64_t row, int columns) {
    static_assert(Row::kHeld * Row::kPack <= 64);
    uint64_t kept = 0;
    const int lane = Row::thread() % kWarp;
#pragma unroll 1
    for (int held = 0; held < Row::kHeld && Row::column(held) - lane * Row::kPack < columns; ++held) {
        const uint32_t own = kept_of_pack<Row::kPack>(rule, static_cast<uint32_t>(row), Row::column(held));
        kept |= uint64_t{own} << held * Row::kPack;
    }
    return kept;
}

// Where rows start at multiples of 16 bytes.
inline bool has_packs(const void* data, int64_t stride_bytes) {
    return (reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(stride_bytes)) % 16 == 0;
}
inline bool has_packs(const LayerNormShape& shape, const LayerNormRows& rows) {
    return has_packs(rows.data, rows.data != nullptr && shape.rows > 1 ? rows.stride * storage_bytes(shape.dtype) : 0);
}

}  // namespace pykernels::cuda
