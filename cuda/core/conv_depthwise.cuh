// Depthwise convolution: how a block's threads share channels and places, for both layouts. Channels beside each other
// come in packs of 16 bytes, or singly.
#pragma once

#include "cuda/core/conv_tiles.cuh"
#include "cuda/kernels/conv_parts.h"

namespace pykernels::cuda {

constexpr int kDepthwiseThreads = 256;

// So many threads side by side along the channels: a power of two, one where places are neighbours in memory.
inline int channel_lanes(const ConvPatches& patches, int64_t channels, int pack) {
    int lanes = 1;
    while (patches.strides.channel == 1 && lanes < kWarp && lanes * pack < channels) {
        lanes *= 2;
    }
    return lanes;
}

// Place of the calling thread in its block.
struct DepthwiseThread {
    int lanes, lane, line, lines;  // lines of threads, each of another place

    __device__ explicit DepthwiseThread(int channel_lanes)
        : lanes(channel_lanes),
          lane(static_cast<int>(threadIdx.x) % lanes),
          line(static_cast<int>(threadIdx.x) / lanes),
          lines(kDepthwiseThreads / lanes) {}
};

}  // namespace pykernels::cuda
