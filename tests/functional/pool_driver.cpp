// Runs the pooling kernels over drawn shapes, on buffers that are exactly as large as the contract says, for the
// sanitizers to watch. Prints how many calls it made.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

#include "core/parallel.h"
#include "kernels/pool.h"
#include "kernels/pool_plane.h"

namespace pykernels {
// (what csrc/core/parallel.cpp asks torch for)
int thread_limit() { return 2; }
void wait_a_little(int) {}
}  // namespace pykernels

namespace {

using namespace pykernels;

std::mt19937 engine(0);
int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }

template <typename T>
std::unique_ptr<T[]> drawn(int64_t count) {
    auto made = std::make_unique<T[]>(static_cast<std::size_t>(count));
    for (int64_t i = 0; i < count; ++i) made[i] = static_cast<T>(static_cast<float>(draw(-4, 4)));
    if (count && draw(0, 3) == 0) made[draw(0, count - 1)] = static_cast<T>(std::numeric_limits<float>::quiet_NaN());
    return made;
}

PoolDimension dimension(int64_t most) {
    PoolDimension d;
    d.in = draw(1, most);
    if (draw(0, 2) == 0) {
        d.out = draw(1, most);
        d.adaptive = true;
        for (int64_t o = 0; o < d.out; ++o) d.kernel = std::max(d.kernel, d.taps(o).end);
        return d;
    }
    do {
        d.kernel = draw(1, draw(0, 9) ? 5 : 40);
        d.stride = draw(1, 4);
        d.dilation = draw(0, 2) ? 1 : draw(1, 3);
        d.padding = draw(0, d.kernel / 2);
        const int64_t whole = d.in + 2 * d.padding - (d.kernel - 1) * d.dilation - 1;
        d.out = whole < 0 ? 0 : (whole + draw(0, 1) * (d.stride - 1)) / d.stride + 1;
        if ((d.out - 1) * d.stride >= d.in + d.padding) --d.out;
    } while (d.out < 1);
    return d;
}

template <typename S>
void run(bool channels_last) {
    PoolShape s;
    s.batch = draw(0, 2);
    s.channels = draw(1, channels_last ? 70 : 3);
    s.depth = draw(0, 2) ? PoolDimension{} : dimension(4);
    s.rows = draw(0, 3) ? dimension(9) : PoolDimension{};
    s.columns = dimension(70);
    s.channels_last = channels_last;
    const bool wide = s.places() > kBytePlaces;
    const int64_t in = s.planes() * s.in_plane(), out = s.planes() * s.out_plane();
    const auto input = drawn<S>(in), grad = drawn<S>(out);
    const auto y = drawn<S>(out), found = drawn<S>(in), gathered = drawn<S>(out);
    const auto bytes = std::make_unique<uint8_t[]>(wide ? 0 : out);
    const auto numbers = std::make_unique<int64_t[]>(wide ? out : 0);
    const auto indices = std::make_unique<int64_t[]>(out);
    const PoolPlaces places{wide ? static_cast<void*>(numbers.get()) : bytes.get(), wide};
    max_pool_forward(MaxPoolForward<S>{s, input.get(), y.get(), {nullptr, wide}});
    max_pool_forward(MaxPoolForward<S>{s, input.get(), y.get(), places});
    max_pool_backward(MaxPoolBackward<S>{s, grad.get(), places, found.get()});
    max_pool_gather(MaxPoolGather<S>{s, places, input.get(), gathered.get()});
    max_pool_indices(MaxPoolIndices{s, places, indices.get()});
    const int64_t beside = channels_last ? s.channels : 1;
    const MaxUnpool<S> back{s.planes() / beside, beside,     s.out_plane(), s.in_plane(), y.get(),
                            indices.get(),       found.get()};
    if (!max_unpool(back)) std::abort();
    if (s.columns.dilation == 1 && s.rows.dilation == 1 && s.depth.dilation == 1) {
        const PoolDivisor divisor{draw(0, 1) == 1, draw(0, 3) ? 0 : 3};
        avg_pool_forward(AvgPoolForward<S>{s, divisor, input.get(), y.get()});
        avg_pool_backward(AvgPoolBackward<S>{s, divisor, grad.get(), found.get()});
    }
    // one plane by itself, between rows of others
    const int64_t stride = s.columns.in + draw(0, 3), out_stride = s.columns.out + draw(0, 3);
    const auto plane = drawn<float>((s.rows.in - 1) * stride + s.columns.in);
    const auto of_plane = drawn<float>((s.rows.out - 1) * out_stride + s.columns.out);
    MaxPoolLine<float> line(s.columns);
    max_pool_plane(plane.get(), stride, s.rows, line, of_plane.get(), out_stride);
    for (int64_t i = 0; i < s.rows.out; ++i)
        for (int64_t j = 0; j < s.columns.out; ++j) {
            float best = -std::numeric_limits<float>::infinity();
            const auto height = s.rows.taps(i), width = s.columns.taps(j);
            for (int64_t k = height.begin; k < height.end; ++k)
                for (int64_t l = width.begin; l < width.end; ++l) {
                    const float x = plane[(s.rows.start(i) + k * s.rows.dilation) * stride + s.columns.start(j) +
                                          l * s.columns.dilation];
                    if (x > best || x != x) best = x;
                }
            const float other = of_plane[i * out_stride + j];
            if (!(best == other || (best != best && other != other))) std::abort();
        }
}

}  // namespace

int main(int count, char** arguments) {
    const int rounds = count > 1 ? std::atoi(arguments[1]) : 100;
    for (int i = 0; i < rounds; ++i) {
        run<float>(i % 2);
        run<c10::BFloat16>(i % 2);
        run<double>(i % 2);
    }
    std::printf("%d rounds\n", rounds);
}
