// What the recurrent kernels share: the rows of a step, the loop over steps, plan and launch, the states and their
// gradients. A kernel adds its products and their endings. Plain device code over the primitives of common.cuh.
#pragma once

#include <algorithm>

#include "cuda/core/product.cuh"
#include "cuda/kernels/recurrent.h"

namespace pykernels::cuda {

// Steps -------------------------------------------------------------------------------------------------------------

// Sequences running at step t; none outside 0 <= t < T.
__device__ inline int64_t batch_at(const Steps& steps, int64_t t) {
    if (t < 0 || t >= steps.count) {
        return 0;
    }
    return steps.offsets != nullptr ? steps.offsets[t + 1] - steps.offsets[t] : steps.batch;
}

// Row of sequence 0 at step t (0 <= t < T).
__device__ inline int64_t row_at(const Steps& steps, int64_t t) {
    return steps.offsets != nullptr ? steps.offsets[t] : t * steps.batch;
}

// A step and its neighbours in the order in which a kernel walks. Rows are valid only where the batch is not 0.
struct StepRows {
    int64_t row, batch;      // this step
    int64_t row_from, from;  // the step walked before
    int64_t row_to, to;      // the step walked next
};

__device__ inline StepRows rows_of_step(const Steps& steps, int64_t t, bool descending) {
    const int64_t t_from = descending ? t + 1 : t - 1;
    const int64_t t_to = descending ? t - 1 : t + 1;
    StepRows rows{0, batch_at(steps, t), 0, batch_at(steps, t_from), 0, batch_at(steps, t_to)};
    rows.row = rows.batch > 0 ? row_at(steps, t) : 0;
    rows.row_from = rows.from > 0 ? row_at(steps, t_from) : 0;
    rows.row_to = rows.to > 0 ? row_at(steps, t_to) : 0;
    return rows;
}

// States ------------------------------------------------------------------------------------------------------------

// An element of an optional buffer: 0 where there is none.
template <class T>
__device__ inline Accumulator<T> load_or_zero(const T* data, int64_t index) {
    return data != nullptr ? to_accumulator(data[index]) : Accumulator<T>(0);
}

// Where direction d's state of row `row` of the output starts.
__device__ inline int64_t output_at(const RecurrentLayer& layer, int64_t d, int64_t row) {
    return (row * layer.directions + d) * layer.state;
}

// Where sequence b's part of a buffer [D, B, width] starts.
__device__ inline int64_t sequence_at(const RecurrentLayer& layer, int64_t d, int64_t b, int64_t width) {
    return (d * layer.steps.batch + b) * width;
}

// The state that sequence b had before this step of the forward walk; null for zeros.
template <class T>
__device__ const T* state_before(const RecurrentLayer& layer, const void* output, const StepRows& rows, int64_t d,
                                 int64_t b) {
    if (b < rows.from) {
        return static_cast<const T*>(output) + output_at(layer, d, rows.row_from + b);
    }
    const auto* h0 = static_cast<const T*>(layer.h0);
    return h0 != nullptr ? h0 + sequence_at(layer, d, b, layer.state) : nullptr;
}

// Puts out h of unit u, sequence b.
template <class T>
__device__ void put_state(const RecurrentLayer& layer, const RecurrentStates& states, const StepRows& rows, int64_t d,
                          int64_t b, int64_t u, T h) {
    static_cast<T*>(states.output)[output_at(layer, d, rows.row + b) + u] = h;
    if (b >= rows.to) {
        static_cast<T*>(states.h_n)[sequence_at(layer, d, b, layer.state) + u] = h;
    }
}

// The whole gradient of h of unit u, sequence b. `from_next`: what the step walked before gave it, if the sequence ran
// there. Where the sequence does not run at this step, its first one has been left: that is the gradient of h0.
template <class T>
__device__ Accumulator<T> state_gradient(const RecurrentLayer& layer, const RecurrentGradients& grads,
                                         const StepRows& rows, int64_t d, int64_t b, int64_t u,
                                         Accumulator<T> from_next) {
    const int64_t of_sequence = sequence_at(layer, d, b, layer.state) + u;
    Accumulator<T> dh = b < rows.from ? from_next : load_or_zero(static_cast<const T*>(grads.grad_h_n), of_sequence);
    if (b < rows.batch) {
        dh += load_or_zero(static_cast<const T*>(grads.grad_output), output_at(layer, d, rows.row + b) + u);
        if (layer.projection) {
            const int64_t row = d * layer.steps.rows + rows.row + b;
            static_cast<T*>(grads.grad_projected)[row * layer.state + u] = to_storage<T>(dh);
        }
    } else if (grads.grad_h0 != nullptr) {
        static_cast<T*>(grads.grad_h0)[of_sequence] = to_storage<T>(dh);
    }
    return dh;
}

template <class A>
__device__ inline A logistic(A x) {
    return A(1) / (A(1) + exponential(-x));
}

// The loop over steps -----------------------------------------------------------------------------------------------
//
// A recurrence is a struct R, handed to the kernel whole:
//   r.layer()          its RecurrentLayer
//   R::kBackward       the steps are walked against the direction, and once more at the end (batch 0) for what flows
//                      into the initial states
//   R::First, Second   the products of a step, in this order; the second, which may be void, where r.two_products()
// A product P has, for direction d, sequence b and unit u:
//   P::kCols                        columns of a unit
//   P::weights<T>(r, d)             their WeightView
//   P::multiplied(rows)             sequences from 0 that have something to multiply; the sum of others is 0
//   P::source<T>(r, rows, d, b)     what is multiplied, of one of those; null for zeros
//   P::finish<T>(r, rows, d, b, u, sum)   the ending, by the thread that owns (u, b) in every phase

template <class Tile, class T, class P, class R>
__device__ void run_product(const R& recurrence, const StepRows& rows, bool resident, T* slice, Accumulator<T>* tile) {
    const int64_t d = blockIdx.z;
    const WeightView<T> weights = P::template weights<T>(recurrence, d);
    const int64_t first_unit = int64_t{blockIdx.x} * Tile::kBlockUnits;
    if (first_unit >= weights.units) {
        return;
    }
    const int64_t sequences = R::kBackward && rows.from > rows.batch ? rows.from : rows.batch;
    const int64_t multiplied = P::multiplied(rows);
    for (int64_t first = int64_t{blockIdx.y} * Tile::kBlockRows; first < sequences;
         first += int64_t{gridDim.y} * Tile::kBlockRows) {
        auto source = [&](int64_t row) -> const T* {
            const int64_t b = first + row;
            return b < multiplied ? P::template source<T>(recurrence, rows, d, b) : nullptr;
        };
        Accumulator<T> sum[P::kCols] = {};
        if (first < multiplied) {
            recurrent_product<Tile, P::kCols, T>(sum, source, weights, first_unit, resident, slice, tile);
        }
        const int64_t b = first + Tile::row(), u = first_unit + Tile::unit();
        if (Tile::owns() && b < sequences && u < weights.units) {
            P::template finish<T>(recurrence, rows, d, b, u, sum);
        }
    }
}

// Copies all of the block's weights for P; the end of their room.
template <class Tile, class T, class P, class R>
__device__ T* stage_all_weights(T* slice, const R& recurrence) {
    const WeightView<T> weights = P::template weights<T>(recurrence, blockIdx.z);
    stage_weights<Tile, P::kCols>(slice, weights, int64_t{blockIdx.x} * Tile::kBlockUnits, 0,
                                  static_cast<int>(passes_of<Tile>(weights.inner)));
    return slice + weight_slice_elements<Tile, P::kCols>(weights.inner);
}

// grid.x = unit blocks, grid.y = row blocks, grid.z = directions.
struct RecurrentPlan {
    dim3 grid;
    size_t shared_bytes;
    bool cooperative;
    bool resident;  // weights stay in shared memory
};

// A barrier among the blocks that share rows: those with the same grid.y and grid.z. The counters lie in different
// cache lines.
constexpr int64_t kCounterStride = 16;

__device__ inline void rows_barrier(unsigned long long* counters) {
    grid_barrier(counters + (int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * kCounterStride, gridDim.x);
}

// Phases first_phase .. end_phase, one for each product of each step. Shared memory: the tile of states, then the
// block's weights (all of them, or one tile).
template <class Tile, class T, class R>
__global__ void __launch_bounds__(kThreads, 1)
    recurrence_kernel(const __grid_constant__ R recurrence, const __grid_constant__ RecurrentPlan plan,
                      unsigned long long* counters, int64_t first_phase, int64_t end_phase) {
    using First = typename R::First;
    using Second = typename R::Second;
    const Steps& steps = recurrence.layer().steps;
    auto* tile = reinterpret_cast<Accumulator<T>*>(shared_memory());
    auto* slice = reinterpret_cast<T*>(tile + Tile::kBlockRows * Tile::kTileK);
    T* second_slice = slice;
    if (plan.resident) {
        T* const end = stage_all_weights<Tile, T, First>(slice, recurrence);
        if constexpr (!std::is_void_v<Second>) {
            if (recurrence.two_products()) {
                second_slice = end;
                stage_all_weights<Tile, T, Second>(second_slice, recurrence);
            }
        }
    }
    const int phases_a_step = recurrence.two_products() ? 2 : 1;
    const bool descending = (blockIdx.z == 1) != R::kBackward;
    for (int64_t phase = first_phase; phase < end_phase; ++phase) {
        const int64_t step = phase / phases_a_step;
        const StepRows rows = rows_of_step(steps, descending ? steps.count - 1 - step : step, descending);
        if (phase % phases_a_step == 0) {
            run_product<Tile, T, First>(recurrence, rows, plan.resident, slice, tile);
        } else if constexpr (!std::is_void_v<Second>) {
            run_product<Tile, T, Second>(recurrence, rows, plan.resident, second_slice, tile);
        }
        if (phase + 1 < end_phase) {
            rows_barrier(counters);
        }
    }
}

// How a recurrence is launched --------------------------------------------------------------------------------------

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t align_up(int64_t bytes) { return ceil_div(bytes, 256) * 256; }

// The most row blocks that a plan uses, for sizing the counters; a block strides over the rows beyond.
inline int64_t max_row_blocks(int64_t batch) { return batch < 1024 ? batch : 1024; }

// The parts of a workspace: the counters of the barriers, then what is asked for. Without a base it only measures.
class Workspace {
  public:
    Workspace(void* base, const RecurrentLayer& layer)
        : base_(static_cast<unsigned char*>(base)),
          values_(layer.directions * layer.steps.batch * layer.hidden),
          bytes_(align_up(max_row_blocks(layer.steps.batch) * layer.directions * kCounterStride *
                          int64_t{sizeof(unsigned long long)})) {}
    // Room for [D, B, H].
    void* take(int64_t value_bytes) {
        void* part = base_ != nullptr ? base_ + bytes_ : nullptr;
        bytes_ += align_up(values_ * value_bytes);
        return part;
    }
    size_t bytes() const { return static_cast<size_t>(bytes_); }

  private:
    unsigned char* base_;
    int64_t values_, bytes_;
};

// Chooses between: cooperative with resident weights, cooperative with streamed weights, a launch a step.
template <class Tile, class Kernel>
cudaError_t plan_recurrence(RecurrentPlan* plan, Kernel kernel, const RecurrentLayer& layer, int64_t units,
                            size_t resident_bytes, size_t streamed_bytes) {
    const int64_t batch = layer.steps.batch;
    const int64_t unit_blocks = ceil_div(units, Tile::kBlockUnits);
    int64_t row_blocks = ceil_div(batch, Tile::kBlockRows);
    row_blocks = row_blocks < max_row_blocks(batch) ? row_blocks : max_row_blocks(batch);
    size_t limit = 0;
    if (cudaError_t error = shared_memory_limit(&limit); error != cudaSuccess) {
        return error;
    }
    for (const bool resident : {true, false}) {
        const size_t bytes = resident ? resident_bytes : streamed_bytes;
        if (layer.form == LaunchForm::per_step || bytes > limit) {
            continue;
        }
        int64_t blocks = 0;
        if (cudaError_t error = max_resident_blocks(kernel, kThreads, bytes, &blocks); error != cudaSuccess) {
            return error;
        }
        const int64_t rows_fit = blocks / (unit_blocks * layer.directions);
        if (rows_fit >= 1) {
            const int64_t rows = rows_fit < row_blocks ? rows_fit : row_blocks;
            *plan = {dim3(static_cast<unsigned>(unit_blocks), static_cast<unsigned>(rows),
                          static_cast<unsigned>(layer.directions)),
                     bytes, true, resident};
            return cudaSuccess;
        }
    }
    *plan = {dim3(static_cast<unsigned>(unit_blocks), static_cast<unsigned>(row_blocks),
                  static_cast<unsigned>(layer.directions)),
             streamed_bytes, false, false};
    return layer.form == LaunchForm::cooperative ? cudaErrorCooperativeLaunchTooLarge : cudaSuccess;
}

// Elements of shared memory for the weights of product P: all of a block's, or one tile of them.
template <class Tile, class T, class P, class R>
int64_t weight_elements(const R& recurrence, bool resident) {
    const int64_t inner = resident ? P::template weights<T>(recurrence, 0).inner : int64_t{Tile::kTileK};
    return weight_slice_elements<Tile, P::kCols>(inner);
}

// Plans and launches all phases: one launch, or one each.
template <class Tile, class T, class R>
cudaError_t launch_recurrence(const R& recurrence, unsigned long long* counters, cudaStream_t stream) {
    using First = typename R::First;
    using Second = typename R::Second;
    const RecurrentLayer& layer = recurrence.layer();
    int64_t units = First::template weights<T>(recurrence, 0).units;
    int64_t resident = weight_elements<Tile, T, First>(recurrence, true);
    int64_t streamed = weight_elements<Tile, T, First>(recurrence, false);
    if constexpr (!std::is_void_v<Second>) {
        if (recurrence.two_products()) {
            units = std::max(units, Second::template weights<T>(recurrence, 0).units);
            resident += weight_elements<Tile, T, Second>(recurrence, true);
            streamed = std::max(streamed, weight_elements<Tile, T, Second>(recurrence, false));
        }
    }
    const int64_t tile_bytes = int64_t{Tile::kBlockRows} * Tile::kTileK * int64_t{sizeof(Accumulator<T>)};
    const auto shared_bytes = [&](int64_t elements) {
        return static_cast<size_t>(tile_bytes + elements * int64_t{sizeof(T)});
    };
    const auto kernel = recurrence_kernel<Tile, T, R>;
    RecurrentPlan plan;
    if (cudaError_t error =
            plan_recurrence<Tile>(&plan, kernel, layer, units, shared_bytes(resident), shared_bytes(streamed));
        error != cudaSuccess) {
        return error;
    }

    int64_t steps = layer.steps.count;
    if constexpr (R::kBackward) {
        steps += recurrence.gradients().grad_h0 != nullptr ? 1 : 0;
    }
    const int64_t phases = steps * (recurrence.two_products() ? 2 : 1);
    const dim3 block(kThreads);
    if (plan.cooperative) {
        const size_t bytes = plan.grid.y * plan.grid.z * kCounterStride * sizeof(unsigned long long);
        if (cudaError_t error = cudaMemsetAsync(counters, 0, bytes, stream); error != cudaSuccess) {
            return error;
        }
        return launch_cooperative(kernel, plan.grid, block, plan.shared_bytes, stream, recurrence, plan, counters,
                                  int64_t{0}, phases);
    }
    for (int64_t phase = 0; phase < phases; ++phase) {
        if (cudaError_t error = launch(kernel, plan.grid, block, plan.shared_bytes, stream, recurrence, plan, counters,
                                       phase, phase + 1);
            error != cudaSuccess) {
            return error;
        }
    }
    return cudaSuccess;
}

template <class T, class R>
cudaError_t launch_recurrence(const R& recurrence, unsigned long long* counters, cudaStream_t stream) {
    return recurrence.layer().steps.batch <= kNarrowBatch
               ? launch_recurrence<NarrowTile, T>(recurrence, counters, stream)
               : launch_recurrence<WideTile, T>(recurrence, counters, stream);
}

// Runs the recurrence with the workspace that it has laid out.
template <class R>
cudaError_t run_recurrence(const R& recurrence, void* workspace, cudaStream_t stream) {
    auto* counters = static_cast<unsigned long long*>(workspace);
    if (recurrence.layer().steps.rows == 0) {
        return cudaSuccess;
    }
    switch (recurrence.layer().dtype) {
        case DType::f32:
            return launch_recurrence<float>(recurrence, counters, stream);
        case DType::f64:
            return launch_recurrence<double>(recurrence, counters, stream);
        case DType::bf16:
            return launch_recurrence<bf16>(recurrence, counters, stream);
        case DType::f16:
            return launch_recurrence<fp16>(recurrence, counters, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace pykernels::cuda
