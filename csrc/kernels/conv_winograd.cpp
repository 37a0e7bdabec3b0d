// Minimal filtering: forward and input gradient.
#include "kernels/conv_winograd.h"

#include "kernels/conv_weights.h"

namespace pykernels {
namespace {

constexpr int64_t kSourceBytes = 1 << 20;  // transformed tiles that a thread holds
constexpr int64_t kSumBytes = 512 << 10;   // and their sums

template <typename S>
struct WinogradCall {
    using Acc = Accumulator<S>;

    std::vector<TileLattice> lattices;
    int64_t batch, groups, channels, rows;  // of one group
    const S* source;
    const Acc* weights;  // [groups, 16, rows, channels], transformed
    const Acc* bias;     // [groups * rows], or null
    bool relu;
    S* out;

    int64_t pixels() const {
        const auto& [d, h, w] = lattices[0];
        return d.source * h.source * w.source;
    }
    int64_t extent() const {
        const auto& [d, h, w] = lattices[0];
        return d.extent * h.extent * w.extent;
    }
};

// Where weights lie: how far apart groups, rows, a row's channels and their taps are.
template <typename S>
struct WeightPlaces {
    const S* weights;
    int64_t group, row, channel, tap;
    bool turned;  // the last tap first
};

// [groups, 16, rows, channels]
template <typename S>
Buffer<Accumulator<S>> transformed_weights(int64_t groups, int64_t rows, int64_t channels, const WeightPlaces<S>& at) {
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    constexpr int64_t strip = 16;
    const int64_t padded = (channels + strip - 1) / strip * strip;
    Buffer<Acc> to(groups * rows * channels * kTileTaps);
    const double work = static_cast<double>(groups * rows) * static_cast<double>(channels) * 64;
    parallel_region(threads_for(work, kConvGrain), [&](const Team& team) {
        const Range own = share(groups * rows, team.rank, team.size);
        const Buffer<Acc> taps(kKernelTaps * padded);
        for (int64_t i = own.begin; i < own.end; ++i) {
            const S* const from = at.weights + i / rows * at.group + i % rows * at.row;
            if (at.tap == 1)
                for (int64_t c = 0; c < channels; c += strip)
                    pack_transposed<S>(from + c * at.channel, at.channel, std::min(strip, channels - c), kKernelTaps,
                                       taps + c, padded);
            else
                for (int64_t t = 0; t < kKernelTaps; ++t)
                    for (int64_t c = 0; c < channels; ++c) taps[t * padded + c] = from[t * at.tap + c * at.channel];
            Acc* const first = to + (i / rows * kTileTaps * rows + i % rows) * channels;
            each_vector<Acc>(channels, [&](int64_t c, int used) {
                V w[kKernelTaps], u[kTileTaps];
                for (int t = 0; t < kKernelTaps; ++t)
                    w[t] = load_as<Acc>(taps + (at.turned ? kKernelTaps - 1 - t : t) * padded + c, used);
                transform_weights(w, u);
                for (int t = 0; t < kTileTaps; ++t) store_as<Acc, Acc>(first + t * rows * channels + c, u[t], used);
            });
        }
    });
    return to;
}

// Planar: tiles are the columns, weights the rows.
template <typename S>
class PlaneFilter {
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    static constexpr int width = kWidth<Acc>;

  public:
    PlaneFilter(const WinogradCall<S>& call, const TileLattice& lattice, Check& check)
        : call_(call),
          rest_(lattice),
          tiles_(lattice, {call.groups * call.channels * call.pixels(), call.pixels()}, call.channels, call.batch,
                 call.groups * call.rows * call.extent()),
          check_(check) {}

    void part(const Team& team) {
        const int64_t vectors = tiles_.vectors();
        const int across = threads_across(team.size, vectors * call_.groups, call_.rows, kTileRows, 40);
        const int along = team.size / across;
        if (team.rank >= along * across) return;
        const Range mine = share(vectors * call_.groups, team.rank / across, along);
        const Range rows = share(call_.rows, team.rank % across, across, kTileRows);
        if (mine.size() <= 0 || rows.size() <= 0) return;
        constexpr int64_t panel = kTileVectors * width;
        together_ = std::min<int64_t>(kSumBytes / (kTileTaps * panel * static_cast<int64_t>(sizeof(Acc))), rows.size());
        source_ = Buffer<Acc>(kTileTaps * (call_.channels * panel + width) + width);
        sums_ = Buffer<Acc>(kTileTaps * (together_ * panel + width));
        for (int64_t g = mine.begin / vectors; g <= (mine.end - 1) / vectors; ++g) {
            const int64_t end = std::min(mine.end - g * vectors, vectors);
            for (int64_t at = std::max(mine.begin - g * vectors, int64_t{0}); at < end;) {
                const int64_t blocks = (end - at + kTileVectors - 1) / kTileVectors;
                const int64_t next = at + (end - at + blocks - 1) / blocks;
                tiles_.choose(at, next);
                tiles_.read(call_.source + g * call_.channels * call_.pixels(), 0, call_.channels, source_);
                for (int64_t row = rows.begin; row < rows.end; row += together_)
                    with_vectors(static_cast<int>(next - at), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                        multiply_and_finish<Vectors>(g, {row, std::min(row + together_, rows.end)});
                    });
                at = next;
            }
        }
        check_.take(so_far_);
    }

  private:
    template <int Vectors>
    void multiply_and_finish(int64_t group, const Range& rows) {
        constexpr int64_t columns = Vectors * width;
        const int64_t slice = tiles_.slice(call_.channels), apart = rows.size() * columns + width;
        for (int t = 0; t < kTileTaps; ++t) {
            const Acc* const weights = call_.weights + (group * kTileTaps + t) * call_.rows * call_.channels;
            for_row_tiles(rows.size(), [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                RowPointers<Acc, Rows> pointers;
                for (int m = 0; m < Rows; ++m) pointers.row[m] = weights + (rows.begin + row + m) * call_.channels;
                multiply<Acc, Rows, Vectors>(pointers, source_ + t * slice, call_.channels, nullptr, 0,
                                             sums_ + t * apart + row * columns, columns);
            });
        }
        alignas(64) Acc lines[2 * 2 * columns];
        for (int64_t row = 0; row < rows.size(); ++row) {
            const int64_t output = group * call_.rows + rows.begin + row;
            const V bias(call_.bias ? call_.bias[output] : Acc(0));
            for (int v = 0; v < Vectors; ++v) {
                V m[kTileTaps], y[4];
#pragma GCC unroll 16
                for (int t = 0; t < kTileTaps; ++t) m[t] = V::loadu(sums_ + t * apart + row * columns + v * width);
                transform_sums(m, y);
#pragma GCC unroll 2
                for (int i = 0; i < 2; ++i) {
                    const auto [low, high] = at::vec::interleave2<Acc>(y[2 * i] + bias, y[2 * i + 1] + bias);
                    low.store(lines + 2 * (i * columns + v * width));
                    high.store(lines + 2 * (i * columns + v * width) + width);
                }
            }
            for (const auto& run : tiles_.panel().runs)
                for (int64_t i = 0; i < rest_.rows(run.at); ++i)
                    put(lines + 2 * (i * columns + run.column), rest_.columns(run.at, run.length),
                        call_.out + output * call_.extent() + run.at + i * rest_.below * rest_.width);
        }
    }

    void put(const Acc* from, int64_t count, S* to) {
        each_vector<Acc>(count, [&](int64_t i, int used) {
            V x = load_as<Acc>(from + i, used);
            so_far_ = Check::add(x, so_far_);
            if (call_.relu) x = at::vec::maximum(x, V(Acc(0)));
            if (rest_.beside == 1) return store_as<Acc, S>(to + i, x, used);
            alignas(64) Acc lanes[width];
            x.store(lanes);
            for (int j = 0; j < used; ++j) to[(i + j) * rest_.beside] = static_cast<S>(lanes[j]);
        });
    }

    const WinogradCall<S>& call_;
    TileRest rest_;
    PlaneTiles<S> tiles_;
    Check& check_;
    V so_far_ = V(Acc(0));
    int64_t together_ = 0;
    Buffer<Acc> source_, sums_;
};

// Channels beside each other: tiles are the rows, weights the columns, packed as [groups, 16, panels].
template <typename S>
class RowFilter {
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    static constexpr int width = kWidth<Acc>;

  public:
    RowFilter(const WinogradCall<S>& call, const TileLattice& lattice, const Panels<Acc>& panels, const Acc* packed,
              Check& check)
        : call_(call),
          rest_(lattice),
          tiles_(lattice, call.channels, call.groups * call.channels),
          panels_(panels),
          packed_(packed),
          count_(call.batch * tiles_of(lattice)),
          check_(check) {}

    void part(const Team& team) {
        const int across = threads_across(team.size, count_ * call_.groups, panels_.count(), 1, 0.5);
        const int along = team.size / across;
        if (team.rank >= along * across) return;
        const Range mine = share(count_ * call_.groups, team.rank / across, along);
        const Range panels = share(panels_.count(), team.rank % across, across);
        if (mine.size() <= 0 || panels.size() <= 0) return;
        const int64_t tile = kTileTaps * call_.channels * static_cast<int64_t>(sizeof(Acc));
        const int64_t sums = kTileTaps * panels_.span() * static_cast<int64_t>(sizeof(Acc));
        const int64_t fit = std::min(kSourceBytes / tile, kSumBytes / sums);
        const int64_t most = std::clamp<int64_t>(fit / kTileRows, 2, 16) * kTileRows;
        source_ = Buffer<Acc>(kTileTaps * tiles_.slice(most, call_.channels));
        sums_ = Buffer<Acc>(kTileTaps * (most * panels_.span() + width));
        for (int64_t g = mine.begin / count_; g <= (mine.end - 1) / count_; ++g) {
            const int64_t end = std::min(mine.end - g * count_, count_);
            for (int64_t at = std::max(mine.begin - g * count_, int64_t{0}); at < end;) {
                const int64_t blocks = (end - at + most - 1) / most, next = at + (end - at + blocks - 1) / blocks;
                tiles_.read(call_.source + g * call_.channels, at, next, 0, call_.channels, source_);
                for (int64_t p = panels.begin; p < panels.end; ++p)
                    with_vectors(panels_.vectors(p), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                        multiply_and_finish<Vectors>(g, p, at, next - at);
                    });
                at = next;
            }
        }
        check_.take(so_far_);
    }

  private:
    template <int Vectors>
    void multiply_and_finish(int64_t group, int64_t p, int64_t at, int64_t count) {
        constexpr int64_t columns = Vectors * width;
        const int64_t slice = tiles_.slice(count, call_.channels), apart = count * columns + width;
        for (int t = 0; t < kTileTaps; ++t) {
            const Acc* const panel = packed_ + (group * kTileTaps + t) * panels_.size() + panels_.offset(p);
            for_row_tiles(count, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                RowPointers<Acc, Rows> pointers;
                for (int m = 0; m < Rows; ++m) pointers.row[m] = source_ + t * slice + (row + m) * call_.channels;
                multiply<Acc, Rows, Vectors>(pointers, panel, call_.channels, nullptr, 0,
                                             sums_ + t * apart + row * columns, columns);
            });
        }
        const int64_t all = call_.groups * call_.rows, first = group * call_.rows + panels_.column(p);
        const int64_t used_columns = std::min(columns, call_.rows - panels_.column(p));
        for (int64_t tile = 0; tile < count; ++tile) {
            const int64_t target = tiles_.table().target(at + tile);
            const int64_t below = rest_.rows(target), beside = rest_.columns(target, 1);
            S* const to = call_.out + target * all + first;
            each_vector<Acc>(used_columns, [&](int64_t k, int used) {
                V m[kTileTaps], y[4];
#pragma GCC unroll 16
                for (int t = 0; t < kTileTaps; ++t) m[t] = V::loadu(sums_ + t * apart + tile * columns + k);
                transform_sums(m, y);
                const V bias = call_.bias ? load_as<Acc>(call_.bias + first + k, used) : V(Acc(0));
#pragma GCC unroll 2
                for (int i = 0; i < 2; ++i)
#pragma GCC unroll 2
                    for (int j = 0; j < 2; ++j) {
                        if (i >= below || j >= beside) continue;
                        V x = y[2 * i + j] + bias;
                        so_far_ = Check::add(x, so_far_);
                        if (call_.relu) x = at::vec::maximum(x, V(Acc(0)));
                        store_as<Acc, S>(to + (i * rest_.below * rest_.width + j * rest_.beside) * all + k, x, used);
                    }
            });
        }
    }

    const WinogradCall<S>& call_;
    TileRest rest_;
    RowTiles<S> tiles_;
    const Panels<Acc>& panels_;
    const Acc* packed_;
    int64_t count_;
    Check& check_;
    V so_far_ = V(Acc(0));
    Buffer<Acc> source_, sums_;
};

template <typename S>
bool run(const WinogradCall<S>& call, bool channels_last) {
    using Acc = Accumulator<S>;
    Check check;
    const Panels<Acc> panels{call.rows, call.channels};
    const Buffer<Acc> packed(channels_last ? call.groups * kTileTaps * panels.size() : 0);
    double tiles = 0;
    for (const auto& lattice : call.lattices) tiles += static_cast<double>(call.batch * tiles_of(lattice));
    const double work =
        tiles * kTileTaps * static_cast<double>(call.groups * call.rows) * static_cast<double>(call.channels);
    parallel_region(threads_for(work, kConvGrain), [&](const Team& team) {
        if (channels_last) {
            const Range own = share(call.groups * kTileTaps * panels.count(), team.rank, team.size);
            for (int64_t i = own.begin; i < own.end; ++i) {
                const int64_t matrix = i / panels.count(), p = i % panels.count(), first = panels.column(p);
                const int64_t padded = int64_t(panels.vectors(p)) * kWidth<Acc>;
                pack_columns<Acc>(call.weights + (matrix * call.rows + first) * call.channels, call.channels,
                                  std::min(padded, call.rows - first), padded,
                                  packed + matrix * panels.size() + panels.offset(p));
            }
            team.wait();
        }
        for (const auto& lattice : call.lattices)
            if (channels_last)
                RowFilter<S>(call, lattice, panels, packed, check).part(team);
            else
                PlaneFilter<S>(call, lattice, check).part(team);
    });
    return check.passed();
}

// From a weight to that of the next input channel, and of the next tap.
int64_t channel_of(const ConvShape& s) { return s.channels_last ? 1 : kKernelTaps; }
int64_t tap_of(const ConvShape& s) { return s.channels_last ? s.in_channels : 1; }

}  // namespace

bool winograd_forward(const ConvForward<float>& call) {
    const ConvShape& s = call.shape;
    if (!winograd_pays(s, false)) return false;
    const int64_t output = s.in_channels * kKernelTaps;
    const auto weights =
        transformed_weights<float>(s.groups, s.out_channels, s.in_channels,
                                   {call.weight, s.out_channels * output, output, channel_of(s), tap_of(s), false});
    return run(WinogradCall<float>{all_tile_lattices(s, false), s.batch, s.groups, s.in_channels, s.out_channels,
                                   call.input, weights, call.bias, call.relu, call.out},
               s.channels_last);
}

bool winograd_input_gradient(const ConvInputGradient<float>& call) {
    const ConvShape& s = call.shape;
    if (!winograd_pays(s, true)) return false;
    const int64_t output = s.in_channels * kKernelTaps;
    const auto weights =
        transformed_weights<float>(s.groups, s.in_channels, s.out_channels,
                                   {call.weight, s.out_channels * output, channel_of(s), output, tap_of(s), true});
    return run(WinogradCall<float>{all_tile_lattices(s, true), s.batch, s.groups, s.out_channels, s.in_channels,
                                   call.grad, weights, nullptr, false, call.grad_input},
               s.channels_last);
}

}  // namespace pykernels
