// Convolution, ReLU and max-pooling at once on CUDA: one kernel where there is one, and else the two.
#include "csrc/ops/conv_pool.h"

#include <torch/library.h>

#include "csrc/ops/registry.h"
#include "cuda/kernels/conv_pool.h"
#include "cuda/ops/conv.h"
#include "cuda/ops/pool.h"
#include "cuda/ops/recurrent.h"

namespace pykernels::cuda {
namespace {

Tensor run(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const ConvOptions&, const PoolWindow&,
           const ConvPoolSizes& sizes) {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    check_extents(sizes.conv);
    ConvPool args{dtype_of(input), sizes.conv.shape, sizes.pool.shape.rows, sizes.pool.shape.columns, nullptr, nullptr,
                  nullptr,         nullptr};
    if (!has_conv_pool(args)) {
        return std::get<0>(max_pool(convolution(input, weight, bias, sizes.conv, true), false, sizes.pool));
    }
    Call call(input);
    const Tensor out = call.empty(sizes.pool.output);
    args.input = call.data(input);
    args.weight = call.data(weight);
    args.bias = call.data(bias);
    args.out = out.mutable_data_ptr();
    C10_CUDA_CHECK(conv_relu_max_pool(args, call.stream));
    return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(pykernels, CUDA, m) { m.impl("conv_relu_max_pool", conv_pool_operator<run>); }

static const RawKernel raw_kernels[] = {{"conv_relu_max_pool", conv_pool_operator<run>}};

}  // namespace pykernels::cuda
