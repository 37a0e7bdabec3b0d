// The restricted Boltzmann machine's operators on CUDA: allocate and launch. The seed is read on the host, so a CUDA
// graph repeats its draws.
#include "csrc/ops/rbm.h"

#include <ATen/ops/index_select.h>
#include <torch/library.h>

#include "csrc/ops/registry.h"
#include "cuda/kernels/rbm.h"
#include "cuda/ops/recurrent.h"

namespace pykernels::cuda {
namespace {

// Rows whose columns lie beside each other.
const Tensor& rows_of(Call& call, const Tensor& tensor, int64_t rows, int64_t columns) {
    const Tensor flat = tensor.dim() == 2 ? tensor : tensor.reshape({rows, columns});
    return call.keep(columns <= 1 || flat.stride(1) == 1 ? flat : flat.contiguous());
}

RbmSampleResult sample(const RbmSampleArguments& args, const RbmSampleSizes& s) {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(args.input);
    const Tensor mean = call.empty(s.out), drawn = args.seed ? call.empty(s.out) : call.empty({0});
    const Tensor& input = rows_of(call, args.input, s.rows, s.inputs);
    const RbmLayer layer{dtype_of(args.input),
                         s.rows,
                         s.inputs,
                         s.outputs,
                         input.const_data_ptr(),
                         input.stride(0),
                         call.data(args.weight),
                         args.transposed,
                         call.data(args.bias),
                         args.gaussian,
                         args.temperature,
                         s.key,
                         0,
                         static_cast<uint32_t>(args.stream),
                         mean.mutable_data_ptr(),
                         args.seed ? drawn.mutable_data_ptr() : nullptr};
    C10_CUDA_CHECK(rbm_layer(layer, call.stream));
    return {mean, drawn};
}

// All but the tensors that are written.
RbmTraining training_of(Call& call, const RbmTrainArguments& args, const RbmTrainSizes& s) {
    const Tensor chosen = args.order ? at::index_select(args.data, 0, *args.order) : args.data;
    const Tensor& data = rows_of(call, chosen, s.rows, s.visible);
    RbmTraining training{};
    training.dtype = dtype_of(data);
    training.visible = s.visible;
    training.hidden = s.hidden;
    training.rows = s.rows;
    training.batch = s.batch;
    training.steps = args.method.steps;
    training.data = data.const_data_ptr();
    training.data_stride = data.stride(0);
    training.chains = s.chains;
    training.gaussian = args.method.gaussian;
    training.temperature = args.method.temperature;
    training.key = s.key;
    training.first_row = s.first_row;
    training.rate = args.method.rate;
    training.momentum = args.method.momentum;
    training.decay = args.method.decay;
    const int64_t bytes = storage_bytes(training.dtype), most = std::max(s.batch, s.chains);
    const auto room = [&](int64_t rows, int64_t columns) {
        return call.workspace(static_cast<size_t>(rows * columns * bytes));
    };
    training.first_means = room(s.batch, s.hidden);
    training.means = room(most, s.hidden);
    training.states = s.chains == 0 ? room(s.batch, s.hidden) : nullptr;
    training.sampled = room(most, s.visible);
    return training;
}

RbmStatistics statistics(const RbmTrainArguments& args, const RbmTrainSizes& s) {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(args.data);
    const Tensor weight = call.empty({s.hidden, s.visible}), visible = call.empty({s.visible});
    const Tensor hidden = call.empty({s.hidden});
    const Tensor chain = args.chain ? args.chain->clone(at::MemoryFormat::Contiguous) : call.empty({0});
    if (s.rows == 0) {
        return {weight.zero_(), visible.zero_(), hidden.zero_(), chain};
    }
    auto training = training_of(call, args, s);
    training.chain = args.chain ? chain.mutable_data_ptr() : nullptr;
    const auto& p = args.parameters;
    const auto given = [&](const Tensor& tensor) { return const_cast<void*>(call.data(tensor)); };
    training.parameters = {given(p.weight), given(p.visible_bias), given(p.hidden_bias)};
    training.gradient = {weight.mutable_data_ptr(), visible.mutable_data_ptr(), hidden.mutable_data_ptr()};
    C10_CUDA_CHECK(rbm_train(training, call.stream));
    return {weight, visible, hidden, chain};
}

void train(const RbmTrainArguments& args, const RbmTrainSizes& s) {
    if (s.rows == 0) {
        return;
    }
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(args.data);
    auto training = training_of(call, args, s);
    std::vector<std::pair<Tensor, Tensor>> written;  // where it is to go, and dense
    const auto in_place = [&](const Tensor& tensor) {
        written.emplace_back(tensor, tensor.contiguous());
        return written.back().second.mutable_data_ptr();
    };
    const auto& p = args.parameters;
    training.parameters = {in_place(p.weight), in_place(p.visible_bias), in_place(p.hidden_bias)};
    if (s.moves) {
        training.velocity = {in_place(**args.velocity[0]), in_place(**args.velocity[1]), in_place(**args.velocity[2])};
    }
    training.chain = args.chain ? in_place(*args.chain) : nullptr;
    C10_CUDA_CHECK(rbm_train(training, call.stream));
    for (const auto& [tensor, dense] : written) {
        if (!dense.is_same(tensor)) {
            tensor.copy_(dense);
        }
    }
}

using Operators = RbmOperators<sample, statistics, train>;

}  // namespace

TORCH_LIBRARY_IMPL(pykernels, CUDA, m) {
    m.impl("rbm_sample", Operators::sample);
    m.impl("rbm_contrastive_divergence", Operators::contrastive_divergence);
    m.impl("rbm_train_", Operators::train);
}

static const RawKernel raw_kernels[] = {{"rbm_sample", Operators::sample},
                                        {"rbm_contrastive_divergence", Operators::contrastive_divergence},
                                        {"rbm_train_", Operators::train}};

}  // namespace pykernels::cuda
