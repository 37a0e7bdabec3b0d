// Runs the layer norm kernels on buffers that are exactly as large as the contract says, without torch:
//   layer_norm_driver SEED
// prints, for each of some calls, a hash of every output's bits; a failed launch prints "error: <report>", exit 3.
#include "cuda/kernels/layer_norm.h"

#include <cstdio>

#include "driver.h"
#include "executor.h"

namespace {

using namespace driver;

struct Drawn {
    DType dtype;
    int64_t rows, columns, space;  // columns between rows
    bool residual, dropout, wide;
};

int run(const Drawn& d) {
    Buffers stored(d.dtype), sums(d.dtype == DType::f64 ? DType::f64 : DType::f32);
    const int64_t stride = d.columns + d.space;
    const auto rows = [&] { return LayerNormRows{stored.drawn((d.rows - 1) * stride + d.columns), stride}; };
    const auto dense = [&] { return stored.output(d.rows * d.columns); };
    const auto parameter = [&](bool wide) {
        return LayerNormParameter{wide ? sums.drawn(d.columns) : stored.drawn(d.columns), wide};
    };
    const auto gradient = [&](bool wide) {
        return LayerNormParameterGradient{wide ? sums.output(d.columns) : stored.output(d.columns), wide};
    };
    LayerNormShape shape{d.dtype, d.rows, d.columns, {}};
    if (d.dropout) {
        shape.dropout = pykernels::dropout_rule(7, 0.25);
    }
    const bool adds = d.residual || d.dropout;
    const LayerNormForward forward{shape,
                                   rows(),
                                   d.residual ? rows() : LayerNormRows{},
                                   parameter(d.wide),
                                   parameter(!d.wide),
                                   1e-5,
                                   dense(),
                                   adds ? dense() : nullptr,
                                   sums.output(d.rows * 2)};
    cudaError_t error = layer_norm_forward(forward, nullptr);

    LayerNormBackward backward{};
    backward.shape = shape;
    backward.grad_out = rows();
    backward.grad_total = rows();
    backward.total = adds ? LayerNormRows{forward.total, d.columns} : forward.input;
    backward.stats = forward.stats;
    backward.weight = forward.weight;
    backward.grad_of_total = dense();
    backward.grad_input = d.dropout ? dense() : nullptr;
    backward.grad_weight = gradient(d.wide);
    backward.grad_bias = gradient(!d.wide);
    backward.weight_runs = sums.output(layer_norm_runs(d.rows) * d.columns);
    backward.bias_runs = sums.output(layer_norm_runs(d.rows) * d.columns);
    error = error == cudaSuccess ? layer_norm_backward(backward, nullptr) : error;
    if (error != cudaSuccess) {
        std::printf("error: %d %s\n", static_cast<int>(error), cudaGetErrorString(error));
        return 3;
    }
    std::printf("%016llx\n", static_cast<unsigned long long>(stored.hash() * 31 + sums.hash()));
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        return 2;
    }
    const std::vector<Drawn> drawings = {
        {DType::f32, 21, 100, 0, true, true, false},   {DType::bf16, 9, 200, 8, true, true, true},
        {DType::f16, 5, 1000, 0, false, false, false}, {DType::f64, 6, 300, 2, false, true, true},
        {DType::f32, 6, 37, 1, true, false, true},     {DType::bf16, 5, 1501, 0, false, true, false},
        {DType::bf16, 5, 3000, 0, true, true, false},  {DType::f32, 3, 3000, 0, false, false, true},
        {DType::bf16, 2, 12296, 0, true, true, true},  {DType::f64, 2, 8200, 4, false, false, false},
        {DType::f16, 2, 8195, 0, true, true, false},
    };
    for (const Drawn& drawn : drawings) {
        cuda_on_cpu_configure(std::strtoull(argv[1], nullptr, 10), 64, 227 * 1024);
        if (const int code = run(drawn); code != 0) {
            return code;
        }
    }
    return 0;
}
