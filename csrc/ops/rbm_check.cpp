#include <ATen/ops/aminmax.h>

#include "ops/rbm.h"

namespace pykernels {
namespace {

uint64_t key_of(std::string_view op, const Tensor& seed) {
    TORCH_CHECK(seed.scalar_type() == at::kLong && seed.numel() == 1 && seed.is_cpu(), "[", op,
                "] expected seed as one int64 on the CPU, got ", seed.numel(), " of ", seed.scalar_type(), " on ",
                seed.device());
    return static_cast<uint64_t>(*seed.const_data_ptr<int64_t>());
}

void check_temperature(std::string_view op, double temperature) {
    TORCH_CHECK(temperature > 0 && std::isfinite(temperature), "[", op, "] expected a temperature above zero, got ",
                temperature);
}

}  // namespace

RbmSampleSizes check_rbm_sample(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                const OptionalTensor& seed, int64_t stream, bool transposed, double temperature) {
    constexpr std::string_view op = "rbm_sample";
    check_floating(op, "input", input);
    TORCH_CHECK(input.dim() >= 1, "[", op, "] expected input of shape [*, inputs], got ", input.sizes());
    TORCH_CHECK(weight.dim() == 2, "[", op, "] expected weight of shape [outputs, inputs], got ", weight.sizes());
    const int64_t inputs = weight.size(transposed ? 0 : 1), outputs = weight.size(transposed ? 1 : 0);
    TORCH_CHECK(input.size(-1) == inputs, "[", op, "] expected input of shape [*, ", inputs, "] as weight is ",
                weight.sizes(), transposed ? " (transposed)" : "", ", got ", input.sizes());
    check_like(op, "weight", weight, input);
    if (bias) {
        check_shape(op, "bias", *bias, {outputs});
        check_like(op, "bias", *bias, input);
    }
    TORCH_CHECK(stream >= 0 && stream <= UINT32_MAX, "[", op, "] expected stream to fit 32 bits, got ", stream);
    check_temperature(op, temperature);
    RbmSampleSizes s{1, inputs, outputs, input.sizes().vec(), seed ? key_of(op, *seed) : 0};
    s.out.back() = outputs;
    for (int64_t d = 0; d + 1 < input.dim(); ++d) s.rows *= input.size(d);
    TORCH_CHECK(s.rows <= UINT32_MAX, "[", op, "] expected fewer than 2^32 rows, got ", s.rows);
    return s;
}

RbmTrainSizes check_rbm_train(std::string_view op, const RbmTrainArguments& args) {
    const auto& [weight, visible_bias, hidden_bias] = args.parameters;
    const auto& m = args.method;
    const auto type = args.data.scalar_type();
    TORCH_CHECK(type == at::kFloat || type == at::kDouble, "[", op, "] expected data of dtype float32 or float64, got ",
                type);
    TORCH_CHECK(weight.dim() == 2, "[", op, "] expected weight of shape [hidden, visible], got ", weight.sizes());
    const int64_t hidden = weight.size(0), visible = weight.size(1);
    TORCH_CHECK(args.data.dim() == 2 && args.data.size(1) == visible, "[", op, "] expected data of shape [rows, ",
                visible, "] as weight is ", weight.sizes(), ", got ", args.data.sizes());
    check_shape(op, "visible_bias", visible_bias, {visible});
    check_shape(op, "hidden_bias", hidden_bias, {hidden});
    check_like(op, "weight", weight, args.data);
    check_like(op, "visible_bias", visible_bias, args.data);
    check_like(op, "hidden_bias", hidden_bias, args.data);
    const int moving = args.velocity[0]->has_value() + args.velocity[1]->has_value() + args.velocity[2]->has_value();
    TORCH_CHECK(moving == 0 || moving == 3, "[", op, "] expected all three velocities or none, got ", moving);
    const std::array<const Tensor*, 3> parameters{&weight, &visible_bias, &hidden_bias};
    constexpr std::array<std::string_view, 3> names{"weight_velocity", "visible_velocity", "hidden_velocity"};
    for (std::size_t i = 0; moving && i < 3; ++i) {
        check_shape(op, names[i], **args.velocity[i], parameters[i]->sizes());
        check_like(op, names[i], **args.velocity[i], args.data);
    }
    TORCH_CHECK(moving || m.momentum == 0, "[", op, "] expected velocities, as momentum is ", m.momentum);
    int64_t rows = args.data.size(0), chains = 0;
    if (args.order) {
        TORCH_CHECK(args.order->dim() == 1 && args.order->scalar_type() == at::kLong, "[", op,
                    "] expected order as one dimension of int64, got ", args.order->sizes(), " of ",
                    args.order->scalar_type());
        TORCH_CHECK(args.order->device() == args.data.device(), "[", op, "] expected order on ", args.data.device(),
                    " like the data, got ", args.order->device());
        if (args.order->is_cpu() && args.order->numel() > 0) {
            const auto [least, most] = at::aminmax(*args.order);
            TORCH_CHECK(least.item<int64_t>() >= 0 && most.item<int64_t>() < rows, "[", op,
                        "] expected order to hold rows 0 to ", rows - 1, ", got ", least.item<int64_t>(), " to ",
                        most.item<int64_t>());
        }
        rows = args.order->numel();
    }
    if (args.chain) {
        TORCH_CHECK(args.chain->dim() == 2 && args.chain->size(1) == hidden && args.chain->size(0) > 0, "[", op,
                    "] expected chain of shape [chains, ", hidden, "], got ", args.chain->sizes());
        check_like(op, "chain", *args.chain, args.data);
        chains = args.chain->size(0);
    }
    const auto key = key_of(op, args.seed);
    TORCH_CHECK(m.batch >= 1, "[", op, "] expected a batch of at least one row, got ", m.batch);
    TORCH_CHECK(m.steps >= 1 && m.steps <= INT32_MAX, "[", op, "] expected at least one Gibbs step, got ", m.steps);
    check_temperature(op, m.temperature);
    const int64_t batch = std::min(m.batch, std::max<int64_t>(rows, 1));
    const int64_t last = m.first_row + (rows + batch - 1) / batch * std::max(batch, chains);
    TORCH_CHECK(m.first_row >= 0 && last <= UINT32_MAX, "[", op, "] expected rows of draws to fit 32 bits, got ",
                m.first_row, " to ", last);
    return {visible, hidden, rows, batch, chains, key, static_cast<uint32_t>(m.first_row), moving == 3};
}

}  // namespace pykernels
