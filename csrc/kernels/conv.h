// Launch contract of convolution on the CPU (cross-correlation, which is what the field calls convolution). Sums are
// float, or double for double. Data are dense, in one of two layouts:
//
//                  planar                                     channels last
//   input          [batch, groups * in_channels, pixels]      [batch, pixels, groups * in_channels]
//   weight         [groups * out_channels, in_channels, taps] [groups * out_channels, taps, in_channels]
//   output         [batch, groups * out_channels, places]     [batch, places, groups * out_channels]
//
// with three spatial dimensions, of which the first ones have size 1 where there are fewer.
//
// Words   tap: an element of the kernel window; pixel: a position of the input; place: a position of the output; patch:
//         what the taps read at a place; lattice: places that read at equal distances (conv_lattice.h); lines: rows of
//         an image as the taps read them, with their padding; panel: the columns of a product that are multiplied
//         together; block: the places that a thread works on at a time.
//
// Patches are gathered while they are packed (implicit im2col), never all of them. A thread's workspace does not depend
// on the batch:
//   lines and windows   of as many channels as fit into kPatchBytes each (conv_planar_tiles.h), at least what a block
//   of
//                       512 places reads of one: more for wide rows, large dilations and tiny images. In the weights'
//                       gradient: what 1024 places read of the channels of kSumRows sums.
//   sums                of a block's places where they take several turns; of weights' gradients kPartBytes (at least
//                       one set); in minimal filtering (3x3 in float) a block of tiles and of their sums
//   images              kTurnedBytes, at least one image, of what is put into another form before: few channels beside
//                       each other, padding other than zeros, patches that are apart (conv_input_gradient.cpp)
// Weights are packed, converted or transformed once a call, or once for the images of kTurnedBytes. Results do not
// depend on the number of threads. (The processor's bf16 product takes subnormal numbers for zeros.)
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
