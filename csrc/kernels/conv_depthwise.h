// Convolution with one channel on one side of each group (depthwise, with any multiplier): no product, but sums of a
// few windows, as fast as the memory.
#pragma once

#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/conv_parts.h"
#include "kernels/conv_pixels.h"
#include "kernels/conv_row_blocks.h"

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

    int64_t places() const { return lattice[0].places * lattice[1].places * lattice[2].places; }
};

template <typename S>
class RowWindows {
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    static constexpr int width = kWidth<Acc>, kTogether = 4;

  public:
    explicit RowWindows(const RowWindowsCall<S>& call)
        : call_(call), lines_(call.lattice[0].taps() * call.lattice[1].taps()), columns_(call.lattice[2].taps()) {
        const auto& offset = call.lattice[2].offset;
        for (size_t t = 1; t < offset.size(); ++t) beside_ &= offset[t] == offset[t - 1] + 1;
        const Lattice& h = call.lattice[1];
        pairs_ = call.lattice[0].taps() == 1 && h.step <= 2 && h.step <= h.taps();
        for (int64_t t = 1; t < h.taps(); ++t) pairs_ &= h.offset[t] == h.offset[t - 1] + 1;
    }

    void run() const {
        const int64_t places = call_.batch * call_.places();
        const double work = static_cast<double>(places) * call_.channels;
        parallel_region(threads_for(work * static_cast<double>(lines_ * columns_ + 4), kConvGrain),
                        [&](const Team& team) { part(share(places, team.rank, team.size)); });
    }

  private:
    // Runs of places in one row, or whole rows one below the other.
    void part(const Range& own) const {
        PixelTable<S> table(call_.lattice, call_.mode, call_.channels, call_.channels);
        const auto& [ld, lh, lw] = call_.lattice;
        std::vector<const S*> pixels(std::max<int64_t>(lines_ * columns_, 1));
        for (int64_t at = own.begin; at < own.end;) {
            const int64_t end = std::min((at / lw.places + 1) * lw.places, own.end);
            const bool below =
                pairs_ && end - at == lw.places && end + lw.places <= own.end && end / lw.places % lh.places;
            if (with_neighbours(table, at, end, below)) {
                at = end + (below ? lw.places : 0);
                continue;
            }
            for (; at < end; ++at) {
                table.find(call_.source, at, at + 1, {0, lines_ * columns_}, 1, 1, pixels.data());
                sum<0, 1, 1, 1>(table, at, pixels.data(), lines_ * columns_);
            }
        }
    }

    // Places whose taps are neighbours, a few at a time, in one row or in that and the next: each pixel is loaded once
    // for all of them. False where there are too few, or for kernels without a function of their own.
    bool with_neighbours(PixelTable<S>& table, int64_t begin, int64_t end, bool below) const {
        const int64_t step = call_.lattice[2].step;
        if (!beside_ || end - begin < kTogether || step > 2 || call_.mode != PaddingMode::Zeros) return false;
        const auto run = [&]<int Taps, int Step>() {
            below ? rows<Taps, Step, 2>(table, begin, end) : rows<Taps, Step, 1>(table, begin, end);
            return true;
        };
        return [&]<int... Taps>(std::integer_sequence<int, Taps...>) {
            return ((columns_ == Taps &&
                     (step == 1 ? run.template operator()<Taps, 1>() : run.template operator()<Taps, 2>())) ||
                    ...);
        }(std::integer_sequence<int, 1, 2, 3, 5>{});
    }

    template <int Taps, int Step, int Rows>
    void rows(PixelTable<S>& table, int64_t begin, int64_t end) const {
        constexpr int pixels = (kTogether - 1) * Step + Taps;
        const Lattice& lw = call_.lattice[2];
        table.turn_to(call_.source, begin);
        std::vector<const S*> lines = table.lines();
        if constexpr (Rows == 2) {
            table.turn_to(call_.source, begin + lw.places);
            lines.insert(lines.end(), table.lines().end() - call_.lattice[1].step, table.lines().end());
        }
        std::vector<const S*> from(lines.size() * pixels);
        for (int64_t at = begin; at < end;) {
            const int64_t first = at % lw.places * Step + lw.offset[0];
            const S** to = from.data();
            for (const S* const line : lines)
                for (int64_t j = first; j < first + pixels; ++j)
                    *to++ = line && j >= 0 && j < lw.source ? line + j * call_.channels : table.zeros();
            sum<Taps, Step, Rows, kTogether>(table, at, from.data(), static_cast<int64_t>(lines.size()));
            if (at + kTogether == end) break;
            at = std::min(at + kTogether, end - kTogether);  // the last ones once more rather than one by one
        }
    }

    // Some places side by side, in rows one below the other; `Taps` 0 for one place with any number of them.
    template <int Taps, int Step, int Rows, int Places>
    void sum(const PixelTable<S>& table, int64_t place, const S* const* pixels, int64_t lines) const {
        constexpr int beside = Taps ? (Places - 1) * Step + Taps : 1;
        constexpr int taps = std::max(Taps, 1);
        const int64_t down = call_.lattice[1].step, own = Taps ? lines_ : lines;
        S* out[Rows][Places];
        for (int r = 0; r < Rows; ++r)
            for (int i = 0; i < Places; ++i)
                out[r][i] = call_.out + table.target(place + r * call_.lattice[2].places + i) * call_.channels;
        each_vector<Acc>(call_.channels, [&](int64_t c, int used) {
            const V start = call_.bias ? load_as<Acc>(call_.bias + c, used) : V(Acc(0));
            V sum[Rows][Places];
            for (int r = 0; r < Rows; ++r)
                for (int i = 0; i < Places; ++i) sum[r][i] = start;
            for (int64_t l = 0; l < lines; ++l) {
                V pixel[beside];
                for (int j = 0; j < beside; ++j) pixel[j] = load_as<Acc>(pixels[l * beside + j] + c, used);
                for (int r = 0; r < Rows; ++r) {
                    const int64_t tap = l - r * down;
                    if (tap < 0 || tap >= own) continue;
                    const Acc* weights = call_.weights + tap * taps * call_.channels + c;
                    for (int t = 0; t < taps; ++t, weights += call_.channels) {
                        const V weight = load_as<Acc>(weights, used);
                        for (int i = 0; i < Places; ++i)
                            sum[r][i] = at::vec::fmadd(pixel[i * Step + t], weight, sum[r][i]);
                    }
                }
            }
            for (int r = 0; r < Rows; ++r)
                for (int i = 0; i < Places; ++i) {
                    if (call_.relu) sum[r][i] = at::vec::maximum(sum[r][i], V(Acc(0)));
                    store_as<Acc, S>(out[r][i] + c, sum[r][i], used);
                }
        });
    }

    const RowWindowsCall<S>& call_;
    int64_t lines_, columns_;  // taps along the first two dimensions, and along the last
    bool beside_ = true;       // the taps along the last one read neighbours
    bool pairs_;               // and those of two rows most of the same lines
};

}  // namespace pykernels
