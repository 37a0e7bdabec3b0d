// Convolution with kernels of 3x3 and stride 1 by minimal filtering, F(2x2, 3x3): four results of a tile from 16
// products a channel instead of 36.
//
//   forward           y = A' [(G w G') * (B' x B)] A
//   weights' gradient w = G' [sum over tiles of (A y A') * (B' x B)] G
//
// where * multiplies element by element, x is a tile's 4x4 pixels and
//
//   B' = 1  0 -1  0      G = 1    0    0      A' = 1  1  1  0
//        0  1  1  0          1/2  1/2  1/2         0  1 -1 -1
//        0 -1  1  0          1/2 -1/2  1/2
//        0  1  0 -1          0    0    1
//
// Each of the 16 elements is a matrix product over the channels (of the gradient: over the tiles). The input's gradient
// is a forward with turned weights. With a dilation of d, neighbours in a tile are d pixels apart: one lattice of tiles
// for each remainder of d. An infinity or NaN reaches other results of its tile than it should, none of which is then
// finite: the caller computes such a call once more without tiles.
//
// Source: A. Lavin and S. Gray, Fast algorithms for convolutional neural networks, 2016 (arXiv 1509.09308).
#pragma once

#include <atomic>

#include "kernels/conv_columns.h"
#include "kernels/conv_parts.h"
#include "kernels/conv_pixels.h"

namespace pykernels {

inline constexpr int kTileTaps = 16, kKernelTaps = 9;

// In place, vertically and then horizontally. (Each of these works on any row-major matrix of vectors.)
template <typename V>
[[gnu::always_inline]] inline void transform_pixels(V (&x)[16]) {
    const auto one = [](V& a, V& b, V& c, V& d) {
        const V first = a - c, second = b + c, third = c - b, fourth = b - d;
        a = first, b = second, c = third, d = fourth;
    };
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) one(x[j], x[4 + j], x[8 + j], x[12 + j]);
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) one(x[i], x[i + 1], x[i + 2], x[i + 3]);
}

template <typename V>
[[gnu::always_inline]] inline void transform_sums(const V (&m)[16], V (&y)[4]) {
    V upper[4], lower[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        upper[j] = m[j] + m[4 + j] + m[8 + j];
        lower[j] = m[4 + j] - m[8 + j] - m[12 + j];
    }
    y[0] = upper[0] + upper[1] + upper[2];
    y[1] = upper[1] - upper[2] - upper[3];
    y[2] = lower[0] + lower[1] + lower[2];
    y[3] = lower[1] - lower[2] - lower[3];
}

template <typename V>
[[gnu::always_inline]] inline void transform_weights(const V (&w)[9], V (&u)[16]) {
    const V half(0.5f);
    const auto one = [&](const V& a, const V& b, const V& c, V& first, V& second, V& third, V& fourth) {
        const V outer = (a + c) * half, inner = b * half;
        first = a, second = outer + inner, third = outer - inner, fourth = c;
    };
    V down[12];
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) one(w[j], w[3 + j], w[6 + j], down[j], down[3 + j], down[6 + j], down[9 + j]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
        one(down[3 * i], down[3 * i + 1], down[3 * i + 2], u[4 * i], u[4 * i + 1], u[4 * i + 2], u[4 * i + 3]);
}

template <typename V>
[[gnu::always_inline]] inline void transform_gradient(const V (&y)[4], V (&e)[16]) {
    const V zero(0.0f),
        down[4][2] = {{y[0], y[1]}, {y[0] + y[2], y[1] + y[3]}, {y[0] - y[2], y[1] - y[3]}, {zero - y[2], zero - y[3]}};
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        e[4 * i] = down[i][0];
        e[4 * i + 1] = down[i][0] + down[i][1];
        e[4 * i + 2] = down[i][0] - down[i][1];
        e[4 * i + 3] = zero - down[i][1];
    }
}

template <typename V>
[[gnu::always_inline]] inline void transform_weight_sums(const V (&u)[16], V (&w)[9]) {
    const V half(0.5f);
    const auto one = [&](const V& a, const V& b, const V& c, const V& d, V& first, V& second, V& third) {
        const V sum = (b + c) * half;
        first = a + sum, second = (b - c) * half, third = sum + d;
    };
    V down[12];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) one(u[j], u[4 + j], u[8 + j], u[12 + j], down[j], down[4 + j], down[8 + j]);
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i)
        one(down[4 * i], down[4 * i + 1], down[4 * i + 2], down[4 * i + 3], w[3 * i], w[3 * i + 1], w[3 * i + 2]);
}

// The lattices of tiles: the first result of a tile is at the lattice's place, the next ones a dilation further.
inline std::vector<Lattice> tile_lattices(int64_t source, int64_t extent, int64_t dilation, int64_t before) {
    std::vector<Lattice> lattices;
    for (int64_t first = 0; first < std::min(dilation, extent); ++first) {
        const int64_t results = (extent - first + dilation - 1) / dilation;
        Lattice lattice{(results + 1) / 2, 2 * dilation, source, {}, {}, first, 2 * dilation, extent};
        for (int64_t t = 0; t < 4; ++t) {
            lattice.offset.push_back(first + t * dilation - before);
            lattice.tap.push_back(t);
        }
        lattices.push_back(std::move(lattice));
    }
    return lattices;
}

using TileLattice = std::array<Lattice, 3>;

// Of the forward, or of the input's gradient.
inline std::vector<TileLattice> all_tile_lattices(const ConvShape& s, bool gradient) {
    const auto of = [&](const ConvDimension& d) {
        return gradient ? tile_lattices(d.output, d.input, d.dilation, 2 * d.dilation - d.before)
                        : tile_lattices(d.input, d.output, d.dilation, d.before);
    };
    std::vector<TileLattice> all;
    for (const auto& h : of(s.dim[1]))
        for (const auto& w : of(s.dim[2])) all.push_back({forward_lattice(s.dim[0]), h, w});
    return all;
}

inline int64_t tiles_of(const TileLattice& lattice) {
    return lattice[0].places * lattice[1].places * lattice[2].places;
}

// Which of a tile's 2x2 results there are, given where its first one is in its image.
struct TileRest {
    int64_t height, width, below, beside;  // of the image; from a result to the next ones

    explicit TileRest(const TileLattice& lattice)
        : height(lattice[1].extent),
          width(lattice[2].extent),
          below(lattice[1].apart / 2),
          beside(lattice[2].apart / 2) {}
    int64_t rows(int64_t at) const { return at / width % height + below < height ? 2 : 1; }
    // Results along the row, of so many tiles side by side.
    int64_t columns(int64_t at, int64_t tiles) const {
        return std::min(2 * tiles, (width - at % width + beside - 1) / beside);
    }
};

// Whether this takes less time, by multiply-adds and what the transforms cost in units of them.
inline bool winograd_pays(const ConvShape& s, bool gradient) {
    const auto fits = [](const ConvDimension& d) { return d.kernel == 3 && d.stride == 1; };
    const ConvDimension& depth = s.dim[0];
    if (s.mode != PaddingMode::Zeros || !fits(s.dim[1]) || !fits(s.dim[2])) return false;
    if (depth.kernel != 1 || depth.stride != 1 || depth.input != depth.output) return false;
    double tiles = 0;
    for (const auto& lattice : all_tile_lattices(s, gradient))
        tiles += static_cast<double>(s.batch * tiles_of(lattice));
    const auto in = static_cast<double>(s.in_channels), out = static_cast<double>(s.out_channels);
    const auto places = static_cast<double>(s.batch * (gradient ? s.pixels() : s.places()));
    return tiles * (16 * in * out + 80 * (in + out)) + 400 * in * out < 0.9 * places * 9 * in * out;
}

// Tiles of planar images, transformed: [16][channel][tile].
template <typename S>
class PlaneTiles {
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    static constexpr int width = kWidth<Acc>;

  public:
    // `target_image`: elements from one image of the result to the next.
    PlaneTiles(const TileLattice& lattice, PlanarStrides source, int64_t channels, int64_t images, int64_t target_image)
        : plan_({lattice, PaddingMode::Zeros, source, channels}, images, target_image, false) {}

    int64_t vectors() const { return plan_.vectors(); }
    // Turns to some vectors of tiles.
    void choose(int64_t begin, int64_t end) {
        plan_.plan(begin, end, static_cast<int>(end - begin));
        const int64_t size = plan_.lines().size() + width;
        if (size > size_) lines_ = Buffer<Acc>(size), size_ = size;
    }
    int64_t columns() const { return plan_.columns(); }
    const ColumnPanel& panel() const { return plan_.panels()[0]; }
    int64_t slice(int64_t channels) const { return channels * columns() + width; }  // of one of the 16

    void read(const S* source, int64_t first, int64_t last, Acc* to) {
        const auto& offsets = plan_.lines().offsets();
        const int64_t apart = slice(last - first);
        for (int64_t c = first; c < last; ++c, to += columns()) {
            plan_.lines().fill(source, c, c + 1, lines_);
            for (const auto& [column, length, start] : panel().segments)
                for (int64_t i = 0; i < length; i += width) {
                    V x[kTileTaps];
#pragma GCC unroll 16
                    for (int t = 0; t < kTileTaps; ++t) x[t] = V::loadu(lines_ + start + i + offsets[t]);
                    transform_pixels(x);
#pragma GCC unroll 16
                    for (int t = 0; t < kTileTaps; ++t) x[t].store(to + t * apart + column + i);
                }
        }
    }

  private:
    ColumnPlan<S, Acc> plan_;
    Buffer<Acc> lines_;
    int64_t size_ = 0;
};

// Tiles of images whose channels lie beside each other, transformed: [16][tile][channel].
template <typename S>
class RowTiles {
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    static constexpr int width = kWidth<Acc>;

  public:
    RowTiles(const TileLattice& lattice, int64_t channels, int64_t all_channels)
        : table_(lattice, PaddingMode::Zeros, channels, all_channels) {}

    int64_t slice(int64_t tiles, int64_t channels) const { return tiles * channels + width; }
    const PixelTable<S>& table() const { return table_; }

    // The channels [first, last) of the tiles [begin, end), counted through all images.
    void read(const S* source, int64_t begin, int64_t end, int64_t first, int64_t last, Acc* to) {
        const int64_t channels = last - first, apart = slice(end - begin, channels);
        pixels_.resize((end - begin) * kTileTaps);
        table_.find(source, begin, end, {0, kTileTaps}, kTileTaps, 1, pixels_.data());
        for (int64_t tile = 0; tile < end - begin; ++tile, to += channels) {
            const S* const* const pixel = &pixels_[tile * kTileTaps];
            each_vector<Acc>(channels, [&](int64_t c, int used) {
                V x[kTileTaps];
#pragma GCC unroll 16
                for (int t = 0; t < kTileTaps; ++t) x[t] = load_as<Acc>(pixel[t] + first + c, used);
                transform_pixels(x);
#pragma GCC unroll 16
                for (int t = 0; t < kTileTaps; ++t) x[t].store(to + t * apart + c);
            });
        }
    }

  private:
    PixelTable<S> table_;
    std::vector<const S*> pixels_;
};

// Whether any result was not finite.
class Check {
  public:
    template <typename V>
    static V add(const V& value, const V& so_far) {
        return at::vec::fmadd(value, V(0.0f), so_far);  // infinities and NaN times zero are NaN
    }
    template <typename V>
    void take(const V& so_far) {
        if (!(sum_of_lanes(so_far) == 0)) failed_.store(true, std::memory_order_relaxed);
    }
    bool passed() const { return !failed_.load(); }

  private:
    std::atomic<bool> failed_{false};
};

}  // namespace pykernels
