// The parts of attention, by matrix instructions or without. Of those that exist in two forms, the plain name takes the
// one with matrix instructions where there is one, and the other elsewhere.
#pragma once

#include "cuda/kernels/attention.h"

namespace pykernels::cuda {

cudaError_t simple_attention_forward(const AttentionForward& args, cudaStream_t stream);

// Writes delta, which the others read.
cudaError_t attention_delta(const AttentionBackward& args, cudaStream_t stream);

cudaError_t attention_query_gradient(const AttentionBackward& args, cudaStream_t stream);
cudaError_t attention_key_gradient(const AttentionBackward& args, cudaStream_t stream);  // and that of values
cudaError_t attention_mask_gradient(const AttentionBackward& args, cudaStream_t stream);
cudaError_t simple_attention_query_gradient(const AttentionBackward& args, cudaStream_t stream);
cudaError_t simple_attention_key_gradient(const AttentionBackward& args, cudaStream_t stream);
cudaError_t simple_attention_mask_gradient(const AttentionBackward& args, cudaStream_t stream);

}  // namespace pykernels::cuda
