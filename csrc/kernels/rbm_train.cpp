// Contrastive divergence, mini-batch by mini-batch. The weights lie packed for both directions throughout: a thread has
// the hidden units of some panels, whose statistics it finds, and whose weights it updates where they lie and turns for
// the other direction; and it has some visible units. So the threads meet twice in a Gibbs step, and nowhere else.
#include "kernels/rbm_units.h"

namespace pykernels {
namespace {

constexpr double kGrain = 1 << 19;  // multiply-adds of a mini-batch that are worth a thread

// Multiply-adds of a mini-batch.
template <typename T>
double work(const RbmTraining<T>& call) {
    const int64_t rows = std::min(call.batch, call.rows), chains = call.chain ? call.chains : rows;
    return static_cast<double>(call.visible * call.hidden) *
           static_cast<double>(2 * rows + (2 * call.steps + 1) * chains);
}

int64_t whole(int64_t columns) { return (columns + kDrawColumns - 1) / kDrawColumns * kDrawColumns; }

template <typename T>
class Training {
  public:
    explicit Training(const RbmTraining<T>& call)
        : call_(call),
          threads_(threads_for(work(call), kGrain)),
          to_hidden_(rbm_panels<T>(call.hidden, call.visible, threads_)),
          to_visible_(rbm_panels<T>(call.visible, call.hidden, threads_)),
          wide_hidden_(whole(call.hidden)),
          wide_visible_(whole(call.visible)),
          most_(std::max(std::min(call.batch, call.rows), call.chains)),
          weight_(to_hidden_.size()),
          turned_(to_visible_.size()),
          second_(call.velocity.weight || call.gradient.weight ? to_hidden_.size() : 0),
          hidden_bias_(wide_hidden_),
          visible_bias_(wide_visible_),
          hidden_(most_ * wide_hidden_),
          means_(2 * most_ * wide_hidden_),
          visible_(most_ * wide_visible_) {}

    void run() const {
        parallel_region(threads_, [&](const Team& team) { Member(*this, team).run(); });
    }

  private:
    using V = Vec<T>;
    static constexpr int width = kWidth<T>;

    // One thread.
    class Member {
      public:
        Member(const Training& all, const Team& team)
            : all_(all),
              call_(all.call_),
              team_(team),
              hidden_panels_(share(all.to_hidden_.count(), team.rank, team.size)),
              visible_panels_(share(all.to_visible_.count(), team.rank, team.size)),
              hidden_columns_(columns_of(all.to_hidden_, hidden_panels_)),
              visible_columns_(columns_of(all.to_visible_, visible_panels_)),
              hidden_ending_({false, call_.units.temperature}),
              visible_ending_(call_.units),
              states_(2 * all.most_) {}

        void run() {
            begin();
            int64_t number = 0;
            for (int64_t first = 0; first < call_.rows; first += call_.batch, ++number)
                mini_batch(first, std::min(call_.batch, call_.rows - first), number);
            end();
        }

      private:
        static Range columns_of(const Panels<T>& panels, const Range& own) {
            return {std::min(panels.column(own.begin), panels.columns),
                    std::min(panels.column(own.end), panels.columns)};
        }

        void begin() {
            for (int64_t p = hidden_panels_.begin; p < hidden_panels_.end; ++p) {
                pack_panel<T>(all_.to_hidden_, p, call_.parameters.weight, true, all_.weight_);
                if (call_.velocity.weight) pack_panel<T>(all_.to_hidden_, p, call_.velocity.weight, true, all_.second_);
            }
            for (int64_t p = visible_panels_.begin; p < visible_panels_.end; ++p)
                pack_panel<T>(all_.to_visible_, p, call_.parameters.weight, false, all_.turned_);
            const auto copy = [&](const T* from, int64_t count, int64_t room, T* to) {
                std::copy(from, from + count, to);
                std::fill(to + count, to + room, T(0));
            };
            if (team_.rank == 0) {
                copy(call_.parameters.hidden_bias, call_.hidden, all_.wide_hidden_, all_.hidden_bias_);
                copy(call_.parameters.visible_bias, call_.visible, all_.wide_visible_, all_.visible_bias_);
                for (int64_t c = 0; c < call_.chains; ++c)
                    copy(call_.chain + c * call_.hidden, call_.hidden, all_.wide_hidden_,
                         all_.hidden_ + c * all_.wide_hidden_);
            }
            team_.wait();
        }

        void mini_batch(int64_t first, int64_t rows, int64_t number) {
            const int64_t chains = call_.chain ? call_.chains : rows;
            for (int64_t b = 0; b < rows; ++b)
                states_[b] = call_.data + (call_.order ? call_.order[first + b] : first + b) * call_.data_stride;
            for (int64_t c = 0; c < chains; ++c) states_[rows + c] = all_.visible_ + c * all_.wide_visible_;
            UnitDraws draws{
                call_.random.key,
                call_.random.first_row + static_cast<uint32_t>(number * std::max(call_.batch, call_.chains)), 0};
            hidden_units(states_, rows, call_.chain ? nullptr : &draws, all_.means_, T(1) / static_cast<T>(rows));
            for (int64_t step = 1; step <= call_.steps; ++step) {
                const bool last = step == call_.steps;
                team_.wait();  // all hidden units are there
                draws.stream = static_cast<uint32_t>(2 * step - 1);
                visible_units(chains, draws);
                team_.wait();  // all visible ones
                draws.stream = static_cast<uint32_t>(2 * step);
                hidden_units(states_ + rows, chains, last && !call_.chain ? nullptr : &draws,
                             last ? all_.means_ + rows * all_.wide_hidden_ : nullptr, T(-1) / static_cast<T>(chains));
            }
            for (int64_t p = hidden_panels_.begin; p < hidden_panels_.end; ++p) weights(p, rows + chains);
            hidden_biases(rows + chains);
            visible_biases(rows, chains);
        }

        // Means, times `share`, and states of the own hidden units, both where wanted.
        void hidden_units(const T* const* states, int64_t rows, const UnitDraws* draws, T* means, T share) {
            const auto rows_at = [&]<int Rows>(int64_t m) {
                RowPointers<T, Rows> pointers;
                for (int i = 0; i < Rows; ++i) pointers.row[i] = states[m + i];
                return pointers;
            };
            hidden_ending_.run(all_.to_hidden_, all_.weight_, hidden_panels_, rows, rows_at, all_.hidden_bias_, draws,
                               [&](int64_t row, int64_t column, const V& mean, const V& sample) {
                                   const int64_t at = row * all_.wide_hidden_ + column;
                                   if (means) (mean * V(share)).store(means + at);
                                   if (draws) sample.store(all_.hidden_ + at);
                               });
        }

        void visible_units(int64_t rows, const UnitDraws& draws) {
            const auto rows_at = [&]<int Rows>(int64_t m) {
                RowPointers<T, Rows> pointers;
                for (int i = 0; i < Rows; ++i) pointers.row[i] = all_.hidden_ + (m + i) * all_.wide_hidden_;
                return pointers;
            };
            visible_ending_.run(all_.to_visible_, all_.turned_, visible_panels_, rows, rows_at, all_.visible_bias_,
                                &draws, [&](int64_t row, int64_t column, const V&, const V& sample) {
                                    sample.store(all_.visible_ + row * all_.wide_visible_ + column);
                                });
        }

        // What becomes of a parameter with this gradient; `second` is its velocity or keeps the gradient, if either.
        [[gnu::always_inline]] void step(const V& gradient, double decay, T* parameter, T* second) const {
            if (call_.gradient.weight) return gradient.store(second);
            const V before = V::loadu(parameter);
            V by = gradient;
            if (decay != 0) by = at::vec::fnmadd(V(static_cast<T>(decay)), before, by);
            by = by * V(static_cast<T>(call_.rate));
            if (call_.velocity.weight) {
                by = at::vec::fmadd(V(static_cast<T>(call_.momentum)), V::loadu(second), by);
                by.store(second);
            }
            (before + by).store(parameter);
        }

        // A panel's statistics, over both phases, and what they do.
        void weights(int64_t p, int64_t states) {
            const Panels<T>& panels = all_.to_hidden_;
            const int64_t span = panels.vectors(p) * int64_t(width);
            T* const panel = all_.weight_ + panels.offset(p);
            T* const second = all_.second_ ? all_.second_ + panels.offset(p) : panel;
            const PanelRows<T> means{all_.means_ + panels.column(p), all_.wide_hidden_};
            with_vectors(panels.vectors(p), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                for_row_tiles(call_.visible, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                    const auto end = [&](const Tile<T, Rows, Vectors>& tile) {
#pragma GCC unroll 8
                        for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 8
                            for (int v = 0; v < Vectors; ++v) {
                                const int64_t at = (row + m) * span + v * width;
                                step(tile.sum[m][v], call_.decay, panel + at, second + at);
                            }
                    };
                    multiply_to<T, Rows, Vectors>(ColumnPointers<Rows>{states_, row}, means, states, nullptr, 0, end);
                });
            });
            if (!call_.gradient.weight) turn(p);
        }

        // A panel's weights for the other direction.
        void turn(int64_t p) {
            const Panels<T>&from = all_.to_hidden_, &to = all_.to_visible_;
            const int64_t span = from.vectors(p) * int64_t(width), first = from.column(p);
            for (int64_t q = 0; q < to.count(); ++q) {
                const int64_t wide = to.vectors(q) * int64_t(width);
                pack_transposed<T>(all_.weight_ + from.offset(p) + to.column(q) * span, span,
                                   std::min(wide, call_.visible - to.column(q)), std::min(span, call_.hidden - first),
                                   all_.turned_ + to.offset(q) + first * wide, wide);
            }
        }

        void hidden_biases(int64_t states) {
            for (int64_t at = hidden_columns_.begin; at < hidden_columns_.end; at += width) {
                V sum(T(0));
                for (int64_t k = 0; k < states; ++k) sum = sum + V::loadu(all_.means_ + k * all_.wide_hidden_ + at);
                bias(sum, at, std::min<int64_t>(width, call_.hidden - at), all_.hidden_bias_,
                     call_.velocity.hidden_bias, call_.gradient.hidden_bias);
            }
        }

        void visible_biases(int64_t rows, int64_t chains) {
            const auto mean = [&](const T* const* states, int64_t count, int64_t at, int used) {
                V sum(T(0));
                for (int64_t k = 0; k < count; ++k) sum = sum + load_as<T>(states[k] + at, used);
                return sum * V(T(1) / static_cast<T>(count));
            };
            for (int64_t at = visible_columns_.begin; at < visible_columns_.end; at += width) {
                const int used = static_cast<int>(std::min<int64_t>(width, call_.visible - at));
                bias(mean(states_, rows, at, used) - mean(states_ + rows, chains, at, used), at, used,
                     all_.visible_bias_, call_.velocity.visible_bias, call_.gradient.visible_bias);
            }
        }

        void bias(const V& gradient, int64_t at, int64_t used, T* biases, T* velocity, T* gradients) const {
            alignas(64) T second[width] = {};
            T* const kept = gradients ? gradients : velocity;
            if (velocity) std::copy(velocity + at, velocity + at + used, second);
            step(gradient, 0, biases + at, second);
            if (kept) std::copy(second, second + used, kept + at);
        }

        void end() {
            keep_chain();
            if (call_.gradient.weight) return unpack(call_.gradient.weight, all_.second_);
            if (call_.velocity.weight) unpack(call_.velocity.weight, all_.second_);
            unpack(call_.parameters.weight, all_.weight_);
            const auto copy = [](const T* from, const Range& own, T* to) {
                std::copy(from + own.begin, from + own.end, to + own.begin);
            };
            copy(all_.hidden_bias_, hidden_columns_, call_.parameters.hidden_bias);
            copy(all_.visible_bias_, visible_columns_, call_.parameters.visible_bias);
        }

        // The own panels as rows of a matrix [hidden, visible].
        void unpack(T* matrix, const T* packed) {
            const Panels<T>& panels = all_.to_hidden_;
            constexpr int64_t together = 16;
            for (int64_t p = hidden_panels_.begin; p < hidden_panels_.end; ++p) {
                const int64_t span = panels.vectors(p) * int64_t(width), first = panels.column(p);
                for (int64_t v = 0; v < call_.visible; v += together)
                    pack_transposed<T>(packed + panels.offset(p) + v * span, span,
                                       std::min(together, call_.visible - v), std::min(span, call_.hidden - first),
                                       matrix + first * call_.visible + v, call_.visible);
            }
        }

        void keep_chain() {
            for (int64_t c = 0; c < call_.chains; ++c) {
                const T* from = all_.hidden_ + c * all_.wide_hidden_;
                std::copy(from + hidden_columns_.begin, from + hidden_columns_.end,
                          call_.chain + c * call_.hidden + hidden_columns_.begin);
            }
        }

        // Rows of A: a visible unit's states, one after the other.
        template <int Rows>
        struct ColumnPointers {
            const T* const* states;
            int64_t first;
            const T* at(int m, int64_t k) const { return states[k] + first + m; }
        };

        const Training& all_;
        const RbmTraining<T>& call_;
        const Team& team_;
        Range hidden_panels_, visible_panels_, hidden_columns_, visible_columns_;
        UnitEnding<T> hidden_ending_, visible_ending_;
        Buffer<const T*> states_;  // of the visible units: the data, then the chains
    };

    const RbmTraining<T>& call_;
    int threads_;
    Panels<T> to_hidden_, to_visible_;
    int64_t wide_hidden_, wide_visible_, most_;
    Buffer<T> weight_, turned_, second_;  // panels [visible][hidden], [hidden][visible]; velocity or gradient
    Buffer<T> hidden_bias_, visible_bias_;
    Buffer<T> hidden_, means_, visible_;  // states; means of both phases, as they are added up; states
};

}  // namespace

void rbm_train(const RbmTraining<float>& call) { Training<float>(call).run(); }
void rbm_train(const RbmTraining<double>& call) { Training<double>(call).run(); }

}  // namespace pykernels
