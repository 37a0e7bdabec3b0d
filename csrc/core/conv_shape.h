// What a convolution is, without its data. Plain C++ that both compilers take.
#pragma once

#include <array>
#include <cstdint>

namespace pykernels {

// What lies outside of the input.
enum class PaddingMode { Zeros, Reflect, Replicate, Circular };

// Along one dimension: output place o and tap t read input pixel o * stride + t * dilation - before.
struct ConvDimension {
    std::int64_t input, output, kernel, stride, dilation, before;
};

struct ConvShape {
    std::int64_t batch, groups, in_channels, out_channels;  // channels of one group
    std::array<ConvDimension, 3> dim;
    PaddingMode mode;
    bool channels_last;

    std::int64_t pixels() const { return dim[0].input * dim[1].input * dim[2].input; }
    std::int64_t places() const { return dim[0].output * dim[1].output * dim[2].output; }
    std::int64_t taps() const { return dim[0].kernel * dim[1].kernel * dim[2].kernel; }
};

}  // namespace pykernels
