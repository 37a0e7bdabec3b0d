// Contrastive divergence: the Gibbs steps are launches of rbm_layer; here is what becomes of their states. A thread has
// weights or a bias to itself, so that sums have one order and nothing is added by two threads.
#include <algorithm>

#include "cuda/core/rbm.cuh"
#include "cuda/kernels/rbm.h"

namespace pykernels::cuda {
namespace {

// States of the two phases: the data's and the model's, and how much each row counts.
struct Phases {
    const void *visible, *hidden;  // [rows, visible], [rows, hidden]
    int64_t visible_stride;
    const void *model_visible, *model_hidden;  // [chains, ...]
    int64_t rows, chains;
};

struct Update {
    int64_t visible, hidden;
    RbmTensors parameters, velocity, gradient;
    double rate, momentum, decay;
};

template <class T>
__device__ inline void step(const Update& update, T gradient, double decay, void* parameters, void* velocities,
                            void* gradients, int64_t at) {
    if (gradients != nullptr) {
        static_cast<T*>(gradients)[at] = gradient;
        return;
    }
    T* const parameter = static_cast<T*>(parameters) + at;
    T by = static_cast<T>(update.rate) * (gradient - static_cast<T>(decay) * *parameter);
    if (velocities != nullptr) {
        T* const velocity = static_cast<T*>(velocities) + at;
        by += static_cast<T>(update.momentum) * *velocity;
        *velocity = by;
    }
    *parameter += by;
}

template <class T>
__global__ void __launch_bounds__(kRbmThreads, 1)
    weight_kernel(const __grid_constant__ Phases phases, const __grid_constant__ Update update) {
    constexpr int kRows = 2;
    const int64_t first_hidden = int64_t{blockIdx.x} * (kRows * kRbmSide);
    const int64_t first_visible = int64_t{blockIdx.y} * kRbmColumns, depth = phases.rows + phases.chains;
    const T share = T(1) / static_cast<T>(phases.rows), model_share = T(-1) / static_cast<T>(phases.chains);
    T sum[kRows][4] = {};
    rbm_product<kRows, false, false>(
        sum, depth,
        [&](int line, int64_t k) {
            const int64_t unit = first_hidden + line;
            if (unit >= update.hidden || k >= depth) {
                return T(0);
            }
            return k < phases.rows
                       ? share * static_cast<const T*>(phases.hidden)[k * update.hidden + unit]
                       : model_share *
                             static_cast<const T*>(phases.model_hidden)[(k - phases.rows) * update.hidden + unit];
        },
        [&](int line, int64_t k) {
            const int64_t unit = first_visible + line;
            if (unit >= update.visible || k >= depth) {
                return T(0);
            }
            return k < phases.rows
                       ? static_cast<const T*>(phases.visible)[k * phases.visible_stride + unit]
                       : static_cast<const T*>(phases.model_visible)[(k - phases.rows) * update.visible + unit];
        });
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            const int64_t h = first_hidden + rbm_row() + kRbmSide * i, v = first_visible + rbm_column() + kRbmSide * n;
            if (h < update.hidden && v < update.visible) {
                step<T>(update, sum[i][n], update.decay, update.parameters.weight, update.velocity.weight,
                        update.gradient.weight, h * update.visible + v);
            }
        }
    }
}

template <class T>
__device__ inline T mean_of(const void* states, int64_t stride, int64_t rows, int64_t unit) {
    T sum = 0;
    for (int64_t r = 0; r < rows; ++r) {
        sum += static_cast<const T*>(states)[r * stride + unit];
    }
    return sum / static_cast<T>(rows);
}

// A thread has a unit of either side.
template <class T>
__global__ void __launch_bounds__(kRbmThreads, 1)
    bias_kernel(const __grid_constant__ Phases phases, const __grid_constant__ Update update) {
    int64_t unit = int64_t{blockIdx.x} * kRbmThreads + threadIdx.x;
    if (unit < update.visible) {
        const T gradient = mean_of<T>(phases.visible, phases.visible_stride, phases.rows, unit) -
                           mean_of<T>(phases.model_visible, update.visible, phases.chains, unit);
        step<T>(update, gradient, 0, update.parameters.visible_bias, update.velocity.visible_bias,
                update.gradient.visible_bias, unit);
        return;
    }
    unit -= update.visible;
    if (unit < update.hidden) {
        const T gradient = mean_of<T>(phases.hidden, update.hidden, phases.rows, unit) -
                           mean_of<T>(phases.model_hidden, update.hidden, phases.chains, unit);
        step<T>(update, gradient, 0, update.parameters.hidden_bias, update.velocity.hidden_bias,
                update.gradient.hidden_bias, unit);
    }
}

template <class T>
cudaError_t learn(const Phases& phases, const Update& update, cudaStream_t stream) {
    const auto parts = [](int64_t count, int64_t part) { return static_cast<unsigned>((count + part - 1) / part); };
    if (update.hidden > 0 && update.visible > 0) {
        const dim3 grid(parts(update.hidden, 2 * kRbmSide), parts(update.visible, kRbmColumns));
        if (const cudaError_t error =
                launch(weight_kernel<T>, grid, dim3(kRbmThreads), rbm_shared_bytes<T, 2>(), stream, phases, update);
            error != cudaSuccess) {
            return error;
        }
    }
    const int64_t units = update.hidden + update.visible;
    return units == 0
               ? cudaSuccess
               : launch(bias_kernel<T>, dim3(parts(units, kRbmThreads)), dim3(kRbmThreads), 0, stream, phases, update);
}

cudaError_t mini_batch(const RbmTraining& args, int64_t first, int64_t rows, uint32_t row, cudaStream_t stream) {
    const int64_t chains = args.chain != nullptr ? args.chains : rows;
    const char* data = static_cast<const char*>(args.data) + first * args.data_stride * storage_bytes(args.dtype);
    void* const states = args.chain != nullptr ? args.chain : args.states;
    cudaError_t error = cudaSuccess;
    const auto layer = [&](bool up, const void* from, int64_t stride, int64_t count, uint32_t draw, void* mean,
                           void* sample) {
        if (error != cudaSuccess) {
            return;
        }
        const RbmTensors& p = args.parameters;
        error = rbm_layer({args.dtype, count, up ? args.visible : args.hidden, up ? args.hidden : args.visible, from,
                           stride, p.weight, !up, up ? p.hidden_bias : p.visible_bias, !up && args.gaussian,
                           args.temperature, args.key, row, draw, mean, sample},
                          stream);
    };
    layer(true, data, args.data_stride, rows, 0, args.first_means, args.chain != nullptr ? nullptr : states);
    for (int64_t k = 1; k <= args.steps; ++k) {
        const auto draw = static_cast<uint32_t>(2 * k);
        const bool last = k == args.steps, goes_on = !last || args.chain != nullptr;
        layer(false, states, args.hidden, chains, draw - 1, nullptr, args.sampled);
        layer(true, args.sampled, args.visible, chains, draw, last ? args.means : nullptr, goes_on ? states : nullptr);
    }
    const Phases phases{data, args.first_means, args.data_stride, args.sampled, args.means, rows, chains};
    const Update update{args.visible,  args.hidden, args.parameters, args.velocity,
                        args.gradient, args.rate,   args.momentum,   args.decay};
    if (error != cudaSuccess) {
        return error;
    }
    return args.dtype == DType::f64 ? learn<double>(phases, update, stream) : learn<float>(phases, update, stream);
}

}  // namespace

cudaError_t rbm_train(const RbmTraining& args, cudaStream_t stream) {
    cudaError_t error = cudaSuccess;
    uint32_t row = args.first_row;
    for (int64_t first = 0; first < args.rows && error == cudaSuccess; first += args.batch) {
        error = mini_batch(args, first, std::min(args.batch, args.rows - first), row, stream);
        row += static_cast<uint32_t>(std::max(args.batch, args.chains));
    }
    return error;
}

}  // namespace pykernels::cuda
