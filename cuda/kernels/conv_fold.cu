// The gradient of a padded image as that of the image: each pixel gathers what it and its copies have, in the order of
// their positions.
#include "cuda/kernels/conv_parts.h"

namespace pykernels::cuda {
namespace {

constexpr int kThreads = 256;

// Positions of a padded dimension that show one pixel: `count`, ascending; of replicated ones the first is told.
struct Copies {
    int count = 0, at[3] = {};
    bool run;

    __device__ Copies(int pixel, int size, int padded, int before, PaddingMode mode)
        : run(mode == PaddingMode::Replicate) {
        const int own = pixel + before;
        if (run) {
            at[0] = pixel == 0 ? 0 : own;
            count = (pixel == size - 1 ? padded : own + 1) - at[0];
            return;
        }
        const bool circular = mode == PaddingMode::Circular;
        const int low = circular ? own - size : before - pixel;
        const int high = circular ? own + size : own + 2 * (size - 1 - pixel);
        add(low, low >= 0 && low < own);
        add(own, true);
        add(high, high > own && high < padded);
    }
    __device__ int position(int which) const {
        return run ? at[0] + which : which == 0 ? at[0] : which == 1 ? at[1] : at[2];
    }

  private:
    __device__ void add(int position, bool there) {
        if (there) {
            at[2] = count == 2 ? position : at[2];
            at[1] = count == 1 ? position : at[1];
            at[0] = count == 0 ? position : at[0];
            ++count;
        }
    }
};

template <class T>
__global__ void __launch_bounds__(kThreads) fold_kernel(const __grid_constant__ ConvFold args) {
    using A = Accumulator<T>;
    const int64_t pixels = int64_t{args.size[0]} * args.size[1] * args.size[2];
    const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x, image = index / (pixels * args.channels);
    if (image >= args.images) {
        return;
    }
    const int64_t rest = index % (pixels * args.channels);
    const bool last = args.to_strides.channel == 1;
    const int64_t channel = last ? rest % args.channels : rest / pixels;
    const int64_t pixel = last ? rest / args.channels : rest % pixels;
    const int own[3] = {static_cast<int>(pixel / args.size[2] / args.size[1]),
                        static_cast<int>(pixel / args.size[2] % args.size[1]), static_cast<int>(pixel % args.size[2])};
    const auto copies = [&](int a) { return Copies(own[a], args.size[a], args.padded[a], args.before[a], args.mode); };
    const Copies depth = copies(0), height = copies(1), width = copies(2);
    const int* strides = args.from_strides.pixel;
    const T* from =
        static_cast<const T*>(args.from) + image * args.from_strides.image + channel * args.from_strides.channel;
    A sum = 0;
    for (int d = 0; d < depth.count; ++d) {
        for (int h = 0; h < height.count; ++h) {
            const T* line = from + int64_t{depth.position(d)} * strides[0] + int64_t{height.position(h)} * strides[1];
            for (int w = 0; w < width.count; ++w) {
                sum += to_accumulator(line[int64_t{width.position(w)} * strides[2]]);
            }
        }
    }
    const int* to = args.to_strides.pixel;
    static_cast<T*>(args.to)[image * args.to_strides.image + channel * args.to_strides.channel +
                             int64_t{own[0]} * to[0] + int64_t{own[1]} * to[1] + int64_t{own[2]} * to[2]] =
        to_storage<T>(sum);
}

}  // namespace

cudaError_t conv_fold(const ConvFold& args, DType dtype, cudaStream_t stream) {
    const int64_t values = args.images * args.channels * args.size[0] * args.size[1] * args.size[2];
    const int64_t blocks = (values + kThreads - 1) / kThreads;
    if (blocks == 0) {
        return cudaSuccess;
    }
    return for_types(dtype, [&]<class T>() {
        return launch(fold_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, args);
    });
}

}  // namespace pykernels::cuda
