// The gradient of a convolution's weights: what each tap read, times the gradient of where it went, summed over all
// places. Sums are laid out [channel and tap][output channel]; the places of a few parts are summed apart, in an order
// that depends on the shape alone, and put together at the end.
#include "kernels/conv_columns.h"
#include "kernels/conv_pixels.h"
#include "kernels/conv_turn.h"
#include "kernels/conv_weights.h"

namespace pykernels {
namespace {

constexpr int64_t kSumRows = 192;           // rows of sums (channels and taps) that a thread works on together
constexpr int64_t kBlockValues = 64 << 10;  // gathered values, and as many of the gradient, that it holds
constexpr int64_t kPieces = 24;             // the work is cut into at least so many, of an even number
constexpr int64_t kPartBytes = 16 << 20;    // but the sums of all parts fit here

// The gradient as [place][output channel] in panels, from planar images or from rows.
template <typename Acc, typename S>
class GradientPanels {
    static constexpr int width = kWidth<Acc>;

  public:
    GradientPanels(const ConvShape& s, const S* grad, int64_t most)
        : s_(s), grad_(grad), strip_(together * (most + width)) {}

    void pack(int64_t group, int64_t begin, int64_t end, const Panels<Acc>& panels, Acc* to) const {
        for (int64_t p = 0; p < panels.count(); ++p) {
            const int64_t column = panels.column(p), padded = int64_t(panels.vectors(p)) * width;
            const int64_t used = std::min(padded, s_.out_channels - column), first = group * s_.out_channels + column;
            Acc* const panel = to + panels.offset(p);
            if (s_.channels_last) {
                const auto row = [&](int64_t, int64_t k) {
                    return grad_ + (begin + k) * s_.groups * s_.out_channels + first;
                };
                pack_as_rows<Acc, S>(row, 1, end - begin, used, padded, panel);
            } else {
                pack_planar(first, begin, end, used, padded, panel);
            }
        }
    }

  private:
    static constexpr int64_t together = 16;

    void pack_planar(int64_t first, int64_t begin, int64_t end, int64_t used, int64_t padded, Acc* panel) const {
        const int64_t places = s_.places();
        for (int64_t at = begin; at < end;) {
            const int64_t image = at / places, length = std::min((image + 1) * places, end) - at;
            const S* const from = grad_ + (image * s_.groups * s_.out_channels + first) * places + at % places;
            Acc* const to = panel + (at - begin) * padded;
            for (int64_t j = 0; j < used; j += together) {
                const int64_t count = std::min(together, used - j);
                if constexpr (std::is_same_v<S, Acc>) {
                    pack_transposed<Acc>(from + j * places, places, count, length, to + j, padded);
                } else {
                    const int64_t stride = length + width;
                    for (int64_t i = 0; i < count; ++i)
                        copy_run(from + (j + i) * places, length, from + (j + i) * places + length,
                                 strip_ + i * stride);
                    pack_transposed<Acc>(strip_, stride, count, length, to + j, padded);
                }
            }
            for (int64_t k = 0; used < padded && k < length; ++k)
                std::fill(to + k * padded + used, to + (k + 1) * padded, Acc(0));
            at += length;
        }
    }

    const ConvShape& s_;
    const S* grad_;
    Buffer<Acc> strip_;
};

// Rows of A that are windows of lines, in runs of neighbouring places.
template <typename Acc, int Rows>
struct WindowRuns {
    const Acc* row[Rows];
    const Segment* segments;
    [[gnu::always_inline]] RunOfRows<Acc, Rows> run(int64_t r) const {
        RunOfRows<Acc, Rows> rows;
        for (int m = 0; m < Rows; ++m) rows.row[m] = row[m] + segments[r].from;
        rows.depth = segments[r].length;
        return rows;
    }
};

// What the taps of some channels read: windows of lines, each of one channel.
template <typename Acc, typename S>
class PlanarSource {
  public:
    PlanarSource(const ConvShape& s, const S* input, const std::array<Lattice, 3>& lattice, int64_t)
        : s_(s),
          input_(input),
          strides_(s.channels_last ? PlanarStrides{s.groups * s.in_channels * s.pixels(), 1, s.groups * s.in_channels}
                                   : PlanarStrides{s.groups * s.in_channels * s.pixels(), s.pixels()}),
          plan_({lattice, s.mode, strides_, s.in_channels}, s.batch, 0, false) {}

    // The rows that are not split: a channel's taps.
    static int64_t unit(const ConvShape& s) { return s.taps(); }
    static int64_t units(const ConvShape& s) { return s.in_channels; }

    // Calls visit(first, count, multiply) for all rows of the units [first, last).
    template <typename Visit>
    void read(int64_t group, int64_t first, int64_t last, int64_t begin, int64_t end, const Visit& visit) {
        constexpr int width = kWidth<Acc>;
        plan_.plan(begin / width, (end + width - 1) / width, 1 << 20);
        const auto& lines = plan_.lines();
        const int64_t size = (last - first) * lines.size() + width;
        if (size > size_) lines_ = Buffer<Acc>(size), size_ = size;
        lines.fill(input_ + group * s_.in_channels * strides_.channel, first, last, lines_);
        const auto& segments = plan_.panels()[0].segments;
        visit(0, (last - first) * s_.taps(),
              [&]<int Rows, int Vectors>(int64_t row, const Acc* panel, Acc* sum, int64_t stride) {
                  WindowRuns<Acc, Rows> runs;
                  for (int m = 0; m < Rows; ++m)
                      runs.row[m] =
                          lines_ + (row + m) / s_.taps() * lines.size() + lines.offsets()[(row + m) % s_.taps()];
                  runs.segments = segments.data();
                  multiply_runs<Acc, Rows, Vectors>(runs, static_cast<int64_t>(segments.size()), panel, sum, stride,
                                                    StoreSums<Acc>{sum, stride});
              });
    }

  private:
    const ConvShape& s_;
    const S* input_;
    PlanarStrides strides_;
    ColumnPlan<S, Acc> plan_;
    Buffer<Acc> lines_;
    int64_t size_ = 0;
};

// The same where channels lie beside each other: read where they are.
template <typename Acc, typename S>
class RowsSource {
  public:
    RowsSource(const ConvShape& s, const S* input, const std::array<Lattice, 3>& lattice, int64_t most)
        : s_(s),
          input_(input),
          table_(lattice, s.mode, s.in_channels, s.groups * s.in_channels),
          pixels_(most),
          runs_(most),
          converted_(std::is_same_v<S, Acc> ? 0 : most * stride()) {}

    static int64_t unit(const ConvShape& s) { return s.in_channels; }
    static int64_t units(const ConvShape& s) { return s.taps(); }

    template <typename Visit>
    void read(int64_t group, int64_t first, int64_t last, int64_t begin, int64_t end, const Visit& visit) {
        for (int64_t tap = first; tap < last; ++tap) {
            table_.find(input_ + group * s_.in_channels, begin, end, {tap, tap + 1}, 1, 1, pixels_.data());
            for (int64_t i = 0; i < end - begin; ++i) {
                if constexpr (std::is_same_v<S, Acc>) {
                    runs_[i] = pixels_[i];
                } else {
                    runs_[i] = converted_ + i * stride();
                    copy_run(pixels_[i], s_.in_channels, pixels_[i] + s_.in_channels, converted_ + i * stride());
                }
            }
            visit((tap - first) * s_.in_channels, s_.in_channels,
                  [&]<int Rows, int Vectors>(int64_t row, const Acc* panel, Acc* sum, int64_t stride) {
                      multiply<Acc, Rows, Vectors>(ColumnPointers<Acc, Rows>{runs_.data(), row}, panel, end - begin,
                                                   sum, stride, sum, stride);
                  });
        }
    }

  private:
    int64_t stride() const { return (s_.in_channels + 2 * kWidth<Acc> - 1) / kWidth<Acc> * kWidth<Acc>; }

    const ConvShape& s_;
    const S* input_;
    PixelTable<S> table_;
    std::vector<const S*> pixels_;
    std::vector<const Acc*> runs_;  // what the tap reads at each place of the block
    Buffer<Acc> converted_;
};

template <typename S, typename Source>
class WeightGradient {
    using Acc = Accumulator<S>;
    static constexpr int width = kWidth<Acc>;

  public:
    explicit WeightGradient(const ConvWeightGradient<S>& call)
        : call_(call),
          s_(call.shape),
          lattice_(forward_lattices(s_)),
          columns_(s_.batch * s_.places()),
          all_rows_(s_.in_channels * s_.taps()),
          padded_((s_.out_channels + width - 1) / width * width) {
        const int64_t unit = Source::unit(s_), units = Source::units(s_);
        const int64_t most = std::max<int64_t>(kSumRows / std::max<int64_t>(unit, 1), 1);
        chunks_ = std::max<int64_t>((units + most - 1) / most, 1);
        together_ = (units + chunks_ - 1) / chunks_;
        const int64_t fit = kBlockValues / std::max({together_ * unit, padded_, int64_t{1}});
        block_ = std::clamp<int64_t>(fit / width * width, 4 * width, 1024);
        const int64_t blocks = std::max<int64_t>((columns_ + block_ - 1) / block_, 1);
        const int64_t each = std::max<int64_t>(s_.groups * all_rows_ * padded_ * static_cast<int64_t>(sizeof(Acc)), 1);
        const int64_t pieces = s_.groups * chunks_, parts = (kPieces + pieces - 1) / pieces;
        parts_ = std::clamp<int64_t>(std::min(parts + parts * pieces % 2, kPartBytes / each), 1, blocks);
        sums_ = Buffer<Acc>(parts_ * s_.groups * all_rows_ * padded_);
        bias_ = Buffer<Acc>(call.grad_bias ? parts_ * s_.groups * padded_ : 0);
    }

    void run() const {
        if (s_.out_channels == 0) return;
        const double work = static_cast<double>(columns_) * s_.groups * (all_rows_ + 4) * s_.out_channels;
        parallel_region(threads_for(work, kConvGrain), [&](const Team& team) {
            const Range own = share(s_.groups * chunks_ * parts_, team.rank, team.size);
            if (own.size() > 0) {
                Source source(s_, call_.input, lattice_, block_);
                const GradientPanels<Acc, S> gradient(s_, call_.grad, block_);
                const Buffer<Acc> panels(Panels<Acc>{s_.out_channels, block_}.size());
                for (int64_t i = own.begin; i < own.end; ++i)
                    piece(source, gradient, panels, i / parts_ / chunks_, i / parts_ % chunks_, i % parts_);
            }
            team.wait();
            const Range groups_and_chunks = share(s_.groups * chunks_, team.rank, team.size);
            for (int64_t i = groups_and_chunks.begin; i < groups_and_chunks.end; ++i)
                put_together(i / chunks_, i % chunks_);
        });
    }

  private:
    int64_t first(int64_t chunk) const { return std::min(chunk * together_, Source::units(s_)); }
    Acc* sums(int64_t part, int64_t group, int64_t chunk) const {
        return sums_ + ((part * s_.groups + group) * all_rows_ + first(chunk) * Source::unit(s_)) * padded_;
    }
    int64_t rows(int64_t chunk) const { return (first(chunk + 1) - first(chunk)) * Source::unit(s_); }

    void piece(Source& source, const GradientPanels<Acc, S>& gradient, Acc* packed, int64_t group, int64_t chunk,
               int64_t part) const {
        const Range mine = share(columns_, part, parts_, block_);
        Acc* const sum = sums(part, group, chunk);
        Acc* const bias = bias_ && chunk == 0 ? bias_ + (part * s_.groups + group) * padded_ : nullptr;
        std::fill_n(sum, rows(chunk) * padded_, Acc(0));
        if (bias) std::fill_n(bias, padded_, Acc(0));
        for (int64_t begin = mine.begin; begin < mine.end; begin += block_) {
            const int64_t end = std::min(begin + block_, mine.end);
            const Panels<Acc> panels{s_.out_channels, end - begin};
            gradient.pack(group, begin, end, panels, packed);
            if (bias) add_columns(panels, packed, bias);
            source.read(
                group, first(chunk), first(chunk + 1), begin, end, [&](int64_t at, int64_t count, const auto& add) {
                    for (int64_t p = 0; p < panels.count(); ++p)
                        with_vectors(panels.vectors(p), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                            for_row_tiles(count, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                                Acc* const to = sum + (at + row) * padded_ + panels.column(p);
                                add.template operator()<Rows, Vectors>(row, packed + panels.offset(p), to, padded_);
                            });
                        });
                });
        }
    }

    static void add_columns(const Panels<Acc>& panels, const Acc* packed, Acc* bias) {
        for (int64_t p = 0; p < panels.count(); ++p) {
            const int vectors = panels.vectors(p);
            for (int v = 0; v < vectors; ++v) {
                Acc* const to = bias + panels.column(p) + v * width;
                auto sum = Vec<Acc>::loadu(to);
                for (int64_t k = 0; k < panels.depth; ++k)
                    sum = sum + Vec<Acc>::loadu(packed + panels.offset(p) + (k * vectors + v) * width);
                sum.store(to);
            }
        }
    }

    // The parts' sums in ascending order, turned.
    void put_together(int64_t group, int64_t chunk) const {
        constexpr int64_t strip = 16;
        const int64_t count = rows(chunk) * padded_, outputs = s_.out_channels;
        Acc* const sum = sums(0, group, chunk);
        add_parts(sum, count, s_.groups * all_rows_ * padded_);
        S* const to = call_.grad_weight + group * outputs * all_rows_ + first(chunk) * Source::unit(s_);
        if constexpr (std::is_same_v<S, Acc>) {
            for (int64_t row = 0; row < rows(chunk); row += strip)
                pack_transposed<Acc>(sum + row * padded_, padded_, std::min(strip, rows(chunk) - row), outputs,
                                     to + row, all_rows_);
        } else {
            for (int64_t k = 0; k < outputs; ++k)
                for (int64_t row = 0; row < rows(chunk); ++row)
                    to[k * all_rows_ + row] = static_cast<S>(sum[row * padded_ + k]);
        }
        if (!bias_ || chunk > 0) return;
        Acc* const bias = bias_ + group * padded_;
        add_parts(bias, padded_, s_.groups * padded_);
        for (int64_t k = 0; k < outputs; ++k) call_.grad_bias[group * outputs + k] = static_cast<S>(bias[k]);
    }
    void add_parts(Acc* sum, int64_t count, int64_t apart) const {
        for (int64_t part = 1; part < parts_; ++part)
            for (int64_t i = 0; i < count; i += width)
                (Vec<Acc>::loadu(sum + i) + Vec<Acc>::loadu(sum + part * apart + i)).store(sum + i);
    }

    const ConvWeightGradient<S>& call_;
    const ConvShape& s_;
    std::array<Lattice, 3> lattice_;
    int64_t columns_, all_rows_, padded_;  // output channels in whole vectors
    int64_t chunks_, together_, block_, parts_;
    Buffer<Acc> sums_, bias_;
};

// With so few channels beside each other that a tap's rows fill no tile: channel by channel, as in planar images.
template <typename S>
void few_channels(const ConvWeightGradient<S>& call) {
    const ConvShape& s = call.shape;
    const int64_t outputs = s.groups * s.out_channels;
    const Buffer<S> weights(outputs * s.in_channels * s.taps());
    const ConvWeightGradient<S> planar{s, call.input, call.grad, weights, call.grad_bias};
    WeightGradient<S, PlanarSource<Accumulator<S>, S>>(planar).run();
    turn_over(weights.get(), outputs, s.in_channels, s.taps(), call.grad_weight);
}

template <typename S>
void weight_gradient(const ConvWeightGradient<S>& call) {
    using Acc = Accumulator<S>;
    if (is_depthwise(call.shape)) return depthwise_weight_gradient(call);
    if constexpr (std::is_same_v<S, float>)
        if (winograd_weight_gradient(call)) return;
    if constexpr (std::is_same_v<S, Acc>)
        if (dots_weight_gradient(call)) return;
    if (!call.shape.channels_last)
        WeightGradient<S, PlanarSource<Acc, S>>(call).run();
    else if (call.shape.in_channels < kTileRows)
        few_channels(call);
    else
        WeightGradient<S, RowsSource<Acc, S>>(call).run();
}

}  // namespace

void conv_weight_gradient(const ConvWeightGradient<float>& call) { weight_gradient(call); }
void conv_weight_gradient(const ConvWeightGradient<double>& call) { weight_gradient(call); }
void conv_weight_gradient(const ConvWeightGradient<c10::BFloat16>& call) { weight_gradient(call); }
void conv_weight_gradient(const ConvWeightGradient<c10::Half>& call) { weight_gradient(call); }

}  // namespace pykernels
