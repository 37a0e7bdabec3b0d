// Gradients of weights in 16-bit types, by matrix instructions.
#include "cuda/core/conv_place_sums.cuh"

namespace pykernels::cuda {

cudaError_t conv_place_sums_tiled(const ConvPlaceSums& args, DType dtype, cudaStream_t stream) {
    const auto with_type = [&]<class T>(T*) {
        return args.grad.channels > 64 ? launch_conv_place_sums<ConvBlock<T, 2, 4>>(args, stream)
                                       : launch_conv_place_sums<ConvBlock<T, 1, 4>>(args, stream);
    };
    return dtype == DType::bf16 ? with_type(static_cast<bf16*>(nullptr)) : with_type(static_cast<fp16*>(nullptr));
}

}  // namespace pykernels::cuda
