// What the files of convolution share.
#pragma once

#include "core/vec.h"
#include "kernels/conv_lattice.h"

namespace pykernels {

// What values of a storage type are multiplied as.
template <typename S>
struct ProductOperand {
    using type = Accumulator<S>;
};
#ifdef __AVX512BF16__
template <>
struct ProductOperand<c10::BFloat16> {
    using type = Bf16Pair;
};
#endif
template <typename S>
using ProductOperandOf = typename ProductOperand<S>::type;

// What operands are made of: themselves, or the two halves of a pair.
template <typename Op>
using RowElement = std::conditional_t<Operand<Op>::kPerElement == 1, Op, c10::BFloat16>;

inline constexpr double kConvGrain = 1 << 17;   // multiply-adds that are worth a thread
inline constexpr int64_t kDepthwiseParts = 16;  // sums over places are cut into at most so many parts

// One channel a group: no product. (One input channel for all outputs is one.)
inline bool is_depthwise(const ConvShape& s) { return s.in_channels == 1 && s.groups > 1; }

template <typename S>
void depthwise_forward(const ConvForward<S>& call);
template <typename S>
void depthwise_input_gradient(const ConvInputGradient<S>& call);  // mode: zeros
template <typename S>
void depthwise_weight_gradient(const ConvWeightGradient<S>& call);

// Minimal filtering (conv_winograd.h). False where it does not pay, or where a result is not finite: then nothing of it
// is to be used.
bool winograd_forward(const ConvForward<float>& call);
bool winograd_input_gradient(const ConvInputGradient<float>& call);
bool winograd_weight_gradient(const ConvWeightGradient<float>& call);

// The gradient of few weights of planar images, as dot products. False where it does not pay.
bool dots_weight_gradient(const ConvWeightGradient<float>& call);
bool dots_weight_gradient(const ConvWeightGradient<double>& call);

// Of so many threads, how many share the rows of a product (or its panels) where the others share its columns: what
// leaves the busiest one the least to do. `rows` in grains, and `beside` of them take as long as reading a column.
inline int threads_across(int threads, int64_t columns, int64_t rows, int64_t grain, double beside) {
    int across = 1;
    double least = 0;
    for (int parts = 1; parts <= threads && (parts - 1) * grain < rows; ++parts) {
        const int64_t along = threads / parts, grains = (rows + grain - 1) / grain;
        const double each = static_cast<double>((columns + along - 1) / along) *
                            (static_cast<double>(std::min((grains + parts - 1) / parts * grain, rows)) + beside);
        if (parts == 1 || each < least) least = each, across = parts;
    }
    return across;
}

// The lattices of the input's gradient: one for each remainder of the strides.
inline std::vector<std::array<Lattice, 3>> all_gradient_lattices(const ConvShape& s) {
    std::vector<std::array<Lattice, 3>> all;
    for (const auto& d : gradient_lattices(s.dim[0]))
        for (const auto& h : gradient_lattices(s.dim[1]))
            for (const auto& w : gradient_lattices(s.dim[2])) all.push_back({d, h, w});
    return all;
}

// Taps of the kernel, in the lattice's order.
inline std::vector<int64_t> taps_of(const ConvShape& s, const std::array<Lattice, 3>& lattice) {
    std::vector<int64_t> taps;
    for (const int64_t d : lattice[0].tap)
        for (const int64_t h : lattice[1].tap)
            for (const int64_t w : lattice[2].tap) taps.push_back((d * s.dim[1].kernel + h) * s.dim[2].kernel + w);
    return taps;
}

}  // namespace pykernels
