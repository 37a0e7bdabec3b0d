// The Hopfield operators on the CPU: allocate and call the kernel.
#include "ops/hopfield.h"

#include "kernels/hopfield.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "ops/by_type.h"
#include "ops/recycled.h"
#include "ops/registry.h"

namespace pykernels {
namespace {

// What is put out, and the sweeps that fill it.
struct HopfieldOutputs {
    Tensor out, sweeps, period, order;
    HopfieldSweeps run;

    HopfieldOutputs(const HopfieldArguments& args, const HopfieldSizes& s)
        : out(empty_recycled(args.state.sizes(), args.state.options())),
          sweeps(at::empty({s.batch}, args.state.options().dtype(at::kLong))),
          period(at::empty({s.batch}, args.state.options().dtype(at::kLong))),
          order(args.order ? args.order->contiguous() : Tensor()),
          run{s.units,
              s.batch,
              args.at_once,
              args.order ? order.const_data_ptr<int64_t>() : nullptr,
              s.own_orders ? s.units : 0,
              s.seed,
              args.most,
              sweeps.mutable_data_ptr<int64_t>(),
              period.mutable_data_ptr<int64_t>()} {}
};

HopfieldResult retrieve(const Tensor& weight, const HopfieldArguments& args, bool symmetric, const HopfieldSizes& s) {
    const HopfieldOutputs made(args, s);
    const Tensor w = weight.contiguous(), state = args.state.contiguous();
    by_type(weight, [&]<typename S>(S) {
        hopfield_retrieve(HopfieldRetrieval<S>{made.run, symmetric, w.const_data_ptr<S>(), state.const_data_ptr<S>(),
                                               made.out.data_ptr<S>()});
    });
    return {made.out, made.sweeps, made.period};
}

HopfieldResult retrieve_packed(const Tensor& patterns, const HopfieldArguments& args, const HopfieldSizes& s) {
    const HopfieldOutputs made(args, s);
    const Tensor packed = patterns.contiguous(), state = args.state.contiguous();
    by_type(state, [&]<typename S>(S) {
        hopfield_retrieve(HopfieldPackedRetrieval<S>{made.run, s.patterns, packed.const_data_ptr<int64_t>(),
                                                     state.const_data_ptr<S>(), made.out.data_ptr<S>()});
    });
    return {made.out, made.sweeps, made.period};
}

using Operators = HopfieldOperators<retrieve, retrieve_packed>;

}  // namespace

TORCH_LIBRARY_FRAGMENT(pykernels, m) {
    m.def(
        "hopfield_retrieve(Tensor weight, Tensor state, Tensor? order, Tensor? seed, int most, bool at_once, "
        "bool symmetric) -> (Tensor out, Tensor sweeps, Tensor period)",
        {at::Tag::pt2_compliant_tag});
    m.def(
        "hopfield_packed_retrieve(Tensor patterns, Tensor state, Tensor? order, Tensor? seed, int most, bool at_once) "
        "-> (Tensor out, Tensor sweeps, Tensor period)",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
    m.impl("hopfield_retrieve", Operators::retrieve);
    m.impl("hopfield_packed_retrieve", Operators::retrieve_packed);
}

static const RawKernel raw_kernels[] = {{"hopfield_retrieve", Operators::retrieve},
                                        {"hopfield_packed_retrieve", Operators::retrieve_packed}};

}  // namespace pykernels
