// The attention operators' signatures, for every backend: their arguments gathered, and handed to what computes.
#pragma once

#include "ops/attention.h"

namespace pykernels {

struct AttentionWanted {
    bool query, key, value, mask;
};

using AttentionForwardFunction = AttentionForwardResult (*)(const AttentionArguments&);
using AttentionBackwardFunction = AttentionBackwardResult (*)(const AttentionArguments&, const AttentionGiven&,
                                                              const AttentionWanted&);
using AttentionWeightsFunction = Tensor (*)(const AttentionArguments&, const Tensor& lse, bool average);

template <AttentionForwardFunction Forward, AttentionBackwardFunction Backward, AttentionWeightsFunction Weights>
struct AttentionOperators {
    static AttentionForwardResult forward(const Tensor& query, const Tensor& key, const Tensor& value,
                                          const OptionalTensor& mask, const OptionalTensor& row_lengths,
                                          const OptionalTensor& key_lengths, const OptionalTensor& seed,
                                          std::optional<double> scale, double softcap, double dropout, int64_t left,
                                          int64_t right, bool bottom_right) {
        return Forward({query, key, value, mask, row_lengths, key_lengths, seed, scale, softcap, dropout, left, right,
                        bottom_right});
    }
    static Tensor weights(const Tensor& query, const Tensor& key, const OptionalTensor& mask,
                          const OptionalTensor& row_lengths, const OptionalTensor& key_lengths,
                          const OptionalTensor& seed, const Tensor& lse, std::optional<double> scale, double softcap,
                          double dropout, int64_t left, int64_t right, bool bottom_right, bool average) {
        return Weights(
            {query, key, key, mask, row_lengths, key_lengths, seed, scale, softcap, dropout, left, right, bottom_right},
            lse, average);
    }
    static AttentionBackwardResult backward(const OptionalTensor& grad_out, const OptionalTensor& grad_lse,
                                            const Tensor& query, const Tensor& key, const Tensor& value,
                                            const OptionalTensor& mask, const OptionalTensor& row_lengths,
                                            const OptionalTensor& key_lengths, const OptionalTensor& seed,
                                            const Tensor& out, const Tensor& lse, std::optional<double> scale,
                                            double softcap, double dropout, int64_t left, int64_t right,
                                            bool bottom_right, bool need_query, bool need_key, bool need_value,
                                            bool need_mask) {
        return Backward({query, key, value, mask, row_lengths, key_lengths, seed, scale, softcap, dropout, left, right,
                         bottom_right},
                        {grad_out, grad_lse, out, lse}, {need_query, need_key, need_value, need_mask});
    }
};

}  // namespace pykernels
