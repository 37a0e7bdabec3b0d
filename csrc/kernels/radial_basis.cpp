// The radial basis layer: a product whose ending is the exponential. With x and t taken from the centres' mean,
// -|x - t|^2 = 2 (x t - t t / 2 - x x / 2): the second term starts the sums, the third comes with the exponential.
#include "kernels/radial_basis.h"

#include <cmath>
#include <limits>

#include "core/gemm.h"
#include "core/math.h"
#include "core/parallel.h"

namespace pykernels {
namespace {

constexpr double kGrain = 1e5;        // products worth a thread
constexpr int64_t kSampleBlock = 96;  // rows that pass all panels of centres

template <typename S>
class Layer {
    using T = typename RadialBasis<S>::Acc;
    static constexpr int width = kWidth<T>;

  public:
    explicit Layer(const RadialBasis<S>& call)
        : call_(call),
          panels_{call.centers, call.features},
          packed_(panels_.size()),
          start_(panels_.count() * panels_.span()),
          mean_((call.features + width - 1) / width * width) {}

    // One thread's part; all threads of the team come here.
    void run(const Team& team) {
        find_mean(share(call_.features, team.rank, team.size, width));
        team.wait();
        const Range panels = share(panels_.count(), team.rank, team.size);
        for (int64_t p = panels.begin; p < panels.end; ++p) pack(p);
        team.wait();
        const Range mine = share(call_.samples, team.rank, team.size, kTileRows);
        const int64_t stride = (call_.features + width - 1) / width * width;
        const Buffer<T> rows(kSampleBlock * stride), half(kSampleBlock);
        for (int64_t first = mine.begin; first < mine.end; first += kSampleBlock) {
            const int64_t count = std::min(kSampleBlock, mine.end - first);
            for (int64_t i = 0; i < count; ++i) half[i] = centre(first + i, rows + i * stride);
            for (int64_t p = 0; p < panels_.count(); ++p)
                with_vectors(panels_.vectors(p), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                    for_row_tiles(count, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t i) {
                        apply<Rows, Vectors>(p, first + i, rows + i * stride, stride, half + i);
                    });
                });
        }
    }

  private:
    void find_mean(const Range& mine) {
        std::fill(mean_ + mine.begin,
                  mean_ + (mine.end == call_.features ? (mine.end + width - 1) / width * width : mine.end), T(0));
        for (int64_t j = 0; j < call_.centers; ++j)
            for (int64_t d = mine.begin; d < mine.end; ++d)
                mean_[d] += static_cast<T>(call_.center[j * call_.center_stride + d]);
        for (int64_t d = mine.begin; d < mine.end; ++d) {
            mean_[d] /= static_cast<T>(call_.centers);
            if (!std::isfinite(mean_[d])) mean_[d] = 0;
        }
    }

    void pack(int64_t p) {
        const int64_t columns = int64_t(panels_.vectors(p)) * width, first = panels_.column(p);
        T* const panel = packed_ + panels_.offset(p);
        T* const start = start_ + first;
        for (int64_t j = 0; j < columns; ++j) {
            T squares = 0;
            for (int64_t d = 0; d < call_.features; ++d) {
                const bool real = first + j < call_.centers;
                const T off =
                    real ? static_cast<T>(call_.center[(first + j) * call_.center_stride + d]) - mean_[d] : T(0);
                panel[d * columns + j] = off;
                squares += off * off;
            }
            start[j] = -squares / 2;
        }
    }

    // A sample, taken from the mean; gives half of its square.
    T centre(int64_t sample, T* row) const {
        const S* const x = call_.input + sample * call_.input_stride;
        Vec<T> sum(T(0));
        each_vector<T>(call_.features, [&](int64_t d, int used) {
            const auto off = load_as<T>(x + d, used) - Vec<T>::loadu(mean_ + d);
            off.store(row + d);
            sum = at::vec::fmadd(off, off, sum);
        });
        return sum_of_lanes(sum) / 2;
    }

    template <int Rows, int Vectors>
    void apply(int64_t p, int64_t sample, const T* row, int64_t stride, const T* half) const {
        RowPointers<T, Rows> rows;
        for (int m = 0; m < Rows; ++m) rows.row[m] = row + m * stride;
        alignas(64) T sums[Rows * Vectors * width];
        const int64_t column = panels_.column(p);
        multiply<T, Rows, Vectors>(rows, packed_ + panels_.offset(p), call_.features, start_ + column, 0, sums,
                                   Vectors * width);
        const Vec<T> scale(static_cast<T>(2 * call_.gamma)), zero(T(0));
        for (int m = 0; m < Rows; ++m) {
            S* const out = call_.out + (sample + m) * call_.centers + column;
            const Vec<T> own(half[m]);
            each_vector<T>(std::min<int64_t>(Vectors * width, call_.centers - column), [&](int64_t j, int used) {
                const auto apart = at::vec::clamp_max(Vec<T>::loadu(sums + m * Vectors * width + j) - own, zero);
                store_as<T, S>(out + j, (scale * apart).exp(), used);
            });
        }
    }

    const RadialBasis<S>& call_;
    const Panels<T> panels_;
    const Buffer<T> packed_, start_, mean_;
};

template <typename S>
void run(const RadialBasis<S>& call) {
    if (call.samples == 0 || call.centers == 0) return;
    const double work = static_cast<double>(call.samples) * static_cast<double>(call.centers * (call.features + 8));
    Layer<S> layer(call);
    parallel_region(threads_for(work, kGrain), [&](const Team& team) { layer.run(team); });
}

}  // namespace

void radial_basis(const RadialBasis<float>& call) { run(call); }
void radial_basis(const RadialBasis<double>& call) { run(call); }
void radial_basis(const RadialBasis<c10::BFloat16>& call) { run(call); }
void radial_basis(const RadialBasis<c10::Half>& call) { run(call); }

}  // namespace pykernels
