// Convolution: patches times weights.
#include "kernels/conv_planar.h"
#include "kernels/conv_rows.h"
#include "kernels/conv_weights.h"

namespace pykernels {
namespace {

// Dimensions that are read as they lie become one: longer runs.
std::array<Lattice, 3> lattices(const ConvShape& s) {
    ConvShape merged = s;
    auto& dim = merged.dim;
    const auto plain = [](const ConvDimension& d) { return d.kernel == 1 && d.stride == 1 && d.input == d.output; };
    for (int i = 1; i >= 0; --i) {
        if (!plain(dim[i]) || !plain(dim[2])) break;
        dim[2].input *= dim[i].input;
        dim[2].output *= dim[i].output;
        dim[i].input = dim[i].output = 1;
    }
    return forward_lattices(merged);
}

template <typename S>
void forward(const ConvForward<S>& call) {
    using Op = ProductOperandOf<S>;
    const ConvShape& s = call.shape;
    if (is_depthwise(s)) return depthwise_forward(call);
    if constexpr (std::is_same_v<S, float>)
        if (winograd_forward(call)) return;
    const auto lattice = lattices(s);
    const int64_t outputs = s.groups * s.out_channels;
    if (!s.channels_last) {
        const auto weights = WeightRows<Op, S>::channels(call.weight, outputs, s.in_channels, s.taps());
        const PlanarCall<S, Op> product{lattice,    s.mode,         s.batch,   s.groups,  s.in_channels, s.out_channels,
                                        call.input, weights.data(), call.bias, call.relu, call.out};
        return planar_product(product);
    }
    const auto weights = WeightRows<Op, S>::taps(call.weight, outputs, s.taps(), s.in_channels);
    const int64_t depth = s.taps() * ((s.in_channels + Operand<Op>::kPerElement - 1) / Operand<Op>::kPerElement);
    const auto pack = [&](int64_t group, int64_t column, int64_t used, int64_t padded, Op* panel) {
        pack_columns<Op>(weights.data() + (group * s.out_channels + column) * depth, depth, used, padded, panel);
    };
    const RowsCall<S, Op> product{lattice,    s.mode, s.batch,   s.groups,  s.in_channels, s.out_channels,
                                  call.input, pack,   call.bias, call.relu, call.out};
    rows_product(product);
}

}  // namespace

void conv_forward(const ConvForward<float>& call) { forward(call); }
void conv_forward(const ConvForward<double>& call) { forward(call); }
void conv_forward(const ConvForward<c10::BFloat16>& call) { forward(call); }
void conv_forward(const ConvForward<c10::Half>& call) { forward(call); }

}  // namespace pykernels
