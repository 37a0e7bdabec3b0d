// The gradient of the weights: at each place the gradient's channels times the patch, summed over the places of a part.
// A block has some channels and some columns of the patches; places go through a ring of tiles, place by place.
#pragma once

#include "cuda/core/conv_tiles.cuh"
#include "cuda/kernels/conv_parts.h"

namespace pykernels::cuda {

template <class Block>
struct PlaceSumsShared {
    using T = typename Block::T;
    static constexpr int kLeftStride = Block::kRows + kChunk<T>, kRightStride = Block::kColumns + kChunk<T>;
    static constexpr int kTile = kTileDepth<T> * (kLeftStride + kRightStride);
    static constexpr int kLeftChunks = Block::kRows / kChunk<T>, kRightChunks = Block::kColumns / kChunk<T>;
    static constexpr size_t kBytes =
        kRing * kTile * sizeof(T) + (kLeftChunks + kRightChunks) * sizeof(PatchColumn) + 2 * sizeof(PlaceWalk);

    __device__ static T* left(int slot) { return reinterpret_cast<T*>(shared_memory()) + slot * kTile; }
    __device__ static T* right(int slot) { return left(slot) + kTileDepth<T> * kLeftStride; }
    // Where the chunks of a tile's row begin: those of the left operand, and of the right one.
    __device__ static PatchColumn* columns() { return reinterpret_cast<PatchColumn*>(left(kRing)); }
    // How far apart the places are that a thread has of one operand, and of the other.
    __device__ static PlaceWalk* steps() {
        return reinterpret_cast<PlaceWalk*>(columns() + kLeftChunks + kRightChunks);
    }
};

// The thread's share of one operand's tiles, [places][kWidth]. Where chunks are copied it has one of every so many
// places, with neighbouring threads along the columns; else one place of a tile, and neighbours along the places.
template <class Block, int kWidth, bool kCopied>
class PlaceTiles {
  public:
    using T = typename Block::T;
    static constexpr int kAcross = kWidth / kChunk<T>, kStride = kWidth + kChunk<T>;
    static constexpr int kApart = kCopied ? Block::kThreads / kAcross : kTileDepth<T>;  // places
    static constexpr int kChunksApart = Block::kThreads / kTileDepth<T>;
    static constexpr int kOwn = kAcross / kChunksApart, kOfHalf = kOwn / kTileHalves;
    static_assert(kTileDepth<T> % kApart == 0 && kOfHalf >= 1);

    __device__ PlaceTiles(const ConvPatches& patches, int group, int64_t batch, int64_t first_place,
                          const PatchColumn* columns, const PlaceWalk* step)
        : patches_(patches),
          lattices_(patches, 0, 0, 0),
          group_(static_cast<const T*>(patches.data) + int64_t{group} * patches.channels * patches.strides.channel),
          batch_(static_cast<int>(batch)),
          columns_(columns),
          step_(step),
          walk_(first_place + first_row(), lattices_) {}

    __device__ void stage(T* tile) {
        const PatchColumn column = columns_[first_chunk()];
        T* to = tile + first_row() * kStride + first_chunk() * kChunk<T>;
#pragma unroll
        for (int row = 0; row < kTileDepth<T>; row += kApart, to += kApart * kStride) {
            const T* pixel = patch_pixel(patches_, lattices_, group_, place(), column.tap);
            const bool inside = pixel != nullptr;
            copy_later_cached(to, inside ? pixel + column.channel : group_, inside ? 16 : 0);
            walk_.go(*step_, lattices_);
        }
    }
    // The halves of a tile, in order.
    __device__ void fetch(int half) {
#pragma unroll
        for (int i = 0; i < kOfHalf; ++i) {
            const PatchColumn column = columns_[first_chunk() + (half * kOfHalf + i) * kChunksApart];
            fetched_[i] = gather_chunk(patches_, lattices_, group_, place(), column);
        }
        if (half == kTileHalves - 1) {
            walk_.go(*step_, lattices_);
        }
    }
    __device__ void put(T* tile, int half) const {
#pragma unroll
        for (int i = 0; i < kOfHalf; ++i) {
            const int chunk = first_chunk() + (half * kOfHalf + i) * kChunksApart;
            *reinterpret_cast<Chunk<T>*>(tile + first_row() * kStride + chunk * kChunk<T>) = fetched_[i];
        }
    }

  private:
    __device__ static int first_row() { return kCopied ? Block::thread() / kAcross : Block::thread() % kTileDepth<T>; }
    __device__ static int first_chunk() {
        return kCopied ? Block::thread() % kAcross : Block::thread() / kTileDepth<T>;
    }
    __device__ PatchRow place() const {
        PatchRow row = walk_.row(patches_, lattices_);
        row.image = walk_.image < batch_ ? row.image : -1;
        return row;
    }

    const ConvPatches& patches_;
    const ConvLattices lattices_;
    const T* group_;
    int batch_;
    const PatchColumn* columns_;
    const PlaceWalk* step_;
    PlaceWalk walk_;
    Chunk<T> fetched_[kCopied ? 1 : kOfHalf];
};

// Sums of a tile's rows over the places, as they pass: a thread has one row and a slice of each tile's places.
template <class Block>
class RowSums {
  public:
    using T = typename Block::T;
    using A = Accumulator<T>;
    static constexpr int kSlices = Block::kThreads / Block::kRows, kPlaces = kTileDepth<T> / kSlices;

    __device__ void add(const T* tile) {
        const T* own = tile + slice() * kPlaces * PlaceSumsShared<Block>::kLeftStride + row();
#pragma unroll 4
        for (int i = 0; i < kPlaces; ++i) {
            sum_ += to_accumulator(own[i * PlaceSumsShared<Block>::kLeftStride]);
        }
    }
    // With the slices' sums in order. All threads call.
    __device__ void put(A* to, int rows) {
        A* slices = reinterpret_cast<A*>(shared_memory());
        block_barrier();  // the last tiles have been used
        slices[Block::thread()] = sum_;
        block_barrier();  // the slices' sums are there
        if (slice() == 0 && row() < rows) {
#pragma unroll
            for (int other = 1; other < kSlices; ++other) {
                sum_ += slices[other * Block::kRows + row()];
            }
            to[row()] = sum_;
        }
    }

  private:
    __device__ static int row() { return Block::thread() % Block::kRows; }
    __device__ static int slice() { return Block::thread() / Block::kRows; }
    A sum_ = 0;
};

template <class A, int kCount>
struct alignas(sizeof(A) * kCount) SumsRun {
    A value[kCount];
};

template <class Block, bool kCopied>
__global__ void __launch_bounds__(Block::kThreads, Block::kBlocks)
    conv_place_sums_kernel(const __grid_constant__ ConvPlaceSums args) {
    using T = typename Block::T;
    using A = Accumulator<T>;
    using Shared = PlaceSumsShared<Block>;
    BlockNumbers numbers;
    const int first_column = numbers.next(args.column_tiles) * Block::kColumns;
    const int first_row = numbers.next(args.row_tiles) * Block::kRows;
    const int group = numbers.next(args.groups);
    const int part = numbers.next(args.parts);
    const ConvLattices grads(args.grad, 0, 0, 0), places(args.patches, 0, 0, 0);
    if (const int own = Block::thread(); own < Shared::kLeftChunks + Shared::kRightChunks) {
        Shared::columns()[own] =
            own < Shared::kLeftChunks
                ? patch_column(first_row + own * kChunk<T>, args.grad, grads)
                : patch_column(first_column + (own - Shared::kLeftChunks) * kChunk<T>, args.patches, places);
    }
    using Left = PlaceTiles<Block, Block::kRows, kCopied>;
    using Right = PlaceTiles<Block, Block::kColumns, kCopied>;
    if (Block::thread() == 0) {
        Shared::steps()[0] = PlaceWalk(int64_t{Left::kApart}, grads);
        Shared::steps()[1] = PlaceWalk(int64_t{Right::kApart}, places);
    }
    block_barrier();  // the columns and steps are there

    const int64_t all = args.batch * grads.places(), first_place = part * args.part;
    const int64_t length = all - first_place < args.part ? all - first_place : args.part;
    const auto tiles = static_cast<int>((length + kTileDepth<T> - 1) / kTileDepth<T>);
    Left left(args.grad, group, args.batch, first_place, Shared::columns(), Shared::steps());
    Right right(args.patches, group, args.batch, first_place, Shared::columns() + Shared::kLeftChunks,
                Shared::steps() + 1);
    const auto stage = [&](int slot) {
        if constexpr (kCopied) {
            left.stage(Shared::left(slot));
            right.stage(Shared::right(slot));
        }
    };
    const auto fetch = [&](int half) {
        if constexpr (!kCopied) {
            left.fetch(half);
            right.fetch(half);
        }
    };
    const auto put = [&](int slot, int half) {
        if constexpr (!kCopied) {
            left.put(Shared::left(slot), half);
            right.put(Shared::right(slot), half);
        }
    };
    typename Block::Sums sums;
    RowSums<Block> rows;
    const bool sums_rows = args.row_sums != nullptr && first_column == 0;
#pragma unroll 1
    for (int tile = 0; tile < kRing - 1; ++tile) {
        if (tile < tiles) {
            stage(tile);
#pragma unroll
            for (int half = 0; half < kTileHalves; ++half) {
                fetch(half);
                put(tile, half);
            }
        }
        end_copy_group();
    }
    int slot = 0, next_slot = kRing - 1;
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
        wait_for_copies<kRing - 2>();
        block_barrier();  // the tile is there, and the one before it has been used
        const bool more = tile + kRing - 1 < tiles;
        if (more) {
            stage(next_slot);
        }
        end_copy_group();
#pragma unroll
        for (int half = 0; half < kTileHalves; ++half) {
            if (more) {
                fetch(half);
            }
            sums.template add_depths<Shared::kLeftStride, Shared::kRightStride>(
                Shared::left(slot) + half * kHalfDepth<T> * Shared::kLeftStride + Block::first_row(),
                Shared::right(slot) + half * kHalfDepth<T> * Shared::kRightStride + Block::first_column());
            if (more) {
                put(next_slot, half);
            }
        }
        if (sums_rows) {
            rows.add(Shared::left(slot));
        }
        slot = slot + 1 == kRing ? 0 : slot + 1;
        next_slot = next_slot + 1 == kRing ? 0 : next_slot + 1;
    }

    const int rows_left = args.grad.channels - first_row;
    const auto columns_left = static_cast<int>(args.columns) - first_column;
    const int64_t row_of_sums = (int64_t{part} * args.groups + group) * args.grad.channels + first_row;
    A* to = static_cast<A*>(args.sums) + row_of_sums * args.columns_stride + first_column;
    sums.each_by_depths([&](int row, int column, auto& run) {
        constexpr int kRun = static_cast<int>(sizeof(run) / sizeof(A));
        row += Block::first_row();
        column += Block::first_column();
        if (row < rows_left && column < columns_left) {
            SumsRun<A, kRun> whole;
#pragma unroll
            for (int e = 0; e < kRun; ++e) {
                whole.value[e] = run[e];
            }
            *reinterpret_cast<SumsRun<A, kRun>*>(to + row * args.columns_stride + column) = whole;
        }
    });
    if (sums_rows) {
        rows.put(static_cast<A*>(args.row_sums) + row_of_sums, rows_left);
    }
}

template <class Block>
cudaError_t launch_conv_place_sums(ConvPlaceSums args, cudaStream_t stream) {
    args.row_tiles = (args.grad.channels + Block::kRows - 1) / Block::kRows;
    args.column_tiles = args.columns == 0 ? 1 : (args.columns + Block::kColumns - 1) / Block::kColumns;
    const int64_t blocks = args.parts * args.groups * args.row_tiles * args.column_tiles;
    if (blocks > kMostBlocks) {
        return cudaErrorInvalidConfiguration;
    }
    const auto kernel = args.patches.chunks && args.grad.chunks ? conv_place_sums_kernel<Block, true>
                                                                : conv_place_sums_kernel<Block, false>;
    return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(Block::kThreads), PlaceSumsShared<Block>::kBytes,
                  stream, args);
}

}  // namespace pykernels::cuda
