// Launch contract of the restricted Boltzmann machine: what it computes, csrc/ops/rbm.h says. Matrices are dense but
// where a stride is given; no output overlaps another buffer.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/core/types.h"

namespace pykernels::cuda {

// One side given the other: logistic units, or Gaussian ones of variance `temperature`. Row i of draw `stream` has
// counters {.., first_row + i, stream, 0}.
struct RbmLayer {
    DType dtype;
    int64_t rows, inputs, outputs;
    const void* input;  // [rows, inputs]
    int64_t input_stride;
    const void* weight;  // [outputs, inputs], or [inputs, outputs] where transposed
    bool transposed;
    const void* bias;  // [outputs], or null
    bool gaussian;
    double temperature;
    uint64_t key;
    uint32_t first_row, stream;
    void *mean, *sample;  // [rows, outputs]; either may be null
};
cudaError_t rbm_layer(const RbmLayer& args, cudaStream_t stream);

struct RbmTensors {
    void *weight, *visible_bias, *hidden_bias;  // [hidden, visible], [visible], [hidden]
};

// Contrastive divergence over mini-batches: a few launches for each. float32 and float64.
struct RbmTraining {
    DType dtype;
    int64_t visible, hidden, rows, batch, steps;
    const void* data;  // [rows, visible]
    int64_t data_stride;
    int64_t chains;  // 0: chains begin at the data
    void* chain;     // [chains, hidden], in and out, or null
    bool gaussian;
    double temperature;
    uint64_t key;
    uint32_t first_row;
    RbmTensors parameters;  // written only where there is no gradient
    RbmTensors velocity;    // all null without momentum
    RbmTensors gradient;    // all null to update; else there is one mini-batch
    double rate, momentum, decay;
    // workspaces; most: the larger of batch and chains
    void *first_means, *means;  // [batch, hidden], [most, hidden]
    void *states, *sampled;     // [batch, hidden] (null with chains), [most, visible]
};
cudaError_t rbm_train(const RbmTraining& args, cudaStream_t stream);

}  // namespace pykernels::cuda
