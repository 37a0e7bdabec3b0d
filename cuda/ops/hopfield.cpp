// The Hopfield operators on CUDA: allocate and launch. All units at once, the host asks after each sweep whether any
// row goes on.
#include "csrc/ops/hopfield.h"

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "csrc/ops/registry.h"
#include "cuda/kernels/hopfield.h"
#include "cuda/ops/recurrent.h"

namespace pykernels::cuda {
namespace {

struct HopfieldOutputs {
    Tensor out, sweeps, period;

    explicit HopfieldOutputs(const HopfieldArguments& args, const HopfieldSizes& s)
        : out(at::empty(args.state.sizes(), args.state.options())),
          sweeps(at::zeros({s.batch}, args.state.options().dtype(at::kLong))),
          period(at::zeros({s.batch}, args.state.options().dtype(at::kLong))) {}

    // Nothing is done: the states as they are.
    bool is_ready(const HopfieldArguments& args, const HopfieldSizes& s) {
        if (args.most > 0 && s.units > 0 && s.batch > 0) {
            return false;
        }
        out.copy_(args.state);
        period.fill_(s.units == 0 ? 1 : 0);
        return true;
    }
    HopfieldResult result() const { return {out, sweeps, period}; }
};

// Orders that are drawn are drawn for all sweeps; those of a row start anew with each.
HopfieldOrder order_of(Call& call, const HopfieldArguments& args, const HopfieldSizes& s) {
    if (args.order) {
        return {static_cast<const int64_t*>(call.data(args.order)), 0, s.own_orders ? s.units : 0};
    }
    auto* const orders = static_cast<int64_t*>(call.workspace(args.most * s.units * sizeof(int64_t)));
    C10_CUDA_CHECK(hopfield_orders(s.seed, args.most, s.units, orders, call.stream));
    return {orders, s.units, 0};
}

void retrieve_at_once(Call& call, const void* weight, const HopfieldArguments& args, const HopfieldSizes& s,
                      HopfieldOutputs& made) {
    const DType dtype = dtype_of(args.state);
    const Tensor going = at::empty({1}, made.period.options());
    // The state that is given, then three in turn.
    const auto room = [&] { return call.empty(args.state.sizes()); };
    Tensor before, now = args.state.contiguous(), next = room();
    for (int64_t sweep = 0;; ++sweep) {
        C10_CUDA_CHECK(hopfield_fields(
            {dtype, s.units, s.batch, weight, now.const_data_ptr(), next.mutable_data_ptr(), false}, call.stream));
        C10_CUDA_CHECK(
            hopfield_ending({dtype, s.units, s.batch, sweep, before.defined() ? before.const_data_ptr() : nullptr,
                             now.const_data_ptr(), next.mutable_data_ptr(), made.sweeps.mutable_data_ptr<int64_t>(),
                             made.period.mutable_data_ptr<int64_t>(), going.mutable_data_ptr<int64_t>()},
                            call.stream));
        if (sweep + 1 == args.most || going.item<int64_t>() == 0) {
            break;
        }
        const Tensor free = sweep < 2 ? room() : before;
        before = now;
        now = next;
        next = free;
    }
    made.out = next;
}

HopfieldResult retrieve(const Tensor& weight, const HopfieldArguments& args, bool symmetric, const HopfieldSizes& s) {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(args.state);
    HopfieldOutputs made(args, s);
    if (made.is_ready(args, s)) {
        return made.result();
    }
    const void* const dense = call.data(weight);
    if (args.at_once) {
        retrieve_at_once(call, dense, args, s, made);
        return made.result();
    }
    const DType dtype = dtype_of(args.state);
    const size_t bytes = static_cast<size_t>(s.batch * s.units * accumulator_bytes(dtype));
    void* const fields = call.workspace(bytes);
    made.out.copy_(args.state);
    C10_CUDA_CHECK(
        hopfield_fields({dtype, s.units, s.batch, dense, made.out.const_data_ptr(), fields, true}, call.stream));
    C10_CUDA_CHECK(hopfield_in_order(
        {dtype, s.units, s.batch, args.most, order_of(call, args, s), symmetric ? dense : call.data(weight.t()), fields,
         made.out.mutable_data_ptr(), made.sweeps.mutable_data_ptr<int64_t>(), made.period.mutable_data_ptr<int64_t>()},
        call.stream));
    return made.result();
}

HopfieldResult retrieve_packed(const Tensor& patterns, const HopfieldArguments& args, const HopfieldSizes& s) {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(args.state);
    HopfieldOutputs made(args, s);
    if (made.is_ready(args, s)) {
        return made.result();
    }
    HopfieldPacked packed{};
    packed.dtype = dtype_of(args.state);
    packed.units = s.units;
    packed.batch = s.batch;
    packed.count = s.patterns;
    packed.most = args.most;
    packed.at_once = args.at_once;
    packed.patterns = static_cast<const int64_t*>(call.data(patterns));
    packed.state = call.data(args.state);
    packed.out = made.out.mutable_data_ptr();
    packed.sweeps = made.sweeps.mutable_data_ptr<int64_t>();
    packed.period = made.period.mutable_data_ptr<int64_t>();
    packed.sets = static_cast<uint32_t*>(call.workspace(4 * s.units * hopfield_words(s.patterns)));
    packed.signs = static_cast<uint32_t*>(call.workspace(4 * s.batch * 2 * hopfield_words(s.units)));
    packed.overlaps = static_cast<int32_t*>(call.workspace(4 * s.batch * s.patterns));
    if (args.at_once) {
        packed.kept = call.workspace(static_cast<size_t>(3 * s.batch * s.units * storage_bytes(packed.dtype)));
    } else {
        packed.order = order_of(call, args, s);
    }
    C10_CUDA_CHECK(hopfield_packed(packed, call.stream));
    return made.result();
}

using Operators = HopfieldOperators<retrieve, retrieve_packed>;

}  // namespace

TORCH_LIBRARY_IMPL(pykernels, CUDA, m) {
    m.impl("hopfield_retrieve", Operators::retrieve);
    m.impl("hopfield_packed_retrieve", Operators::retrieve_packed);
}

static const RawKernel raw_kernels[] = {{"hopfield_retrieve", Operators::retrieve},
                                        {"hopfield_packed_retrieve", Operators::retrieve_packed}};

}  // namespace pykernels::cuda
