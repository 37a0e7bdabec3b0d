// The gradient of a convolution's input: for each remainder of the strides, the gradient's patches times the weights of
// the taps that touch it.
#include "kernels/conv_planar.h"
#include "kernels/conv_rows.h"
#include "kernels/conv_turn.h"
#include "kernels/conv_weights.h"
#include "kernels/unfold.h"

namespace pykernels {
namespace {

constexpr int64_t kFewChannels = 4, kTurnedBytes = 4 << 20;

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

// With strides no smaller than the kernel no pixel is in two patches: gradients of patches, one product for all taps,
// are the pixels' own. (Of the remainders of such strides each would read the whole gradient for itself.)
bool patches_are_apart(const ConvShape& s) {
    int64_t remainders = 1;
    for (const ConvDimension& d : s.dim) {
        if (d.stride < (d.kernel - 1) * d.dilation + 1) return false;
        remainders *= std::min(d.stride, d.input);
    }
    return remainders > 1;
}

// Along one dimension, which place and tap have a pixel; -1 for none.
struct PlaceAndTap {
    int64_t place, tap;
};
std::vector<PlaceAndTap> places_and_taps(const ConvDimension& d) {
    std::vector<PlaceAndTap> all(d.input, {-1, -1});
    for (int64_t o = 0; o < d.output; ++o)
        for (int64_t t = 0; t < d.kernel; ++t)
            if (const int64_t pixel = o * d.stride + t * d.dilation - d.before; pixel >= 0 && pixel < d.input)
                all[pixel] = {o, t};
    return all;
}

// Lays `patches` [batch, places, groups, taps, in_channels] where they belong.
template <typename S>
void lay_back(const ConvShape& s, const S* patches, S* grad_input) {
    const auto depth = places_and_taps(s.dim[0]), rows = places_and_taps(s.dim[1]), columns = places_and_taps(s.dim[2]);
    const int64_t channels = s.groups * s.in_channels, all = s.batch * s.dim[0].input * s.dim[1].input;
    const double work = static_cast<double>(all * s.dim[2].input) * static_cast<double>(channels);
    parallel_region(threads_for(work, kConvGrain), [&](const Team& team) {
        const Range own = share(all, team.rank, team.size);
        for (int64_t row = own.begin; row < own.end; ++row) {
            const auto& d = depth[row / s.dim[1].input % s.dim[0].input];
            const auto& h = rows[row % s.dim[1].input];
            const int64_t image = row / s.dim[1].input / s.dim[0].input;
            S* to = grad_input + row * s.dim[2].input * channels;
            for (const auto& w : columns) {
                S* const end = to + channels;
                if (d.tap < 0 || h.tap < 0 || w.tap < 0) {
                    to = std::fill_n(to, channels, S(0));
                    continue;
                }
                const int64_t place = (d.place * s.dim[1].output + h.place) * s.dim[2].output + w.place;
                const int64_t tap = (d.tap * s.dim[1].kernel + h.tap) * s.dim[2].kernel + w.tap;
                const S* from = patches + (image * s.places() + place) * channels * s.taps() + tap * s.in_channels;
                for (; to < end; from += s.taps() * s.in_channels) to = std::copy_n(from, s.in_channels, to);
            }
        }
    });
}

template <typename S>
void patches_part(const ConvShape& s, const S* grad, const S* weight, S* grad_input) {
    using Op = ProductOperandOf<S>;
    constexpr int per = Operand<Op>::kPerElement;
    const int64_t taps = s.taps(), each = s.in_channels * taps, outputs = s.groups * s.out_channels;
    const int64_t patches = s.groups * each * s.places(), pixels = s.groups * s.in_channels * s.pixels();
    const int64_t bytes = std::max<int64_t>(patches * static_cast<int64_t>(sizeof(S)), 1);
    const int64_t together = std::clamp<int64_t>(kTurnedBytes / bytes, 1, std::max<int64_t>(s.batch, 1));
    const Buffer<S> columns(together * patches);
    const ConvDimension one{1, 1, 1, 1, 1, 0}, all{s.places(), s.places(), 1, 1, 1, 0};
    const std::array<Lattice, 3> lattice{forward_lattice(one), forward_lattice(one), forward_lattice(all)};
    Buffer<Op> rows;
    if (!s.channels_last)
        rows = filled_rows<Op>(s.groups * each, (s.out_channels + per - 1) / per, [&](int64_t row, auto* to) {
            const S* const from = weight + (row / each * s.out_channels) * each + row % each;
            for (int64_t k = 0; k < s.out_channels; ++k) to[k] = static_cast<RowElement<Op>>(from[k * each]);
        });
    const auto pack = [&](int64_t group, int64_t column, int64_t used, int64_t padded, Op* panel) {
        const auto row = [&](int64_t, int64_t k) { return weight + (group * s.out_channels + k) * each + column; };
        pack_as_rows<Op, S>(row, 1, s.out_channels, used, padded, panel);
    };
    ConvShape some = s;
    for (int64_t n = 0; n < s.batch; n += together) {
        some.batch = std::min(together, s.batch - n);
        const S* const from = grad + n * outputs * s.places();
        S* const to = grad_input + n * pixels;
        if (s.channels_last) {
            rows_product(RowsCall<S, Op>{lattice, PaddingMode::Zeros, some.batch, s.groups, s.out_channels, each, from,
                                         pack, nullptr, false, columns});
            lay_back<S>(some, columns, to);
        } else {
            planar_product(PlanarCall<S, Op>{lattice, PaddingMode::Zeros, some.batch, s.groups, s.out_channels, each,
                                             from, rows, nullptr, false, columns});
            ConvShape image = some;
            image.in_channels = s.groups * s.in_channels;
            image.groups = 1;
            fold(Fold<S>{image, columns, to});
        }
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
    if (patches_are_apart(s)) return patches_part(s, grad, weight, grad_input);
    for (const auto& lattice : all_gradient_lattices(s)) lattice_part(s, lattice, grad, weight, grad_input);
}

// Adds up what the pixels of a padded image have: each pixel's own, and that of its copies in the padding, in the order
// of their positions.
template <typename S, typename Acc>
void fold_padding(const ConvShape& s, const std::array<int64_t, 3>& padded, const Acc* from, S* to) {
    const int64_t channels = s.groups * s.in_channels;
    std::array<std::vector<std::vector<int64_t>>, 3> copies;  // positions of each pixel
    for (int i = 0; i < 3; ++i) {
        copies[i].resize(s.dim[i].input);
        for (int64_t at = 0; at < padded[i]; ++at)
            copies[i][pixel_at(at - s.dim[i].before, s.dim[i].input, s.mode)].push_back(at);
    }
    const int64_t inner = s.channels_last ? channels : 1, outer = s.batch * channels / inner;
    const int64_t rows = outer * s.dim[0].input * s.dim[1].input;
    const double work = static_cast<double>(rows) * static_cast<double>(s.dim[2].input * inner * 8);
    parallel_region(threads_for(work, kConvGrain), [&](const Team& team) {
        const Range own = share(rows, team.rank, team.size);
        for (int64_t row = own.begin; row < own.end; ++row) {
            const int64_t h = row % s.dim[1].input, d = row / s.dim[1].input % s.dim[0].input;
            const int64_t plane = row / s.dim[1].input / s.dim[0].input;
            for (int64_t w = 0; w < s.dim[2].input; ++w)
                for (int64_t i = 0; i < inner; ++i) {
                    Acc sum(0);
                    for (const int64_t at_d : copies[0][d])
                        for (const int64_t at_h : copies[1][h])
                            for (const int64_t at_w : copies[2][w])
                                sum +=
                                    from[(((plane * padded[0] + at_d) * padded[1] + at_h) * padded[2] + at_w) * inner +
                                         i];
                    to[(row * s.dim[2].input + w) * inner + i] = static_cast<S>(sum);
                }
        }
    });
}

// `count` values as Acc: themselves, or converted into `copy`.
template <typename Acc, typename S>
const Acc* converted(const S* values, int64_t count, const Buffer<Acc>& copy) {
    if constexpr (std::is_same_v<S, Acc>) {
        return values;
    } else {
        parallel_region(threads_for(static_cast<double>(count), kConvGrain), [&](const Team& team) {
            const Range own = share(count, team.rank, team.size, kWidth<Acc>);
            each_vector<Acc>(own.size(), [&](int64_t i, int used) {
                const int64_t at = own.begin + i;
                store_as<Acc, Acc>(copy + at, load_as<Acc>(values + at, used), used);
            });
        });
        return copy;
    }
}

// Some images at a time, as if the padding were part of them; in the accumulator's type, since sums of sums are made.
template <typename S>
void padded_parts(const ConvInputGradient<S>& call) {
    using Acc = Accumulator<S>;
    const ConvShape& s = call.shape;
    ConvShape some = s, padded = s;
    padded.mode = PaddingMode::Zeros;
    std::array<int64_t, 3> size;
    for (int i = 0; i < 3; ++i) {
        auto& d = padded.dim[i];
        size[i] = d.input = std::max((d.output - 1) * d.stride + (d.kernel - 1) * d.dilation + 1, d.input + d.before);
        d.before = 0;
    }
    const int64_t channels = s.groups * s.in_channels, outputs = s.groups * s.out_channels;
    const int64_t image = channels * padded.pixels(), grads = outputs * s.places(),
                  weights = outputs * s.in_channels * s.taps();
    const int64_t bytes = std::max<int64_t>(image * static_cast<int64_t>(sizeof(Acc)), 1);
    const int64_t together = std::clamp<int64_t>(kTurnedBytes / bytes, 1, std::max<int64_t>(s.batch, 1));
    constexpr bool copies = !std::is_same_v<S, Acc>;
    const Buffer<Acc> images(together * image), grad_copy(copies ? together * grads : 0),
        weight_copy(copies ? weights : 0);
    const Acc* const weight = converted<Acc>(call.weight, weights, weight_copy);
    for (int64_t n = 0; n < s.batch; n += together) {
        some.batch = padded.batch = std::min(together, s.batch - n);
        all_parts<Acc>(padded, converted<Acc>(call.grad + n * grads, some.batch * grads, grad_copy), weight,
                       images.get());
        fold_padding<S, Acc>(some, size, images, call.grad_input + n * channels * s.pixels());
    }
}

template <typename S>
void input_gradient(const ConvInputGradient<S>& call) {
    const ConvShape& s = call.shape;
    s.mode == PaddingMode::Zeros ? all_parts(s, call.grad, call.weight, call.grad_input) : padded_parts(call);
}

}  // namespace

void conv_input_gradient(const ConvInputGradient<float>& call) { input_gradient(call); }
void conv_input_gradient(const ConvInputGradient<double>& call) { input_gradient(call); }
void conv_input_gradient(const ConvInputGradient<c10::BFloat16>& call) { input_gradient(call); }
void conv_input_gradient(const ConvInputGradient<c10::Half>& call) { input_gradient(call); }

}  // namespace pykernels
