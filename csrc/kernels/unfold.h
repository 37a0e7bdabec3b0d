// Launch contract of unfold and fold on the CPU: patches laid out as columns, and columns added up as an image. Dense
// data; `shape` has one group, in_channels are the image's, out_channels are not used; padding is zeros.
#pragma once

#include "kernels/conv.h"

namespace pykernels {

template <typename Storage_>
struct Unfold {
    using Storage = Storage_;

    ConvShape shape;
    const Storage* image;  // [batch, channels, pixels]
    Storage* columns;      // [batch, channels, taps, places]
};

template <typename Storage_>
struct Fold {
    using Storage = Storage_;

    ConvShape shape;
    const Storage* columns;  // [batch, channels, taps, places]
    Storage* image;          // [batch, channels, pixels]: sums of all columns that a pixel is in
};

void unfold(const Unfold<float>& call);
void unfold(const Unfold<double>& call);
void unfold(const Unfold<c10::BFloat16>& call);
void unfold(const Unfold<c10::Half>& call);
void fold(const Fold<float>& call);
void fold(const Fold<double>& call);
void fold(const Fold<c10::BFloat16>& call);
void fold(const Fold<c10::Half>& call);

}  // namespace pykernels
