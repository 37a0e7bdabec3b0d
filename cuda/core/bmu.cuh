// What the kernels of best matching units share: rows as they are given and as the search reads them, the best groups
// of a sample, and the nearest units by distances in double precision.
#pragma once

#include <cmath>

#include "cuda/core/for_types.cuh"
#include "cuda/kernels/bmu_parts.h"

namespace pykernels::cuda {

template <class T>
__device__ inline const T* input_row(const Bmu& call, int64_t sample) {
    return static_cast<const T*>(call.input) + sample * call.input_stride;
}
template <class T>
__device__ inline const T* codebook_row(const Bmu& call, int64_t unit) {
    return static_cast<const T*>(call.codebook) + unit * call.codebook_stride;
}

__device__ inline uint32_t bits_of(float value) { return __builtin_bit_cast(uint32_t, value); }
__device__ inline float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }

// The power of two that brings `largest` to [256, 512), where 16 bits have most digits; but for numbers so small that
// no margin lets them be compared. The inverse is one, too.
class RowScale {
  public:
    __device__ explicit RowScale(float largest) {
        const int exponent = static_cast<int>(bits_of(largest) >> 23) - 126;
        exponent_ = exponent < -110 ? -110 : exponent;
    }
    __device__ float factor() const { return float_of(static_cast<uint32_t>(127 + 9 - exponent_) << 23); }
    __device__ float inverse() const { return float_of(static_cast<uint32_t>(127 - 9 + exponent_) << 23); }

  private:
    int exponent_;
};

// Descending scores of groups, the lowest group first where several are equal, and one score more. What is not a number
// is not kept.
template <int kHeld>
struct BestGroups {
    static constexpr int kWords = 2 * kHeld + 1;
    float value[kHeld + 1];
    int number[kHeld];

    __device__ BestGroups() {
#pragma unroll
        for (int i = 0; i <= kHeld; ++i) {
            value[i] = -INFINITY;
        }
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            number[i] = INT32_MAX;
        }
    }
    // kLater: all groups so far have lower numbers.
    template <bool kLater>
    __device__ void insert(float score, int group) {
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            const bool better = score > value[i] || (!kLater && score == value[i] && group < number[i]);
            const float passed = better ? value[i] : score;
            const int passed_group = better ? number[i] : group;
            value[i] = better ? score : value[i];
            number[i] = better ? group : number[i];
            score = passed;
            group = passed_group;
        }
        value[kHeld] = maximum(value[kHeld], score);
    }
    // With those of the lane whose number differs by `lane_xor`. (Which of equal groups comes first is the same in all
    // lanes.)
    __device__ void merge(int lane_xor) {
        BestGroups other;
#pragma unroll
        for (int i = 0; i <= kHeld; ++i) {
            other.value[i] = shuffle_xor(value[i], lane_xor);
        }
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            other.number[i] = shuffle_xor(number[i], lane_xor);
        }
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            insert<false>(other.value[i], other.number[i]);
        }
        value[kHeld] = maximum(value[kHeld], other.value[kHeld]);
    }
    __device__ static float* place(const BmuSearch& search, int64_t part, int64_t sample) {
        return search.best + (part * search.slice + sample) * kWords;
    }
    __device__ void store(float* to) const {
#pragma unroll
        for (int i = 0; i <= kHeld; ++i) {
            to[i] = value[i];
        }
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            to[kHeld + 1 + i] = float_of(static_cast<uint32_t>(number[i]));
        }
    }
    // With those that are stored.
    __device__ void add(const float* stored) {
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            insert<false>(stored[i], static_cast<int>(bits_of(stored[kHeld + 1 + i])));
        }
        value[kHeld] = maximum(value[kHeld], stored[kHeld]);
    }
};

// Of 16 units, group q has those at 2q, 2q + 1, 2q + 8 and 2q + 9: what one lane has of a product.
__device__ inline int64_t unit_of_group(int group, int member) {
    return int64_t{group / 4} * 16 + 2 * (group % 4) + member % 2 + member / 2 * 8;
}

// Distances in double precision. Eight neighbouring lanes work on one of them; they get the same result, which has its
// sums in the same order as the processor's.
constexpr int kPairLanes = 8;

class PairLanes {
  public:
    __device__ PairLanes()
        : place_(static_cast<int>(threadIdx.x) % kPairLanes),
          mask_(0xffu << static_cast<int>(threadIdx.x) % kWarp / kPairLanes * kPairLanes) {}

    __device__ int place() const { return place_; }
    template <class Value>
    __device__ Value shuffle(Value value, int lane_xor) const {
        return shuffle_xor(value, lane_xor, mask_);
    }

    // What units are ordered by: the distance, squared where it is Euclidean.
    template <class T>
    __device__ double measure(Metric metric, const T* x, const T* w, int64_t features) const {
        double sum = 0, of_x = 0, of_w = 0;
        for (int64_t d = place_; d < features; d += kPairLanes) {
            const double a = to_accumulator(x[d]), b = to_accumulator(w[d]);
            if (metric == Metric::kCosine) {
                sum += a * b;
                of_x += a * a;
                of_w += b * b;
            } else {
                const double apart = a - b;
                sum += metric == Metric::kEuclidean ? apart * apart : absolute(apart);
            }
        }
        sum = add_up(sum);
        if (metric != Metric::kCosine) {
            return sum;
        }
        const double norms = square_root(add_up(of_x)) * square_root(add_up(of_w));
        const double apart = 1 - sum / norms;
        return norms == 0 ? 1 : apart < 0 ? 0 : apart;  // (NaN stays)
    }

  private:
    __device__ double add_up(double value) const {
#pragma unroll
        for (int lane_xor = 1; lane_xor < kPairLanes; lane_xor *= 2) {
            value += shuffle(value, lane_xor);
        }
        return value;
    }

    int place_;
    unsigned mask_;
};

struct MeasuredUnit {
    double measure;
    int64_t unit;

    // By the measure, then by the number; what is not a number is farther than all that is.
    __device__ bool before(const MeasuredUnit& other) const {
        const bool nothing = measure != measure, other_nothing = other.measure != other.measure;
        if (nothing != other_nothing) {
            return other_nothing;
        }
        return measure < other.measure || (!(measure > other.measure) && unit < other.unit);
    }
    __device__ static MeasuredUnit none() { return {static_cast<double>(NAN), INT64_MAX}; }
};

// The nearest units so far, in ascending order.
template <int kHeld>
struct Nearest {
    MeasuredUnit of[kHeld];

    __device__ Nearest() {
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            of[i] = MeasuredUnit::none();
        }
    }
    __device__ void consider(MeasuredUnit next) {
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            const bool better = next.before(of[i]);
            const MeasuredUnit passed = better ? of[i] : next;
            of[i] = better ? next : of[i];
            next = passed;
        }
    }
};

template <class T>
__device__ inline void put_nearest(const Bmu& call, int64_t sample, int place, const MeasuredUnit& found) {
    using A = Accumulator<T>;
    const double distance = call.metric == Metric::kEuclidean ? square_root(found.measure) : found.measure;
    const int64_t to = sample * call.neighbours + place;
    static_cast<T*>(call.distance)[to] = to_storage<T>(static_cast<A>(distance));
    call.index[to] = found.unit;
}

// Calls run.template operator()<kHeld>() with room for the neighbours.
template <class Run>
cudaError_t for_held(int held, const Run& run) {
    return held == 1   ? run.template operator()<1>()
           : held == 2 ? run.template operator()<2>()
                       : run.template operator()<8>();
}

}  // namespace pykernels::cuda
