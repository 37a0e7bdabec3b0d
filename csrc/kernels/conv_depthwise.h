// Convolution with one channel on one side of each group (depthwise, with any multiplier): no product, but sums of a
// few windows, as fast as the memory.
#pragma once

#include "kernels/conv_columns.h"
#include "kernels/conv_parts.h"
#include "kernels/conv_pixels.h"

namespace pykernels {

// Sums of windows of planar images: each group's outputs are sums over its channels and taps.
template <typename S>
struct PlanarWindowsCall {
    using Acc = Accumulator<S>;

    std::array<Lattice, 3> lattice;
    PaddingMode mode;
    int64_t batch, groups, channels, outputs;  // of one group
    const S* source;                           // [batch, groups * channels, pixels]
    const Acc* weights;                        // [groups * outputs, channels, taps]
    const Acc* bias;                           // [groups * outputs], or null
    bool relu;
    S* out;  // [batch, groups * outputs, extents]; every pixel has a place

    int64_t pixels() const { return lattice[0].source * lattice[1].source * lattice[2].source; }
    int64_t places() const { return lattice[0].places * lattice[1].places * lattice[2].places; }
};

// Lines of a few rows of one plane of the lattice at a time.
template <typename S>
class RowBlocks {
    using Acc = Accumulator<S>;
    static constexpr int64_t kLineBytes = 32 << 10;

  public:
    RowBlocks(const std::array<Lattice, 3>& lattice, PaddingMode mode, int64_t channel_stride, int64_t channels)
        : lines_(lattice, mode, {0, channel_stride}, channels) {
        const int64_t rows = lattice[1].places, one = lines_.size_for(1) * static_cast<int64_t>(sizeof(Acc));
        const int64_t more = (lines_.size_for(2) - lines_.size_for(1)) * static_cast<int64_t>(sizeof(Acc));
        const int64_t fit = std::max<int64_t>(1 + (kLineBytes - one) / std::max<int64_t>(more, 1), 1);
        count_ = (rows + fit - 1) / fit;
    }

    // Blocks of all planes.
    int64_t count() const { return lines_.lattice()[0].places * count_; }
    // Turns to a block.
    void choose(int64_t block) {
        const int64_t d = block / count_, rows = lines_.lattice()[1].places;
        const Range own = share(rows, block % count_, count_);
        lines_.begin(0, lines_.lattice()[2].places);
        lines_.add_part(0, d, d, own.begin, own.end - 1);
        lines_.end();
        rows_.clear();
        for (int64_t h = own.begin; h < own.end; ++h) rows_.push_back(lines_.row(0, d, h));
        first_ = d * rows + own.begin;
    }
    const PlanarLines<S, Acc>& lines() const { return lines_; }
    const std::vector<int64_t>& rows() const { return rows_; }  // where the windows of each row begin
    int64_t first() const { return first_; }                    // row of the lattice

  private:
    PlanarLines<S, Acc> lines_;
    int64_t count_, first_ = 0;
    std::vector<int64_t> rows_;
};

template <typename S>
class PlanarWindows {
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    static constexpr int width = kWidth<Acc>, kTogether = 4;

  public:
    explicit PlanarWindows(const PlanarWindowsCall<S>& call) : call_(call) {}

    void run() const {
        const RowBlocks<S> all = blocks();
        const int64_t pairs = call_.batch * call_.groups;
        const double taps = static_cast<double>(all.lines().taps() * call_.channels + 4);
        parallel_region(threads_for(static_cast<double>(pairs * call_.places() * call_.outputs) * taps, kConvGrain),
                        [&](const Team& team) {
                            const Range own = share(pairs * all.count(), team.rank, team.size);
                            if (own.size() > 0) part(own, pairs);
                        });
    }

  private:
    RowBlocks<S> blocks() const { return RowBlocks<S>(call_.lattice, call_.mode, call_.pixels(), call_.channels); }

    // Units block by block, so that the plan seldom changes.
    void part(const Range& own, int64_t pairs) const {
        RowBlocks<S> block = blocks();
        Buffer<Acc> lines;
        std::vector<int64_t> offsets;
        for (int64_t unit = own.begin; unit < own.end; ++unit) {
            if (unit == own.begin || unit % pairs == 0) {
                block.choose(unit / pairs);
                lines = Buffer<Acc>(call_.channels * block.lines().size() + width);
                offsets.clear();
                for (int64_t c = 0; c < call_.channels; ++c)
                    for (const int64_t offset : block.lines().offsets())
                        offsets.push_back(c * block.lines().size() + offset);
            }
            const int64_t pair = unit % pairs, group = pair % call_.groups;
            block.lines().fill(call_.source + pair * call_.channels * call_.pixels(), 0, call_.channels, lines);
            for (int64_t j = 0; j < call_.outputs; ++j)
                rows(block, lines, offsets, group * call_.outputs + j,
                     call_.out + (pair * call_.outputs + j) * call_.places());
        }
    }

    void rows(const RowBlocks<S>& block, const Acc* lines, const std::vector<int64_t>& offsets, int64_t output,
              S* out) const {
        const Acc* const weights = call_.weights + output * static_cast<int64_t>(offsets.size());
        const V bias(call_.bias ? call_.bias[output] : Acc(0));
        const int64_t columns = call_.lattice[2].places, count = static_cast<int64_t>(block.rows().size());
        for (int64_t h = 0; h < count; h += kTogether) {
            const Acc* from[kTogether];
            for (int i = 0; i < kTogether; ++i) from[i] = lines + block.rows()[std::min(h + i, count - 1)];
            for (int64_t w = 0; w < columns; w += width) {
                V sum[kTogether] = {bias, bias, bias, bias};
                for (size_t t = 0; t < offsets.size(); ++t) {
                    const V weight(weights[t]);
                    for (int i = 0; i < kTogether; ++i)
                        sum[i] = at::vec::fmadd(weight, V::loadu(from[i] + offsets[t] + w), sum[i]);
                }
                const int used = static_cast<int>(std::min<int64_t>(width, columns - w));
                for (int i = 0; i < kTogether && h + i < count; ++i) {
                    if (call_.relu) sum[i] = at::vec::maximum(sum[i], V(Acc(0)));
                    store_as<Acc, S>(out + (block.first() + h + i) * columns + w, sum[i], used);
                }
            }
        }
    }

    const PlanarWindowsCall<S>& call_;
};

// The same where channels lie beside each other, and each has one output.
template <typename S>
struct RowWindowsCall {
    using Acc = Accumulator<S>;

    std::array<Lattice, 3> lattice;
    PaddingMode mode;
    int64_t batch, channels;
    const S* source;     // [batch, pixels, channels]
    const Acc* weights;  // [taps, channels]
    const Acc* bias;     // [channels], or null
    bool relu;
    S* out;  // [batch, extents, channels]

    int64_t pixels() const { return lattice[0].source * lattice[1].source * lattice[2].source; }
    int64_t places() const { return lattice[0].places * lattice[1].places * lattice[2].places; }
};

template <typename S>
class RowWindows {
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    static constexpr int width = kWidth<Acc>, kTogether = 4;
    static constexpr int64_t kPlaces = 64;  // whose taps are looked up together

  public:
    explicit RowWindows(const RowWindowsCall<S>& call) : call_(call) {}

    void run() const {
        const int64_t places = call_.batch * call_.places();
        const double work = static_cast<double>(places) * call_.channels;
        const int64_t taps = call_.lattice[0].taps() * call_.lattice[1].taps() * call_.lattice[2].taps();
        parallel_region(threads_for(work * static_cast<double>(taps + 4), kConvGrain), [&](const Team& team) {
            const Range own = share(places, team.rank, team.size);
            PixelTable<S> table(call_.lattice, call_.mode, call_.channels, call_.channels);
            std::vector<const S*> pixels(kPlaces * taps);
            for (int64_t at = own.begin; at < own.end; at += kPlaces) {
                const int64_t count = std::min(kPlaces, own.end - at);
                table.find(call_.source, at, at + count, {0, taps}, taps, 1, pixels.data());
                int64_t i = 0;
                for (; i + kTogether <= count; i += kTogether) sum<kTogether>(table, at + i, &pixels[i * taps], taps);
                for (; i < count; ++i) sum<1>(table, at + i, &pixels[i * taps], taps);
            }
        });
    }

  private:
    template <int Pixels>
    void sum(const PixelTable<S>& table, int64_t place, const S* const* pixels, int64_t taps) const {
        S* out[Pixels];
        for (int i = 0; i < Pixels; ++i) out[i] = call_.out + table.target(place + i) * call_.channels;
        each_vector<Acc>(call_.channels, [&](int64_t c, int used) {
            V sum[Pixels];
            for (V& start : sum) start = call_.bias ? load_as<Acc>(call_.bias + c, used) : V(Acc(0));
            for (int64_t t = 0; t < taps; ++t) {
                const V weight = load_as<Acc>(call_.weights + t * call_.channels + c, used);
                for (int i = 0; i < Pixels; ++i)
                    sum[i] = at::vec::fmadd(load_as<Acc>(pixels[i * taps + t] + c, used), weight, sum[i]);
            }
            for (int i = 0; i < Pixels; ++i) {
                if (call_.relu) sum[i] = at::vec::maximum(sum[i], V(Acc(0)));
                store_as<Acc, S>(out[i] + c, sum[i], used);
            }
        });
    }

    const RowWindowsCall<S>& call_;
};

}  // namespace pykernels
