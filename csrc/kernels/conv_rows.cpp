// The weights are packed once as panels; places are shared out among the threads.
#include "kernels/conv_rows.h"

#include "kernels/conv_pixels.h"

namespace pykernels {
namespace {

// Ends a tile: bias, ReLU, and row m to out[m]; or, where `out` is null, to the sums.
template <typename Acc, typename S>
struct RowResults {
    Acc* sums;
    S* const* out;
    const Acc* bias;  // of the columns, or null
    bool relu;

    template <int Rows, int Vectors, typename Op>
    [[gnu::always_inline]] void operator()(const Tile<Op, Rows, Vectors>& tile) const {
        using V = Vec<Acc>;
        constexpr int width = kWidth<Acc>;
        if (!out) return tile.end(sums, int64_t(Vectors) * width);
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) {
            const V shift = bias ? V::loadu(bias + v * width) : V(Acc(0));
#pragma GCC unroll 8
            for (int m = 0; m < Rows; ++m) {
                V x = tile.sum[m][v] + shift;
                if (relu) x = at::vec::maximum(x, V(Acc(0)));
                store_as<Acc, S>(out[m] + v * width, x);
            }
        }
    }
};

template <typename Call>
class RowsProduct {
    using S = typename Call::S;
    using Op = typename Call::Op;
    using Acc = typename Call::Acc;
    using V = Vec<Acc>;
    static constexpr int width = kWidth<Acc>;
    static constexpr int64_t kDeepest = 2560;       // so much of a panel passes the rows before the rest of it does
    static constexpr double kGatherVectors = 0.25;  // vectors of columns whose products take as long as the gathering

  public:
    explicit RowsProduct(const Call& call)
        : call_(call),
          depth_(call.taps() * ((call.channels + Operand<Op>::kPerElement - 1) / Operand<Op>::kPerElement)),
          panels_{call.columns, depth_},
          packed_(call.groups * panels_.size()),
          places_(call.batch * call.places()) {}

    void run() const {
        if (places_ == 0 || call_.columns == 0) return;
        const double work = static_cast<double>(places_) * call_.groups * call_.columns * (depth_ + 4.0);
        parallel_region(threads_for(work, kConvGrain), [&](const Team& team) {
            const Range own = share(call_.groups * panels_.count(), team.rank, team.size);
            for (int64_t i = own.begin; i < own.end; ++i) pack(i / panels_.count(), i % panels_.count());
            team.wait();
            work_on(team);
        });
    }

  private:
    void pack(int64_t group, int64_t p) const {
        const int64_t first = panels_.column(p), padded = int64_t(panels_.vectors(p)) * width;
        call_.pack(group, first, std::min(padded, call_.columns - first), padded,
                   packed_ + group * panels_.size() + panels_.offset(p));
    }

    // A thread's part: some places of some groups, and some panels.
    void work_on(const Team& team) const {
        const int across =
            threads_across(team.size, places_ * call_.groups, panels_.count(), 1, kGatherVectors / kTileVectors);
        const int along = team.size / across;
        if (team.rank >= along * across) return;
        const Range mine = share(places_ * call_.groups, team.rank / across, along, kTileRows);
        const Range panels = share(panels_.count(), team.rank % across, across);
        if (mine.size() <= 0 || panels.size() <= 0) return;

        RowPatches<S, Op> patches(call_.lattice, call_.mode, call_.channels, call_.groups * call_.channels,
                                  call_.source + call_.batch * call_.pixels() * call_.groups * call_.channels);
        const int64_t most = patches.block_size(kRowBlock);
        const Buffer<Acc> partial(depth_ > kDeepest ? most * panels_.span() : 0);
        for (int64_t g = mine.begin / places_; g <= (mine.end - 1) / places_; ++g) {
            const int64_t end = std::min(mine.end - g * places_, places_);
            for (int64_t at = std::max(mine.begin - g * places_, int64_t{0}); at < end;) {
                const int64_t next = patches.block_end(at, end, most);
                patches.read(call_.source + g * call_.channels, at, next);
                for (int64_t p = panels.begin; p < panels.end; ++p) panel(patches, g, p, at, next - at, partial);
                at = next;
            }
        }
    }

    void panel(const RowPatches<S, Op>& patches, int64_t group, int64_t p, int64_t at, int64_t count,
               Acc* partial) const {
        const Op* const packed = packed_ + group * panels_.size() + panels_.offset(p);
        const int64_t together = std::max<int64_t>(kDeepest / std::max<int64_t>(patches.run_depth(), 1), 1);
        with_vectors(panels_.vectors(p), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
            constexpr int64_t columns = Vectors * width;
            for (int64_t tap = 0; tap < std::max<int64_t>(patches.taps(), 1); tap += together) {
                const int64_t taps = std::min(together, patches.taps() - tap);
                const bool last = tap + taps >= patches.taps();
                const Op* const part_of_panel = packed + tap * patches.run_depth() * columns;
                for_row_tiles(count, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                    const int64_t first = group * call_.columns + panels_.column(p);
                    S* out[Rows];  // the result comes from far away and is needed last: asks for it
                    for (int m = 0; last && m < Rows; ++m) {
                        out[m] = call_.out + patches.target(at + row + m) * call_.groups * call_.columns + first;
                        for (int v = 0; v < Vectors; ++v) __builtin_prefetch(out[m] + v * width, 1);
                    }
                    Acc* const part = partial ? partial + row * columns : nullptr;
                    const int64_t used = std::min(columns, call_.columns - panels_.column(p));
                    const bool whole = last && used == columns;
                    alignas(64) Acc sum[Rows * columns];
                    patches.template multiply_rows<Rows, Vectors>(
                        row, tap, taps, part_of_panel, tap ? part : nullptr, columns,
                        RowResults<Acc, S>{last ? sum : part, whole ? out : nullptr,
                                           call_.bias ? call_.bias + first : nullptr, call_.relu});
                    for (int m = 0; last && !whole && m < Rows; ++m) finish(sum + m * columns, first, used, out[m]);
                });
            }
        });
    }

    void finish(const Acc* sum, int64_t column, int64_t count, S* to) const {
        each_vector<Acc>(count, [&](int64_t i, int used) {
            V x = V::loadu(sum + i);
            if (call_.bias) x = x + load_as<Acc>(call_.bias + column + i, used);
            if (call_.relu) x = at::vec::maximum(x, V(Acc(0)));
            store_as<Acc, S>(to + i, x, used);
        });
    }

    const Call& call_;
    int64_t depth_;
    Panels<Op> panels_;
    Buffer<Op> packed_;
    int64_t places_;
};

}  // namespace

void rows_product(const RowsCall<float, ProductOperandOf<float>>& call) { RowsProduct(call).run(); }
void rows_product(const RowsCall<double, ProductOperandOf<double>>& call) { RowsProduct(call).run(); }
void rows_product(const RowsCall<c10::BFloat16, ProductOperandOf<c10::BFloat16>>& call) { RowsProduct(call).run(); }
void rows_product(const RowsCall<c10::Half, ProductOperandOf<c10::Half>>& call) { RowsProduct(call).run(); }

}  // namespace pykernels
