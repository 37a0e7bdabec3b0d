#include "ops/bmu.h"
#include "ops/som.h"

namespace pykernels {
namespace {

constexpr std::string_view op = "som_learn_";

Neighbourhood neighbourhood_named(std::string_view name) {
    if (name == "gaussian") return Neighbourhood::kGaussian;
    if (name == "bubble") return Neighbourhood::kBubble;
    TORCH_CHECK_VALUE(name == "mexican_hat", "[", op,
                      "] expected neighbourhood \"gaussian\", \"bubble\" or \"mexican_hat\", got \"", name, "\"");
    return Neighbourhood::kMexicanHat;
}

void check_numbers(std::string_view name, const Tensor& numbers, at::IntArrayRef shape) {
    TORCH_CHECK(numbers.scalar_type() == at::kDouble && numbers.is_cpu() && numbers.is_contiguous(), "[", op,
                "] expected ", name, " of dtype double on the CPU, contiguous, got ", numbers.scalar_type(), " on ",
                numbers.device());
    check_shape(op, name, numbers, shape);
}

}  // namespace

SomSizes check_som(const SomArguments& args) {
    const Metric metric = metric_named(op, args.metric);
    const Neighbourhood neighbourhood = neighbourhood_named(args.neighbourhood);
    const auto type = args.codebook.scalar_type();
    TORCH_CHECK(type == at::kFloat || type == at::kDouble, "[", op,
                "] expected codebook of dtype float32 or float64, got ", type);
    TORCH_CHECK(args.codebook.dim() == 2 && args.codebook.size(0) >= 1 && args.codebook.is_contiguous(), "[", op,
                "] expected a contiguous codebook of shape [units, features], got ", args.codebook.sizes());
    const int64_t units = args.codebook.size(0), features = args.codebook.size(1);
    check_like(op, "input", args.input, args.codebook);
    TORCH_CHECK(args.input.dim() == 2 && args.input.size(1) == features, "[", op,
                "] expected input of shape [samples, ", features, "] like the codebook, got ", args.input.sizes());
    TORCH_CHECK(args.periods.size() == 2, "[", op, "] expected two periods, got ", args.periods.size());
    check_numbers("coordinates", args.coordinates, {units, 2});
    check_numbers("sigma", args.sigma, {args.input.size(0)});
    check_numbers("rate", args.rate, {args.input.size(0)});
    if (args.bounds) {
        check_shape(op, "bounds", *args.bounds, {2, features});
        check_like(op, "bounds", *args.bounds, args.codebook);
    }
    const double* const place = args.coordinates.const_data_ptr<double>();
    bool in_line[2] = {true, true};  // along the other axis
    for (int64_t unit = 1; unit < units; ++unit)
        for (int axis = 0; axis < 2; ++axis) in_line[axis] = in_line[axis] && place[2 * unit + axis] == place[axis];
    return {args.input.size(0), units, features, metric, neighbourhood, in_line[0] || in_line[1] ? 1 : 2};
}

}  // namespace pykernels
