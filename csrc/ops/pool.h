// Contract of the pooling operators, for every backend.
//
// input       [*, spatial sizes], one to three of them, with or without a batch in front of the channels; any strides
// kernel_size, stride, padding, dilation, ceil_mode
//             fixed windows, a number for each spatial dimension; or all empty for adaptive windows,
// output_size that many of them: window o of n elements is [floor(o n / output), ceil((o + 1) n / output))
//
// max_pool_forward gives the maxima, and where `keep` the place of each in its window (see kernels/pool.h): uint8 where
//             windows have at most 256 places, else int64; without, [0]
// max_pool_backward is given those places, and gives the gradient of the input
// max_pool_gather puts the input's elements at those places where maxima would be: the derivative of both
// max_pool_indices makes indices into the flat planes of them
// avg_pool_forward gives means, over the padding too where `padded`; the divisor, if not 0, instead of the number of
//             elements
// avg_pool_backward is given the input's size
// max_unpool  gives zeros of output_size with the input where the indices say
//
// Where the input (of a backward: the places, or `channels_last`) is in torch's channels-last format, so is the result.
#pragma once

#include <ATen/ops/empty.h>

#include "core/checks.h"
#include "core/pool_window.h"

namespace pykernels {

struct PoolWindow {
    at::IntArrayRef kernel_size, stride, padding, dilation;
    bool ceil_mode;
    at::IntArrayRef output_size;

    int64_t dims() const { return static_cast<int64_t>((kernel_size.empty() ? output_size : kernel_size).size()); }
};

struct PoolSizes {
    PoolShape shape;  // as the kernels see it
    std::vector<int64_t> input, output;
    bool wide;  // places are int64
    at::MemoryFormat format;

    at::ScalarType places() const { return wide ? at::kLong : at::kByte; }
    Tensor empty(at::IntArrayRef size, const at::TensorOptions& options) const {
        return at::empty(size, options, format);
    }
    // The same values, dense and in the format of this call.
    Tensor formatted(const Tensor& tensor) const { return tensor.contiguous(format); }
};

struct MaxUnpoolSizes {
    int64_t dims;
    int64_t planes, channels, in_plane, out_plane;  // of channels last: planes is the batch
    std::vector<int64_t> output;
    at::MemoryFormat format;
};

PoolSizes max_pool_sizes(at::IntArrayRef input, const PoolWindow& window, at::MemoryFormat format);
PoolSizes check_max_pool(const Tensor& input, const PoolWindow& window);
PoolSizes check_max_pool_backward(const Tensor& grad, const Tensor& places, at::IntArrayRef size,
                                  const PoolWindow& window);
PoolSizes check_max_pool_gather(const Tensor& input, const Tensor& places, const PoolWindow& window);
PoolSizes check_max_pool_indices(const Tensor& places, at::IntArrayRef size, const PoolWindow& window);
PoolSizes check_avg_pool(const Tensor& input, const PoolWindow& window);
PoolSizes check_avg_pool_backward(const Tensor& grad, at::IntArrayRef size, bool channels_last,
                                  const PoolWindow& window);
MaxUnpoolSizes check_max_unpool(const Tensor& input, const Tensor& indices, at::IntArrayRef output_size);
void check_unpool_indices(bool inside, const MaxUnpoolSizes& sizes);

using PoolInts = at::IntArrayRef;
using MaxPoolForwardResult = std::tuple<Tensor, Tensor>;

// The operators' signatures, for every backend. `Backend` has a function for each, which is given what was checked.
template <typename Backend>
struct PoolOperators {
    static MaxPoolForwardResult max_forward(const Tensor& input, PoolInts kernel_size, PoolInts stride,
                                            PoolInts padding, PoolInts dilation, bool ceil_mode, PoolInts output_size,
                                            bool keep) {
        const auto sizes = check_max_pool(input, {kernel_size, stride, padding, dilation, ceil_mode, output_size});
        return Backend::max_forward(input, keep, sizes);
    }
    static Tensor max_backward(const Tensor& grad, const Tensor& places, PoolInts size, PoolInts kernel_size,
                               PoolInts stride, PoolInts padding, PoolInts dilation, bool ceil_mode,
                               PoolInts output_size) {
        const auto sizes = check_max_pool_backward(grad, places, size,
                                                   {kernel_size, stride, padding, dilation, ceil_mode, output_size});
        return Backend::max_backward(grad, places, sizes);
    }
    static Tensor max_gather(const Tensor& input, const Tensor& places, PoolInts kernel_size, PoolInts stride,
                             PoolInts padding, PoolInts dilation, bool ceil_mode, PoolInts output_size) {
        const auto sizes =
            check_max_pool_gather(input, places, {kernel_size, stride, padding, dilation, ceil_mode, output_size});
        return Backend::max_gather(input, places, sizes);
    }
    static Tensor max_indices(const Tensor& places, PoolInts size, PoolInts kernel_size, PoolInts stride,
                              PoolInts padding, PoolInts dilation, bool ceil_mode, PoolInts output_size) {
        const auto sizes =
            check_max_pool_indices(places, size, {kernel_size, stride, padding, dilation, ceil_mode, output_size});
        return Backend::max_indices(places, sizes);
    }
    static Tensor avg_forward(const Tensor& input, PoolInts kernel_size, PoolInts stride, PoolInts padding,
                              bool ceil_mode, PoolInts output_size, bool padded, int64_t divisor) {
        const auto sizes = check_avg_pool(input, {kernel_size, stride, padding, {}, ceil_mode, output_size});
        return Backend::avg_forward(input, padded, divisor, sizes);
    }
    static Tensor avg_backward(const Tensor& grad, PoolInts size, bool channels_last, PoolInts kernel_size,
                               PoolInts stride, PoolInts padding, bool ceil_mode, PoolInts output_size, bool padded,
                               int64_t divisor) {
        const auto sizes = check_avg_pool_backward(grad, size, channels_last,
                                                   {kernel_size, stride, padding, {}, ceil_mode, output_size});
        return Backend::avg_backward(grad, padded, divisor, sizes);
    }
    static Tensor unpool(const Tensor& input, const Tensor& indices, PoolInts output_size) {
        return Backend::unpool(input, indices, check_max_unpool(input, indices, output_size));
    }
};

}  // namespace pykernels
