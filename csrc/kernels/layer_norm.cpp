// Layer norm of a sum: each row is read once, and normalised where it lies in the first-level cache.
#include "kernels/layer_norm.h"

#include "core/parallel.h"
#include "core/philox_vector.h"
#include "core/row_norm.h"
#include "core/scratch.h"

namespace pykernels {
namespace {

constexpr double kGrain = 1 << 14;  // elements that are worth a thread
constexpr int64_t kRun = 64;        // rows whose gradients of weight and bias are added up together

template <typename Call>
class Forward {
    using S = typename Call::Storage;
    using Acc = typename Call::Acc;
    using V = Vec<Acc>;

  public:
    explicit Forward(const Call& call) : call_(call), s_(call.shape) {}

    void run() const {
        parallel_region(threads_for(static_cast<double>(s_.rows * s_.columns), kGrain), [&](const Team& team) {
            const Buffer<Acc> factors(s_.dropout.below ? s_.columns + 16 : 0);
            const Range own = share(s_.rows, team.rank, team.size);
            for (int64_t r = own.begin; r < own.end; ++r) row(r, factors);
        });
    }

  private:
    void row(int64_t r, Acc* factors) const {
        const S* from = call_.input + r * call_.input_stride;
        if (call_.total) {
            add(r, from, factors);
            from = call_.total + r * s_.columns;
        }
        const auto stats = row_stats(from, s_.columns, call_.epsilon);
        call_.stats[2 * r] = stats.mean;
        call_.stats[2 * r + 1] = stats.scale;
        const V mean(stats.mean), scale(stats.scale);
        S* out = call_.out + r * s_.columns;
        each_vector<Acc>(s_.columns, [&](int64_t i, int used) {
            V x = (load_as<Acc>(from + i, used) - mean) * scale;
            if (call_.weight) x = x * load_as<Acc>(call_.weight + i, used);
            if (call_.bias) x = x + load_as<Acc>(call_.bias + i, used);
            store_as<Acc, S>(out + i, x, used);
        });
    }

    void add(int64_t r, const S* input, Acc* factors) const {
        if (s_.dropout.below) dropout_factors(s_.dropout, static_cast<uint32_t>(r), 0, 0, s_.columns, factors);
        const S* residual = call_.residual ? call_.residual + r * call_.residual_stride : nullptr;
        S* total = call_.total + r * s_.columns;
        each_vector<Acc>(s_.columns, [&](int64_t i, int used) {
            V x = load_as<Acc>(input + i, used);
            if (s_.dropout.below) x = x * load_as<Acc>(factors + i, used);
            if (residual) x = x + load_as<Acc>(residual + i, used);
            store_as<Acc, S>(total + i, x, used);
        });
    }

    const Call& call_;
    const LayerNormShape& s_;
};

template <typename Call>
class Backward {
    using S = typename Call::Storage;
    using Acc = typename Call::Acc;
    using V = Vec<Acc>;

  public:
    explicit Backward(const Call& call)
        : call_(call),
          s_(call.shape),
          runs_((s_.rows + kRun - 1) / kRun),
          columns_((s_.columns + 15) / 16 * 16),
          for_weight_(call.grad_weight ? runs_ * columns_ : 0),
          for_bias_(call.grad_bias ? runs_ * columns_ : 0) {}

    void run() const {
        parallel_region(threads_for(static_cast<double>(s_.rows * s_.columns), kGrain), [&](const Team& team) {
            const Buffer<Acc> factors(s_.dropout.below ? s_.columns + 16 : 0);
            const Range own = share(runs_, team.rank, team.size);
            for (int64_t run = own.begin; run < own.end; ++run) {
                for (const Buffer<Acc>* sums : {&for_weight_, &for_bias_})
                    if (*sums) std::fill_n(*sums + run * columns_, s_.columns, Acc(0));
                for (int64_t r = run * kRun; r < std::min((run + 1) * kRun, s_.rows); ++r) row(r, run, factors);
            }
            if (!call_.grad_weight && !call_.grad_bias) return;
            team.wait();
            const Range mine = share(s_.columns, team.rank, team.size, 16);
            put_together(for_weight_, call_.grad_weight, mine);
            put_together(for_bias_, call_.grad_bias, mine);
        });
    }

  private:
    void row(int64_t r, int64_t run, Acc* factors) const {
        const S* total = call_.total + r * call_.total_stride;
        const S* grad = call_.grad_out ? call_.grad_out + r * call_.grad_out_stride : nullptr;
        const S* passed = call_.grad_total ? call_.grad_total + r * call_.grad_total_stride : nullptr;
        const V mean(call_.stats[2 * r]), scale(call_.stats[2 * r + 1]);
        if (s_.dropout.below) dropout_factors(s_.dropout, static_cast<uint32_t>(r), 0, 0, s_.columns, factors);
        const auto normalized = [&](int64_t i, int used) { return (load_as<Acc>(total + i, used) - mean) * scale; };
        const auto put = [&](int64_t i, int used, V gradient) {
            if (passed) gradient = gradient + load_as<Acc>(passed + i, used);
            store_as<Acc, S>(call_.grad_of_total + r * s_.columns + i, gradient, used);
            if (call_.grad_input)
                store_as<Acc, S>(call_.grad_input + r * s_.columns + i,
                                 s_.dropout.below ? gradient * load_as<Acc>(factors + i, used) : gradient, used);
        };
        if (!grad) return each_vector<Acc>(s_.columns, [&](int64_t i, int used) { put(i, used, V(Acc(0))); });
        const auto weighted = [&](int64_t i, int used) {
            const V g = load_as<Acc>(grad + i, used);
            return call_.weight ? g * load_as<Acc>(call_.weight + i, used) : g;
        };
        row_norm_backward<Acc>(s_.columns, call_.stats[2 * r + 1], weighted, normalized, put);
        Acc* weights = for_weight_ ? for_weight_ + run * columns_ : nullptr;
        Acc* biases = for_bias_ ? for_bias_ + run * columns_ : nullptr;
        if (!weights && !biases) return;
        each_vector<Acc>(s_.columns, [&](int64_t i, int used) {
            const V g = load_as<Acc>(grad + i, used);
            if (weights) at::vec::fmadd(g, normalized(i, used), V::loadu(weights + i)).store(weights + i);
            if (biases) (V::loadu(biases + i) + g).store(biases + i);
        });
    }

    // The runs' sums, in ascending order.
    void put_together(const Buffer<Acc>& sums, Acc* to, const Range& mine) const {
        if (!to) return;
        for (int64_t i = mine.begin; i < mine.end; i += kWidth<Acc>) {
            V sum(Acc(0));
            for (int64_t run = 0; run < runs_; ++run) sum = sum + V::loadu(sums + run * columns_ + i);
            store_as<Acc, Acc>(to + i, sum, static_cast<int>(std::min<int64_t>(kWidth<Acc>, mine.end - i)));
        }
    }

    const Call& call_;
    const LayerNormShape& s_;
    int64_t runs_, columns_;
    Buffer<Acc> for_weight_, for_bias_;
};

}  // namespace

void layer_norm_forward(const LayerNormForward<float>& call) { Forward(call).run(); }
void layer_norm_forward(const LayerNormForward<double>& call) { Forward(call).run(); }
void layer_norm_forward(const LayerNormForward<c10::BFloat16>& call) { Forward(call).run(); }
void layer_norm_forward(const LayerNormForward<c10::Half>& call) { Forward(call).run(); }
void layer_norm_backward(const LayerNormBackward<float>& call) { Backward(call).run(); }
void layer_norm_backward(const LayerNormBackward<double>& call) { Backward(call).run(); }
void layer_norm_backward(const LayerNormBackward<c10::BFloat16>& call) { Backward(call).run(); }
void layer_norm_backward(const LayerNormBackward<c10::Half>& call) { Backward(call).run(); }

}  // namespace pykernels
