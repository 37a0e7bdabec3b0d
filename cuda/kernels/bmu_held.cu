// The search where samples have few features: they stay in registers, as the instructions take them, while all units
// pass by through a ring in shared memory.
#include "cuda/core/bmu.cuh"
#include "cuda/core/mma.cuh"

namespace pykernels::cuda {
namespace {

constexpr int kThreads = 256, kRing = 3;
constexpr int kWarpSamples = kHeldSamples / (kThreads / kWarp), kTiles = kWarpSamples / 16;

// One term of a sum, as a register has two: upper numbers, and lower ones.
struct SplitPair {
    uint32_t upper, lower;
    __device__ SplitPair(float first, float second)
        : upper(pack_pair<fp16>(first, second)),
          lower(pack_pair<fp16>(first - as_upper(first), second - as_upper(second))) {}
    __device__ static float as_upper(float value) { return to_accumulator(to_storage<fp16>(value)); }
};

// Samples g, g + 8, g + 16 and g + 24 of the warp's 32, in lane 4 g + q.
template <class T, int kChunks>
struct HeldSamples {
    uint32_t upper[kTiles][kChunks][4], lower[kTiles][kChunks][4];
    float inverse[2 * kTiles];

    __device__ void load(const BmuSearch& search, int64_t first, bool keeps_size) {
        using A = Accumulator<T>;
        const Bmu& call = search.call;
        const int lane = static_cast<int>(threadIdx.x) % kWarp, own = lane % 4 * 2;
        const auto* centre = static_cast<const A*>(search.centre);
        const float units_inverse = RowScale(float_of(search.stats->norm)).inverse();
#pragma unroll
        for (int i = 0; i < 2 * kTiles; ++i) {
            const int64_t sample = first + 8 * i + lane / 4;
            const bool there = sample < search.count;
            const T* x = input_row<T>(call, search.first + (there ? sample : 0));
            float value[kChunks][4];
            float largest = 0;
#pragma unroll
            for (int c = 0; c < kChunks; ++c) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int d = c * kRowChunk + own + e / 2 * 8 + e % 2;
                    value[c][e] = d < call.features ? static_cast<float>(to_accumulator(x[d]) - centre[d]) : 0.0f;
                    largest = maximum(largest, absolute(value[c][e]));
                }
            }
            largest = maximum(largest, shuffle_xor(largest, 1));
            largest = maximum(largest, shuffle_xor(largest, 2));
            const RowScale scale(largest);
            float squares = 0;
#pragma unroll
            for (int c = 0; c < kChunks; ++c) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    value[c][e] *= scale.factor();
                    squares += value[c][e] * value[c][e];
                }
#pragma unroll
                for (int pair = 0; pair < 2; ++pair) {
                    const SplitPair split(value[c][2 * pair], value[c][2 * pair + 1]);
                    upper[i / 2][c][i % 2 + 2 * pair] = split.upper;
                    lower[i / 2][c][i % 2 + 2 * pair] = split.lower;
                }
            }
            squares += shuffle_xor(squares, 1);
            squares += shuffle_xor(squares, 2);
            inverse[i] = scale.inverse() * units_inverse;
            if (keeps_size && there && own == 0) {
                search.size[sample] = square_root(squares) * scale.inverse();
            }
        }
    }
};

template <int kChunks>
struct HeldShared {
    static constexpr int kStride = kChunks * kRowChunkBytes + kRowOwnBytes;  // an odd number of 16 bytes
    static constexpr int kSlot = kHeldUnits * kStride;
    static constexpr size_t kBytes = static_cast<size_t>(kRing) * kSlot;
    __device__ static unsigned char* units(int slot) { return shared_memory() + slot * kSlot; }
};

template <class T, int kChunks, int kHeld>
__global__ void __launch_bounds__(kThreads, kChunks <= 3 ? 2 : 1)
    held_kernel(const __grid_constant__ BmuSearch search) {
    using Shared = HeldShared<kChunks>;
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    const auto part = static_cast<int64_t>(blockIdx.x % search.parts);
    const int64_t first = blockIdx.x / search.parts * kHeldSamples + warp * kWarpSamples;
    const int64_t tiles = (search.call.units + kHeldUnits - 1) / kHeldUnits;
    const auto begin = static_cast<int>(part * tiles / search.parts);
    const auto end = static_cast<int>((part + 1) * tiles / search.parts);
    const auto stage = [&](int slot, int tile) {
        const unsigned char* from = search.unit_rows + int64_t{tile} * Shared::kSlot;
        for (int at = static_cast<int>(threadIdx.x) * 16; at < Shared::kSlot; at += kThreads * 16) {
            copy_later_cached(Shared::units(slot) + at, from + at, 16);
        }
    };
#pragma unroll 1
    for (int tile = 0; tile < kRing - 1; ++tile) {
        if (begin + tile < end) {
            stage(tile, begin + tile);
        }
        end_copy_group();
    }
    HeldSamples<T, kChunks> x;
    x.load(search, first, part == 0);
    BestGroups<kHeld> best[2 * kTiles];
    int slot = 0, next_slot = kRing - 1;
#pragma unroll 1
    for (int tile = begin; tile < end; ++tile) {
        wait_for_copies<kRing - 2>();
        block_barrier();  // the tile is there, and the one before it has been used
        if (tile + kRing - 1 < end) {
            stage(next_slot, tile + kRing - 1);
        }
        end_copy_group();
#pragma unroll(kChunks == 1 ? 2 : 1)
        for (int row = 0; row < kHeldUnits; row += 16) {
            const unsigned char* units = Shared::units(slot) + row * Shared::kStride;
            const unsigned char* own = units + (lane / 16 * 8 + lane % 8) * Shared::kStride + lane / 8 % 2 * 16;
            float sum[kTiles][2][4] = {};
            const auto multiply = [&](const uint32_t (&left)[kTiles][kChunks][4], int chunk, const uint32_t (&w)[4]) {
#pragma unroll
                for (int m = 0; m < kTiles; ++m) {
#pragma unroll
                    for (int t = 0; t < 2; ++t) {
                        multiply_add<fp16>(sum[m][t], left[m][chunk], w[2 * t], w[2 * t + 1]);
                    }
                }
            };
            // The small products first, as what the instruction cuts off is a share of the sum.
            uint32_t unit[kChunks][4];
#pragma unroll
            for (int c = 0; c < kChunks; ++c) {
                uint32_t unit_lower[4];
                load_matrices(unit[c], own + c * kRowChunkBytes);
                load_matrices(unit_lower, own + c * kRowChunkBytes + kRowChunkBytes / 2);
                multiply(x.lower, c, unit[c]);
                multiply(x.upper, c, unit_lower);
            }
#pragma unroll
            for (int c = 0; c < kChunks; ++c) {
                multiply(x.upper, c, unit[c]);
            }
            float start[kGroup];
#pragma unroll
            for (int e = 0; e < kGroup; ++e) {
                const int at = lane % 4 * 2 + e % 2 + e / 2 * 8;
                start[e] = *reinterpret_cast<const float*>(units + at * Shared::kStride + kChunks * kRowChunkBytes);
            }
            const int group = (tile * kHeldUnits + row) / kGroup + lane % 4;
#pragma unroll
            for (int i = 0; i < 2 * kTiles; ++i) {
                float score[kGroup];
#pragma unroll
                for (int e = 0; e < kGroup; ++e) {
                    score[e] = sum[i / 2][e / 2][i % 2 * 2 + e % 2] * x.inverse[i] + start[e];
                }
                best[i].template insert<true>(maximum(maximum(score[0], score[1]), maximum(score[2], score[3])), group);
            }
        }
        slot = slot + 1 == kRing ? 0 : slot + 1;
        next_slot = next_slot + 1 == kRing ? 0 : next_slot + 1;
    }
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
        best[i].merge(1);
        best[i].merge(2);
        const int64_t sample = first + 8 * i + lane / 4;
        if (lane % 4 == 0 && sample < search.count) {
            best[i].store(BestGroups<kHeld>::place(search, part, sample));
        }
    }
}

template <class T, int kChunks, int kHeld>
cudaError_t launch_held(const BmuSearch& search, cudaStream_t stream) {
    const int64_t blocks = (search.count + kHeldSamples - 1) / kHeldSamples * search.parts;
    return launch(held_kernel<T, kChunks, kHeld>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                  HeldShared<kChunks>::kBytes, stream, search);
}

}  // namespace

cudaError_t bmu_search_held(const BmuSearch& search, cudaStream_t stream) {
    return for_types(search.call.dtype, [&]<class T>() {
        const auto start = [&]<int kHeld>() {
            return search.chunks == 1   ? launch_held<T, 1, kHeld>(search, stream)
                   : search.chunks == 2 ? launch_held<T, 2, kHeld>(search, stream)
                   : search.chunks == 3 ? launch_held<T, 3, kHeld>(search, stream)
                                        : launch_held<T, kMostHeldChunks, kHeld>(search, stream);
        };
        return search.held == 1 ? start.template operator()<1>() : start.template operator()<2>();
    });
}

}  // namespace pykernels::cuda
