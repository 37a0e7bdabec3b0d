// Depthwise convolution: forward and both gradients.
#include "kernels/conv_depthwise.h"
#include "kernels/conv_depthwise3.h"

#include "kernels/conv_parts.h"
#include "kernels/conv_weights.h"

namespace pykernels {
namespace {

template <typename S>
using Sums = Accumulator<S>;

// [taps, channels] from [channels, taps], which is what one channel a group is in both layouts.
template <typename S>
Buffer<Sums<S>> turned(const S* weight, int64_t channels, int64_t taps, const std::vector<int64_t>& order) {
    Buffer<Sums<S>> to(static_cast<int64_t>(order.size()) * channels);
    for (size_t t = 0; t < order.size(); ++t)
        for (int64_t c = 0; c < channels; ++c)
            to[static_cast<int64_t>(t) * channels + c] = static_cast<Sums<S>>(weight[c * taps + order[t]]);
    return to;
}

Planes3 planes3(const ConvShape& s) {
    return {s.batch * s.groups, s.groups, s.dim[1].input, s.dim[2].input, s.dim[1].output, s.dim[2].output};
}

// Gradients of the weights of planar images: every output channel's own sums, image by image.
template <typename S>
class PlanarWeightSums {
    using Acc = Sums<S>;
    using V = Vec<Acc>;
    static constexpr int width = kWidth<Acc>, kTaps = 10;  // that are summed together

  public:
    explicit PlanarWeightSums(const ConvWeightGradient<S>& call)
        : call_(call), s_(call.shape), lattice_(forward_lattices(s_)) {}

    void run() const {
        const double work =
            static_cast<double>(s_.batch * s_.places()) * s_.groups * s_.out_channels * (s_.taps() + 4.0);
        const int64_t values = s_.taps() + 1;
        const int64_t parts = std::clamp<int64_t>(kDepthwiseParts / s_.groups, 1, std::max<int64_t>(s_.batch, 1));
        const Buffer<Acc> sums(parts * s_.groups * s_.out_channels * values);
        parallel_region(threads_for(work, kConvGrain), [&](const Team& team) {
            const Range own = share(s_.groups * parts, team.rank, team.size);
            if (own.size() > 0) part(own, parts, values, sums);
            team.wait();
            const Range outputs = share(s_.groups * s_.out_channels, team.rank, team.size);
            for (int64_t k = outputs.begin; k < outputs.end; ++k) {
                for (int64_t i = 0; i < values; ++i) {
                    Acc sum(0);
                    for (int64_t p = 0; p < parts; ++p) sum += sums[(p * s_.groups * s_.out_channels + k) * values + i];
                    if (i < s_.taps())
                        call_.grad_weight[k * s_.taps() + i] = static_cast<S>(sum);
                    else if (call_.grad_bias)
                        call_.grad_bias[k] = static_cast<S>(sum);
                }
            }
        });
    }

  private:
    void part(const Range& own, int64_t parts, int64_t values, Acc* sums) const {
        if (is_depthwise3(s_)) return part3(own, parts, values, sums);
        RowBlocks<S> block(lattice_, s_.mode, s_.pixels(), 1);
        const Buffer<Acc> lanes(s_.out_channels * values * width);
        Buffer<Acc> lines;
        int64_t size = 0;
        for (int64_t unit = own.begin; unit < own.end; ++unit) {
            Acc* const to = sums + unit % parts * s_.groups * s_.out_channels * values;
            std::fill_n(to + unit / parts * s_.out_channels * values, s_.out_channels * values, Acc(0));
        }
        for (int64_t b = 0; b < block.count(); ++b) {
            block.choose(b);
            if (block.lines().size() > size) size = block.lines().size(), lines = Buffer<Acc>(size + width);
            for (int64_t unit = own.begin; unit < own.end; ++unit) {
                const int64_t group = unit / parts;
                const Range images = share(s_.batch, unit % parts, parts);
                std::fill_n(lanes.get(), s_.out_channels * values * width, Acc(0));
                for (int64_t n = images.begin; n < images.end; ++n) {
                    block.lines().fill(call_.input + (n * s_.groups + group) * s_.pixels(), 0, 1, lines);
                    for (int64_t j = 0; j < s_.out_channels; ++j)
                        add(block, lines, call_.grad + ((n * s_.groups + group) * s_.out_channels + j) * s_.places(),
                            lanes + j * values * width);
                }
                Acc* const to = sums + (unit % parts * s_.groups + group) * s_.out_channels * values;
                for (int64_t i = 0; i < s_.out_channels * values; ++i)
                    to[i] += sum_of_lanes(V::loadu(lanes + i * width));
            }
        }
    }

    // The same for kernels that need no lines.
    void part3(const Range& own, int64_t parts, int64_t values, Acc* sums) const {
        const Planes3 planes = planes3(s_);
        const Buffer<Acc> lanes(values * width);
        const auto add =
            s_.dim[1].stride == 1 ? Depthwise3<S>::template weight_sums<1> : Depthwise3<S>::template weight_sums<2>;
        for (int64_t unit = own.begin; unit < own.end; ++unit) {
            const int64_t group = unit / parts;
            const Range images = share(s_.batch, unit % parts, parts);
            for (int64_t j = 0; j < s_.out_channels; ++j) {
                std::fill_n(lanes.get(), values * width, Acc(0));
                for (int64_t n = images.begin; n < images.end; ++n) {
                    const int64_t plane = n * s_.groups + group;
                    add(planes, call_.input + plane * s_.pixels(),
                        call_.grad + (plane * s_.out_channels + j) * s_.places(), lanes);
                }
                Acc* const to = sums + ((unit % parts * s_.groups + group) * s_.out_channels + j) * values;
                for (int64_t i = 0; i < values; ++i) to[i] = sum_of_lanes(V::loadu(lanes + i * width));
            }
        }
    }

    // Sums of each tap, lane by lane; the last of them is the gradient's own. What lies beyond a row counts as zeros,
    // on both sides.
    void add(const RowBlocks<S>& block, const Acc* lines, const S* grad, Acc* to) const {
        const int64_t values = s_.taps() + 1;
        for (int64_t t = 0; t < values; t += kTaps) {
            const auto count = static_cast<int>(std::min<int64_t>(kTaps, values - t));
            [&]<int... N>(std::integer_sequence<int, N...>) {
                (void)((count == N + 1 &&
                        (add_taps<N + 1>(block, lines, t, t + count == values, grad, to + t * width), true)) ||
                       ...);
            }(std::make_integer_sequence<int, kTaps>{});
        }
    }

    template <int Count>
    void add_taps(const RowBlocks<S>& block, const Acc* lines, int64_t first, bool last, const S* grad, Acc* to) const {
        constexpr int end_tap = Count - 1;
        const int64_t* const offsets = block.lines().offsets().data() + first;
        const int64_t columns = s_.dim[2].output;
        V sum[Count];
#pragma GCC unroll 16
        for (int i = 0; i < Count; ++i) sum[i] = V::loadu(to + i * width);
        const S* at = grad + block.first() * columns;
        for (const int64_t row : block.rows()) {
            each_vector<Acc>(columns, [&](int64_t w, int used) {
                const V g = load_as<Acc>(at + w, used);
                const auto window = [&](int i) { return load_as<Acc>(lines + row + w + offsets[i], used); };
#pragma GCC unroll 16
                for (int i = 0; i < end_tap; ++i) sum[i] = at::vec::fmadd(g, window(i), sum[i]);
                sum[end_tap] = last ? sum[end_tap] + g : at::vec::fmadd(g, window(end_tap), sum[end_tap]);
            });
            at += columns;
        }
#pragma GCC unroll 16
        for (int i = 0; i < Count; ++i) sum[i].store(to + i * width);
    }

    const ConvWeightGradient<S>& call_;
    const ConvShape& s_;
    std::array<Lattice, 3> lattice_;
};

// The same where channels lie beside each other.
template <typename S>
class RowWeightSums {
    using Acc = Sums<S>;
    using V = Vec<Acc>;
    static constexpr int width = kWidth<Acc>, kTaps = 10;  // those of 3x3, and the gradient's own
    static constexpr int64_t kPlaces = 64;

  public:
    explicit RowWeightSums(const ConvWeightGradient<S>& call)
        : call_(call), s_(call.shape), lattice_(forward_lattices(s_)) {}

    void run() const {
        const int64_t places = s_.batch * s_.places(), channels = s_.groups,
                      padded = (channels + width - 1) / width * width;
        const int64_t blocks = (places + kPlaces - 1) / kPlaces, values = s_.taps() + 1;
        const int64_t parts = std::clamp<int64_t>(blocks, 1, kDepthwiseParts);
        const Buffer<Acc> sums(parts * values * padded);
        const double work = static_cast<double>(places) * channels * (s_.taps() + 4.0);
        parallel_region(threads_for(work, kConvGrain), [&](const Team& team) {
            const Range own = share(parts, team.rank, team.size);
            PixelTable<S> table(lattice_, s_.mode, channels, channels);
            std::vector<const S*> pixels(kPlaces * s_.taps());
            for (int64_t p = own.begin; p < own.end; ++p) {
                Acc* const to = sums + p * values * padded;
                std::fill_n(to, values * padded, Acc(0));
                const Range mine = share(places, p, parts, kPlaces);
                for (int64_t at = mine.begin; at < mine.end; at += kPlaces) {
                    const int64_t end = std::min(at + kPlaces, mine.end);
                    table.find(call_.input, at, end, {0, s_.taps()}, 1, kPlaces, pixels.data());
                    add(pixels, at, end, padded, to);
                }
            }
            team.wait();
            const Range columns = share(channels, team.rank, team.size);
            for (int64_t i = 0; i < values; ++i)
                for (int64_t c = columns.begin; c < columns.end; ++c) {
                    Acc sum(0);
                    for (int64_t p = 0; p < parts; ++p) sum += sums[(p * values + i) * padded + c];
                    if (i < s_.taps())
                        call_.grad_weight[c * s_.taps() + i] = static_cast<S>(sum);
                    else if (call_.grad_bias)
                        call_.grad_bias[c] = static_cast<S>(sum);
                }
        });
    }

  private:
    // In turns of a few taps; the last of the sums is the gradient's own.
    void add(const std::vector<const S*>& pixels, int64_t begin, int64_t end, int64_t padded, Acc* to) const {
        const int64_t values = s_.taps() + 1;
        for (int64_t t = 0; t < values; t += kTaps) {
            const auto count = static_cast<int>(std::min<int64_t>(kTaps, values - t));
            [&]<int... N>(std::integer_sequence<int, N...>) {
                (void)((count == N + 1 && (add_taps<N + 1>(&pixels[t * kPlaces], t + count == values, begin, end,
                                                           padded, to + t * padded),
                                           true)) ||
                       ...);
            }(std::make_integer_sequence<int, kTaps>{});
        }
    }

    template <int Count>
    void add_taps(const S* const* pixels, bool last, int64_t begin, int64_t end, int64_t padded, Acc* to) const {
        const int64_t channels = s_.groups;
        each_vector<Acc>(channels, [&](int64_t c, int used) {
            V sum[Count];
#pragma GCC unroll 16
            for (int i = 0; i < Count; ++i) sum[i] = V::loadu(to + i * padded + c);
            for (int64_t at = begin; at < end; ++at) {
                const V g = load_as<Acc>(call_.grad + at * channels + c, used);
                const S* const* const pixel = pixels + at - begin;
#pragma GCC unroll 16
                for (int i = 0; i < Count - 1; ++i)
                    sum[i] = at::vec::fmadd(g, load_as<Acc>(pixel[i * kPlaces] + c, used), sum[i]);
                const int end_tap = Count - 1;
                sum[end_tap] = last ? sum[end_tap] + g
                                    : at::vec::fmadd(g, load_as<Acc>(pixel[end_tap * kPlaces] + c, used), sum[end_tap]);
            }
#pragma GCC unroll 16
            for (int i = 0; i < Count; ++i) sum[i].store(to + i * padded + c);
        });
    }

    const ConvWeightGradient<S>& call_;
    const ConvShape& s_;
    std::array<Lattice, 3> lattice_;
};

}  // namespace

template <typename S>
void depthwise_forward(const ConvForward<S>& call) {
    const ConvShape& s = call.shape;
    const auto lattice = forward_lattices(s);
    if (s.channels_last) {
        std::vector<int64_t> order(s.taps());
        for (int64_t t = 0; t < s.taps(); ++t) order[t] = t;
        const auto weights = turned(call.weight, s.groups, s.taps(), order);
        const RowWindowsCall<S> windows{lattice, s.mode,    s.batch,   s.groups, call.input,
                                        weights, call.bias, call.relu, call.out};
        return RowWindows<S>(windows).run();
    }
    const auto weights = WeightRows<Sums<S>, S>::taps(call.weight, s.groups * s.out_channels, s.taps(), 1);
    if (is_depthwise3(s)) {
        const auto forward =
            s.dim[1].stride == 1 ? Depthwise3<S>::template forward<1> : Depthwise3<S>::template forward<2>;
        return forward(planes3(s), s.out_channels, call.input, weights.data(), call.bias, call.relu, call.out);
    }
    const PlanarWindowsCall<S> windows{lattice,    s.mode,         s.batch,   s.groups,  1,       s.out_channels,
                                       call.input, weights.data(), call.bias, call.relu, call.out};
    PlanarWindows<S>(windows).run();
}

template <typename S>
void depthwise_input_gradient(const ConvInputGradient<S>& call) {
    const ConvShape& s = call.shape;
    if (s.channels_last) {
        for (const auto& lattice : all_gradient_lattices(s)) {
            const auto weights = turned(call.weight, s.groups, s.taps(), taps_of(s, lattice));
            const RowWindowsCall<S> windows{lattice, s.mode,  s.batch, s.groups,       call.grad,
                                            weights, nullptr, false,   call.grad_input};
            RowWindows<S>(windows).run();
        }
        return;
    }
    if (is_depthwise3(s) && s.out_channels == 1) {
        if (s.dim[1].stride == 2) {
            const auto weights = WeightRows<Sums<S>, S>::taps(call.weight, s.groups, s.taps(), 1);
            return Depthwise3<S>::backward2(planes3(s), call.grad, weights.data(), call.grad_input);
        }
        // a forward with the weights from behind
        Buffer<Sums<S>> weights(s.groups * s.taps());
        for (int64_t i = 0; i < s.groups * s.taps(); ++i)
            weights[i] = static_cast<Sums<S>>(call.weight[i / 9 * 9 + 8 - i % 9]);
        const Planes3 p = planes3(s);
        return Depthwise3<S>::template forward<1>({p.planes, p.channels, p.places_h, p.places_w, p.height, p.width}, 1,
                                                  call.grad, weights, nullptr, false, call.grad_input);
    }
    const std::array<Lattice, 3> lattice{whole_gradient_lattice(s.dim[0]), whole_gradient_lattice(s.dim[1]),
                                         whole_gradient_lattice(s.dim[2])};
    const auto taps = taps_of(s, lattice);
    Buffer<Sums<S>> weights(s.groups * s.out_channels * s.taps());
    for (int64_t k = 0; k < s.groups * s.out_channels; ++k)
        for (int64_t t = 0; t < s.taps(); ++t)
            weights[k * s.taps() + t] = static_cast<Sums<S>>(call.weight[k * s.taps() + taps[t]]);
    const PlanarWindowsCall<S> windows{lattice,   s.mode,  s.batch, s.groups, s.out_channels, 1,
                                       call.grad, weights, nullptr, false,    call.grad_input};
    PlanarWindows<S>(windows).run();
}

template <typename S>
void depthwise_weight_gradient(const ConvWeightGradient<S>& call) {
    if (call.shape.channels_last)
        RowWeightSums<S>(call).run();
    else
        PlanarWeightSums<S>(call).run();
}

#define PYKERNELS_DEPTHWISE(S)                                           \
    template void depthwise_forward(const ConvForward<S>&);              \
    template void depthwise_input_gradient(const ConvInputGradient<S>&); \
    template void depthwise_weight_gradient(const ConvWeightGradient<S>&);
PYKERNELS_DEPTHWISE(float)
PYKERNELS_DEPTHWISE(double)
PYKERNELS_DEPTHWISE(c10::BFloat16)
PYKERNELS_DEPTHWISE(c10::Half)

}  // namespace pykernels
