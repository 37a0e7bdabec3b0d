// Contract of the restricted Boltzmann machine's operators, for every backend. Energy, with b and c the biases of the
// visible units v and the hidden units h, and temperature T:
//
//   E(v, h) = -b v - c h - h W v,                          v and h of 0 and 1
//   E(v, h) = |v - b|^2 / 2 - c h - h W v                  Gaussian visible units
//
// rbm_sample: one side given the other.
//   input    [*, inputs], any strides: N rows
//   weight   [outputs, inputs], or [inputs, outputs] where `transposed`
//   bias     none, or [outputs]
//   seed     none (nothing is drawn), or one int64 on the CPU
//   mean     [*, outputs]: logistic((input weight^T + bias) / T), or input weight^T + bias of Gaussian units
//   sample   like mean, [0] without a seed: 1 where u < mean, else 0; or mean + sqrt(T) n
//
//   Element j of row i reads number w = (j % 64) / 16 of Philox4x32-10 with the seed as its key and
//   {(j / 64) * 16 + j % 16, i, stream, 0} as its counter: u = floor(number / 2^8) / 2^24. The normal n is made of two
//   numbers of the counter (Box and Muller), 0 and 1 where w < 2, else 2 and 3: with the upper 24 bits e and f of
//   them r = sqrt(-2 ln((e + 1) / 2^24)) and n = r cos(2 pi f / 2^24) where w is even, else r sin(2 pi f / 2^24).
//
// rbm_contrastive_divergence: the statistics <v h>0 - <v h>k of one mini-batch; rbm_train_: updates by them, mini-batch
// after mini-batch. float32 and float64.
//   data     [M, visible]; order none, or [N] int64: the rows of data that are visited (none: all of them)
//   weight   [hidden, visible], visible_bias [visible], hidden_bias [hidden]
//   chain    none (chains begin at the data), or [chains, hidden]: hidden states that go on from call to call
//   steps    k
//
//   Draw (stream) 0 is of the hidden units at the data; 2t - 1 and 2t are of the visible and the hidden units of Gibbs
//   step t. Row b of mini-batch m is row first_row + m max(batch, chains) + b of a draw. Hidden units are counted by
//   their means in both phases. With the velocities,
//   velocity = momentum velocity + rate (statistics - decay parameter), parameter += velocity; without,
//   parameter += rate (statistics - decay parameter). There is no decay of biases.
#pragma once

#include <ATen/ops/empty.h>

#include "core/checks.h"

namespace pykernels {

struct RbmSampleSizes {
    int64_t rows, inputs, outputs;
    std::vector<int64_t> out;  // shape
    uint64_t key;
};

RbmSampleSizes check_rbm_sample(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                const OptionalTensor& seed, int64_t stream, bool transposed, double temperature);

struct RbmParameters {
    const Tensor &weight, &visible_bias, &hidden_bias;
};

struct RbmMethod {
    int64_t batch, steps;
    bool gaussian;
    double temperature, rate, momentum, decay;
    int64_t first_row;
};

struct RbmTrainArguments {
    const Tensor& data;
    const OptionalTensor& order;
    RbmParameters parameters;
    std::array<const OptionalTensor*, 3> velocity;  // of weight, visible_bias, hidden_bias
    const OptionalTensor& chain;
    const Tensor& seed;
    RbmMethod method;
};

struct RbmTrainSizes {
    int64_t visible, hidden, rows, batch, chains;
    uint64_t key;
    uint32_t first_row;
    bool moves;  // there are velocities
};

RbmTrainSizes check_rbm_train(std::string_view op, const RbmTrainArguments& args);

using RbmSampleResult = std::tuple<Tensor, Tensor>;
using RbmStatistics = std::tuple<Tensor, Tensor, Tensor, Tensor>;

struct RbmSampleArguments {
    const Tensor &input, &weight;
    const OptionalTensor &bias, &seed;
    int64_t stream;
    bool transposed, gaussian;
    double temperature;
};

using RbmSampleFunction = RbmSampleResult (*)(const RbmSampleArguments&, const RbmSampleSizes&);
using RbmStatisticsFunction = RbmStatistics (*)(const RbmTrainArguments&, const RbmTrainSizes&);
using RbmTrainFunction = void (*)(const RbmTrainArguments&, const RbmTrainSizes&);

// The operators' signatures, for every backend.
template <RbmSampleFunction Sample, RbmStatisticsFunction Statistics, RbmTrainFunction Train>
struct RbmOperators {
    static RbmSampleResult sample(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                  const OptionalTensor& seed, int64_t stream, bool transposed, bool gaussian,
                                  double temperature) {
        return Sample({input, weight, bias, seed, stream, transposed, gaussian, temperature},
                      check_rbm_sample(input, weight, bias, seed, stream, transposed, temperature));
    }
    static RbmStatistics contrastive_divergence(const Tensor& data, const Tensor& weight, const Tensor& visible_bias,
                                                const Tensor& hidden_bias, const OptionalTensor& chain,
                                                const Tensor& seed, int64_t steps, bool gaussian, double temperature,
                                                int64_t first_row) {
        const OptionalTensor none;
        const int64_t batch = data.dim() == 2 && data.size(0) > 0 ? data.size(0) : 1;
        const RbmTrainArguments args{data,
                                     none,
                                     {weight, visible_bias, hidden_bias},
                                     {&none, &none, &none},
                                     chain,
                                     seed,
                                     {batch, steps, gaussian, temperature, 1, 0, 0, first_row}};
        return Statistics(args, check_rbm_train("rbm_contrastive_divergence", args));
    }
    static void train(const Tensor& data, const OptionalTensor& order, const Tensor& weight, const Tensor& visible_bias,
                      const Tensor& hidden_bias, const OptionalTensor& weight_velocity,
                      const OptionalTensor& visible_velocity, const OptionalTensor& hidden_velocity,
                      const OptionalTensor& chain, const Tensor& seed, int64_t batch, int64_t steps, bool gaussian,
                      double temperature, double rate, double momentum, double decay, int64_t first_row) {
        const RbmTrainArguments args{data,
                                     order,
                                     {weight, visible_bias, hidden_bias},
                                     {&weight_velocity, &visible_velocity, &hidden_velocity},
                                     chain,
                                     seed,
                                     {batch, steps, gaussian, temperature, rate, momentum, decay, first_row}};
        const auto sizes = check_rbm_train("rbm_train_", args);
        Train(args, sizes);
        // (raw calls do not pass where torch counts what is written)
        for (const OptionalTensor* tensor : {&weight_velocity, &visible_velocity, &hidden_velocity, &chain})
            if (*tensor) (*tensor)->unsafeGetTensorImpl()->bump_version();
        for (const Tensor* tensor : {&weight, &visible_bias, &hidden_bias})
            tensor->unsafeGetTensorImpl()->bump_version();
    }
};

}  // namespace pykernels
