// Convolution and its gradients: which kernels, in which order, with what in the workspace.
#include "cuda/kernels/conv_plan.h"

namespace pykernels::cuda {
namespace {

// Padded images that are kept at one time, at least one.
constexpr int64_t kPaddedBytes = int64_t{32} << 20;

// The tile whose blocks keep the multiprocessors busy most evenly; narrower ones read more for each product.
cudaError_t choose_tile(ConvTile& tile, int64_t rows, int64_t columns, int64_t groups) {
    int64_t multiprocessors = 0;
    if (tile != ConvTile::automatic) {
        return cudaSuccess;
    }
    if (cudaError_t error = multiprocessor_count(&multiprocessors); error != cudaSuccess) {
        return error;
    }
    struct Choice {
        ConvTile tile;
        int64_t rows, columns;
        double slower;
    };
    double best = 0;
    for (const Choice& choice : {Choice{ConvTile::wide, 128, 128, 1.0}, Choice{ConvTile::tall, 128, 64, 1.1},
                                 Choice{ConvTile::small, 64, 64, 1.3}}) {
        const int64_t blocks =
            filled_up(rows, choice.rows) / choice.rows * groups * (filled_up(columns, choice.columns) / choice.columns);
        const int64_t turns = filled_up(blocks, std::max<int64_t>(multiprocessors, 1));
        const double time = static_cast<double>(turns) * static_cast<double>(choice.rows * choice.columns);
        if (tile == ConvTile::automatic || time * choice.slower < best) {
            tile = choice.tile;
            best = time * choice.slower;
        }
    }
    return cudaSuccess;
}

cudaError_t product(const ConvProduct& args, DType dtype, ConvTile tile, int64_t rows, cudaStream_t stream) {
    if (cudaError_t error = choose_tile(tile, rows, args.columns, args.groups); error != cudaSuccess) {
        return error;
    }
    const bool tiled = dtype == DType::bf16 || dtype == DType::f16;
    return tiled ? conv_product_tiled(args, dtype, tile, stream) : conv_product_simple(args, dtype, tile, stream);
}

// Values of a row of weights as the forward reads it, and whether it lies so already.
int64_t weight_row(DType dtype, const ConvShape& s) {
    return filled_up(s.taps() * filled_channels(dtype, s.in_channels), chunk_of(dtype));
}
bool weight_in_place(const ConvForward& args) {
    const ConvShape& s = args.shape;
    return (s.channels_last || s.taps() == 1) && weight_row(args.dtype, s) == s.taps() * s.in_channels &&
           is_aligned(args.weight);
}

// Depthwise weights tap by tap, as channels beside each other want them.
bool turns_depthwise_weight(const ConvShape& s) { return s.channels_last && s.taps() > 1; }
cudaError_t depthwise_weight(ConvDepthwise& to, DType dtype, const ConvShape& s, const void* weight, void* workspace,
                             cudaStream_t stream) {
    const int64_t rows = s.groups * s.out_channels;
    to.weight = weight;
    to.weight_tap = 1;
    to.weight_channel = s.taps();
    if (!turns_depthwise_weight(s)) {
        return cudaSuccess;
    }
    to.weight = workspace;
    to.weight_tap = rows;
    to.weight_channel = 1;
    const auto taps = [&](int a) { return static_cast<int>(s.dim[a].kernel); };
    return conv_weight_turn({weight, workspace, 1, rows, 1, rows, {taps(0), taps(1), taps(2)}, {1, 1, 1}, false}, dtype,
                            stream);
}
int64_t depthwise_workspace(DType dtype, const ConvShape& s) {
    return turns_depthwise_weight(s) ? s.groups * s.out_channels * s.taps() * storage_bytes(dtype) : 0;
}
bool depthwise_chunks(const ConvDepthwise& args, DType dtype) {
    return args.patches.strides.channel == 1 && args.result.channel == 1 && args.shared == 1 && args.many == 1 &&
           args.channels % chunk_of(dtype) == 0 && args.weight_channel == 1 && is_aligned(args.patches.data) &&
           is_aligned(args.weight) && is_aligned(args.bias) && is_aligned(args.out);
}

cudaError_t forward_depthwise(const ConvForward& args, cudaStream_t stream) {
    const ConvShape& s = args.shape;
    ConvDepthwise call{};
    call.patches = forward_patches(args.dtype, s, args.input);
    call.bias = args.bias;
    call.relu = args.relu;
    call.out = args.out;
    call.result = output_strides(s);
    call.batch = s.batch;
    call.channels = s.groups * s.out_channels;
    call.shared = s.out_channels;
    call.many = 1;
    call.zeros_count = true;
    const cudaError_t error = depthwise_weight(call, args.dtype, s, args.weight, args.workspace, stream);
    call.chunks = depthwise_chunks(call, args.dtype);
    return error != cudaSuccess ? error : conv_depthwise(call, args.dtype, stream);
}

// A padded image is one of its own, without padding.
struct PaddedImage {
    ConvShape shape;
    int64_t bytes, at_once;

    explicit PaddedImage(const ConvInputGradient& args) : shape(args.shape) {
        shape.mode = PaddingMode::Zeros;
        for (auto& d : shape.dim) {
            d.input = std::max((d.output - 1) * d.stride + (d.kernel - 1) * d.dilation + 1, d.input + d.before);
            d.before = 0;
        }
        bytes = filled_up(shape.groups * shape.in_channels * shape.pixels() * storage_bytes(args.dtype), 16);
        at_once = std::clamp<int64_t>(kPaddedBytes / std::max<int64_t>(bytes, 1), 1, std::max<int64_t>(shape.batch, 1));
    }
};

// Weights with rows and channels changed.
int64_t turned_bytes(const ConvInputGradient& args) {
    const ConvShape& s = args.shape;
    if (is_depthwise(s)) {
        return filled_up(depthwise_workspace(args.dtype, s), 16);
    }
    return s.groups * s.in_channels * s.taps() * filled_up(s.out_channels, chunk_of(args.dtype)) *
           storage_bytes(args.dtype);
}
cudaError_t turn_weight(const ConvInputGradient& args, cudaStream_t stream) {
    const ConvShape& s = args.shape;
    ConvWeightTurn turn{args.weight,
                        args.workspace,
                        s.groups,
                        s.out_channels,
                        s.in_channels,
                        filled_up(s.out_channels, chunk_of(args.dtype)),
                        {},
                        {},
                        s.channels_last};
    for (int a = 0; a < 3; ++a) {
        turn.kernel[a] = static_cast<int>(s.dim[a].kernel);
        turn.period[a] = static_cast<int>(tap_period(s.dim[a]));
    }
    return conv_weight_turn(turn, args.dtype, stream);
}

// Of an image without padding but zeros, with turned weights in the workspace (depthwise: those of `weights`); a launch
// for every four remainders of a stride.
cudaError_t lattices_gradient(const ConvInputGradient& args, const ConvDepthwise& weights, cudaStream_t stream) {
    const ConvShape& s = args.shape;
    ConvDepthwise narrow = weights;
    ConvProduct wide{};
    const ConvPatches patches = gradient_patches(args.dtype, s, args.grad);
    wide.weight = args.workspace;
    wide.weight_row = s.taps() * patches.filled;
    wide.out = narrow.out = args.grad_input;
    wide.result = narrow.result = input_strides(s);
    wide.batch = narrow.batch = s.batch;
    wide.groups = s.groups;
    wide.columns = s.in_channels;
    wide.patches = narrow.patches = patches;
    const bool linear = s.dim[0].stride == 1 && s.dim[1].stride == 1 && s.dim[2].stride == 1;
    const int64_t neighbours = s.channels_last ? s.in_channels : linear ? s.pixels() : 1;
    wide.result_chunks = neighbours % chunk_of(args.dtype) == 0 && is_aligned(args.grad_input);
    narrow.chunks = depthwise_chunks(narrow, args.dtype);
    cudaError_t error = cudaSuccess;
    int64_t from[3];
    const auto each = [&](int a, const auto& run) {
        const int64_t remainders = std::min(s.dim[a].stride, s.dim[a].input);
        for (from[a] = 0; from[a] < remainders && error == cudaSuccess; from[a] += kMostLattices) {
            wide.patches.axis[a] = narrow.patches.axis[a] = gradient_axis(s.dim[a], from[a]);
            run();
        }
    };
    each(0, [&] {
        each(1, [&] {
            each(2, [&] {
                error = is_depthwise(s) ? conv_depthwise(narrow, args.dtype, stream)
                                        : product(wide, args.dtype, args.tile, s.batch * s.pixels(), stream);
            });
        });
    });
    return error;
}

}  // namespace

int64_t conv_workspace(const ConvForward& args) {
    const ConvShape& s = args.shape;
    if (is_depthwise(s)) {
        return depthwise_workspace(args.dtype, s);
    }
    const int64_t values = s.groups * s.out_channels * weight_row(args.dtype, s);
    return weight_in_place(args) ? 0 : values * storage_bytes(args.dtype);
}

cudaError_t conv_forward(const ConvForward& args, cudaStream_t stream) {
    const ConvShape& s = args.shape;
    if (is_depthwise(s)) {
        return forward_depthwise(args, stream);
    }
    const int64_t rows = s.groups * s.out_channels, row = weight_row(args.dtype, s);
    ConvProduct call{};
    call.patches = forward_patches(args.dtype, s, args.input);
    call.weight = args.weight;
    call.weight_row = row;
    if (!weight_in_place(args)) {
        call.weight = args.workspace;
        const ConvWeightRows pack{args.weight, args.workspace,      rows, s.in_channels,
                                  s.taps(),    call.patches.filled, row,  s.channels_last};
        if (cudaError_t error = conv_weight_rows(pack, args.dtype, stream); error != cudaSuccess) {
            return error;
        }
    }
    call.bias = args.bias;
    call.relu = args.relu;
    call.out = args.out;
    call.result = output_strides(s);
    call.result_chunks =
        (s.channels_last ? s.out_channels : s.places()) % chunk_of(args.dtype) == 0 && is_aligned(args.out);
    call.batch = s.batch;
    call.groups = s.groups;
    call.columns = s.out_channels;
    return product(call, args.dtype, args.tile, s.batch * s.places(), stream);
}

int64_t conv_workspace(const ConvInputGradient& args) {
    const PaddedImage padded(args);
    return turned_bytes(args) + (args.shape.mode == PaddingMode::Zeros ? 0 : padded.bytes * padded.at_once);
}

cudaError_t conv_input_gradient(const ConvInputGradient& args, cudaStream_t stream) {
    const ConvShape& s = args.shape;
    ConvDepthwise depthwise{};
    depthwise.channels = s.groups;
    depthwise.shared = 1;
    depthwise.many = s.out_channels;
    cudaError_t error = is_depthwise(s)
                            ? depthwise_weight(depthwise, args.dtype, s, args.weight, args.workspace, stream)
                            : turn_weight(args, stream);
    if (error != cudaSuccess || s.mode == PaddingMode::Zeros) {
        return error != cudaSuccess ? error : lattices_gradient(args, depthwise, stream);
    }
    const PaddedImage padded(args);
    ConvInputGradient part = args;
    part.shape = padded.shape;
    part.grad_input = static_cast<unsigned char*>(args.workspace) + turned_bytes(args);
    ConvFold fold{part.grad_input, args.grad_input, input_strides(part.shape), input_strides(s), {}, {}, {}, s.mode};
    fold.channels = s.groups * s.in_channels;
    for (int a = 0; a < 3; ++a) {
        fold.size[a] = static_cast<int>(s.dim[a].input);
        fold.padded[a] = static_cast<int>(part.shape.dim[a].input);
        fold.before[a] = static_cast<int>(s.dim[a].before);
    }
    const auto apart = [&](const ConvStrides& strides) { return strides.image * storage_bytes(args.dtype); };
    for (int64_t image = 0; image < s.batch && error == cudaSuccess; image += padded.at_once) {
        fold.images = part.shape.batch = std::min(padded.at_once, s.batch - image);
        part.grad = static_cast<const unsigned char*>(args.grad) + image * apart(output_strides(s));
        fold.to = static_cast<unsigned char*>(args.grad_input) + image * apart(fold.to_strides);
        error = lattices_gradient(part, depthwise, stream);
        error = error == cudaSuccess ? conv_fold(fold, args.dtype, stream) : error;
    }
    return error;
}

int64_t conv_workspace(const ConvWeightGradient& args) {
    const ConvParts parts(args.dtype, args.shape);
    const int64_t of_row = parts.columns_stride + (args.grad_bias != nullptr ? 1 : 0);
    return parts.parts * args.shape.groups * args.shape.out_channels * of_row * accumulator_bytes(args.dtype);
}

cudaError_t conv_weight_gradient(const ConvWeightGradient& args, cudaStream_t stream) {
    const ConvShape& s = args.shape;
    const ConvParts parts(args.dtype, s);
    const int64_t rows = s.groups * s.out_channels, sums = parts.parts * rows * parts.columns_stride;
    ConvPlaceSums call{};
    call.sums = args.workspace;
    if (args.grad_bias != nullptr) {
        call.row_sums = static_cast<unsigned char*>(args.workspace) + sums * accumulator_bytes(args.dtype);
    }
    call.patches = forward_patches(args.dtype, s, args.input);
    call.grad = gradient_patches(args.dtype, s, args.grad);
    call.batch = s.batch;
    call.groups = s.groups;
    call.columns = parts.columns;
    call.columns_stride = parts.columns_stride;
    call.parts = parts.parts;
    call.part = parts.part;
    cudaError_t error = cudaSuccess;
    if (is_depthwise(s)) {  // all groups' channels as those of one
        call.grad.channels = static_cast<int>(rows);
        call.shared = s.out_channels;
        call.grad.chunks = s.channels_last && rows % chunk_of(args.dtype) == 0 && is_aligned(args.grad);
        call.patches.chunks = s.channels_last && s.groups % chunk_of(args.dtype) == 0 && is_aligned(args.input);
        error = parts.parts > 0 ? conv_depthwise_sums(call, args.dtype, stream) : cudaSuccess;
    } else if (parts.parts > 0) {
        // the gradient's places in one line, of one tap
        call.grad.filled = call.grad.channels;
        const ConvDimension one{1, 1, 1, 1, 1, 0}, line{s.places(), s.places(), 1, 1, 1, 0};
        call.grad.axis[0] = call.grad.axis[1] = forward_axis(one, PaddingMode::Zeros);
        call.grad.axis[2] = forward_axis(line, PaddingMode::Zeros);
        const bool tiled = args.dtype == DType::bf16 || args.dtype == DType::f16;
        error =
            tiled ? conv_place_sums_tiled(call, args.dtype, stream) : conv_place_sums_simple(call, args.dtype, stream);
    }
    const int64_t filled = is_depthwise(s) ? 1 : call.patches.filled;
    const ConvAddParts add{call.sums,   call.row_sums, args.grad_weight,     args.grad_bias,
                           parts.parts, rows,          parts.columns_stride, s.in_channels,
                           s.taps(),    filled,        s.channels_last};
    return error != cudaSuccess ? error : conv_add_parts(add, args.dtype, stream);
}

}  // namespace pykernels::cuda
