// Launch contract of convolution on the CPU (cross-correlation, which is what the field calls convolution). Sums are
// float, or double for double. Data are dense, in one of two layouts:
//
//                  planar                                     channels last
//   input          [batch, groups * in_channels, pixels]      [batch, pixels, groups * in_channels]
//   weight         [groups * out_channels, in_channels, taps] [groups * out_channels, taps, in_channels]
//   output         [batch, groups * out_channels, places]     [batch, places, groups * out_channels]
//
// with three spatial dimensions, of which the first ones have size 1 where there are fewer. Patches are gathered while
// they are packed, never all of them. A thread's workspace does not depend on the batch: lines and windows of as many
// channels as fit into kPatchBytes each (conv_planar_tiles.h; at least those that a block of 512 places reads of one
// channel, which a very wide row makes more), sums of a block's places where they take several turns, a block of tiles
// and of their sums in minimal filtering (conv_winograd.cpp; 3x3 in float), and kPartBytes for sums of weights'
// gradients (at least one set). Weights are packed, converted or transformed once a call; the input's gradient of a
// mode other than zeros has one padded image, that of four channels or fewer beside each other kTurnedBytes of turned
// ones (at least one image). Results do not depend on the number of threads.
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
