// Runs the kernels of the restricted Boltzmann machine on buffers that are exactly as large as the contract says,
// without torch:
//   rbm_driver SEED
// prints, for each of some calls, a hash of every output's bits; a failed launch prints "error: <report>", exit 3.
#include "cuda/kernels/rbm.h"

#include <algorithm>
#include <cstdio>

#include "driver.h"
#include "executor.h"

namespace {

using namespace driver;

int report(cudaError_t error, const Buffers& buffers) {
    if (error != cudaSuccess) {
        std::printf("error: %d %s\n", static_cast<int>(error), cudaGetErrorString(error));
        return 3;
    }
    std::printf("%016llx\n", static_cast<unsigned long long>(buffers.hash()));
    return 0;
}

struct DrawnLayer {
    DType dtype;
    int64_t rows, inputs, outputs, space;
    bool transposed, gaussian;
};

int run(const DrawnLayer& d) {
    Buffers buffers(d.dtype);
    const int64_t stride = d.inputs + d.space;
    const RbmLayer layer{d.dtype,
                         d.rows,
                         d.inputs,
                         d.outputs,
                         buffers.drawn((d.rows - 1) * stride + d.inputs),
                         stride,
                         buffers.drawn(d.outputs * d.inputs),
                         d.transposed,
                         buffers.drawn(d.outputs),
                         d.gaussian,
                         1.5,
                         99,
                         3,
                         1,
                         buffers.output(d.rows * d.outputs),
                         buffers.output(d.rows * d.outputs)};
    return report(rbm_layer(layer, nullptr), buffers);
}

struct DrawnTraining {
    DType dtype;
    int64_t visible, hidden, rows, batch, steps, chains;
    bool moves, gradient;
};

int run(const DrawnTraining& d) {
    Buffers buffers(d.dtype);
    const int64_t most = std::max(d.batch, d.chains);
    const auto tensors = [&](bool wanted, const auto& make) {
        return wanted ? RbmTensors{make(d.hidden * d.visible), make(d.visible), make(d.hidden)} : RbmTensors{};
    };
    const auto in_place = [&](int64_t count) { return buffers.in_place(count); };
    const auto output = [&](int64_t count) { return buffers.output(count); };
    RbmTraining training{};
    training.dtype = d.dtype;
    training.visible = d.visible;
    training.hidden = d.hidden;
    training.rows = d.rows;
    training.batch = d.batch;
    training.steps = d.steps;
    training.data = buffers.drawn(d.rows * d.visible);
    training.data_stride = d.visible;
    training.chains = d.chains;
    training.chain = d.chains > 0 ? buffers.in_place(d.chains * d.hidden) : nullptr;
    training.temperature = 1;
    training.key = 5;
    training.parameters = tensors(true, in_place);
    training.velocity = tensors(d.moves, in_place);
    training.gradient = tensors(d.gradient, output);
    training.rate = 0.1;
    training.momentum = d.moves ? 0.5 : 0;
    training.decay = 0.01;
    training.first_means = buffers.output(d.batch * d.hidden);
    training.means = buffers.output(most * d.hidden);
    training.states = d.chains > 0 ? nullptr : buffers.output(d.batch * d.hidden);
    training.sampled = buffers.output(most * d.visible);
    return report(rbm_train(training, nullptr), buffers);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        return 2;
    }
    const auto run_all = [&](const auto& drawings) {
        for (const auto& drawn : drawings) {
            cuda_on_cpu_configure(std::strtoull(argv[1], nullptr, 10), 64, 227 * 1024);
            if (const int code = run(drawn); code != 0) {
                return code;
            }
        }
        return 0;
    };
    const int code = run_all(std::vector<DrawnLayer>{
        {DType::f32, 3, 33, 70, 0, false, false},
        {DType::f64, 70, 5, 64, 2, true, false},
        {DType::bf16, 40, 17, 65, 1, false, true},
        {DType::f16, 1, 16, 15, 0, true, true},
    });
    return code != 0 ? code
                     : run_all(std::vector<DrawnTraining>{
                           {DType::f32, 9, 40, 7, 3, 1, 0, false, false},
                           {DType::f64, 66, 33, 5, 2, 2, 3, true, false},
                           {DType::f32, 64, 17, 4, 4, 1, 2, false, true},
                       });
}
