#include "kernels/unfold.h"

#include "core/scratch.h"
#include "kernels/conv_parts.h"
#include "kernels/conv_row_blocks.h"

namespace pykernels {
namespace {

// Windows of lines, tap by tap, as convolution gathers them.
template <typename S>
void unfold_image(const Unfold<S>& call) {
    using Acc = Accumulator<S>;
    const ConvShape& s = call.shape;
    const auto lattice = forward_lattices(s);
    const int64_t pairs = s.batch * s.in_channels, columns = s.dim[2].output;
    const RowBlocks<S> all(lattice, s.mode, s.pixels(), 1);
    const double work = static_cast<double>(pairs * s.places()) * static_cast<double>(s.taps());
    parallel_region(threads_for(work, kConvGrain), [&](const Team& team) {
        const Range own = share(pairs * all.count(), team.rank, team.size);
        RowBlocks<S> block = all;
        Buffer<Acc> lines;
        for (int64_t unit = own.begin; unit < own.end; ++unit) {
            const int64_t pair = unit % pairs;
            if (unit == own.begin || pair == 0) {
                block.choose(unit / pairs);
                lines = Buffer<Acc>(block.lines().size() + kWidth<Acc>);
            }
            block.lines().fill(call.image + pair * s.pixels(), 0, 1, lines);
            S* to = call.columns + pair * s.taps() * s.places() + block.first() * columns;
            for (const int64_t offset : block.lines().offsets()) {
                S* row = to;
                for (const int64_t from : block.rows()) {
                    each_vector<Acc>(columns, [&](int64_t w, int used) {
                        store_as<Acc, S>(row + w, Vec<Acc>::loadu(lines + from + offset + w), used);
                    });
                    row += columns;
                }
                to += s.places();
            }
        }
    });
}

// Every line of the image gathers what belongs to it, tap by tap.
template <typename S>
class FoldedLines {
    using Acc = Accumulator<S>;

  public:
    explicit FoldedLines(const Fold<S>& call) : call_(call), s_(call.shape) {}

    void run() const {
        const auto& w = s_.dim[2];
        const int64_t rows = s_.dim[0].input * s_.dim[1].input, lines = s_.batch * s_.in_channels * rows;
        const int64_t padded = (w.output - 1) * w.stride + (w.kernel - 1) * w.dilation + 1;
        const int64_t size = std::max(padded, w.before + w.input) + kWidth<Acc>;
        const double work =
            static_cast<double>(s_.batch * s_.in_channels * s_.places()) * static_cast<double>(s_.taps());
        parallel_region(threads_for(work, kConvGrain), [&](const Team& team) {
            const Range own = share(lines, team.rank, team.size);
            const Buffer<Acc> line(size);
            for (int64_t i = own.begin; i < own.end; ++i) {
                std::fill_n(line.get(), size, Acc(0));
                const int64_t row = i % rows;
                add_planes(call_.columns + i / rows * s_.taps() * s_.places(), row / s_.dim[1].input,
                           row % s_.dim[1].input, line);
                each_vector<Acc>(w.input, [&](int64_t at, int used) {
                    store_as<Acc, S>(call_.image + i * w.input + at, Vec<Acc>::loadu(line + w.before + at), used);
                });
            }
        });
    }

  private:
    // Which place reads the pixel with a tap, -1 for none.
    static int64_t place(const ConvDimension& d, int64_t pixel, int64_t tap) {
        const int64_t position = pixel + d.before - tap * d.dilation;
        return position < 0 || position % d.stride || position / d.stride >= d.output ? -1 : position / d.stride;
    }

    void add_planes(const S* columns, int64_t pixel_d, int64_t pixel_h, Acc* line) const {
        const auto& [d, h, w] = s_.dim;
        for (int64_t td = 0; td < d.kernel; ++td)
            for (int64_t th = 0; th < h.kernel; ++th) {
                const int64_t at_d = place(d, pixel_d, td), at_h = place(h, pixel_h, th);
                if (at_d < 0 || at_h < 0) continue;
                for (int64_t tw = 0; tw < w.kernel; ++tw)
                    add(columns + ((td * h.kernel + th) * w.kernel + tw) * s_.places() +
                            (at_d * h.output + at_h) * w.output,
                        line + tw * w.dilation);
            }
    }

    void add(const S* from, Acc* to) const {
        const auto& w = s_.dim[2];
        if (w.stride > 1) {
            for (int64_t i = 0; i < w.output; ++i) to[i * w.stride] += static_cast<Acc>(from[i]);
            return;
        }
        each_vector<Acc>(w.output, [&](int64_t i, int used) {
            store_as<Acc, Acc>(to + i, load_as<Acc>(to + i, used) + load_as<Acc>(from + i, used), used);
        });
    }

    const Fold<S>& call_;
    const ConvShape& s_;
};

}  // namespace

void unfold(const Unfold<float>& call) { unfold_image(call); }
void unfold(const Unfold<double>& call) { unfold_image(call); }
void unfold(const Unfold<c10::BFloat16>& call) { unfold_image(call); }
void unfold(const Unfold<c10::Half>& call) { unfold_image(call); }
void fold(const Fold<float>& call) { FoldedLines(call).run(); }
void fold(const Fold<double>& call) { FoldedLines(call).run(); }
void fold(const Fold<c10::BFloat16>& call) { FoldedLines(call).run(); }
void fold(const Fold<c10::Half>& call) { FoldedLines(call).run(); }

}  // namespace pykernels
