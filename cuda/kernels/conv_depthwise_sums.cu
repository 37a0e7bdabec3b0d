// Gradients of weights: depthwise, and the sum over the parts that every kind has.
#include "cuda/core/conv_depthwise.cuh"

namespace pykernels::cuda {
namespace {

// Taps that a thread sums at one time.
template <int kPack>
constexpr int kHeldTaps = kPack == 1 ? 9 : 3;

template <class T, int kPack>
__global__ void __launch_bounds__(kDepthwiseThreads, 2)
    depthwise_sums_kernel(const __grid_constant__ ConvPlaceSums args, int lanes, int64_t channel_blocks,
                          int64_t tap_blocks) {
    using A = Accumulator<T>;
    constexpr int kTaps = kHeldTaps<kPack>, kValues = (kTaps + 1) * kPack;  // of the taps, and of the gradient alone
    const ConvLattices lattices(args.patches, 0, 0, 0);
    const DepthwiseThread thread(lanes);
    BlockNumbers numbers;
    const int64_t channel = (int64_t{numbers.next(channel_blocks)} * lanes + thread.lane) * kPack;
    const int first_tap = numbers.next(tap_blocks) * kTaps, part = numbers.next(args.parts);
    const bool there = channel < args.grad.channels;
    const int64_t all = args.batch * lattices.places(), begin = part * args.part;
    const int64_t end = begin + args.part < all ? begin + args.part : all;

    int taps[kTaps][3];
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
        const int tap = first_tap + t, line = tap / lattices.w->taps;
        taps[t][0] = line / lattices.h->taps;
        taps[t][1] = line % lattices.h->taps;
        taps[t][2] = tap % lattices.w->taps;
    }
    const T* grad = static_cast<const T*>(args.grad.data) + channel * args.grad.strides.channel;
    const T* source = static_cast<const T*>(args.patches.data) + channel / args.shared * args.patches.strides.channel;
    A sum[kTaps][kPack] = {}, alone[kPack] = {};
    PlaceWalk walk(begin + thread.line, lattices);
    const PlaceWalk by(thread.lines, lattices);
    for (int64_t place = begin + thread.line; there && place < end; place += thread.lines, walk.go(by, lattices)) {
        int64_t at = walk.image * args.grad.strides.image;
#pragma unroll
        for (int a = 0; a < 3; ++a) {
            at += int64_t{walk.place[a]} * args.grad.strides.pixel[a];
        }
        const auto own = load_pack<kPack>(grad + at);
        const PatchRow row = walk.row(args.patches, lattices);
        Pack<T, kPack> value[kTaps];
#pragma unroll
        for (int t = 0; t < kTaps; ++t) {
            const T* pixel = patch_pixel(args.patches, lattices, source, row, taps[t]);
            value[t] = pixel != nullptr ? load_pack<kPack>(pixel) : Pack<T, kPack>{};
        }
#pragma unroll
        for (int t = 0; t < kTaps; ++t) {
#pragma unroll
            for (int e = 0; e < kPack; ++e) {
                sum[t][e] += own.at(e) * value[t].at(e);
            }
        }
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
            alone[e] += own.at(e);
        }
    }

    // Over the lines, the lower half of them takes from the upper one.
    A* sums = reinterpret_cast<A*>(shared_memory()) + threadIdx.x;
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
#pragma unroll
        for (int t = 0; t < kTaps; ++t) {
            sums[(t * kPack + e) * kDepthwiseThreads] = sum[t][e];
        }
        sums[(kTaps * kPack + e) * kDepthwiseThreads] = alone[e];
    }
    for (int half = thread.lines / 2; half > 0; half /= 2) {
        block_barrier();  // the sums of the other lines are there
        if (thread.line < half) {
#pragma unroll 4
            for (int v = 0; v < kValues; ++v) {
                sums[v * kDepthwiseThreads] += sums[v * kDepthwiseThreads + half * lanes];
            }
        }
    }
    if (thread.line != 0 || !there) {
        return;
    }
    const int64_t first_row = part * args.grad.channels + channel;
    for (int e = 0; e < kPack; ++e) {
        A* to = static_cast<A*>(args.sums) + (first_row + e) * args.columns_stride + first_tap;
        for (int t = 0; t < kTaps && first_tap + t < args.columns; ++t) {
            to[t] = sums[(t * kPack + e) * kDepthwiseThreads];
        }
        if (args.row_sums != nullptr && first_tap == 0) {
            static_cast<A*>(args.row_sums)[first_row + e] = sums[(kTaps * kPack + e) * kDepthwiseThreads];
        }
    }
}

// A thread has four columns of a row, or, after those, a row's own sum.
template <class T>
__global__ void __launch_bounds__(kDepthwiseThreads) add_parts_kernel(const __grid_constant__ ConvAddParts args) {
    using A = Accumulator<T>;
    constexpr int kOwn = 4, kAtOnce = 8;  // columns; parts whose sums are on their way at one time
    const int64_t quads = args.rows * (args.columns_stride / kOwn);
    const int64_t index = int64_t{blockIdx.x} * kDepthwiseThreads + threadIdx.x;
    if (index >= quads) {
        const int64_t row = index - quads;
        if (args.grad_bias != nullptr && row < args.rows) {
            A sum = 0;
            for (int64_t part = 0; part < args.parts; ++part) {
                sum += static_cast<const A*>(args.row_sums)[part * args.rows + row];
            }
            static_cast<T*>(args.grad_bias)[row] = to_storage<T>(sum);
        }
        return;
    }
    const A* from = static_cast<const A*>(args.sums) + index * kOwn;
    const int64_t apart = args.rows * args.columns_stride;
    A sum[kOwn] = {};
    for (int64_t part = 0; part < args.parts; part += kAtOnce, from += kAtOnce * apart) {
        Pack<A, kOwn> own[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            own[i] = part + i < args.parts ? load_pack<kOwn>(from + i * apart) : Pack<A, kOwn>{};
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
            for (int e = 0; e < kOwn; ++e) {
                sum[e] += own[i].at(e);
            }
        }
    }
    const int64_t row = index * kOwn / args.columns_stride, first = index * kOwn % args.columns_stride;
    T* to = static_cast<T*>(args.grad_weight) + row * args.channels * args.taps;
#pragma unroll
    for (int e = 0; e < kOwn; ++e) {
        const int64_t tap = (first + e) / args.filled, channel = (first + e) % args.filled;
        if (tap < args.taps && channel < args.channels) {
            to[args.channels_last ? tap * args.channels + channel : channel * args.taps + tap] = to_storage<T>(sum[e]);
        }
    }
}

}  // namespace

cudaError_t conv_depthwise_sums(const ConvPlaceSums& args, DType dtype, cudaStream_t stream) {
    const auto start = [&]<class T, int kPack>() {
        constexpr int kTaps = kHeldTaps<kPack>;
        const int lanes = channel_lanes(args.grad, args.grad.channels, kPack);
        const int64_t channel_blocks = (args.grad.channels + lanes * kPack - 1) / (lanes * kPack);
        const int64_t tap_blocks = (args.columns + kTaps - 1) / kTaps,
                      blocks = channel_blocks * tap_blocks * args.parts;
        if (blocks > kMostBlocks) {
            return cudaErrorInvalidConfiguration;
        }
        const size_t shared = (kTaps + 1) * kPack * kDepthwiseThreads * sizeof(Accumulator<T>);
        return launch(depthwise_sums_kernel<T, kPack>, dim3(static_cast<unsigned>(blocks)), dim3(kDepthwiseThreads),
                      shared, stream, args, lanes, channel_blocks, tap_blocks);
    };
    return for_types(dtype, [&]<class T>() {
        const bool chunks = args.grad.chunks && args.patches.chunks && args.shared == 1;
        return chunks ? start.template operator()<T, kChunk<T>>() : start.template operator()<T, 1>();
    });
}

cudaError_t conv_add_parts(const ConvAddParts& args, DType dtype, cudaStream_t stream) {
    const int64_t threads = args.rows * (args.columns_stride / 4 + (args.grad_bias != nullptr ? 1 : 0));
    const int64_t blocks = (threads + kDepthwiseThreads - 1) / kDepthwiseThreads;
    if (blocks == 0) {
        return cudaSuccess;
    }
    return for_types(dtype, [&]<class T>() {
        return launch(add_parts_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kDepthwiseThreads), 0, stream,
                      args);
    });
}

}  // namespace pykernels::cuda
