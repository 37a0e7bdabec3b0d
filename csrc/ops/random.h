// Contract of random_mask, for every backend: `value` with probability p and 0 otherwise, from a counter-based
// generator, so that the same seed gives the same mask everywhere.
//
// With q = ceil(count / 4), element e of the mask, counted row by row, is number e / q of Philox4x32-10 with the seed
// as its key and {e % q, stream} as its counter; it is chosen where that number is below floor(p 2^32 + 1/2).
#pragma once

#include <ATen/ops/empty.h>

#include <cmath>

#include "core/checks.h"

namespace pykernels {

struct MaskPlan {
    uint64_t key;
    uint32_t stream;
    uint64_t threshold;  // numbers below it are chosen; 2^32 at most
    double value;
    Tensor mask;  // to be filled

    int64_t quarter() const { return (mask.numel() + 3) / 4; }
};

inline MaskPlan plan_mask(const Tensor& like, const Tensor& seed, int64_t stream, at::IntArrayRef size, double p,
                          double value, bool as_bytes) {
    TORCH_CHECK(seed.scalar_type() == at::kLong && seed.numel() == 1 && seed.is_cpu(),
                "[random_mask] expected seed as one int64 on the CPU, got ", seed.numel(), " of ", seed.scalar_type(),
                " on ", seed.device());
    TORCH_CHECK(p >= 0 && p <= 1, "[random_mask] expected a probability p, got ", p);
    TORCH_CHECK(stream >= 0 && stream <= UINT32_MAX, "[random_mask] expected stream to fit 32 bits, got ", stream);
    check_floating("random_mask", "like", like);
    TORCH_CHECK(!as_bytes || (value >= 0 && value <= 255 && value == std::floor(value)),
                "[random_mask] expected a value that is a byte, got ", value);
    auto options = like.options();
    if (as_bytes) options = options.dtype(at::kByte);
    return {static_cast<uint64_t>(*seed.const_data_ptr<int64_t>()), static_cast<uint32_t>(stream),
            static_cast<uint64_t>(std::floor(p * 4294967296.0 + 0.5)), value, at::empty(size, options)};
}

}  // namespace pykernels
