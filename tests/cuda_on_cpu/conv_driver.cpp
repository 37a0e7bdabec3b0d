// Runs the convolution kernels, and those of unfold and fold, on buffers that are exactly as large as the contract
// says, without torch:
//   conv_driver SEED
// prints, for each of some calls, a hash of every output's bits; a failed launch prints "error: <report>", exit 3.
#include "cuda/kernels/conv.h"

#include <cstdio>

#include "cuda/kernels/conv_pool.h"
#include "cuda/kernels/unfold.h"

#include "driver.h"
#include "executor.h"

namespace {

using namespace driver;
using pykernels::ConvDimension;
using pykernels::ConvShape;
using pykernels::PaddingMode;
using pykernels::PoolDimension;

struct Drawn {
    DType dtype;
    ConvTile tile;
    int64_t batch, groups, in_channels, out_channels;
    ConvDimension height, width;
    PaddingMode mode;
    bool channels_last;
};

// Windows of two at every second place, one of them over the edge.
PoolDimension windows(int64_t places) { return {places, places / 2 + 1, 2, 2, 1, 1, false}; }

int run(const Drawn& d) {
    Buffers stored(d.dtype), workspaces(DType::f16);
    const ConvShape s{d.batch, d.groups,       d.in_channels, d.out_channels, {{{1, 1, 1, 1, 1, 0}, d.height, d.width}},
                      d.mode,  d.channels_last};
    const int64_t inputs = s.batch * s.groups * s.in_channels * s.pixels();
    const int64_t outputs = s.batch * s.groups * s.out_channels * s.places();
    const int64_t rows = s.groups * s.out_channels, weights = rows * s.in_channels * s.taps();
    const void *input = stored.drawn(inputs), *weight = stored.drawn(weights), *grad = stored.drawn(outputs);
    cudaError_t error = cudaSuccess;
    const auto then = [&](auto args, const auto& start) {
        args.workspace = workspaces.output(conv_workspace(args) / 2);
        error = error == cudaSuccess ? start(args, nullptr) : error;
    };
    then(ConvForward{d.dtype, s, input, weight, stored.drawn(rows), true, stored.output(outputs), nullptr, d.tile},
         [](const ConvForward& args, cudaStream_t stream) { return conv_forward(args, stream); });
    then(ConvInputGradient{d.dtype, s, grad, weight, stored.output(inputs), nullptr, d.tile},
         [](const ConvInputGradient& args, cudaStream_t stream) { return conv_input_gradient(args, stream); });
    then(ConvWeightGradient{d.dtype, s, input, grad, stored.output(weights), stored.output(rows), nullptr},
         [](const ConvWeightGradient& args, cudaStream_t stream) { return conv_weight_gradient(args, stream); });
    const auto plainly = [&](const auto& args, const auto& start) {
        error = error == cudaSuccess ? start(args, nullptr) : error;
    };
    const PoolDimension down = windows(s.dim[1].output), across = windows(s.dim[2].output);
    const ConvPool pooled{d.dtype,
                          s,
                          down,
                          across,
                          input,
                          weight,
                          stored.drawn(rows),
                          stored.output(s.batch * rows * down.out * across.out)};
    if (has_conv_pool(pooled)) {
        plainly(pooled, conv_relu_max_pool);
    }
    const int64_t images = s.batch * s.in_channels * s.pixels(),
                  columns = s.batch * s.in_channels * s.taps() * s.places();
    plainly(Unfold{d.dtype, s, stored.drawn(images), stored.output(columns)}, unfold);
    plainly(Fold{d.dtype, s, stored.drawn(columns), stored.output(images)}, fold);
    if (error != cudaSuccess) {
        std::printf("error: %d %s\n", static_cast<int>(error), cudaGetErrorString(error));
        return 3;
    }
    std::printf("%016llx\n", static_cast<unsigned long long>(stored.hash()));
    return 0;
}

// Of a size, with padding on both sides.
ConvDimension dimension(int64_t size, int64_t kernel, int64_t stride, int64_t dilation, int64_t padding) {
    return {size, (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1, kernel, stride, dilation, padding};
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        return 2;
    }
    constexpr auto kZeros = PaddingMode::Zeros;
    const ConvDimension small = dimension(9, 3, 1, 1, 1), large = dimension(17, 3, 2, 1, 1);
    const std::vector<Drawn> drawings = {
        {DType::bf16, ConvTile::wide, 2, 1, 24, 72, small, small, kZeros, true},
        {DType::f16, ConvTile::wide, 3, 1, 5, 66, small, large, kZeros, false},
        {DType::bf16, ConvTile::tall, 2, 2, 16, 40, large, large, kZeros, true},
        {DType::f16, ConvTile::tall, 2, 1, 3, 16, dimension(16, 7, 2, 1, 3), large, kZeros, true},
        {DType::bf16, ConvTile::small, 1, 1, 40, 24, large, small, PaddingMode::Reflect, true},
        {DType::f16, ConvTile::small, 2, 2, 9, 8, dimension(8, 2, 1, 3, 2), small, PaddingMode::Circular, false},
        {DType::f32, ConvTile::wide, 2, 1, 12, 70, small, large, kZeros, true},
        {DType::f32, ConvTile::wide, 2, 1, 7, 65, small, small, PaddingMode::Replicate, false},
        {DType::f32, ConvTile::tall, 3, 1, 4, 64, small, small, kZeros, true},
        {DType::f32, ConvTile::small, 2, 3, 5, 6, small, dimension(12, 3, 5, 2, 4), kZeros, false},
        {DType::f64, ConvTile::automatic, 2, 1, 6, 9, small, small, kZeros, true},
        {DType::f64, ConvTile::automatic, 2, 1, 3, 5, large, small, kZeros, false},
        {DType::bf16, ConvTile::automatic, 2, 24, 1, 1, small, large, kZeros, true},
        {DType::f16, ConvTile::automatic, 2, 6, 1, 2, large, small, PaddingMode::Reflect, false},
        {DType::f32, ConvTile::automatic, 1, 9, 1, 3, small, dimension(20, 5, 6, 1, 2), kZeros, true},
        {DType::f32, ConvTile::automatic, 2, 8, 1, 1, small, small, kZeros, false},
    };
    for (const Drawn& drawn : drawings) {
        cuda_on_cpu_configure(std::strtoull(argv[1], nullptr, 10), 64, 227 * 1024);
        if (const int code = run(drawn); code != 0) {
            return code;
        }
    }
    return 0;
}
