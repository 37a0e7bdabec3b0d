// The product of weights with patches of planar images: forward and input gradient.
#pragma once

#include "kernels/conv_parts.h"

namespace pykernels {

template <typename S_, typename Op_, typename Out_ = S_>
struct PlanarCall {
    using S = S_;
    using Op = Op_;
    using Out = Out_;
    using Acc = AccOf<Op>;

    std::array<Lattice, 3> lattice;
    PaddingMode mode;
    int64_t batch, groups, channels, rows;  // of one group
    const S* source;                        // [batch, groups * channels, pixels]
    const Op* weights;                      // [groups * rows, channels or pairs of them, taps]
    const Acc* bias;                        // [groups * rows], or null
    bool relu;
    Out* out;  // [batch, groups * rows, extents]

    int64_t taps() const { return lattice[0].taps() * lattice[1].taps() * lattice[2].taps(); }
    int64_t places() const { return lattice[0].places * lattice[1].places * lattice[2].places; }
    int64_t pairs() const { return (channels + Operand<Op>::kPerElement - 1) / Operand<Op>::kPerElement; }
    int64_t pixels() const { return lattice[0].source * lattice[1].source * lattice[2].source; }
    int64_t extent() const { return lattice[0].extent * lattice[1].extent * lattice[2].extent; }
};

void planar_product(const PlanarCall<float, ProductOperandOf<float>>& call);
void planar_product(const PlanarCall<double, ProductOperandOf<double>>& call);
void planar_product(const PlanarCall<c10::BFloat16, ProductOperandOf<c10::BFloat16>>& call);
void planar_product(const PlanarCall<c10::Half, ProductOperandOf<c10::Half>>& call);

}  // namespace pykernels
