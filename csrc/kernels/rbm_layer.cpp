// One side of a restricted Boltzmann machine given the other: product, bias, logistic function and draw in one pass.
#include "kernels/rbm_units.h"

namespace pykernels {
namespace {

constexpr double kGrain = 1 << 18;  // multiply-adds that are worth a thread

template <typename S>
class Layer {
    using T = typename RbmLayer<S>::Acc;
    static constexpr bool kWide = std::is_same_v<S, T>;

  public:
    explicit Layer(const RbmLayer<S>& call)
        : call_(call),
          threads_(
              threads_for(static_cast<double>(call.rows) * static_cast<double>(call.inputs * call.outputs), kGrain)),
          by_rows_(call.rows >= 2 * kTileRows * threads_),
          panels_(rbm_panels<T>(call.outputs, call.inputs, by_rows_ ? 1 : threads_)),
          packed_(panels_.size()),
          bias_((call.outputs + kDrawColumns - 1) / kDrawColumns * kDrawColumns) {}

    void run() const {
        for (int64_t i = 0; i < call_.outputs; ++i) bias_[i] = call_.bias ? static_cast<T>(call_.bias[i]) : T(0);
        std::fill(bias_ + call_.outputs, bias_ + (call_.outputs + kDrawColumns - 1) / kDrawColumns * kDrawColumns,
                  T(0));
        parallel_region(threads_, [&](const Team& team) {
            const Range packing = share(panels_.count(), team.rank, team.size);
            for (int64_t p = packing.begin; p < packing.end; ++p) pack(p);
            if (by_rows_) team.wait();
            const Range rows = by_rows_ ? share(call_.rows, team.rank, team.size, kTileRows) : Range{0, call_.rows};
            const Range panels = by_rows_ ? Range{0, panels_.count()} : packing;
            const UnitEnding<T> ending(call_.units);
            const Buffer<T> wide(kWide ? 0 : kRbmRows * call_.inputs);
            for (int64_t r = rows.begin; r < rows.end; r += kRbmRows)
                some_rows(ending, panels, {r, std::min(r + kRbmRows, rows.end)}, wide);
        });
    }

  private:
    void some_rows(const UnitEnding<T>& ending, const Range& panels, const Range& rows, T* wide) const {
        const T* from;
        int64_t stride = call_.input_stride;
        if constexpr (kWide) {
            from = call_.input + rows.begin * stride;
        } else {
            for (int64_t r = rows.begin; r < rows.end; ++r)
                widen(call_.input + r * stride, call_.inputs, wide + (r - rows.begin) * call_.inputs);
            from = wide;
            stride = call_.inputs;
        }
        const auto rows_at = [&]<int Rows>(int64_t m) {
            RowPointers<T, Rows> pointers;
            for (int i = 0; i < Rows; ++i) pointers.row[i] = from + (m + i) * stride;
            return pointers;
        };
        const UnitDraws draws{call_.random.key, call_.random.first_row + static_cast<uint32_t>(rows.begin),
                              call_.stream};
        S* const mean_out = call_.mean + rows.begin * call_.outputs;
        S* const sample_out = call_.sample ? call_.sample + rows.begin * call_.outputs : nullptr;
        ending.run(panels_, packed_, panels, rows.size(), rows_at, bias_.get(), sample_out ? &draws : nullptr,
                   [&](int64_t row, int64_t column, const Vec<T>& mean, const Vec<T>& sample) {
                       const int used = static_cast<int>(std::min<int64_t>(kWidth<T>, call_.outputs - column));
                       if (used <= 0) return;
                       store_as<T, S>(mean_out + row * call_.outputs + column, mean, used);
                       if (sample_out) store_as<T, S>(sample_out + row * call_.outputs + column, sample, used);
                   });
    }

    void pack(int64_t p) const {
        if constexpr (kWide) {
            pack_panel<T>(panels_, p, call_.weight, !call_.transposed, packed_);
        } else {
            const int64_t column = panels_.column(p), used = std::min(panels_.span(), call_.outputs - column);
            const int64_t inputs = call_.inputs;
            const Buffer<T> part(used * inputs);
            if (call_.transposed) {
                for (int64_t k = 0; k < inputs; ++k)
                    widen(call_.weight + k * call_.outputs + column, used, part + k * used);
            } else {
                for (int64_t j = 0; j < used; ++j)
                    widen(call_.weight + (column + j) * inputs, inputs, part + j * inputs);
            }
            pack_panel<T>({used, inputs, panels_.per_panel}, 0, part, !call_.transposed, packed_ + panels_.offset(p));
        }
    }

    static void widen(const S* from, int64_t count, T* to) {
        each_vector<T>(count, [&](int64_t i, int used) { store_as<T, T>(to + i, load_as<T>(from + i, used), used); });
    }

    const RbmLayer<S>& call_;
    int threads_;
    bool by_rows_;
    Panels<T> panels_;
    Buffer<T> packed_, bias_;
};

}  // namespace

void rbm_layer(const RbmLayer<float>& call) { Layer(call).run(); }
void rbm_layer(const RbmLayer<double>& call) { Layer(call).run(); }
void rbm_layer(const RbmLayer<c10::BFloat16>& call) { Layer(call).run(); }
void rbm_layer(const RbmLayer<c10::Half>& call) { Layer(call).run(); }

}  // namespace pykernels
