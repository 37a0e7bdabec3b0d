// Launch contract of the restricted Boltzmann machine on the CPU. Sums are float, or double for double; matrices are
// dense but where a stride is given, and no output overlaps another buffer. Results do not depend on the number of
// threads: every sum is one chain in a fixed order.
#pragma once

#include <type_traits>

#include "core/types.h"

namespace pykernels {

// One side given the other: logistic units, or Gaussian ones of variance `temperature`.
struct RbmUnits {
    bool gaussian;
    double temperature;
};

// The random numbers: of row i of draw n under the key, counters {.., first_row + i, n, 0} (core/unit_draws.h).
struct RbmRandom {
    std::uint64_t key;
    std::uint32_t first_row;
};

template <typename Storage_>
struct RbmLayer {
    using Storage = Storage_;
    using Acc = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

    int64_t rows, inputs, outputs;
    const Storage* input;  // [rows, inputs]
    int64_t input_stride;
    const Storage* weight;  // [outputs, inputs], or [inputs, outputs] where transposed
    bool transposed;
    const Storage* bias;  // [outputs], or null
    RbmUnits units;
    RbmRandom random;
    std::uint32_t stream;
    Storage *mean, *sample;  // [rows, outputs]; sample null where not wanted
};

void rbm_layer(const RbmLayer<float>& call);
void rbm_layer(const RbmLayer<double>& call);
void rbm_layer(const RbmLayer<c10::BFloat16>& call);
void rbm_layer(const RbmLayer<c10::Half>& call);

template <typename T>
struct RbmTensors {
    T *weight, *visible_bias, *hidden_bias;  // [hidden, visible], [visible], [hidden]
};

// Contrastive divergence over mini-batches, one after the other: their statistics update the parameters, or, of one
// mini-batch, are put out. Draw 0 is of the hidden units at the data, draws 2t - 1 and 2t are of the visible and the
// hidden units of Gibbs step t; row b of mini-batch m has counter first_row + m * max(batch, chains) + b.
template <typename T>
struct RbmTraining {
    int64_t visible, hidden, rows, batch, steps;
    const T* data;  // [rows of it, visible]
    int64_t data_stride;
    const int64_t* order;  // [rows]: which rows of data are visited; null for all as they come
    int64_t chains;
    T* chain;  // [chains, hidden], hidden states in and out; null where chains begin at the data (chains is then 0)
    RbmUnits units;  // the visible ones; the hidden ones are logistic at the same temperature
    RbmRandom random;
    RbmTensors<T> parameters;  // written only where there is no gradient
    RbmTensors<T> velocity;    // all null without momentum
    RbmTensors<T> gradient;    // all null to update; else there is one mini-batch
    double rate, momentum, decay;
};

void rbm_train(const RbmTraining<float>& call);
void rbm_train(const RbmTraining<double>& call);

}  // namespace pykernels
