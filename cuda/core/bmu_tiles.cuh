// The search where neither samples nor units stay in registers: a block has a tile of both and walks through their
// features, whose tiles arrive in a ring in shared memory; then it keeps the best groups of its units for each of its
// samples.
#pragma once

#include "cuda/core/bmu.cuh"
#include "cuda/core/mma.cuh"

namespace pykernels::cuda {

constexpr int kTileThreads = 256, kTileRing = 3;
constexpr int kStageChunks = 2, kStageBytes = kStageChunks * kRowChunkBytes;  // of a row
constexpr int kStagePieces = kStageBytes / 16;
constexpr int kStageStride = kStageBytes + 16;  // eight rows that are read together lie in different banks
constexpr int kWarpSamples = 64, kWarpUnits = 32;
constexpr int kUnitWarps = kUnitTile / kWarpUnits;
constexpr int kTileGroups = kUnitTile / kGroup, kGroupStride = kTileGroups + 1;
static_assert(kTileThreads / kWarp == kUnitWarps * kSampleTile / kWarpSamples);

struct BmuTileShared {
    static constexpr size_t kSlot = static_cast<size_t>(kSampleTile + kUnitTile) * kStageStride;
    static constexpr size_t kBytes = kTileRing * kSlot;
    static_assert(kBytes >= kSampleTile * kGroupStride * sizeof(float));

    __device__ static unsigned char* samples(int slot) { return shared_memory() + slot * kSlot; }
    __device__ static unsigned char* units(int slot) { return samples(slot) + kSampleTile * kStageStride; }
    // Once the ring has been used: scores of groups, of each sample.
    __device__ static float* groups() { return reinterpret_cast<float*>(shared_memory()); }
};

// The thread's share of a tile.
__device__ inline void stage_tile(const BmuSearch& search, int slot, int64_t first_sample, int64_t first_unit,
                                  int chunk) {
    const int piece = static_cast<int>(threadIdx.x) % kStagePieces, row = static_cast<int>(threadIdx.x) / kStagePieces;
    constexpr int kApart = kTileThreads / kStagePieces;
    const int64_t bytes = search.row_bytes;
    const bool inside = chunk + piece / (kStagePieces / kStageChunks) < search.chunks;
    const auto copy = [&](unsigned char* to, const unsigned char* from, int rows) {
        const unsigned char* source = from + row * bytes + (inside ? chunk * kRowChunkBytes + piece * 16 : 0);
#pragma unroll
        for (int i = 0; i < rows / kApart; ++i) {
            copy_later(to + (row + i * kApart) * kStageStride + piece * 16, source + i * kApart * bytes,
                       inside ? 16 : 0);
        }
    };
    copy(BmuTileShared::samples(slot), search.sample_rows + first_sample * bytes, kSampleTile);
    copy(BmuTileShared::units(slot), search.unit_rows + first_unit * bytes, kUnitTile);
}

// Sums: of 64 samples and 32 units, spread over a warp: sample g + 8 i and unit 2 q + j % 2 + 8 (j / 2) of lane
// 4 g + q at (i, j).
template <class Sums, int kHeld>
__global__ void __launch_bounds__(kTileThreads, 1) bmu_tiles_kernel(const __grid_constant__ BmuSearch search) {
    using Shared = BmuTileShared;
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    const int64_t unit_tile = blockIdx.x % search.parts;
    const int64_t first_sample = blockIdx.x / search.parts * kSampleTile, first_unit = unit_tile * kUnitTile;
    const int own_sample = warp / kUnitWarps * kWarpSamples, own_unit = warp % kUnitWarps * kWarpUnits;
    const int stages = (search.chunks + kStageChunks - 1) / kStageChunks;

    Sums sums;
#pragma unroll 1
    for (int stage = 0; stage < kTileRing - 1; ++stage) {
        if (stage < stages) {
            stage_tile(search, stage, first_sample, first_unit, stage * kStageChunks);
        }
        end_copy_group();
    }
    int slot = 0, next_slot = kTileRing - 1;
#pragma unroll 1
    for (int stage = 0; stage < stages; ++stage) {
        wait_for_copies<kTileRing - 2>();
        block_barrier();  // the tile is there, and the one before it has been used
        if (stage + kTileRing - 1 < stages) {
            stage_tile(search, next_slot, first_sample, first_unit, (stage + kTileRing - 1) * kStageChunks);
        }
        end_copy_group();
        sums.add(Shared::samples(slot) + own_sample * kStageStride, Shared::units(slot) + own_unit * kStageStride);
        slot = slot + 1 == kTileRing ? 0 : slot + 1;
        next_slot = next_slot + 1 == kTileRing ? 0 : next_slot + 1;
    }
    block_barrier();  // the tiles have been used

    // The best of each group.
    const int64_t bytes = search.row_bytes, own = int64_t{search.chunks} * kRowChunkBytes;
    const auto number_of = [&](const unsigned char* rows, int64_t row) {
        return *reinterpret_cast<const float*>(rows + row * bytes + own);
    };
#pragma unroll
    for (int half = 0; half < kWarpUnits / 16; ++half) {
        float start[kGroup];
#pragma unroll
        for (int e = 0; e < kGroup; ++e) {
            const int unit = half * 16 + e / 2 * 8 + lane % 4 * 2 + e % 2;
            start[e] = number_of(search.unit_rows, first_unit + own_unit + unit);
        }
#pragma unroll
        for (int i = 0; i < kWarpSamples / 8; ++i) {
            const int sample = own_sample + 8 * i + lane / 4;
            const float inverse = number_of(search.sample_rows, first_sample + sample);
            float best = -INFINITY;
#pragma unroll
            for (int e = 0; e < kGroup; ++e) {
                best = maximum(best, sums.at(i, half * kGroup + e) * inverse + start[e]);
            }
            Shared::groups()[sample * kGroupStride + own_unit / kGroup + half * 4 + lane % 4] = best;
        }
    }
    block_barrier();  // the groups' scores have been written

    const int sample = static_cast<int>(threadIdx.x);
    if (sample >= kSampleTile || first_sample + sample >= search.count) {
        return;
    }
    BestGroups<kHeld> best;
#pragma unroll 4
    for (int group = 0; group < kTileGroups; ++group) {
        best.template insert<true>(Shared::groups()[sample * kGroupStride + group],
                                   static_cast<int>(unit_tile) * kTileGroups + group);
    }
    best.store(BestGroups<kHeld>::place(search, unit_tile, first_sample + sample));
}

template <class Sums>
cudaError_t launch_bmu_tiles(const BmuSearch& search, cudaStream_t stream) {
    const int64_t blocks = (search.count + kSampleTile - 1) / kSampleTile * search.parts;
    return for_held(search.held, [&]<int kHeld>() {
        return launch(bmu_tiles_kernel<Sums, kHeld>, dim3(static_cast<unsigned>(blocks)), dim3(kTileThreads),
                      BmuTileShared::kBytes, stream, search);
    });
}

}  // namespace pykernels::cuda
