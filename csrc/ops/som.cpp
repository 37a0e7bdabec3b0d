// A map that learns sample by sample, on the CPU.
#include "ops/som.h"

#include "kernels/som.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace pykernels {
namespace {

template <typename T>
void learn_as(const SomArguments& args, const SomSizes& s, const Tensor& distance) {
    const Tensor input = args.input.contiguous(), bounds = args.bounds ? args.bounds->contiguous() : Tensor();
    som_learn(SomLearn<T>{s.samples,
                          s.units,
                          s.features,
                          s.metric,
                          s.neighbourhood,
                          s.dimensions,
                          {args.periods[0], args.periods[1]},
                          input.const_data_ptr<T>(),
                          args.coordinates.const_data_ptr<double>(),
                          args.sigma.const_data_ptr<double>(),
                          args.rate.const_data_ptr<double>(),
                          args.bounds ? bounds.const_data_ptr<T>() : nullptr,
                          args.codebook.mutable_data_ptr<T>(),
                          distance.mutable_data_ptr<T>()});
}

Tensor learn(const SomArguments& args, const SomSizes& s) {
    const auto distance = at::empty({s.samples}, args.input.options());
    args.codebook.scalar_type() == at::kDouble ? learn_as<double>(args, s, distance)
                                               : learn_as<float>(args, s, distance);
    return distance;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pykernels, m) {
    m.def(
        "som_learn_(Tensor(a!) codebook, Tensor input, Tensor coordinates, float[] periods, Tensor sigma, Tensor rate, "
        "Tensor? bounds, str neighbourhood, str metric) -> Tensor distance",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(pykernels, CPU, m) { m.impl("som_learn_", SomOperators<learn>::learn); }

}  // namespace pykernels
