// Patches times weights: convolution, and the gradient of its input. A block has some places and some channels of the
// result; patches are gathered into a ring of tiles while the tiles before them are multiplied.
#pragma once

#include "cuda/core/conv_tiles.cuh"
#include "cuda/kernels/conv_parts.h"

namespace pykernels::cuda {

// A place that the block has: what it reads, and where its channel 0 belongs (below zero: no place).
struct ConvPlace {
    PatchRow row;
    int64_t target;
};

template <class Block>
struct ProductShared {
    using T = typename Block::T;
    static constexpr int kTile = (Block::kRows + Block::kColumns) * kRowStride<T>;
    // The result, on its way out: rows of channels, or of places.
    static constexpr int kByPlaces = Block::kColumns + kChunk<T>, kByChannels = Block::kRows + kChunk<T>;
    static constexpr int kOut = Block::kRows * kByPlaces > Block::kColumns* kByChannels ? Block::kRows * kByPlaces
                                                                                        : Block::kColumns * kByChannels;
    static constexpr size_t kValues = static_cast<size_t>(kRing * kTile > kOut ? kRing * kTile : kOut);
    static constexpr size_t kBytes = kValues * sizeof(T) + Block::kRows * sizeof(ConvPlace);

    __device__ static T* values() { return reinterpret_cast<T*>(shared_memory()); }
    __device__ static T* patches(int slot) { return values() + slot * kTile; }
    __device__ static T* weights(int slot) { return patches(slot) + Block::kRows * kRowStride<T>; }
    __device__ static ConvPlace* places() { return reinterpret_cast<ConvPlace*>(values() + kValues); }
};

// The thread's share of a tile of weights: one chunk of every so many rows.
template <class Block>
struct WeightRows {
    using T = typename Block::T;
    static constexpr int kApart = Block::kThreads / kRowChunks, kOwn = Block::kColumns / kApart;
    const T *any, *at;  // at: of the first of its rows
    int column, row, rows;

    __device__ WeightRows(const ConvProduct& args, int64_t first_row, int64_t start, int rows_left)
        : any(static_cast<const T*>(args.weight)),
          column(Block::thread() % kRowChunks * kChunk<T>),
          row(Block::thread() / kRowChunks),
          rows(rows_left) {
        at = any + (first_row + row) * args.weight_row + start + column;
    }
    __device__ void stage(T* tile, int first, int depth, int64_t row_length) const {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            const bool inside = row + i * kApart < rows && first + column < depth;
            const T* from = inside ? at + i * kApart * row_length + first : any;
            copy_later(tile + (row + i * kApart) * kRowStride<T> + column, from, inside ? 16 : 0);
        }
    }
};

// In which order the columns come that a tile has. Where all taps' values of a few channels come before those of the
// next, a multiprocessor's own cache still has most of what neighbouring taps read.
struct TileOrder {
    bool taps_first;
    int taps, filled, depth, tap = 0, channel = 0;

    template <class T>
    __device__ static TileOrder of(const ConvPatches& patches, int taps) {
        const bool fits = patches.mode == PaddingMode::Zeros && taps <= 32 && patches.filled % kTileDepth<T> == 0;
        return {patches.chunks && fits, taps, patches.filled, kTileDepth<T>};
    }
    // The first column of the tile, and on to the next tile.
    __device__ int next() {
        const int first = tap * filled + channel;
        if (taps_first && ++tap < taps) {
            return first;
        }
        tap = 0;
        channel += depth;
        return first;
    }
};

// The thread's share of a tile of patches where chunks are copied: one of every so many rows.
template <class Block>
class CopiedPatches {
  public:
    using T = typename Block::T;
    static constexpr int kApart = Block::kThreads / kRowChunks, kOwn = Block::kRows / kApart;

    __device__ CopiedPatches(const ConvPatches& patches, const ConvLattices& lattices, const T* group, bool taps_first)
        : taps_first_(taps_first), column_(patch_column(chunk() * kChunk<T>, patches, lattices)) {
        if (taps_first) {
            find_all(patches, lattices, group);
        } else {
            find(patches, lattices, group);
        }
    }
    __device__ void stage(T* tile, const ConvPatches& patches, const ConvLattices& lattices, const T* group) {
        int64_t step = column_.channel;
        if (taps_first_) {
            step += int64_t{column_.tap[0] * lattices.d->tap_step} * patches.strides.pixel[0] +
                    int64_t{column_.tap[1] * lattices.h->tap_step} * patches.strides.pixel[1] +
                    int64_t{column_.tap[2] * lattices.w->tap_step} * patches.strides.pixel[2];
        }
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            const bool inside = (there_[i] >> tap_ & 1u) != 0;
            copy_later_cached(tile + (row() + i * kApart) * kRowStride<T> + chunk() * kChunk<T>,
                              inside ? pixel_[i] + step : group, inside ? 16 : 0);
        }
        if (!taps_first_) {
            if (advance(column_, kTileDepth<T>, patches, lattices)) {
                find(patches, lattices, group);
            }
            return;
        }
        ++tap_;
        next_tap(lattices, column_.tap);
        if (column_.tap[0] == lattices.d->taps) {
            column_.tap[0] = tap_ = 0;
            column_.channel += kTileDepth<T>;
        }
    }

  private:
    __device__ static int chunk() { return Block::thread() % kRowChunks; }
    __device__ static int row() { return Block::thread() / kRowChunks; }
    // What this tap reads.
    __device__ void find(const ConvPatches& patches, const ConvLattices& lattices, const T* group) {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            const PatchRow place = ProductShared<Block>::places()[row() + i * kApart].row;
            pixel_[i] = patch_pixel(patches, lattices, group, place, column_.tap);
            there_[i] = pixel_[i] != nullptr ? 1 : 0;
        }
    }
    // Where the first tap would read, and which of the taps read something.
    __device__ void find_all(const ConvPatches& patches, const ConvLattices& lattices, const T* group) {
        const auto reads = [&](const PatchRow& place, const ConvLattice* lattice, int a, int tap) {
            const int position = place.position[a] + tap * lattice->tap_step;
            return static_cast<unsigned>(position) < static_cast<unsigned>(patches.axis[a].source);
        };
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            const PatchRow place = ProductShared<Block>::places()[row() + i * kApart].row;
            int64_t first = place.image;
#pragma unroll
            for (int a = 0; a < 3; ++a) {
                first += int64_t{place.position[a]} * patches.strides.pixel[a];
            }
            pixel_[i] = group + first;
            uint32_t line = 0, all = 0;
            for (int w = 0; w < lattices.w->taps; ++w) {
                line |= (reads(place, lattices.w, 2, w) ? 1u : 0u) << w;
            }
            int before = 0;
            for (int d = 0; d < lattices.d->taps; ++d) {
                for (int h = 0; h < lattices.h->taps; ++h, before += lattices.w->taps) {
                    all |= reads(place, lattices.d, 0, d) && reads(place, lattices.h, 1, h) ? line << before : 0;
                }
            }
            there_[i] = place.image >= 0 ? all : 0;
        }
    }

    const bool taps_first_;
    PatchColumn column_;
    int tap_ = 0;  // taps first: its number
    const T* pixel_[kOwn];
    uint32_t there_[kOwn];  // bit t: tap t reads something
};

// The same where values are read one by one: neighbouring threads have neighbouring rows. They are fetched before the
// half of a tile is multiplied that hides it, and put down after.
template <class Block>
class GatheredPatches {
  public:
    using T = typename Block::T;
    static constexpr int kApart = Block::kThreads / Block::kRows;  // chunks
    static constexpr int kOwn = kRowChunks / kApart, kOfHalf = kOwn / kTileHalves;
    static_assert(kOfHalf >= 1);

    __device__ GatheredPatches(const ConvPatches& patches, const ConvLattices& lattices)
        : column_(patch_column(first_chunk() * kChunk<T>, patches, lattices)) {}

    // The halves of a tile, in order.
    __device__ void fetch(const ConvPatches& patches, const ConvLattices& lattices, const T* group) {
#pragma unroll
        for (int i = 0; i < kOfHalf; ++i) {
            const PatchRow place = ProductShared<Block>::places()[row()].row;
            fetched_[i] = gather_chunk(patches, lattices, group, place, column_);
            advance(column_, kApart * kChunk<T>, patches, lattices);
        }
    }
    __device__ void put(T* tile, int half) const {
#pragma unroll
        for (int i = 0; i < kOfHalf; ++i) {
            const int chunk = first_chunk() + (half * kOfHalf + i) * kApart;
            *reinterpret_cast<Chunk<T>*>(tile + row() * kRowStride<T> + chunk * kChunk<T>) = fetched_[i];
        }
    }

  private:
    __device__ static int first_chunk() { return Block::thread() / Block::kRows; }
    __device__ static int row() { return Block::thread() % Block::kRows; }

    PatchColumn column_;
    Chunk<T> fetched_[kOfHalf];
};

// From the ring to where the results belong.
template <class Block>
__device__ void put_results(const ConvProduct& args, int64_t first_channel, int channels) {
    using T = typename Block::T;
    using Shared = ProductShared<Block>;
    const bool by_places = args.result.channel == 1;
    T* out = static_cast<T*>(args.out) + first_channel * args.result.channel;
    const T* values = Shared::values();
    if (args.result_chunks) {
        constexpr int kAll = Block::kRows * Block::kColumns / kChunk<T>;
        const int row_chunks = (by_places ? Block::kColumns : Block::kRows) / kChunk<T>;
        for (int index = Block::thread(); index < kAll; index += Block::kThreads) {
            const int line = index / row_chunks, first = index % row_chunks * kChunk<T>;
            const int place = by_places ? line : first, channel = by_places ? first : line;
            const int64_t target = Shared::places()[place].target;
            const int at = by_places ? line * Shared::kByPlaces : line * Shared::kByChannels;
            if (target >= 0 && channel < channels) {
                *reinterpret_cast<Chunk<T>*>(out + target + channel * args.result.channel) =
                    *reinterpret_cast<const Chunk<T>*>(values + at + first);
            }
        }
        return;
    }
    for (int index = Block::thread(); index < Block::kRows * Block::kColumns; index += Block::kThreads) {
        const int place = by_places ? index / Block::kColumns : index % Block::kRows;
        const int channel = by_places ? index % Block::kColumns : index / Block::kRows;
        const int64_t target = Shared::places()[place].target;
        const int at = by_places ? place * Shared::kByPlaces + channel : channel * Shared::kByChannels + place;
        if (target >= 0 && channel < channels) {
            out[target + channel * args.result.channel] = values[at];
        }
    }
}

template <class Block, bool kCopied>
__global__ void __launch_bounds__(Block::kThreads, Block::kBlocks)
    conv_product_kernel(const __grid_constant__ ConvProduct args) {
    using T = typename Block::T;
    using A = Accumulator<T>;
    using Shared = ProductShared<Block>;
    const ConvPatches& patches = args.patches;
    BlockNumbers numbers;
    const int first_column = numbers.next(args.column_tiles) * Block::kColumns;
    const int group = numbers.next(args.groups);
    const int64_t first_place = int64_t{numbers.next(args.row_tiles)} * Block::kRows;
    const int w_lattice = numbers.next(patches.axis[2].lattices), h_lattice = numbers.next(patches.axis[1].lattices);
    const ConvLattices lattices(patches, numbers.next(patches.axis[0].lattices), h_lattice, w_lattice);
    if (first_place >= args.batch * lattices.places()) {
        return;
    }
    if (const int own = Block::thread(); own < Block::kRows) {
        const PlaceWalk walk(first_place + own, lattices);
        ConvPlace place{walk.row(patches, lattices), walk.image * args.result.image};
        const ConvLattice* lattice[3] = {lattices.d, lattices.h, lattices.w};
#pragma unroll
        for (int a = 0; a < 3; ++a) {
            const int64_t position = lattice[a]->first + int64_t{walk.place[a]} * patches.axis[a].apart;
            place.target += position * args.result.pixel[a];
        }
        if (walk.image >= args.batch) {
            place.row.image = place.target = -1;
        }
        Shared::places()[own] = place;
    }
    block_barrier();  // the places are there

    const T* source = static_cast<const T*>(patches.data) + int64_t{group} * patches.channels * patches.strides.channel;
    const ConvAxis* axis = patches.axis;
    const int before =
        lattices.d->taps_before * axis[1].taps * axis[2].taps +
        lattices.d->taps * (lattices.h->taps_before * axis[2].taps + lattices.h->taps * lattices.w->taps_before);
    const int depth = patches.channels > 0 ? lattices.taps() * patches.filled : 0;
    const int tiles = (depth + kTileDepth<T> - 1) / kTileDepth<T>;
    const int64_t first_channel = int64_t{group} * args.columns + first_column;
    const WeightRows<Block> weights(args, first_channel, int64_t{before} * patches.filled,
                                    static_cast<int>(args.columns) - first_column);
    TileOrder order = TileOrder::of<T>(patches, lattices.taps());
    typename Block::Sums sums;
    // One tile after the other: `begin` and `end` are called around the halves that are multiplied meanwhile.
    const auto walk = [&](const auto& first, const auto& begin, const auto& end) {
#pragma unroll 1
        for (int tile = 0; tile < kRing - 1; ++tile) {
            if (tile < tiles) {
                weights.stage(Shared::weights(tile), order.next(), depth, args.weight_row);
                first(Shared::patches(tile));
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
                weights.stage(Shared::weights(next_slot), order.next(), depth, args.weight_row);
            }
#pragma unroll
            for (int half = 0; half < kTileHalves; ++half) {
                if (more) {
                    begin(Shared::patches(next_slot), half);
                }
                sums.add_rows(Shared::patches(slot) + Block::first_row() * kRowStride<T> + half * kHalfDepth<T>,
                              Shared::weights(slot) + Block::first_column() * kRowStride<T> + half * kHalfDepth<T>);
                if (more) {
                    end(Shared::patches(next_slot), half);
                }
            }
            end_copy_group();
            slot = slot + 1 == kRing ? 0 : slot + 1;
            next_slot = next_slot + 1 == kRing ? 0 : next_slot + 1;
        }
    };
    if (tiles > 0) {
        if constexpr (kCopied) {
            CopiedPatches<Block> copied(patches, lattices, source, order.taps_first);
            const auto stage = [&](T* tile) { copied.stage(tile, patches, lattices, source); };
            walk(
                stage,
                [&](T* tile, int half) {
                    if (half == 0) {
                        stage(tile);
                    }
                },
                [](T*, int) {});
        } else {
            GatheredPatches<Block> gathered(patches, lattices);
            const auto fetch = [&] { gathered.fetch(patches, lattices, source); };
            walk(
                [&](T* tile) {
#pragma unroll
                    for (int half = 0; half < kTileHalves; ++half) {
                        fetch();
                        gathered.put(tile, half);
                    }
                },
                [&](T*, int) { fetch(); }, [&](T* tile, int half) { gathered.put(tile, half); });
        }
    }
    block_barrier();  // the tiles have been used

    const int channels = static_cast<int>(args.columns) - first_column;
    const T* bias = args.bias != nullptr ? static_cast<const T*>(args.bias) + first_channel : nullptr;
    T* values = Shared::values();
    const bool by_places = args.result.channel == 1;
    sums.each_by_rows([&](int row, int column, auto& run) {
        row += Block::first_row();
        column += Block::first_column();
        constexpr int kRun = static_cast<int>(sizeof(run) / sizeof(A));
#pragma unroll
        for (int e = 0; e < kRun; ++e) {
            A value = run[e];
            if (bias != nullptr && column + e < channels) {
                value += to_accumulator(bias[column + e]);
            }
            value = args.relu && value < 0 ? A(0) : value;
            values[by_places ? row * Shared::kByPlaces + column + e : (column + e) * Shared::kByChannels + row] =
                to_storage<T>(value);
        }
    });
    block_barrier();  // the results are there
    put_results<Block>(args, first_channel, channels);
}

template <class Block>
cudaError_t launch_conv_product(ConvProduct args, cudaStream_t stream) {
    int64_t places = 1, lattices = 1;  // of the largest lattice
    for (const ConvAxis& axis : args.patches.axis) {
        int64_t most = 0;
        for (int i = 0; i < axis.lattices; ++i) {
            most = axis.lattice[i].places > most ? axis.lattice[i].places : most;
        }
        places *= most;
        lattices *= axis.lattices;
    }
    args.row_tiles = (args.batch * places + Block::kRows - 1) / Block::kRows;
    args.column_tiles = (args.columns + Block::kColumns - 1) / Block::kColumns;
    const int64_t blocks = lattices * args.row_tiles * args.groups * args.column_tiles;
    if (blocks == 0) {
        return cudaSuccess;
    }
    if (blocks > kMostBlocks) {
        return cudaErrorInvalidConfiguration;
    }
    const auto kernel = args.patches.chunks ? conv_product_kernel<Block, true> : conv_product_kernel<Block, false>;
    return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(Block::kThreads), ProductShared<Block>::kBytes,
                  stream, args);
}

}  // namespace pykernels::cuda
