// What the launches of a convolution are made of.
#pragma once

#include "cuda/core/conv.cuh"
#include "cuda/kernels/conv.h"

namespace pykernels::cuda {

// out = patches * weight^T, each place's row with bias and ReLU. Row r of the weight has, for each lattice (in the
// order of first taps), the values of columns; a group has `columns` rows.
struct ConvProduct {
    ConvPatches patches;
    const void* weight;  // rows begin at multiples of 16 bytes; up to there is zero what is beyond the last column
    int64_t weight_row;
    const void* bias;  // [groups * columns], or null
    bool relu;
    void* out;
    ConvStrides result;
    bool result_chunks;  // as ConvPatches::chunks, of neighbouring channels or, planar, places
    int64_t batch, groups, columns;
    int64_t row_tiles, column_tiles;  // filled in at the launch
};
// 16-bit types; float and double.
cudaError_t conv_product_tiled(const ConvProduct& args, DType dtype, ConvTile tile, cudaStream_t stream);
cudaError_t conv_product_simple(const ConvProduct& args, DType dtype, ConvTile tile, cudaStream_t stream);

// The same where a group has one channel of the input: result channel r is the sum over `many` channels from
// r / shared * many on.
struct ConvDepthwise {
    ConvPatches patches;
    const void* weight;
    int64_t weight_tap, weight_channel;  // strides, in values
    const void* bias;                    // or null
    bool relu;
    void* out;
    ConvStrides result;
    bool chunks;       // of neighbouring channels of everything
    bool zeros_count;  // what lies outside is a zero, and times what is not a number it is none either; or nothing
    int64_t batch, channels, shared, many;
};
cudaError_t conv_depthwise(const ConvDepthwise& args, DType dtype, cudaStream_t stream);

// The gradient's rows times patches, summed over parts of the places, each `part` long: sums of part p, row r and
// column c at (p * groups * rows + r) * columns_stride + c, those of the rows alone at p * groups * rows + r.
struct ConvPlaceSums {
    ConvPatches grad, patches;  // grad: of one tap, `channels` rows a group
    void *sums, *row_sums;      // row_sums may be null
    int64_t batch, groups, columns, columns_stride, parts, part;
    int64_t shared;                   // depthwise: rows of one channel
    int64_t row_tiles, column_tiles;  // filled in at the launch
};
cudaError_t conv_place_sums_tiled(const ConvPlaceSums& args, DType dtype, cudaStream_t stream);
cudaError_t conv_place_sums_simple(const ConvPlaceSums& args, DType dtype, cudaStream_t stream);
cudaError_t conv_depthwise_sums(const ConvPlaceSums& args, DType dtype, cudaStream_t stream);

// Adds the parts up, in ascending order.
struct ConvAddParts {
    const void *sums, *row_sums;  // as above
    void *grad_weight, *grad_bias;
    int64_t parts, rows, columns_stride;
    int64_t channels, taps, filled;  // columns are [taps, filled], of which so many are channels
    bool channels_last;              // grad_weight's are [taps, channels], or else [channels, taps]
};
cudaError_t conv_add_parts(const ConvAddParts& args, DType dtype, cudaStream_t stream);

// Rows of weights with the taps' channels beside each other: [taps, filled] and zeros up to `row` values.
struct ConvWeightRows {
    const void* from;  // [rows, channels, taps] or, channels last, [rows, taps, channels]
    void* to;
    int64_t rows, channels, taps, filled, row;
    bool channels_last;
};
cudaError_t conv_weight_rows(const ConvWeightRows& args, DType dtype, cudaStream_t stream);

// Weights with rows and channels changed: to [groups * channels, taps, filled], zeros beyond the rows. Taps of a
// dimension in the order of their number modulo `period`.
struct ConvWeightTurn {
    const void* from;  // [groups * rows, channels, taps] or, channels last, [groups * rows, taps, channels]
    void* to;
    int64_t groups, rows, channels, filled;
    int kernel[3], period[3];
    bool channels_last;
};
cudaError_t conv_weight_turn(const ConvWeightTurn& args, DType dtype, cudaStream_t stream);

// Each pixel's sum over itself and its copies in the padding of an image.
struct ConvFold {
    const void* from;  // positions of padded images
    void* to;
    ConvStrides from_strides, to_strides;
    int size[3], padded[3], before[3];
    PaddingMode mode;
    int64_t images, channels;
};
cudaError_t conv_fold(const ConvFold& args, DType dtype, cudaStream_t stream);

}  // namespace pykernels::cuda
