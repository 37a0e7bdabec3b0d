// The product of patches with weights where channels lie beside each other: forward and input gradient.
#pragma once

#include <functional>

#include "kernels/conv_parts.h"

namespace pykernels {

template <typename S_, typename Op_>
struct RowsCall {
    using S = S_;
    using Op = Op_;
    using Acc = AccOf<Op>;
    // pack(group, column, columns, padded, panel): the weights of so many columns as a panel of `padded`
    using Pack = std::function<void(int64_t, int64_t, int64_t, int64_t, Op*)>;

    std::array<Lattice, 3> lattice;
    PaddingMode mode;
    int64_t batch, groups, channels, columns;  // of one group
    const S* source;                           // [batch, pixels, groups * channels]
    Pack pack;
    const Acc* bias;  // [groups * columns], or null
    bool relu;
    S* out;  // [batch, extents, groups * columns]

    int64_t taps() const { return lattice[0].taps() * lattice[1].taps() * lattice[2].taps(); }
    int64_t places() const { return lattice[0].places * lattice[1].places * lattice[2].places; }
    int64_t pixels() const { return lattice[0].source * lattice[1].source * lattice[2].source; }
};

void rows_product(const RowsCall<float, ProductOperandOf<float>>& call);
void rows_product(const RowsCall<double, ProductOperandOf<double>>& call);
void rows_product(const RowsCall<c10::BFloat16, ProductOperandOf<c10::BFloat16>>& call);
void rows_product(const RowsCall<c10::Half, ProductOperandOf<c10::Half>>& call);

}  // namespace pykernels
