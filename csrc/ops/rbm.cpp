// The restricted Boltzmann machine's operators on the CPU: allocate and call the kernels.
#include "ops/rbm.h"

#include "kernels/rbm.h"

#include <torch/library.h>

#include "ops/by_type.h"
#include "ops/recycled.h"
#include "ops/registry.h"

namespace pykernels {
namespace {

// Rows whose columns lie beside each other.
Tensor rows_of(const Tensor& tensor, int64_t rows, int64_t columns) {
    const Tensor flat = tensor.dim() == 2 ? tensor : tensor.reshape({rows, columns});
    return columns <= 1 || flat.stride(1) == 1 ? flat : flat.contiguous();
}

RbmSampleResult sample(const RbmSampleArguments& args, const RbmSampleSizes& s) {
    const auto options = args.input.options();
    const Tensor mean = empty_recycled(s.out, options);
    const Tensor drawn = args.seed ? empty_recycled(s.out, options) : at::empty({0}, options);
    const Tensor input = rows_of(args.input, s.rows, s.inputs), weight = args.weight.contiguous();
    const Tensor bias = args.bias ? args.bias->contiguous() : Tensor();
    by_type(args.input, [&]<typename S>(S) {
        rbm_layer(RbmLayer<S>{s.rows,
                              s.inputs,
                              s.outputs,
                              input.const_data_ptr<S>(),
                              input.stride(0),
                              weight.const_data_ptr<S>(),
                              args.transposed,
                              args.bias ? bias.const_data_ptr<S>() : nullptr,
                              {args.gaussian, args.temperature},
                              {s.key, 0},
                              static_cast<uint32_t>(args.stream),
                              mean.data_ptr<S>(),
                              args.seed ? drawn.data_ptr<S>() : nullptr});
    });
    return {mean, drawn};
}

// What all calls that train have; the parameters are dense.
template <typename T>
RbmTraining<T> training_of(const RbmTrainArguments& args, const RbmTrainSizes& s, const Tensor& data,
                           const Tensor& order, const std::array<Tensor, 3>& parameters) {
    RbmTraining<T> call{};
    call.visible = s.visible;
    call.hidden = s.hidden;
    call.rows = s.rows;
    call.batch = s.batch;
    call.steps = args.method.steps;
    call.data = data.const_data_ptr<T>();
    call.data_stride = data.stride(0);
    call.order = order.defined() ? order.const_data_ptr<int64_t>() : nullptr;
    call.units = {args.method.gaussian, args.method.temperature};
    call.random = {s.key, s.first_row};
    call.parameters = {parameters[0].data_ptr<T>(), parameters[1].data_ptr<T>(), parameters[2].data_ptr<T>()};
    call.chains = s.chains;
    call.rate = args.method.rate;
    call.momentum = args.method.momentum;
    call.decay = args.method.decay;
    return call;
}

template <typename Run>
void by_wide_type(const Tensor& tensor, const Run& run) {
    tensor.scalar_type() == at::kDouble ? run(double()) : run(float());
}

RbmStatistics statistics(const RbmTrainArguments& args, const RbmTrainSizes& s) {
    const auto options = args.data.options();
    const auto& p = args.parameters;
    const Tensor weight = at::empty({s.hidden, s.visible}, options), visible = at::empty({s.visible}, options);
    const Tensor hidden = at::empty({s.hidden}, options);
    const Tensor chain = args.chain ? args.chain->clone(at::MemoryFormat::Contiguous) : at::empty({0}, options);
    if (s.rows == 0) return {weight.zero_(), visible.zero_(), hidden.zero_(), chain};
    const Tensor data = rows_of(args.data, s.rows, s.visible);
    const std::array<Tensor, 3> parameters{p.weight.contiguous(), p.visible_bias.contiguous(),
                                           p.hidden_bias.contiguous()};
    by_wide_type(data, [&]<typename T>(T) {
        auto call = training_of<T>(args, s, data, {}, parameters);
        call.chain = args.chain ? chain.data_ptr<T>() : nullptr;
        call.gradient = {weight.data_ptr<T>(), visible.data_ptr<T>(), hidden.data_ptr<T>()};
        rbm_train(call);
    });
    return {weight, visible, hidden, chain};
}

// A tensor that is written to, dense while the kernel runs.
class InPlace {
  public:
    explicit InPlace(const Tensor& tensor) : tensor_(tensor), dense_(tensor.contiguous()) {}
    const Tensor& dense() const { return dense_; }
    void put_back() const {
        if (!dense_.is_same(tensor_)) tensor_.copy_(dense_);
    }

  private:
    Tensor tensor_, dense_;
};

void train(const RbmTrainArguments& args, const RbmTrainSizes& s) {
    if (s.rows == 0) return;
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    const auto& p = args.parameters;
    const std::array<InPlace, 3> parameters{InPlace(p.weight), InPlace(p.visible_bias), InPlace(p.hidden_bias)};
    std::vector<InPlace> others;
    for (std::size_t i = 0; s.moves && i < 3; ++i) others.emplace_back(**args.velocity[i]);
    if (args.chain) others.emplace_back(*args.chain);
    const Tensor data = rows_of(args.data, args.data.size(0), s.visible);
    const Tensor order = args.order ? args.order->contiguous() : Tensor();
    by_wide_type(data, [&]<typename T>(T) {
        auto call =
            training_of<T>(args, s, data, order, {parameters[0].dense(), parameters[1].dense(), parameters[2].dense()});
        call.chain = args.chain ? others.back().dense().data_ptr<T>() : nullptr;
        if (s.moves)
            call.velocity = {others[0].dense().data_ptr<T>(), others[1].dense().data_ptr<T>(),
                             others[2].dense().data_ptr<T>()};
        rbm_train(call);
    });
    for (const auto& tensor : parameters) tensor.put_back();
    for (const auto& tensor : others) tensor.put_back();
}

using Operators = RbmOperators<sample, statistics, train>;

}  // namespace

TORCH_LIBRARY_FRAGMENT(pykernels, m) {
    m.def(
        "rbm_sample(Tensor input, Tensor weight, Tensor? bias, Tensor? seed, int stream, bool transposed, "
        "bool gaussian, float temperature) -> (Tensor mean, Tensor sample)",
        {at::Tag::pt2_compliant_tag});
    m.def(
        "rbm_contrastive_divergence(Tensor data, Tensor weight, Tensor visible_bias, Tensor hidden_bias, "
        "Tensor? chain, Tensor seed, int steps, bool gaussian, float temperature, SymInt first_row) -> "
        "(Tensor of_weight, Tensor of_visible_bias, Tensor of_hidden_bias, Tensor next_chain)",
        {at::Tag::pt2_compliant_tag});
    m.def(
        "rbm_train_(Tensor data, Tensor? order, Tensor(a!) weight, Tensor(b!) visible_bias, Tensor(c!) hidden_bias, "
        "Tensor(d!)? weight_velocity, Tensor(e!)? visible_velocity, Tensor(f!)? hidden_velocity, Tensor(g!)? chain, "
        "Tensor seed, SymInt batch, int steps, bool gaussian, float temperature, float rate, float momentum, "
        "float decay, SymInt first_row) -> ()",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
    m.impl("rbm_sample", Operators::sample);
    m.impl("rbm_contrastive_divergence", Operators::contrastive_divergence);
    m.impl("rbm_train_", Operators::train);
}

static const RawKernel raw_kernels[] = {{"rbm_sample", Operators::sample},
                                        {"rbm_contrastive_divergence", Operators::contrastive_divergence}};

}  // namespace pykernels
