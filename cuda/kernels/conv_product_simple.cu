// Patches times weights in float and double, by multiply-adds.
#include "cuda/core/conv_product.cuh"

namespace pykernels::cuda {

cudaError_t conv_product_simple(const ConvProduct& args, DType dtype, ConvTile tile, cudaStream_t stream) {
    if (dtype == DType::f64) {
        return launch_conv_product<ConvBlock<double, 2, 2>>(args, stream);
    }
    return tile == ConvTile::wide   ? launch_conv_product<ConvBlock<float, 2, 4>>(args, stream)
           : tile == ConvTile::tall ? launch_conv_product<ConvBlock<float, 2, 2>>(args, stream)
                                    : launch_conv_product<ConvBlock<float, 1, 2>>(args, stream);
}

}  // namespace pykernels::cuda
