// Patches times weights in 16-bit types, by matrix instructions.
#include "cuda/core/conv_product.cuh"

namespace pykernels::cuda {

cudaError_t conv_product_tiled(const ConvProduct& args, DType dtype, ConvTile tile, cudaStream_t stream) {
    const auto with_type = [&]<class T>(T*) {
        return tile == ConvTile::wide   ? launch_conv_product<ConvBlock<T, 2, 4>>(args, stream)
               : tile == ConvTile::tall ? launch_conv_product<ConvBlock<T, 2, 2>>(args, stream)
                                        : launch_conv_product<ConvBlock<T, 1, 2>>(args, stream);
    };
    return dtype == DType::bf16 ? with_type(static_cast<bf16*>(nullptr)) : with_type(static_cast<fp16*>(nullptr));
}

}  // namespace pykernels::cuda
