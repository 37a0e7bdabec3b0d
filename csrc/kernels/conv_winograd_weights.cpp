// Minimal filtering: the gradient of the weights. Channels, output channels and tiles are cut into pieces; the sums of
// a piece, [16][channel][output channel], stay in the cache. Tiles are cut into parts by the shape alone, put together
// in ascending order.
#include "core/product.h"
#include "kernels/conv_weights.h"
#include "kernels/conv_winograd.h"

namespace pykernels {
namespace {

constexpr int64_t kChannels = 64;         // of a piece
constexpr int64_t kTiles = 96;            // that are transformed together
constexpr int64_t kPieces = 16;           // the work is cut into at least so many
constexpr int64_t kPartBytes = 16 << 20;  // but the sums of all parts fit here
constexpr int64_t kStrip = 16;            // rows that are turned together

// A's rows beside each other, `stride` from one column to the next.
template <typename T, int Rows>
struct StridedColumns {
    const T* first;
    int64_t stride;
    const T* at(int m, int64_t k) const { return first + k * stride + m; }
};

// The results' gradients of some tiles, transformed: [16][tile][output channel].
template <typename S>
class GradientTiles {
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    static constexpr int width = kWidth<Acc>;

  public:
    GradientTiles(const ConvShape& s, const S* grad) : s_(s), grad_(grad) {}

    int64_t slice(int64_t tiles, int64_t columns) const { return tiles * columns + width; }

    // Planar; `first` counts the output channels of all groups.
    void read(const TileLattice& lattice, const PlaneTiles<S>& tiles, int64_t count, int64_t first, int64_t used,
              int64_t columns, Acc* to) {
        const TileRest rest(lattice);
        const int64_t places = s_.places(), apart = slice(count, columns), size = 2 * lattice[2].places * kStrip;
        if (2 * size > strip_size_) strip_ = Buffer<Acc>(2 * size), strip_size_ = 2 * size;
        for (int64_t k = 0; k < used; k += kStrip) {
            const int64_t together = std::min(kStrip, used - k);
            for (const auto& run : tiles.panel().runs) {
                for (int64_t i = 0; i < 2; ++i) {
                    const int64_t n = i < rest.rows(run.at) ? rest.columns(run.at, run.length) : 0;
                    Acc* const strip = strip_ + i * size;
                    std::fill(strip + (together < kStrip ? 0 : n * kStrip), strip + 2 * run.length * kStrip, Acc(0));
                    if (n)
                        turn(grad_ + (first + k) * places + run.at + i * rest.below * rest.width, rest.beside, together,
                             n, strip);
                }
                for (int64_t u = 0; u < run.length; ++u)
                    for (int64_t j = 0; j < std::min(kStrip, columns - k); j += width) {
                        const Acc* const upper = strip_ + 2 * u * kStrip + j;
                        const Acc* const lower = upper + size;
                        put({V::loadu(upper), V::loadu(upper + kStrip), V::loadu(lower), V::loadu(lower + kStrip)},
                            to + (run.column + u) * columns + k + j, apart);
                    }
            }
        }
    }

    // Channels beside each other.
    void read(const TileLattice& lattice, const PixelTable<S>& table, int64_t begin, int64_t end, int64_t first,
              int64_t used, int64_t columns, Acc* to) {
        const TileRest rest(lattice);
        const int64_t all = s_.groups * s_.out_channels, apart = slice(end - begin, columns);
        for (int64_t tile = begin; tile < end; ++tile, to += columns) {
            const int64_t target = table.target(tile), rows = rest.rows(target), beside = rest.columns(target, 1);
            const S* const from = grad_ + target * all + first;
            each_vector<Acc>(used, [&](int64_t k, int lanes) {
                const auto load = [&](int64_t i, int64_t j) {
                    const S* const at = from + (i * rest.below * rest.width + j * rest.beside) * all + k;
                    return i < rows && j < beside ? load_as<Acc>(at, lanes) : V(Acc(0));
                };
                put({load(0, 0), load(0, 1), load(1, 0), load(1, 1)}, to + k, apart);
            });
        }
    }

  private:
    [[gnu::always_inline]] static void put(const V (&y)[4], Acc* to, int64_t apart) {
        V e[kTileTaps];
        transform_gradient(y, e);
#pragma GCC unroll 16
        for (int t = 0; t < kTileTaps; ++t) e[t].store(to + t * apart);
    }

    // strip[place][channel] of places `beside` apart.
    void turn(const S* from, int64_t beside, int64_t channels, int64_t count, Acc* strip) const {
        if (beside == 1) return pack_transposed<Acc>(from, s_.places(), channels, count, strip, kStrip);
        for (int64_t i = 0; i < count; ++i)
            for (int64_t k = 0; k < channels; ++k)
                strip[i * kStrip + k] = static_cast<Acc>(from[k * s_.places() + i * beside]);
    }

    const ConvShape& s_;
    const S* grad_;
    Buffer<Acc> strip_;
    int64_t strip_size_ = 0;
};

template <typename S>
class WeightFilter {
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    static constexpr int width = kWidth<Acc>;

  public:
    explicit WeightFilter(const ConvWeightGradient<S>& call)
        : call_(call),
          s_(call.shape),
          lattices_(all_tile_lattices(s_, false)),
          panels_{s_.out_channels, 1},
          chunks_((s_.in_channels + kChannels - 1) / kChannels),
          together_((s_.in_channels + chunks_ - 1) / chunks_),
          size_(kTileTaps * together_ * panels_.span()),
          pieces_(s_.groups * panels_.count() * chunks_) {
        for (const auto& lattice : lattices_) {
            first_block_.push_back(blocks_);
            blocks_ += (s_.batch * tiles_of(lattice) + kTiles - 1) / kTiles;
        }
        const int64_t fit = kPartBytes / (pieces_ * size_ * static_cast<int64_t>(sizeof(Acc)));
        parts_ = std::clamp<int64_t>(std::min((kPieces + pieces_ - 1) / pieces_, fit), 1, blocks_);
        sums_ = Buffer<Acc>(parts_ * pieces_ * size_);
        bias_ = Buffer<Acc>(parts_ * s_.groups * panels_.count() * panels_.span());
    }

    bool run() const {
        double work = 0;
        for (const auto& lattice : lattices_) work += static_cast<double>(s_.batch * tiles_of(lattice)) * kTileTaps;
        work *= static_cast<double>(s_.groups * s_.in_channels) * static_cast<double>(s_.out_channels);
        Check check;
        parallel_region(threads_for(work, kConvGrain), [&](const Team& team) {
            const Range own = share(pieces_ * parts_, team.rank, team.size);
            if (own.size() > 0) {
                const Buffer<Acc> source(kTileTaps * (kTiles * together_ + width) + width);
                const Buffer<Acc> gradient(kTileTaps * (kTiles * panels_.span() + width));
                GradientTiles<S> grads(s_, call_.grad);
                for (int64_t i = own.begin; i < own.end; ++i) piece(i / parts_, i % parts_, grads, source, gradient);
            }
            team.wait();
            const Range pieces = share(pieces_, team.rank, team.size);
            V so_far(Acc(0));
            for (int64_t i = pieces.begin; i < pieces.end; ++i) put_together(i, so_far);
            check.take(so_far);
        });
        return check.passed();
    }

  private:
    // Pieces are counted [group][panel][chunk].
    int64_t group(int64_t piece) const { return piece / chunks_ / panels_.count(); }
    int64_t panel(int64_t piece) const { return piece / chunks_ % panels_.count(); }
    Range channels(int64_t piece) const {
        const int64_t first = piece % chunks_ * together_;
        return {first, std::min(first + together_, s_.in_channels)};
    }
    Acc* sums(int64_t part, int64_t piece) const { return sums_ + (part * pieces_ + piece) * size_; }
    Acc* bias(int64_t part, int64_t piece) const {
        return bias_ + (part * s_.groups * panels_.count() + piece / chunks_) * panels_.span();
    }
    int64_t used(int64_t p) const { return std::min(panels_.span(), s_.out_channels - panels_.column(p)); }

    void piece(int64_t piece, int64_t part, GradientTiles<S>& grads, Acc* source, Acc* gradient) const {
        const Range blocks = share(blocks_, part, parts_);
        std::fill_n(sums(part, piece), size_, Acc(0));
        if (piece % chunks_ == 0) std::fill_n(bias(part, piece), panels_.span(), Acc(0));
        for (size_t l = 0; l < lattices_.size(); ++l) {
            const int64_t tiles = s_.batch * tiles_of(lattices_[l]);
            const int64_t count = (tiles + kTiles - 1) / kTiles;
            const int64_t begin = std::max(blocks.begin - first_block_[l], int64_t{0});
            const int64_t end = std::min(blocks.end - first_block_[l], count);
            if (begin >= end) continue;
            if (s_.channels_last) {
                RowTiles<S> rows(lattices_[l], s_.in_channels, s_.groups * s_.in_channels);
                for (int64_t b = begin; b < end; ++b)
                    block(lattices_[l], rows, b * kTiles, std::min((b + 1) * kTiles, tiles), piece, part, grads, source,
                          gradient);
            } else {
                PlaneTiles<S> planes(lattices_[l], {s_.groups * s_.in_channels * s_.pixels(), s_.pixels()},
                                     s_.in_channels, s_.batch, s_.groups * s_.out_channels * s_.places());
                for (int64_t b = begin; b < end; ++b)
                    block(lattices_[l], planes, b * kTiles, std::min((b + 1) * kTiles, tiles), piece, part, grads,
                          source, gradient);
            }
        }
    }

    template <typename Tiles>
    void block(const TileLattice& lattice, Tiles& tiles, int64_t begin, int64_t end, int64_t piece, int64_t part,
               GradientTiles<S>& grads, Acc* source, Acc* gradient) const {
        constexpr bool planar = std::is_same_v<Tiles, PlaneTiles<S>>;
        const int64_t g = group(piece), p = panel(piece), count = end - begin;
        const int64_t columns = int64_t(panels_.vectors(p)) * width, output = g * s_.out_channels + panels_.column(p);
        const Range own = channels(piece);
        int64_t slice;
        if constexpr (planar) {
            tiles.choose(begin / width, (end + width - 1) / width);
            slice = tiles.slice(own.size());
            tiles.read(call_.input + g * s_.in_channels * s_.pixels(), own.begin, own.end, source);
            grads.read(lattice, tiles, count, output, used(p), columns, gradient);
        } else {
            slice = tiles.slice(count, own.size());
            tiles.read(call_.input + g * s_.in_channels, begin, end, own.begin, own.end, source);
            grads.read(lattice, tiles.table(), begin, end, output, used(p), columns, gradient);
        }
        const int64_t apart = grads.slice(count, columns);
        Acc* const sum = sums(part, piece);
        with_vectors(panels_.vectors(p), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
            for (int t = 0; t < kTileTaps; ++t)
                for_row_tiles(own.size(), [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                    Acc* const to = sum + (t * together_ + row) * columns;
                    if constexpr (planar) {
                        RowPointers<Acc, Rows> rows;
                        for (int m = 0; m < Rows; ++m) rows.row[m] = source + t * slice + (row + m) * tiles.columns();
                        multiply<Acc, Rows, Vectors>(rows, gradient + t * apart, count, to, columns, to, columns);
                    } else {
                        const StridedColumns<Acc, Rows> rows{source + t * slice + row, own.size()};
                        multiply<Acc, Rows, Vectors>(rows, gradient + t * apart, count, to, columns, to, columns);
                    }
                });
        });
        if (piece % chunks_) return;
        // the middle one of the 16 holds the sum of a tile's results
        for (int64_t k = 0; k < columns; k += width) {
            V total = V::loadu(bias(part, piece) + k);
            for (int64_t i = 0; i < count; ++i) total = total + V::loadu(gradient + 5 * apart + i * columns + k);
            total.store(bias(part, piece) + k);
        }
    }

    // The parts' sums in ascending order, transformed and turned.
    void put_together(int64_t piece, V& so_far) const {
        const Range own = channels(piece);
        const int64_t p = panel(piece), columns = int64_t(panels_.vectors(p)) * width, count = own.size();
        const int64_t output = group(piece) * s_.out_channels + panels_.column(p), apart = together_ * columns;
        // rows as the weights have them: a channel's taps, or a tap's channels
        const int64_t tap = s_.channels_last ? count : 1, channel = s_.channels_last ? 1 : kKernelTaps;
        const Buffer<Acc> rows(kKernelTaps * count * columns);
        for (int64_t c = 0; c < count; ++c)
            for (int64_t k = 0; k < columns; k += width) {
                V u[kTileTaps], w[kKernelTaps];
                for (int t = 0; t < kTileTaps; ++t) {
                    u[t] = V::loadu(sums(0, piece) + t * apart + c * columns + k);
                    for (int64_t part = 1; part < parts_; ++part)
                        u[t] = u[t] + V::loadu(sums(part, piece) + t * apart + c * columns + k);
                }
                transform_weight_sums(u, w);
                for (int t = 0; t < kKernelTaps; ++t) {
                    so_far = Check::add(w[t], so_far);
                    w[t].store(rows + (c * channel + t * tap) * columns + k);
                }
            }
        const int64_t all = s_.in_channels * kKernelTaps;
        const auto turn = [&](int64_t begin, int64_t end, S* to) {
            for (int64_t row = begin; row < end; row += kStrip)
                pack_transposed<Acc>(rows + row * columns, columns, std::min(kStrip, end - row), used(p),
                                     to + row - begin, all);
        };
        S* const to = call_.grad_weight + output * all;
        if (!s_.channels_last) turn(0, count * kKernelTaps, to + own.begin * kKernelTaps);
        for (int t = 0; s_.channels_last && t < kKernelTaps; ++t)
            turn(t * count, (t + 1) * count, to + t * s_.in_channels + own.begin);
        if (!call_.grad_bias || piece % chunks_) return;
        for (int64_t k = 0; k < used(p); ++k) {
            Acc sum(0);
            for (int64_t part = 0; part < parts_; ++part) sum += bias(part, piece)[k];
            call_.grad_bias[output + k] = static_cast<S>(sum);
        }
    }

    const ConvWeightGradient<S>& call_;
    const ConvShape& s_;
    std::vector<TileLattice> lattices_;
    Panels<Acc> panels_;  // of output channels
    int64_t chunks_, together_, size_, pieces_, blocks_ = 0, parts_;
    std::vector<int64_t> first_block_;  // of each lattice
    Buffer<Acc> sums_, bias_;
};

}  // namespace

bool winograd_weight_gradient(const ConvWeightGradient<float>& call) {
    if (!winograd_pays(call.shape, false)) return false;
    return WeightFilter<float>(call).run();
}

}  // namespace pykernels
