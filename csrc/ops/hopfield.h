// Contract of the Hopfield operators, for every backend: sweeps until nothing changes, a two-cycle is found, or `most`
// have been made.
//
// weight     [N, N]: unit j's field is v_j = sum over i of weight[j, i] y_i; or, packed,
// patterns   [M, ceil(N / 64)] of int64: unit i is bit i % 64 of word i / 64, set for +1; bits beyond N are zero. The
//            field is then v_j = sum over patterns k of f_k(j) m_k - M y_j with m_k = sum over i of f_k(i) y_i: M times
//            that of Hebb's rule, in whole numbers. States count by their signs.
// state      [B, N], any strides: mostly +1 and -1; other numbers are used as they are, until they change
// order      [N] or [B, N] of int64: the units of a sweep one after the other, each of which sees what changed before;
//            none: each sweep's is drawn, one for all rows (core/shuffle.h: the sweep is the stream)
// seed       one int64 on the CPU, where orders are drawn
// at_once    all units of a sweep change at once; there is no order
// symmetric  the weight is known to be. (If not, it is compared with its transpose.)
//
// out        [B, N]: y_j = 1 where v_j > 0, -1 where v_j < 0, as it was where v_j is zero or not a number
// sweeps     [B] of int64: how many were made
// period     [B] of int64: 1 if no unit changed in the last sweep, 2 if it gave what was there two sweeps before, else
// 0
//
// Fields are summed in float32, or float64 for float64. One by one, they are computed once and then follow the flips,
// whose roundings add up.
#pragma once

#include "core/checks.h"

namespace pykernels {

struct HopfieldArguments {
    const Tensor& state;
    const OptionalTensor &order, &seed;
    int64_t most;
    bool at_once;
};

struct HopfieldSizes {
    int64_t units, batch;
    int64_t patterns;  // packed
    bool own_orders;   // each row has one
    uint64_t seed;
};

HopfieldSizes check_hopfield(const Tensor& weight, const HopfieldArguments& args);
HopfieldSizes check_hopfield_packed(const Tensor& patterns, const HopfieldArguments& args);

using HopfieldResult = std::tuple<Tensor, Tensor, Tensor>;
using HopfieldFunction = HopfieldResult (*)(const Tensor& weight, const HopfieldArguments&, bool symmetric,
                                            const HopfieldSizes&);
using HopfieldPackedFunction = HopfieldResult (*)(const Tensor& patterns, const HopfieldArguments&,
                                                  const HopfieldSizes&);

// The operators' signatures, for every backend.
template <HopfieldFunction Retrieve, HopfieldPackedFunction RetrievePacked>
struct HopfieldOperators {
    static HopfieldResult retrieve(const Tensor& weight, const Tensor& state, const OptionalTensor& order,
                                   const OptionalTensor& seed, int64_t most, bool at_once, bool symmetric) {
        const HopfieldArguments args{state, order, seed, most, at_once};
        return Retrieve(weight, args, symmetric, check_hopfield(weight, args));
    }
    static HopfieldResult retrieve_packed(const Tensor& patterns, const Tensor& state, const OptionalTensor& order,
                                          const OptionalTensor& seed, int64_t most, bool at_once) {
        const HopfieldArguments args{state, order, seed, most, at_once};
        return RetrievePacked(patterns, args, check_hopfield_packed(patterns, args));
    }
};

}  // namespace pykernels
