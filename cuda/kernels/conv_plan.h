// From a convolution's shape to what its kernels take.
#pragma once

#include <algorithm>
#include <numeric>

#include "cuda/kernels/conv_parts.h"

namespace pykernels::cuda {

// 16 bytes, in values.
inline int64_t chunk_of(DType dtype) { return 16 / storage_bytes(dtype); }
inline int64_t filled_up(int64_t count, int64_t to) { return (count + to - 1) / to * to; }
// Columns of a tap.
inline int64_t filled_channels(DType dtype, int64_t channels) {
    const int64_t chunk = chunk_of(dtype);
    return channels <= chunk / 2 ? chunk / 2 : filled_up(channels, chunk);
}
inline bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

// Few channels that have an input channel of their own: a product would waste its tile.
inline bool is_depthwise(const ConvShape& s) { return s.groups > 1 && s.in_channels == 1 && s.out_channels <= 8; }

inline ConvStrides strides_of(const int64_t (&extent)[3], int64_t channels, bool channels_last) {
    const int64_t pixels = extent[0] * extent[1] * extent[2], inner = channels_last ? channels : 1;
    const auto last = static_cast<int>(inner), middle = static_cast<int>(extent[2] * inner);
    return {
        channels * pixels, channels_last ? 1 : pixels, {static_cast<int>(extent[1] * extent[2] * inner), middle, last}};
}
inline ConvStrides input_strides(const ConvShape& s) {
    return strides_of({s.dim[0].input, s.dim[1].input, s.dim[2].input}, s.groups * s.in_channels, s.channels_last);
}
inline ConvStrides output_strides(const ConvShape& s) {
    return strides_of({s.dim[0].output, s.dim[1].output, s.dim[2].output}, s.groups * s.out_channels, s.channels_last);
}

// What stands outside of a dimension.
inline void pad(ConvAxis& axis, PaddingMode mode) {
    const int size = axis.source;
    switch (mode) {
        case PaddingMode::Reflect:
            axis.turn = -1;
            axis.above = 2 * (size - 1);
            break;
        case PaddingMode::Replicate:
            axis.above = size - 1;
            break;
        case PaddingMode::Circular:
            axis.turn = 1;
            axis.below = size;
            axis.above = -size;
            break;
        default:
            axis.below = axis.above = -1;
    }
}

inline ConvAxis forward_axis(const ConvDimension& d, PaddingMode mode) {
    ConvAxis axis{};
    axis.lattice[0] = {static_cast<int>(d.output),
                       static_cast<int>(d.kernel),
                       static_cast<int>(-d.before),
                       static_cast<int>(d.dilation),
                       0,
                       0,
                       0};
    axis.lattices = 1;
    axis.step = static_cast<int>(d.stride);
    axis.source = static_cast<int>(d.input);
    axis.tap_apart = axis.apart = 1;
    axis.taps = static_cast<int>(d.kernel);
    pad(axis, mode);
    return axis;
}

// Taps so far apart are in the same lattice.
inline int64_t tap_period(const ConvDimension& d) { return d.stride / std::gcd(d.stride, d.dilation); }

// Of the remainders from `from` on as many as there is room for.
inline ConvAxis gradient_axis(const ConvDimension& d, int64_t from) {
    const int64_t period = tap_period(d);
    ConvAxis axis{};
    for (int64_t first = from; first < std::min({d.stride, d.input, from + kMostLattices}); ++first) {
        ConvLattice& lattice = axis.lattice[axis.lattices++];
        lattice.first = static_cast<int>(first);
        lattice.places = static_cast<int>((d.input - first + d.stride - 1) / d.stride);
        for (int64_t tap = 0; tap < std::min(period, d.kernel); ++tap) {
            const int64_t position = first + d.before - tap * d.dilation;
            if (position % d.stride != 0) {
                continue;
            }
            lattice.taps = static_cast<int>((d.kernel - 1 - tap) / period + 1);
            lattice.offset = static_cast<int>(position / d.stride);
            lattice.tap_step = static_cast<int>(-period * d.dilation / d.stride);
            lattice.first_tap = static_cast<int>(tap);
            lattice.taps_before = static_cast<int>(tap * (d.kernel / period) + std::min(tap, d.kernel % period));
            break;
        }
    }
    axis.step = 1;
    axis.source = static_cast<int>(d.output);
    axis.tap_apart = static_cast<int>(period);
    axis.apart = static_cast<int>(d.stride);
    axis.taps = static_cast<int>(d.kernel);
    pad(axis, PaddingMode::Zeros);
    return axis;
}

inline ConvPatches forward_patches(DType dtype, const ConvShape& s, const void* input) {
    ConvPatches patches{};
    for (int a = 0; a < 3; ++a) {
        patches.axis[a] = forward_axis(s.dim[a], s.mode);
    }
    patches.mode = s.mode;
    patches.data = input;
    patches.strides = input_strides(s);
    patches.channels = static_cast<int>(s.in_channels);
    patches.filled = static_cast<int>(filled_channels(dtype, s.in_channels));
    patches.chunks = s.channels_last && s.in_channels > 0 && s.in_channels % chunk_of(dtype) == 0 && is_aligned(input);
    return patches;
}

// Of the gradient of the output; the lattices are the caller's.
inline ConvPatches gradient_patches(DType dtype, const ConvShape& s, const void* grad) {
    ConvPatches patches{};
    patches.mode = PaddingMode::Zeros;
    patches.data = grad;
    patches.strides = output_strides(s);
    patches.channels = static_cast<int>(s.out_channels);
    patches.filled = static_cast<int>(filled_up(s.out_channels, chunk_of(dtype)));
    patches.chunks = s.channels_last && s.out_channels % chunk_of(dtype) == 0 && is_aligned(grad);
    return patches;
}

// What is deep is split into so many parts that some 256 blocks of 128 x 128 sums are at work; that depends on the
// shape alone.
struct ConvParts {
    int64_t columns, columns_stride, parts, part;

    ConvParts(DType dtype, const ConvShape& s)
        : columns(s.taps() * (is_depthwise(s) ? 1 : filled_channels(dtype, s.in_channels))),
          columns_stride(filled_up(columns, 4)) {
        const int64_t places = s.batch * s.places();
        int64_t blocks, most, wanted, least;
        if (is_depthwise(s)) {
            blocks = filled_up(s.groups * s.out_channels, 64) / 64 * (filled_up(columns, 9) / 9);
            wanted = 1024;
            least = 512;
        } else {
            const int64_t rows = s.out_channels > 64 ? 128 : 64;
            blocks = s.groups * filled_up(s.out_channels, rows) / 64 * (filled_up(columns, 128) / 128);
            wanted = 512;
            least = 256;
        }
        most = std::max<int64_t>(filled_up(places, least) / least, 1);
        parts = std::clamp<int64_t>(wanted / std::max<int64_t>(blocks, 1), 1, most);
        part = filled_up((places + parts - 1) / parts, 32);
        parts = part > 0 ? (places + part - 1) / part : 0;
    }
};

}  // namespace pykernels::cuda
