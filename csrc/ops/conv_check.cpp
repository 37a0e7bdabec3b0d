#include "ops/conv.h"

namespace pykernels {
namespace {

constexpr std::string_view op = "conv";

// Numbers joined as torch writes extents.
std::string extents(const std::vector<int64_t>& sizes) {
    std::string text;
    for (const auto size : sizes) text += (text.empty() ? "" : " x ") + std::to_string(size);
    return text;
}

PaddingMode mode_of(std::string_view name) {
    if (name == "zeros") return PaddingMode::Zeros;
    if (name == "reflect") return PaddingMode::Reflect;
    if (name == "replicate") return PaddingMode::Replicate;
    TORCH_CHECK(name == "circular", "[", op, "] expected padding_mode zeros, reflect, replicate or circular, got ",
                name);
    return PaddingMode::Circular;
}

// (torch's messages, where it has one)
void check_options(const ConvOptions& options, size_t spatial) {
    using Option = std::tuple<const char*, at::IntArrayRef, size_t, int64_t>;
    for (const auto& [name, list, count, least] :
         {Option{"stride", options.stride, spatial, 1}, Option{"dilation", options.dilation, spatial, 1},
          Option{"padding", options.padding, 2 * spatial, 0}}) {
        TORCH_CHECK(list.size() == count, "[", op, "] expected ", name, " of ", count, " numbers, got ", list);
        for (const auto value : list)
            TORCH_CHECK(value >= least, least ? "non-positive " : "negative ", name, " is not supported");
        // (sums of larger ones could overflow)
        for (const auto value : list)
            TORCH_CHECK(value <= INT32_MAX, "[", op, "] expected ", name, " of at most 2147483647, got ", list);
    }
    TORCH_CHECK(options.groups > 0, "non-positive groups is not supported");
}

// What is put around a dimension has to be there.
void check_padding(PaddingMode mode, int64_t size, int64_t before, int64_t after) {
    const int64_t most = mode == PaddingMode::Reflect ? size - 1 : size;
    if (mode == PaddingMode::Reflect || mode == PaddingMode::Circular)
        TORCH_CHECK(before <= most && after <= most, "[", op, "] expected a ",
                    mode == PaddingMode::Reflect ? "reflect" : "circular", " padding of at most ", most,
                    " for a dimension of size ", size, ", got ", std::max(before, after));
    if (mode == PaddingMode::Replicate)
        TORCH_CHECK(size > 0 || before + after == 0, "[", op,
                    "] expected something to replicate, got a dimension of size 0");
}

void choose_format(ConvSizes& s, const Tensor& first, const Tensor& second) {
    for (const auto* tensor : {&first, &second}) {
        const auto format = tensor->suggest_memory_format();
        if (format == at::MemoryFormat::Contiguous) continue;
        s.format = format;
        s.shape.channels_last = true;
    }
}

// (torch's words for the types)
void check_same_type(const Tensor& input, const char* name, const Tensor& other) {
    TORCH_CHECK(input.scalar_type() == other.scalar_type(), "Input type (", input.toString(), ") and ", name, " type (",
                other.toString(), ") should be the same");
    TORCH_CHECK(input.device() == other.device(), "[", op, "] expected ", name, " on ", input.device(),
                " like the input, got ", other.device());
}

}  // namespace

ConvSizes conv_sizes(at::IntArrayRef input, at::IntArrayRef weight, const ConvOptions& options) {
    const auto spatial = input.size() - 2;
    TORCH_CHECK(input.size() >= 3 && input.size() <= 5, "[", op,
                "] expected an input of 3 to 5 dimensions, got one of shape ", input);
    TORCH_CHECK(weight.size() == input.size(), "[", op, "] expected a weight of ", input.size(),
                " dimensions like the input, got one of shape ", weight);
    check_options(options, spatial);
    const int64_t groups = options.groups;
    TORCH_CHECK(weight[0] >= groups, "Given groups=", groups, ", expected weight to be at least ", groups,
                " at dimension 0, but got weight of size ", weight, " instead");
    TORCH_CHECK(weight[0] % groups == 0, "Given groups=", groups, ", expected weight to be divisible by ", groups,
                " at dimension 0, but got weight of size [", weight, "] instead");
    TORCH_CHECK(input[1] == weight[1] * groups, "Given groups=", groups, ", weight of size ", weight,
                ", expected input", input, " to have ", weight[1] * groups, " channels, but got ", input[1],
                " channels instead");

    ConvSizes s{{input[0], groups, weight[1], weight[0] / groups, {}, mode_of(options.padding_mode), false},
                input.vec(),
                weight.vec(),
                {input[0], weight[0]},
                at::MemoryFormat::Contiguous};
    s.shape.dim.fill({1, 1, 1, 1, 1, 0});
    std::vector<int64_t> padded, kernel;
    for (size_t i = 0; i < spatial; ++i) {
        const int64_t before = options.padding[2 * i], after = options.padding[2 * i + 1];
        check_padding(s.shape.mode, input[i + 2], before, after);
        TORCH_CHECK(weight[i + 2] > 0, "[", op, "] expected a kernel that is not empty, got a weight of size ", weight);
        TORCH_CHECK(weight[i + 2] <= INT32_MAX && input[i + 2] <= INT64_MAX / 8, "[", op,
                    "] expected sizes whose sums are 64-bit numbers, got a weight of size ", weight);
        padded.push_back(input[i + 2] + before + after);
        kernel.push_back(options.dilation[i] * (weight[i + 2] - 1) + 1);
        const int64_t stride = options.stride[i];
        s.output.push_back((padded[i] - kernel[i] + stride) / stride);
        s.shape.dim[3 - spatial + i] = {input[i + 2], s.output.back(),     weight[i + 2],
                                        stride,       options.dilation[i], before};
    }
    for (size_t i = 0; i < spatial; ++i)
        TORCH_CHECK(padded[i] >= kernel[i], "Calculated padded input size per channel: (", extents(padded),
                    "). Kernel size: (", extents(kernel), "). Kernel size can't be greater than actual input size");
    return s;
}

bool check_conv_activation(std::string_view activation) {
    TORCH_CHECK(activation == "none" || activation == "relu", "[", op, "] expected activation none or relu, got ",
                activation);
    return activation == "relu";
}

ConvSizes check_conv(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const ConvOptions& options) {
    auto s = conv_sizes(input.sizes(), weight.sizes(), options);
    TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0)), "Given weight of size ", weight.sizes(),
                ", expected bias to be 1-dimensional with ", weight.size(0), " elements, but got bias of size ",
                bias->sizes(), " instead");
    check_floating(op, "input", input);
    check_same_type(input, "weight", weight);
    if (bias) check_same_type(input, "bias", *bias);
    choose_format(s, input, weight);
    return s;
}

ConvSizes check_conv_input_gradient(const Tensor& grad, const Tensor& weight, at::IntArrayRef input_size,
                                    const ConvOptions& options) {
    auto s = conv_sizes(input_size, weight.sizes(), options);
    check_shape(op, "a gradient", grad, s.output);
    check_floating(op, "a gradient", grad);
    check_like(op, "weight", weight, grad);
    choose_format(s, grad, weight);
    return s;
}

ConvSizes check_conv_weight_gradient(const Tensor& input, const Tensor& grad, at::IntArrayRef weight_size,
                                     const ConvOptions& options) {
    auto s = conv_sizes(input.sizes(), weight_size, options);
    check_shape(op, "a gradient", grad, s.output);
    check_floating(op, "input", input);
    check_like(op, "a gradient", grad, input);
    choose_format(s, input, grad);
    return s;
}

}  // namespace pykernels
