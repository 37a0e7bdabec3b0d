// Contract of unfold and fold, for every backend. Patches of an image [N, C, *pixels] as columns [N, C * taps, places],
// and back: fold adds up all columns that a pixel is in, so each is the other's derivative. Any number of spatial
// dimensions from one to three; stride and dilation have one number for each, padding two (zeros before and behind).
#pragma once

#include "ops/conv.h"

namespace pykernels {

struct UnfoldOptions {
    at::IntArrayRef kernel, stride, padding, dilation;
};

struct UnfoldSizes {
    ConvShape shape;
    std::vector<int64_t> image, columns;  // their sizes
};

UnfoldSizes check_unfold(const Tensor& image, const UnfoldOptions& options);
UnfoldSizes check_fold(const Tensor& columns, at::IntArrayRef size, const UnfoldOptions& options);

using UnfoldFunction = Tensor (*)(const Tensor& from, const UnfoldSizes& sizes);

// The operators' signatures, for every backend.
template <UnfoldFunction UnfoldImage, UnfoldFunction FoldColumns>
struct UnfoldOperators {
    static Tensor unfold(const Tensor& input, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                         at::IntArrayRef dilation) {
        return UnfoldImage(input, check_unfold(input, {kernel, stride, padding, dilation}));
    }
    static Tensor fold(const Tensor& columns, at::IntArrayRef size, at::IntArrayRef kernel, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation) {
        return FoldColumns(columns, check_fold(columns, size, {kernel, stride, padding, dilation}));
    }
};

}  // namespace pykernels
