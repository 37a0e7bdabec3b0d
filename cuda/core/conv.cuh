// Patches of an image as a matrix that is never stored: a row for each place, a column for each channel and tap, the
// taps one after the other with their channels beside each other. Plain device code over the primitives of common.cuh.
//
// As on the processor (csrc/kernels/conv_lattice.h) convolution and its input's gradient are one thing: places of a
// lattice, and taps that read at offsets from them. The gradient has one lattice for each remainder of the stride.
#pragma once

#include "csrc/core/conv_shape.h"
#include "cuda/core/for_types.cuh"

namespace pykernels::cuda {

// What one access moves, and a thread gathers at one time.
template <class T>
constexpr int kChunk = 16 / static_cast<int>(sizeof(T));
template <class T>
struct alignas(16) Chunk {
    T value[kChunk<T>];
};

template <class T>
__device__ inline Chunk<T> empty_chunk() {
    Chunk<T> chunk;
#pragma unroll
    for (int e = 0; e < kChunk<T>; ++e) {
        chunk.value[e] = to_storage<T>(0);
    }
    return chunk;
}

// Along one dimension, place o and tap j of the lattice read source position o * step + offset + j * tap_step. The tap
// is the kernel's first_tap + j * tap_apart, and the result belongs at first + o * apart.
struct ConvLattice {
    int places, taps, offset, tap_step, first_tap, first;
    int taps_before;  // of the lattices with smaller first taps
};
constexpr int kMostLattices = 4;  // of a dimension, in one launch
struct ConvAxis {
    ConvLattice lattice[kMostLattices];
    int lattices, step, source, tap_apart, apart;
    int taps;  // of all lattices, whether in this launch or not
    // At position i outside of the source stands turn * i + below, or above; -1 is a zero.
    int turn, below, above;
};

// Where pixels lie, in values: image n, channel c and position i of dimension a at n * image + c * channel + i *
// pixel[a].
struct ConvStrides {
    int64_t image, channel;
    int pixel[3];
};

struct ConvPatches {
    ConvAxis axis[3];
    PaddingMode mode;
    const void* data;
    ConvStrides strides;
    int channels, filled;  // of a group; columns of a tap, a multiple of a chunk or half of one: zeros are filled in
    bool chunks;           // all 16 bytes of a chunk lie beside each other, aligned to 16 bytes
};

// A row: its image (in values, below zero where there is none), and what its first tap reads.
struct PatchRow {
    int64_t image;
    int position[3];
};

// A column, its tap counted along each dimension. Beyond the last tap, zeros.
struct PatchColumn {
    int channel, tap[3];
};

struct ConvLattices {
    const ConvLattice *d, *h, *w;

    __device__ ConvLattices(const ConvPatches& patches, int d_lattice, int h_lattice, int w_lattice)
        : d(patches.axis[0].lattice + d_lattice),
          h(patches.axis[1].lattice + h_lattice),
          w(patches.axis[2].lattice + w_lattice) {}

    __device__ int places() const { return d->places * h->places * w->places; }
    __device__ int taps() const { return d->taps * h->taps * w->taps; }
};

// The pixel that stands at position i of a dimension, or -1 for a zero.
__device__ inline int pixel_at(int i, const ConvAxis& axis) {
    const bool inside = static_cast<unsigned>(i) < static_cast<unsigned>(axis.source);
    return inside ? i : axis.turn * i + (i < 0 ? axis.below : axis.above);
}

// Channel 0 of what the row's tap reads, null for a zero.
template <class T>
__device__ inline const T* patch_pixel(const ConvPatches& patches, const ConvLattices& lattices, const T* group,
                                       const PatchRow& row, const int (&tap)[3]) {
    const int d = pixel_at(row.position[0] + tap[0] * lattices.d->tap_step, patches.axis[0]);
    const int h = pixel_at(row.position[1] + tap[1] * lattices.h->tap_step, patches.axis[1]);
    const int w = pixel_at(row.position[2] + tap[2] * lattices.w->tap_step, patches.axis[2]);
    const int* pixel = patches.strides.pixel;
    const int64_t at = row.image + int64_t{d} * pixel[0] + int64_t{h} * pixel[1] + int64_t{w} * pixel[2];
    const bool inside = (d | h | w) >= 0 && tap[0] < lattices.d->taps && row.image >= 0;
    return inside ? group + at : nullptr;
}

__device__ inline void next_tap(const ConvLattices& lattices, int (&tap)[3]) {
    if (++tap[2] == lattices.w->taps) {
        tap[2] = 0;
        if (++tap[1] == lattices.h->taps) {
            tap[1] = 0;
            ++tap[0];
        }
    }
}

// True if that leads to another tap.
__device__ inline bool advance(PatchColumn& column, int by, const ConvPatches& patches, const ConvLattices& lattices) {
    column.channel += by;
    if (column.channel < patches.filled) {
        return false;
    }
    do {
        column.channel -= patches.filled;
        next_tap(lattices, column.tap);
    } while (column.channel >= patches.filled);
    return true;
}

// (where there are taps)
__device__ inline PatchColumn patch_column(int number, const ConvPatches& patches, const ConvLattices& lattices) {
    const int tap = number / patches.filled, line = tap / lattices.w->taps;
    return {number % patches.filled, {line / lattices.h->taps, line % lattices.h->taps, tap % lattices.w->taps}};
}

// A chunk of columns from `column` on, of one row.
template <class T>
__device__ inline Chunk<T> gather_chunk(const ConvPatches& patches, const ConvLattices& lattices, const T* group,
                                        const PatchRow& row, PatchColumn column) {
    const T* pixel = patch_pixel(patches, lattices, group, row, column.tap);
    if (patches.chunks) {
        return pixel != nullptr ? *reinterpret_cast<const Chunk<T>*>(pixel + column.channel) : empty_chunk<T>();
    }
    constexpr int kHalf = kChunk<T> / 2;
    Chunk<T> chunk;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int e = 0; e < kHalf; ++e) {
            const int channel = column.channel + e;
            const bool inside = pixel != nullptr && channel < patches.channels;
            chunk.value[half * kHalf + e] = inside ? pixel[channel * patches.strides.channel] : to_storage<T>(0);
        }
        if (half == 0) {
            column.channel += kHalf;
            if (patches.filled == kHalf) {
                column.channel = 0;
                next_tap(lattices, column.tap);
                pixel = patch_pixel(patches, lattices, group, row, column.tap);
            }
        }
    }
    return chunk;
}

// Walks over the places of all images by steps of one length.
struct PlaceWalk {
    int image, place[3];

    // Place `number` of all; also how far apart steps are.
    __device__ PlaceWalk(int64_t number, const ConvLattices& lattices) {
        const int places = lattices.places();
        image = static_cast<int>(number / places);
        set_place(static_cast<int>(number % places), lattices);
    }
    __device__ PlaceWalk(int which_image, int number, const ConvLattices& lattices) : image(which_image) {
        set_place(number, lattices);
    }
    __device__ void go(const PlaceWalk& by, const ConvLattices& lattices) {
        image += by.image;
        place[0] += by.place[0];
        place[1] += by.place[1];
        place[2] += by.place[2];
        carry(place[2], lattices.w->places, place[1]);
        carry(place[1], lattices.h->places, place[0]);
        carry(place[0], lattices.d->places, image);
    }
    __device__ PatchRow row(const ConvPatches& patches, const ConvLattices& lattices) const {
        const ConvAxis* axis = patches.axis;
        return {image * patches.strides.image,
                {place[0] * axis[0].step + lattices.d->offset, place[1] * axis[1].step + lattices.h->offset,
                 place[2] * axis[2].step + lattices.w->offset}};
    }

  private:
    __device__ void set_place(int number, const ConvLattices& lattices) {
        const int line = number / lattices.w->places;
        place[2] = number % lattices.w->places;
        place[1] = line % lattices.h->places;
        place[0] = line / lattices.h->places;
    }
    __device__ static void carry(int& digit, int base, int& next) {
        if (digit >= base) {
            digit -= base;
            ++next;
        }
    }
};

}  // namespace pykernels::cuda
