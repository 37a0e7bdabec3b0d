// Launch contract of convolution on the CPU (cross-correlation, which is what the field calls convolution). Sums are
// float, or double for double. Data are dense, in one of two layouts:
//
//                  planar                                     channels last
//   input          [batch, groups * in_channels, pixels]      [batch, pixels, groups * in_channels]
//   weight         [groups * out_channels, in_channels, taps] [groups * out_channels, taps, in_channels]
//   output         [batch, groups * out_channels, places]     [batch, places, groups * out_channels]
//
// with three spatial dimensions, of which the first ones have size 1 where there are fewer. Patches are gathered while
// they are packed: a thread's workspace is bounded (kPatchBytes and the sums over it), whatever the batch and the
// image. Results do not depend on the number of threads.
#pragma once

#include <type_traits>

#include "core/conv_shape.h"
#include "core/types.h"

namespace pykernels {

template <typename Storage_>
struct ConvForward {
    using Storage = Storage_;
    using Acc = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

    ConvShape shape;
    const Storage *input, *weight;
    const Acc* bias;  // [groups * out_channels], or null
    bool relu;
    Storage* out;
};

template <typename Storage_>
struct ConvInputGradient {
    using Storage = Storage_;

    ConvShape shape;
    const Storage *grad, *weight;  // grad like the output
    Storage* grad_input;
};

template <typename Storage_>
struct ConvWeightGradient {
    using Storage = Storage_;

    ConvShape shape;
    const Storage *input, *grad;
    Storage *grad_weight, *grad_bias;  // grad_bias [groups * out_channels], or null
};

#define PYKERNELS_CONV(S)                                  \
    void conv_forward(const ConvForward<S>&);              \
    void conv_input_gradient(const ConvInputGradient<S>&); \
    void conv_weight_gradient(const ConvWeightGradient<S>&);
PYKERNELS_CONV(float)
PYKERNELS_CONV(double)
PYKERNELS_CONV(c10::BFloat16)
PYKERNELS_CONV(c10::Half)
#undef PYKERNELS_CONV

}  // namespace pykernels
