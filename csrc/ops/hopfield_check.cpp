#include <ATen/ops/aminmax.h>

#include "ops/hopfield.h"

namespace pykernels {
namespace {

constexpr std::string_view op = "hopfield";

void check_order(const Tensor& order, const HopfieldArguments& args, HopfieldSizes& s) {
    TORCH_CHECK(order.scalar_type() == at::kLong, "[", op, "] expected order of int64, got ", order.scalar_type());
    TORCH_CHECK(order.device() == args.state.device(), "[", op, "] expected order on ", args.state.device(),
                " like the state, got ", order.device());
    s.own_orders = order.dim() == 2;
    const bool fits = order.dim() == 1 ? order.sizes() == at::IntArrayRef{s.units}
                                       : order.sizes() == at::IntArrayRef{s.batch, s.units};
    TORCH_CHECK(fits, "[", op, "] expected order of shape [", s.units, "] or [", s.batch, ", ", s.units, "], got ",
                order.sizes());
    if (order.numel() == 0) return;
    const auto [low, high] = at::aminmax(order);
    const int64_t least = low.item<int64_t>(), most = high.item<int64_t>();
    TORCH_CHECK(least >= 0 && most < s.units, "[", op, "] expected order to name units, 0 to ", s.units - 1, ", got ",
                least < 0 ? least : most);
}

HopfieldSizes sizes_of(int64_t units, const HopfieldArguments& args) {
    TORCH_CHECK(args.state.dim() == 2 && args.state.size(1) == units, "[", op, "] expected a state of shape [batch, ",
                units, "], got ", args.state.sizes());
    TORCH_CHECK(args.most >= 0 && args.most < UINT32_MAX, "[", op, "] expected a number of sweeps, got ", args.most);
    HopfieldSizes s{units, args.state.size(0), 0, false, 0};
    if (args.at_once) {
        TORCH_CHECK(!args.order, "[", op, "] expected no order, as all units change at once");
        return s;
    }
    TORCH_CHECK(args.order.has_value() != args.seed.has_value(), "[", op,
                "] expected an order or a seed to draw orders with, got ", args.order ? "both" : "neither");
    if (args.order) {
        check_order(*args.order, args, s);
    } else {
        TORCH_CHECK(args.seed->scalar_type() == at::kLong && args.seed->numel() == 1 && args.seed->is_cpu(), "[", op,
                    "] expected seed as one int64 on the CPU, got ", args.seed->numel(), " of ",
                    args.seed->scalar_type(), " on ", args.seed->device());
        s.seed = static_cast<uint64_t>(*args.seed->const_data_ptr<int64_t>());
    }
    return s;
}

}  // namespace

HopfieldSizes check_hopfield(const Tensor& weight, const HopfieldArguments& args) {
    check_floating(op, "a weight", weight);
    TORCH_CHECK(weight.dim() == 2 && weight.size(0) == weight.size(1), "[", op,
                "] expected a weight of shape [units, units], got ", weight.sizes());
    TORCH_CHECK(args.state.scalar_type() == weight.scalar_type(), "[", op, "] expected a state of dtype ",
                weight.scalar_type(), " like the weight, got ", args.state.scalar_type());
    TORCH_CHECK(args.state.device() == weight.device(), "[", op, "] expected a state on ", weight.device(),
                " like the weight, got ", args.state.device());
    return sizes_of(weight.size(0), args);
}

HopfieldSizes check_hopfield_packed(const Tensor& patterns, const HopfieldArguments& args) {
    check_floating(op, "a state", args.state);
    TORCH_CHECK(args.state.dim() == 2, "[", op, "] expected a state of shape [batch, units], got ", args.state.sizes());
    const int64_t units = args.state.size(1), words = (units + 63) / 64;
    TORCH_CHECK(patterns.scalar_type() == at::kLong && patterns.dim() == 2 && patterns.size(1) == words, "[", op,
                "] expected packed patterns of int64 and of shape [patterns, ", words, "], got ",
                patterns.scalar_type(), " ", patterns.sizes());
    TORCH_CHECK(args.state.device() == patterns.device(), "[", op, "] expected a state on ", patterns.device(),
                " like the patterns, got ", args.state.device());
    TORCH_CHECK(patterns.size(0) <= INT32_MAX / 2 / std::max<int64_t>(units, 1), "[", op,
                "] expected patterns times units below 2^30, got ", patterns.size(0), " times ", units);
    HopfieldSizes s = sizes_of(units, args);
    s.patterns = patterns.size(0);
    return s;
}

}  // namespace pykernels
