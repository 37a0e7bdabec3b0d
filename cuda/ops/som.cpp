// A map that learns sample by sample, on CUDA: copy what lies on the processor, and launch.
#include "csrc/ops/som.h"

#include <torch/library.h>

#include "csrc/ops/registry.h"
#include "cuda/kernels/som.h"
#include "cuda/ops/recurrent.h"

namespace pykernels::cuda {
namespace {

Tensor learn(const SomArguments& args, const SomSizes& s) {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(args.input);
    const Tensor distance = call.empty({s.samples});
    const auto copied = [&](const Tensor& numbers) {
        return static_cast<const double*>(call.data(numbers.to(args.input.device())));
    };
    SomLearn learn{dtype_of(args.input),
                   s.samples,
                   s.units,
                   s.features,
                   s.metric,
                   s.neighbourhood,
                   s.dimensions,
                   {args.periods[0], args.periods[1]},
                   call.data(args.input),
                   copied(args.coordinates),
                   copied(args.sigma),
                   copied(args.rate),
                   call.data(args.bounds),
                   args.codebook.mutable_data_ptr(),
                   distance.mutable_data_ptr(),
                   nullptr};
    learn.workspace = call.workspace(som_workspace(learn));
    C10_CUDA_CHECK(som_learn(learn, call.stream));
    return distance;
}

}  // namespace

TORCH_LIBRARY_IMPL(pykernels, CUDA, m) { m.impl("som_learn_", SomOperators<learn>::learn); }

static const RawKernel raw_kernels[] = {{"som_learn_", SomOperators<learn>::learn}};

}  // namespace pykernels::cuda
