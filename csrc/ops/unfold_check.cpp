#include "ops/unfold.h"

namespace pykernels {
namespace {

constexpr std::string_view op = "unfold";

// The same checks as convolution's, with a weight of one channel for every channel of the image.
UnfoldSizes sizes_of(at::IntArrayRef image, const UnfoldOptions& options) {
    TORCH_CHECK(image.size() >= 3 && image.size() <= 5, "[", op,
                "] expected an image of 3 to 5 dimensions, got one of shape ", image);
    TORCH_CHECK(options.kernel.size() == image.size() - 2, "[", op, "] expected a kernel of ", image.size() - 2,
                " numbers, got ", options.kernel);
    std::vector<int64_t> weight{1, image[1]};
    weight.insert(weight.end(), options.kernel.begin(), options.kernel.end());
    const auto sizes = conv_sizes(image, weight, {options.stride, options.padding, options.dilation, 1, "zeros"});
    return {sizes.shape, sizes.input, {image[0], image[1] * sizes.shape.taps(), sizes.shape.places()}};
}

}  // namespace

UnfoldSizes check_unfold(const Tensor& image, const UnfoldOptions& options) {
    check_floating(op, "an image", image);
    return sizes_of(image.sizes(), options);
}

UnfoldSizes check_fold(const Tensor& columns, at::IntArrayRef size, const UnfoldOptions& options) {
    check_floating(op, "columns", columns);
    const int64_t taps = c10::multiply_integers(options.kernel);
    TORCH_CHECK(columns.dim() == 3 && taps > 0 && columns.size(1) % taps == 0, "[", op,
                "] expected columns of shape [batch, channels * ", taps, ", places], got ", columns.sizes());
    std::vector<int64_t> image{columns.size(0), columns.size(1) / taps};
    image.insert(image.end(), size.begin(), size.end());
    const auto s = sizes_of(image, options);
    check_shape(op, "columns", columns, s.columns);
    return s;
}

}  // namespace pykernels
