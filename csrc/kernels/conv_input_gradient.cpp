// The gradient of a convolution's input: for each remainder of the strides, the gradient's patches times the weights of
// the taps that touch it.
#include "kernels/conv_planar.h"
#include "kernels/conv_rows.h"
#include "kernels/conv_turn.h"
#include "kernels/conv_weights.h"

namespace pykernels {
namespace {

// One lattice's part; `grad_input` of A, in the shape's layout and extents.
template <typename S>
void lattice_part(const ConvShape& s, const std::array<Lattice, 3>& lattice, const S* grad, const S* weight,
                  S* grad_input) {
    using Op = ProductOperandOf<S>;
    const auto taps = taps_of(s, lattice);
    const int64_t count = static_cast<int64_t>(taps.size()), all = s.taps();
    if (!s.channels_last) {
        constexpr int per = Operand<Op>::kPerElement;
        const int64_t pairs = (s.out_channels + per - 1) / per;
        const auto rows = filled_rows<Op>(s.groups * s.in_channels, pairs * count, [&](int64_t row, auto* to) {
            const int64_t group = row / s.in_channels, channel = row % s.in_channels;
            for (int64_t k = 0; k < s.out_channels; ++k) {
                const S* from = weight + ((group * s.out_channels + k) * s.in_channels + channel) * all;
                for (int64_t t = 0; t < count; ++t)
                    to[(k / per * count + t) * per + k % per] = static_cast<RowElement<Op>>(from[taps[t]]);
            }
        });
        const PlanarCall<S, Op> product{
            lattice, PaddingMode::Zeros, s.batch, s.groups, s.out_channels, s.in_channels, grad, rows, nullptr,
            false,   grad_input};
        return planar_product(product);
    }
    const auto pack = [&](int64_t group, int64_t column, int64_t used, int64_t padded, Op* panel) {
        const auto row = [&](int64_t tap, int64_t k) {
            return weight + ((group * s.out_channels + k) * all + taps[tap]) * s.in_channels + column;
        };
        pack_as_rows<Op, S>(row, count, s.out_channels, used, padded, panel);
    };
    const RowsCall<S, Op> product{
        lattice, PaddingMode::Zeros, s.batch, s.groups, s.out_channels, s.in_channels, grad, pack, nullptr,
        false,   grad_input};
    rows_product(product);
}

template <typename S>
void all_parts(const ConvShape& s, const S* grad, const S* weight, S* grad_input);

// Few channels of the input beside each other would leave most of a vector empty: in planar images, a few at a time.
constexpr int64_t kFewChannels = 4, kTurnedBytes = 4 << 20;

template <typename S>
void few_channels(const ConvShape& s, const S* grad, const S* weight, S* grad_input) {
    const int64_t channels = s.groups * s.in_channels, outputs = s.groups * s.out_channels, taps = s.taps();
    ConvShape planar = s;
    planar.channels_last = false;
    const int64_t image = outputs * s.places() * static_cast<int64_t>(sizeof(S));
    const int64_t together = std::clamp<int64_t>(kTurnedBytes / std::max<int64_t>(image, 1), 1, s.batch);
    const Buffer<S> grads(together * outputs * s.places()), weights(outputs * s.in_channels * taps);
    const Buffer<S> input(channels > 1 ? together * channels * s.pixels() : 0);
    turn_over(weight, outputs, taps, s.in_channels, weights.get());
    for (int64_t n = 0; n < s.batch; n += planar.batch) {
        planar.batch = std::min(together, s.batch - n);
        turn_over(grad + n * outputs * s.places(), planar.batch, s.places(), outputs, grads.get());
        S* const to = grad_input + n * channels * s.pixels();
        all_parts<S>(planar, grads, weights, input ? input.get() : to);
        if (input) turn_over(input.get(), planar.batch, channels, s.pixels(), to);
    }
}

template <typename S>
void all_parts(const ConvShape& s, const S* grad, const S* weight, S* grad_input) {
    const ConvInputGradient<S> call{s, grad, weight, grad_input};
    if (is_depthwise(s)) return depthwise_input_gradient(call);
    if constexpr (std::is_same_v<S, float>)
        if (winograd_input_gradient(call)) return;
    if (s.channels_last && s.in_channels <= kFewChannels && s.out_channels > s.in_channels && s.batch > 0)
        return few_channels(s, grad, weight, grad_input);
    for (const auto& lattice : all_gradient_lattices(s)) lattice_part(s, lattice, grad, weight, grad_input);
}

// Adds up what the pixels of a padded image have: each pixel's own, and that of its copies in the padding, in the order
// of their positions.
template <typename S>
void fold_padding(const ConvShape& s, const std::array<int64_t, 3>& padded, const S* from, S* to) {
    using Acc = Accumulator<S>;
    const int64_t channels = s.groups * s.in_channels;
    std::array<std::vector<std::vector<int64_t>>, 3> copies;  // positions of each pixel
    for (int i = 0; i < 3; ++i) {
        copies[i].resize(s.dim[i].input);
        for (int64_t at = 0; at < padded[i]; ++at)
            copies[i][pixel_at(at - s.dim[i].before, s.dim[i].input, s.mode)].push_back(at);
    }
    const int64_t inner = s.channels_last ? channels : 1, outer = s.channels_last ? 1 : channels;
    const int64_t rows = outer * s.dim[0].input * s.dim[1].input;
    parallel_region(
        threads_for(static_cast<double>(rows) * s.dim[2].input * inner * 8, kConvGrain), [&](const Team& team) {
            const Range own = share(rows, team.rank, team.size);
            for (int64_t row = own.begin; row < own.end; ++row) {
                const int64_t h = row % s.dim[1].input, d = row / s.dim[1].input % s.dim[0].input;
                const int64_t channel = row / s.dim[1].input / s.dim[0].input;
                for (int64_t w = 0; w < s.dim[2].input; ++w)
                    for (int64_t i = 0; i < inner; ++i) {
                        Acc sum(0);
                        for (const int64_t at_d : copies[0][d])
                            for (const int64_t at_h : copies[1][h])
                                for (const int64_t at_w : copies[2][w])
                                    sum += static_cast<Acc>(
                                        from[(((channel * padded[0] + at_d) * padded[1] + at_h) * padded[2] + at_w) *
                                                 inner +
                                             i]);
                        to[(row * s.dim[2].input + w) * inner + i] = static_cast<S>(sum);
                    }
            }
        });
}

template <typename S>
void input_gradient(const ConvInputGradient<S>& call) {
    const ConvShape& s = call.shape;
    if (s.mode == PaddingMode::Zeros) return all_parts(s, call.grad, call.weight, call.grad_input);
    // image by image, as if the padding were part of it
    ConvShape one = s;
    one.batch = 1;
    one.mode = PaddingMode::Zeros;
    std::array<int64_t, 3> padded;
    for (int i = 0; i < 3; ++i) {
        auto& d = one.dim[i];
        padded[i] = d.input = std::max((d.output - 1) * d.stride + (d.kernel - 1) * d.dilation + 1, d.input + d.before);
        d.before = 0;
    }
    const int64_t channels = s.groups * s.in_channels, outputs = s.groups * s.out_channels;
    const Buffer<S> image(channels * one.pixels());
    for (int64_t n = 0; n < s.batch; ++n) {
        all_parts(one, call.grad + n * outputs * s.places(), call.weight, image.get());
        fold_padding(s, padded, image.get(), call.grad_input + n * channels * s.pixels());
    }
}

}  // namespace

void conv_input_gradient(const ConvInputGradient<float>& call) { input_gradient(call); }
void conv_input_gradient(const ConvInputGradient<double>& call) { input_gradient(call); }
void conv_input_gradient(const ConvInputGradient<c10::BFloat16>& call) { input_gradient(call); }
void conv_input_gradient(const ConvInputGradient<c10::Half>& call) { input_gradient(call); }

}  // namespace pykernels
