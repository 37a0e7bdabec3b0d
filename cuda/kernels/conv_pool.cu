// Convolution, bias, ReLU and max-pooling at once.
#include "cuda/kernels/conv_pool.h"

#include <cmath>

#include "cuda/core/conv_tiles.cuh"
#include "cuda/core/pool.cuh"
#include "cuda/kernels/conv_plan.h"

namespace pykernels::cuda {
namespace {

constexpr int kMostThreads = 256;
constexpr int kFilters = 4, kPlaces = 4;  // of a thread: sums that it has at one time
constexpr int kSpread = 4;                // beside the filters of a value: they are put down in different banks
constexpr int64_t kSharedBytes = 48 * 1024;
constexpr int64_t kMostFilterBytes = 64;  // of accumulators: 16 filters of a block, or 8

// What a block computes at one time; beyond the last filter and row of windows there is nothing.
struct Tile {
    int filters, windows;                       // a multiple of kFilters; rows of windows
    int place_rows, patch_rows, patch_columns;  // that these windows hold, and that are read for them, at most
    int64_t filter_tiles, window_tiles;
    int threads;
    size_t shared_bytes;
};

struct Call {
    Tile tile;
    ConvAxis axis[2];
    PoolDimensionOf<int> rows, columns;
    int64_t batch, groups;
    int channels, filters;  // of a group
    const void *input, *weight, *bias;
    void* out;
};

// The block's shared memory: weights [values][filters + kSpread] and patches [channels][patch_rows][patch_columns] as
// accumulators, and what the convolution gives, [filters][places].
template <class T>
struct Shared {
    using A = Accumulator<T>;

    __device__ static A* weights() { return reinterpret_cast<A*>(shared_memory()); }
    __device__ static A* patches(const Tile& tile, int values) { return weights() + values * (tile.filters + kSpread); }
    __device__ static T* results(const Tile& tile, int values, int channels) {
        return reinterpret_cast<T*>(patches(tile, values) + channels * tile.patch_rows * tile.patch_columns);
    }
};

// put(i, get(i)) of all numbers below `count`, with several reads under way.
template <class Get, class Put>
__device__ inline void fetch(int count, const Get& get, const Put& put) {
    constexpr int kAtOnce = 4;
    const int threads = static_cast<int>(blockDim.x);
    for (int first = static_cast<int>(threadIdx.x); first < count; first += kAtOnce * threads) {
        decltype(get(0)) value[kAtOnce];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
            const int i = first + j * threads;
            value[j] = get(i < count ? i : first);
        }
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
            if (const int i = first + j * threads; i < count) {
                put(i, value[j]);
            }
        }
    }
}

template <class T>
class ConvPoolBlock {
    using A = Accumulator<T>;

  public:
    __device__ explicit ConvPoolBlock(const Call& args)
        : args_(args), height_(args.axis[0].lattice[0]), width_(args.axis[1].lattice[0]) {
        BlockNumbers numbers;
        first_window_ = numbers.next(args.tile.window_tiles) * args.tile.windows;
        first_filter_ = numbers.next(args.tile.filter_tiles) * args.tile.filters;
        const int64_t group = numbers.next(args.groups);
        pair_ = numbers.next(args.batch) * args.groups + group;
        all_filters_ = group * args.filters + first_filter_;
        filters_ = smaller(args.tile.filters, args.filters - first_filter_);
        windows_ = smaller(args.tile.windows, args.rows.out - first_window_);
        // the rows of places that these windows hold: those of the first and of the last one, and between
        const PoolDimensionOf<int>& rows = args.rows;
        const int top = rows.start(first_window_), last = rows.start(first_window_ + windows_ - 1);
        const int end = smaller(last + (rows.kernel - 1) * rows.dilation + 1, rows.in);
        first_row_ = top < 0 ? 0 : top;
        places_ = end > first_row_ ? (end - first_row_) * width_.places : 0;
        values_ = args.channels * height_.taps * width_.taps;
    }

    __device__ void run() const {
        load_weights();
        load_patches();
        block_barrier();  // the weights and patches are there
        convolve();
        block_barrier();  // what is pooled is there
        pool();
    }

  private:
    __device__ static int smaller(int a, int b) { return a < b ? a : b; }

    __device__ void load_weights() const {
        const T* from = static_cast<const T*>(args_.weight) + all_filters_ * values_;
        A* to = Shared<T>::weights();
        const int row = args_.tile.filters + kSpread;
        // (filters that do not exist are zeros: their sums are not used)
        fetch(
            args_.tile.filters * values_,
            [&](int i) { return i < filters_ * values_ ? to_accumulator(from[i]) : A(0); },
            [&](int i, A value) { to[i % values_ * row + i / values_] = value; });
    }

    __device__ void load_patches() const {
        const ConvAxis &rows = args_.axis[0], &columns = args_.axis[1];
        const int lines =
            places_ > 0 ? (places_ / width_.places - 1) * rows.step + (height_.taps - 1) * height_.tap_step + 1 : 0;
        const T* from = static_cast<const T*>(args_.input) + pair_ * args_.channels * rows.source * columns.source;
        A* to = Shared<T>::patches(args_.tile, values_);
        const int top = first_row_ * rows.step + height_.offset;
        const auto place = [&](int i) {
            Digits<int> digits(i);
            const int column = digits.take(args_.tile.patch_columns), line = digits.take(lines);
            return Position{static_cast<int>(digits.rest()), line, column};
        };
        fetch(
            args_.channels * lines * args_.tile.patch_columns,
            [&](int i) {
                const Position at = place(i);
                const int y = pixel_at(top + at.line, rows), x = pixel_at(width_.offset + at.column, columns);
                return (y | x) < 0 ? A(0)
                                   : to_accumulator(from[(int64_t{at.channel} * rows.source + y) * columns.source + x]);
            },
            [&](int i, A value) {
                const Position at = place(i);
                to[(at.channel * args_.tile.patch_rows + at.line) * args_.tile.patch_columns + at.column] = value;
            });
    }

    // A thread has some filters of some places. Neighbouring threads have neighbouring places, and mostly the same
    // filters.
    __device__ void convolve() const {
        const int lanes = (places_ + kPlaces - 1) / kPlaces, items = (filters_ + kFilters - 1) / kFilters * lanes;
        for (int item = static_cast<int>(threadIdx.x); item < items; item += static_cast<int>(blockDim.x)) {
            const int filter = item / lanes * kFilters, lane = item % lanes;
            int patch[kPlaces];
            A sum[kPlaces][kFilters] = {};
#pragma unroll
            for (int i = 0; i < kPlaces; ++i) {
                const int number = smaller(lane + i * lanes, places_ - 1), row = number / width_.places;
                patch[i] = row * args_.axis[0].step * args_.tile.patch_columns +
                           (number - row * width_.places) * args_.axis[1].step;
            }
            add_up(filter, patch, sum);
            finish(filter, lane, lanes, sum);
        }
    }

    __device__ void add_up(int filter, const int (&patch)[kPlaces], A (&sum)[kPlaces][kFilters]) const {
        const int row = args_.tile.filters + kSpread, line = args_.tile.patch_columns;
        const A* weight = Shared<T>::weights() + filter;
        const A* channel = Shared<T>::patches(args_.tile, values_);
        for (int c = 0; c < args_.channels; ++c, channel += args_.tile.patch_rows * line) {
            for (int h = 0; h < height_.taps; ++h) {
                const A* pixel = channel + h * height_.tap_step * line;
                for (int w = 0; w < width_.taps; ++w, weight += row, pixel += width_.tap_step) {
                    const Quad<A> weights = *reinterpret_cast<const Quad<A>*>(weight);
                    A value[kPlaces];
#pragma unroll
                    for (int i = 0; i < kPlaces; ++i) {
                        value[i] = pixel[patch[i]];
                    }
#pragma unroll
                    for (int i = 0; i < kPlaces; ++i) {
#pragma unroll
                        for (int f = 0; f < kFilters; ++f) {
                            sum[i][f] += value[i] * weights.value[f];
                        }
                    }
                }
            }
        }
    }

    // With bias and ReLU, as the convolution alone would store it.
    __device__ void finish(int filter, int lane, int lanes, const A (&sum)[kPlaces][kFilters]) const {
        T* to = Shared<T>::results(args_.tile, values_, args_.channels);
        const T* bias = static_cast<const T*>(args_.bias);
#pragma unroll
        for (int f = 0; f < kFilters; ++f) {
            if (filter + f >= filters_) {
                return;
            }
            const A more = bias != nullptr ? to_accumulator(bias[all_filters_ + filter + f]) : A(0);
#pragma unroll
            for (int i = 0; i < kPlaces; ++i) {
                if (const int number = lane + i * lanes; number < places_) {
                    const A value = sum[i][f] + more;
                    to[(filter + f) * places_ + number] = to_storage<T>(value < 0 ? A(0) : value);
                }
            }
        }
    }

    // As max_pool_forward: the first of the largest, and what is not a number before everything.
    __device__ void pool() const {
        const T* from = Shared<T>::results(args_.tile, values_, args_.channels);
        const PoolDimensionOf<int>&rows = args_.rows, &columns = args_.columns;
        T* out = static_cast<T*>(args_.out) + (pair_ * args_.filters + first_filter_) * rows.out * columns.out +
                 first_window_ * columns.out;
        const int items = filters_ * windows_ * columns.out;
        for (int i = static_cast<int>(threadIdx.x); i < items; i += static_cast<int>(blockDim.x)) {
            Digits<int> digits(i);
            const int column = digits.take(columns.out), window = digits.take(windows_);
            const int filter = static_cast<int>(digits.rest());
            const auto down = rows.taps(first_window_ + window), across = columns.taps(column);
            const int top = rows.start(first_window_ + window) - first_row_, left = columns.start(column);
            A best = -static_cast<A>(INFINITY);
            bool first = true;
            for (int h = down.begin; h < down.end; ++h) {
                const T* line = from + filter * places_ + (top + h * rows.dilation) * width_.places + left;
                for (int w = across.begin; w < across.end; ++w) {
                    const A value = to_accumulator(line[w * columns.dilation]);
                    best = first || value > best || value != value ? value : best;
                    first = false;
                }
            }
            out[int64_t{filter} * rows.out * columns.out + window * columns.out + column] = to_storage<T>(best);
        }
    }

    struct Position {
        int channel, line, column;
    };

    const Call& args_;
    const ConvLattice &height_, &width_;
    int first_window_, first_filter_;
    int64_t pair_, all_filters_;       // image and group; the first filter's number of all
    int filters_, windows_;            // that there are
    int first_row_, places_, values_;  // of places; of all channels
};

template <class T>
__global__ void __launch_bounds__(kMostThreads, 2) conv_pool_kernel(const __grid_constant__ Call args) {
    ConvPoolBlock<T>(args).run();
}

// Windows of whole rows may have come as those of all places in one row (csrc/ops/pool_check.cpp): in two dimensions.
ConvPool in_two_dimensions(ConvPool args) {
    const int64_t row = args.shape.dim[2].output;
    if (const PoolDimension joined = args.columns; joined.in != row) {
        args.rows = {joined.in / row, joined.out, joined.kernel / row, joined.stride / row, 0, 1, false};
        args.columns = {row, 1, row, 1, 0, 1, false};
    }
    return args;
}

// A tile of that many filters and rows of windows; false if it is too large.
bool set_tile(Tile& tile, const ConvPool& args, int64_t filters, int64_t windows) {
    constexpr int64_t kMost = 1 << 14;  // (so that no product here or in the kernel is too large)
    const ConvShape& s = args.shape;
    const ConvDimension &height = s.dim[1], &width = s.dim[2];
    const int64_t held = (windows - 1) * args.rows.stride + (args.rows.kernel - 1) * args.rows.dilation + 1;
    const int64_t place_rows = std::min(held, height.output);
    const auto read = [](const ConvDimension& d, int64_t places) {
        return (places - 1) * d.stride + (d.kernel - 1) * d.dilation + 1;
    };
    const int64_t patch_rows = read(height, place_rows), patch_columns = read(width, width.output);
    if (patch_rows > kMost || patch_columns > kMost) {
        return false;
    }
    const int64_t values = s.in_channels * s.taps(), places = place_rows * width.output;
    const int64_t accumulators = values * (filters + kSpread) + s.in_channels * patch_rows * patch_columns;
    const int64_t bytes = accumulators * accumulator_bytes(args.dtype) + filters * places * storage_bytes(args.dtype);
    const int64_t items = filters / kFilters * (filled_up(places, kPlaces) / kPlaces);
    const int64_t turns = std::max<int64_t>(filled_up(items, kMostThreads) / kMostThreads, 1);
    const auto narrow = [](int64_t number) { return static_cast<int>(number); };
    tile = {narrow(filters),
            narrow(windows),
            narrow(place_rows),
            narrow(patch_rows),
            narrow(patch_columns),
            (s.out_channels + filters - 1) / filters,
            (args.rows.out + windows - 1) / windows,
            narrow(std::clamp<int64_t>(filled_up((items + turns - 1) / turns, kWarp), 2 * kWarp, kMostThreads)),
            static_cast<size_t>(bytes)};
    return bytes <= kSharedBytes;
}

int64_t blocks_of(const Tile& tile, const ConvShape& s) {
    return s.batch * s.groups * tile.filter_tiles * tile.window_tiles;
}

// Of one row of windows, with as many filters as there is room for.
bool smallest_tile(Tile& tile, const ConvPool& args) {
    const ConvShape& s = args.shape;
    if (s.channels_last || is_depthwise(s) || s.in_channels * s.taps() > kConvPoolValues || !is_narrow(args.rows) ||
        !is_narrow(args.columns)) {
        return false;
    }
    int64_t filters = std::min(kMostFilterBytes / accumulator_bytes(args.dtype), filled_up(s.out_channels, kFilters));
    while (!set_tile(tile, args, filters, 1)) {
        if (filters == kFilters) {
            return false;
        }
        filters = filled_up(filters / 2, kFilters);
    }
    return blocks_of(tile, s) <= kMostBlocks;
}

}  // namespace

bool has_conv_pool(const ConvPool& args) {
    Tile tile;
    return smallest_tile(tile, in_two_dimensions(args));
}

cudaError_t conv_relu_max_pool(const ConvPool& given, cudaStream_t stream) {
    const ConvPool args = in_two_dimensions(given);
    const ConvShape& s = args.shape;
    Call call{};
    Tile& tile = call.tile;
    int64_t multiprocessors = 0;
    if (!smallest_tile(tile, args)) {
        return cudaErrorInvalidValue;
    }
    if (cudaError_t error = multiprocessor_count(&multiprocessors); error != cudaSuccess) {
        return error;
    }
    if (blocks_of(tile, s) == 0) {
        return cudaSuccess;
    }
    // As many rows of windows as there is room for, all tiles alike, but work for every multiprocessor.
    for (int64_t tiles = 1; tiles < args.rows.out; ++tiles) {
        Tile larger;
        const int64_t windows = (args.rows.out + tiles - 1) / tiles;
        if (set_tile(larger, args, tile.filters, windows) && blocks_of(larger, s) >= 2 * multiprocessors) {
            tile = larger;
            break;
        }
    }
    call.axis[0] = forward_axis(s.dim[1], s.mode);
    call.axis[1] = forward_axis(s.dim[2], s.mode);
    call.rows = narrowed<int>(args.rows);
    call.columns = narrowed<int>(args.columns);
    call.batch = s.batch;
    call.groups = s.groups;
    call.channels = static_cast<int>(s.in_channels);
    call.filters = static_cast<int>(s.out_channels);
    call.input = args.input;
    call.weight = args.weight;
    call.bias = args.bias;
    call.out = args.out;
    return for_types(args.dtype, [&]<class T>() {
        return launch(conv_pool_kernel<T>, dim3(static_cast<unsigned>(blocks_of(tile, s))),
                      dim3(static_cast<unsigned>(tile.threads)), tile.shared_bytes, stream, call);
    });
}

}  // namespace pykernels::cuda
