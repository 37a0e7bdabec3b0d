#include "cuda/kernels/variant.h"

#include "cuda/core/variant_backward.cuh"
#include "cuda/core/variant_forward.cuh"

namespace pykernels::cuda {

size_t variant_forward_workspace(const VariantLayer& layer) {
    VariantForwardPass pass{};
    pass.op.layer = layer;
    return pass.lay_out();
}

size_t variant_backward_workspace(const VariantLayer& layer) {
    VariantBackwardPass pass{};
    pass.op.layer = layer;
    return pass.lay_out();
}

cudaError_t variant_forward(const VariantForward& args, cudaStream_t stream) {
    switch (args.layer.kind) {
        case RecurrentKind::lstm:
            return lstm_variant_forward(args, stream);
        case RecurrentKind::gru:
            return gru_variant_forward(args, stream);
        case RecurrentKind::rnn:
            return rnn_variant_forward(args, stream);
    }
    return cudaErrorInvalidValue;
}

cudaError_t variant_backward(const VariantBackward& args, cudaStream_t stream) {
    switch (args.layer.kind) {
        case RecurrentKind::lstm:
            return lstm_variant_backward(args, stream);
        case RecurrentKind::gru:
            return gru_variant_backward(args, stream);
        case RecurrentKind::rnn:
            return rnn_variant_backward(args, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace pykernels::cuda
