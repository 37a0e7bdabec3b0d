// The parts of layer norm's backward beside the rows' own gradients.
#pragma once

#include "cuda/kernels/layer_norm.h"

namespace pykernels::cuda {

// Writes weight_runs and bias_runs, by columns; `packs`: rows and workspaces are aligned to 16 bytes.
cudaError_t layer_norm_column_runs(const LayerNormBackward& args, bool packs, cudaStream_t stream);

// Writes grad_weight and grad_bias from weight_runs and bias_runs.
cudaError_t layer_norm_add_runs(const LayerNormBackward& args, cudaStream_t stream);

}  // namespace pykernels::cuda
