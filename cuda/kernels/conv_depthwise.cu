// Depthwise convolution, and the gradient of its input: what a place reads, times the weights of its channel.
#include "cuda/core/conv_depthwise.cuh"

namespace pykernels::cuda {
namespace {

constexpr int kPlacesOfThread = 4;  // share what is read of the weights

template <class T, int kPack>
__global__ void __launch_bounds__(kDepthwiseThreads, 2)
    depthwise_kernel(const __grid_constant__ ConvDepthwise args, int lanes, int64_t channel_blocks,
                     int64_t place_blocks) {
    using A = Accumulator<T>;
    const ConvPatches& patches = args.patches;
    const DepthwiseThread thread(lanes);
    BlockNumbers numbers;
    const int64_t channel = (int64_t{numbers.next(channel_blocks)} * lanes + thread.lane) * kPack;
    const int first_place = numbers.next(place_blocks) * kPlacesOfThread * thread.lines + thread.line;
    const int image = numbers.next(args.batch);
    const int w_lattice = numbers.next(patches.axis[2].lattices), h_lattice = numbers.next(patches.axis[1].lattices);
    const ConvLattices lattices(patches, numbers.next(patches.axis[0].lattices), h_lattice, w_lattice);
    if (channel >= args.channels) {
        return;
    }
    const ConvLattice* lattice[3] = {lattices.d, lattices.h, lattices.w};
    PatchRow row[kPlacesOfThread];
    A sum[kPlacesOfThread][kPack] = {};
#pragma unroll
    for (int i = 0; i < kPlacesOfThread; ++i) {
        const int number = first_place + i * thread.lines;
        row[i] = PlaceWalk(image, number, lattices).row(patches, lattices);
        row[i].image = number < lattices.places() ? row[i].image : -1;
    }
    const int64_t first = channel / args.shared * args.many;
    for (int64_t other = 0; other < args.many; ++other) {
        const T* source = static_cast<const T*>(patches.data) + (first + other) * patches.strides.channel;
        const int64_t weight_row = args.many > 1 ? first + other : channel;
        const T* weights = static_cast<const T*>(args.weight) + weight_row * args.weight_channel;
        int tap[3] = {};
#pragma unroll 1
        for (int count = lattices.taps(); count > 0; --count) {
            int64_t number = 0;
#pragma unroll
            for (int a = 0; a < 3; ++a) {
                number = number * patches.axis[a].taps + lattice[a]->first_tap + tap[a] * patches.axis[a].tap_apart;
            }
            const auto weight = load_pack<kPack>(weights + number * args.weight_tap);
            bool there[kPlacesOfThread];
            Pack<T, kPack> value[kPlacesOfThread];
#pragma unroll
            for (int i = 0; i < kPlacesOfThread; ++i) {
                const T* pixel = patch_pixel(patches, lattices, source, row[i], tap);
                there[i] = pixel != nullptr;
                value[i] = there[i] ? load_pack<kPack>(pixel) : Pack<T, kPack>{};
            }
#pragma unroll
            for (int i = 0; i < kPlacesOfThread; ++i) {
#pragma unroll
                for (int e = 0; e < kPack; ++e) {
                    const A more = sum[i][e] + value[i].at(e) * weight.at(e);
                    sum[i][e] = there[i] || args.zeros_count ? more : sum[i][e];
                }
            }
            next_tap(lattices, tap);
        }
    }
#pragma unroll
    for (int i = 0; i < kPlacesOfThread; ++i) {
        const int number = first_place + i * thread.lines;
        if (number >= lattices.places()) {
            return;
        }
        const PlaceWalk walk(image, number, lattices);
        int64_t target = image * args.result.image + channel * args.result.channel;
#pragma unroll
        for (int a = 0; a < 3; ++a) {
            const int64_t position = lattice[a]->first + int64_t{walk.place[a]} * patches.axis[a].apart;
            target += position * args.result.pixel[a];
        }
        if (args.bias != nullptr) {
            const auto bias = load_pack<kPack>(static_cast<const T*>(args.bias) + channel);
#pragma unroll
            for (int e = 0; e < kPack; ++e) {
                sum[i][e] += bias.at(e);
            }
        }
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
            sum[i][e] = args.relu && sum[i][e] < 0 ? A(0) : sum[i][e];
        }
        store_pack(static_cast<T*>(args.out) + target, Pack<T, kPack>::of(sum[i]));
    }
}

}  // namespace

cudaError_t conv_depthwise(const ConvDepthwise& args, DType dtype, cudaStream_t stream) {
    const auto start = [&]<class T, int kPack>() {
        const int lanes = channel_lanes(args.patches, args.channels, kPack);
        int64_t places = 1, lattices = 1;  // of the largest lattice
        for (const ConvAxis& axis : args.patches.axis) {
            places *= axis.lattices > 0 ? axis.lattice[0].places : 0;
            lattices *= axis.lattices;
        }
        const int64_t of_block = int64_t{kDepthwiseThreads / lanes} * kPlacesOfThread;
        const int64_t place_blocks = (places + of_block - 1) / of_block;
        const int64_t channel_blocks = (args.channels + lanes * kPack - 1) / (lanes * kPack);
        const int64_t blocks = lattices * args.batch * place_blocks * channel_blocks;
        if (blocks > kMostBlocks) {
            return cudaErrorInvalidConfiguration;
        }
        return blocks == 0 ? cudaSuccess
                           : launch(depthwise_kernel<T, kPack>, dim3(static_cast<unsigned>(blocks)),
                                    dim3(kDepthwiseThreads), 0, stream, args, lanes, channel_blocks, place_blocks);
    };
    return for_types(dtype, [&]<class T>() {
        return args.chunks ? start.template operator()<T, kChunk<T>>() : start.template operator()<T, 1>();
    });
}

}  // namespace pykernels::cuda
