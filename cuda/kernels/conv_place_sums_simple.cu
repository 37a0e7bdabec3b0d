// Gradients of weights in float and double, by multiply-adds.
#include "cuda/core/conv_place_sums.cuh"

namespace pykernels::cuda {

cudaError_t conv_place_sums_simple(const ConvPlaceSums& args, DType dtype, cudaStream_t stream) {
    if (dtype == DType::f64) {
        return launch_conv_place_sums<ConvBlock<double, 2, 2>>(args, stream);
    }
    return args.grad.channels > 64 ? launch_conv_place_sums<ConvBlock<float, 2, 2>>(args, stream)
                                   : launch_conv_place_sums<ConvBlock<float, 1, 4>>(args, stream);
}

}  // namespace pykernels::cuda
