// Launch contract of convolution, bias, ReLU and max-pooling of planar images at once, on the CPU: what the convolution
// gives stays in a thread's workspace, one image at a time.
#pragma once

#include "core/pool_window.h"
#include "kernels/conv.h"

namespace pykernels {

template <typename Storage>
struct ConvPool {
    ConvForward<Storage> conv;    // conv.out is not used; ReLU always
    PoolDimension rows, columns;  // of windows of the convolution's places
    Storage* out;                 // [batch, groups * out_channels, rows.out, columns.out]
};

void conv_relu_max_pool(const ConvPool<float>& call);
void conv_relu_max_pool(const ConvPool<double>& call);
void conv_relu_max_pool(const ConvPool<c10::BFloat16>& call);
void conv_relu_max_pool(const ConvPool<c10::Half>& call);

}  // namespace pykernels
