// Where a product with patches reads and writes. Convolution and its input's gradient are one thing: at each place of a
// lattice, the sum over channels and taps of weights with what the taps read.
//
//   forward         place o, tap t: reads pixel o * stride + t * dilation - before
//   input gradient  pixel i of the input is touched by output places (i + before - t * dilation) / stride, where that
//                   is whole. All pixels with the same remainder of stride have the same taps: one lattice for each
//                   remainder, in which neighbours read neighbours.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "kernels/conv.h"

namespace pykernels {

// Along one dimension, place o and tap t read source position o * step + offset[t], and the result belongs at
// first + o * apart of an extent.
struct Lattice {
    int64_t places, step, source;  // how many, how far apart they read, and the source's extent
    std::vector<int64_t> offset;   // ascending, of each tap
    std::vector<int64_t> tap;      // which tap of the kernel that is
    int64_t first = 0, apart = 1, extent = 0;
    int64_t between = 1;  // source positions from one pixel to the next; what lies between them is zero

    int64_t taps() const { return static_cast<int64_t>(offset.size()); }
};

// The pixel that stands at position `i` of a dimension of `size`, -1 for a zero.
inline int64_t pixel_at(int64_t i, int64_t size, PaddingMode mode) {
    if (i >= 0 && i < size) return i;
    switch (mode) {
        case PaddingMode::Reflect:
            return i < 0 ? -i : 2 * (size - 1) - i;
        case PaddingMode::Replicate:
            return i < 0 ? 0 : size - 1;
        case PaddingMode::Circular:
            return i < 0 ? i + size : i - size;
        default:
            return -1;
    }
}

inline Lattice forward_lattice(const ConvDimension& d) {
    Lattice lattice{d.output, d.stride, d.input, {}, {}, 0, 1, d.output};
    for (int64_t t = 0; t < d.kernel; ++t) {
        lattice.offset.push_back(t * d.dilation - d.before);
        lattice.tap.push_back(t);
    }
    return lattice;
}

inline std::array<Lattice, 3> forward_lattices(const ConvShape& s) {
    return {forward_lattice(s.dim[0]), forward_lattice(s.dim[1]), forward_lattice(s.dim[2])};
}

// One for each remainder that has pixels; `d.before` may be larger than any padding, or 0 for a padded input.
inline std::vector<Lattice> gradient_lattices(const ConvDimension& d) {
    std::vector<Lattice> lattices;
    for (int64_t first = 0; first < std::min(d.stride, d.input); ++first) {
        Lattice lattice{(d.input - first + d.stride - 1) / d.stride, 1, d.output, {}, {}, first, d.stride, d.input};
        for (int64_t t = d.kernel - 1; t >= 0; --t) {
            const int64_t position = first + d.before - t * d.dilation;
            if (position % d.stride) continue;
            lattice.offset.push_back(position / d.stride);
            lattice.tap.push_back(t);
        }
        lattices.push_back(std::move(lattice));
    }
    return lattices;
}

// All pixels in one lattice, with zeros between the output's places: more products, but in one piece.
inline Lattice whole_gradient_lattice(const ConvDimension& d) {
    Lattice lattice{d.input, 1, d.output, {}, {}, 0, 1, d.input, d.stride};
    for (int64_t t = d.kernel - 1; t >= 0; --t) {
        lattice.offset.push_back(d.before - t * d.dilation);
        lattice.tap.push_back(t);
    }
    return lattice;
}

}  // namespace pykernels
