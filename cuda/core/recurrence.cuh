// The loop over the steps of a recurrence, its plan and its launch. A kernel adds its products and their endings. Plain
// device code over the primitives of common.cuh.
#pragma once

#include <algorithm>

#include "cuda/core/recurrent.cuh"

namespace pykernels::cuda {

// The loop over steps -----------------------------------------------------------------------------------------------
//
// A recurrence is a struct R, handed to the kernel whole:
//   r.layer()          its RecurrentLayer
//   R::kBackward       the steps are walked against the direction, and once more at the end (batch 0) for what flows
//                      into the initial states
//   R::Phases          PhaseList of the phases of a step, in their order: products, and phases that own whole rows
// Any phase P may have
//   P::runs(r)                      whether this recurrence has it; without it, it has
// A product P has, for direction d, sequence b and unit u:
//   P::kCols                        columns of a unit
//   P::weights<T>(r, d)             their WeightView
//   P::multiplied(rows)             sequences from 0 that have something to multiply; the sum of others is 0
//   P::source<T>(r, rows, d, b)     what is multiplied, of one of those; null for zeros
//   P::finish<T>(r, rows, d, b, u, sum)   the ending, by the thread that owns (u, b) in every phase
// A phase that owns rows has
//   P::run<T>(r, rows, d, b, scratch)     all of sequence b, by all threads of the one block that owns b in every phase
//                                         of this sort; scratch: kScratch elements of shared memory

template <class... P>
struct PhaseList {};

constexpr int kScratch = 2 * kBlockWarps;

template <class P>
concept IsProduct = requires { P::kCols; };

template <class P, class R>
__host__ __device__ constexpr bool runs(const R& recurrence) {
    if constexpr (requires { P::runs(recurrence); }) {
        return P::runs(recurrence);
    } else {
        return true;
    }
}

template <class R, class... P>
__host__ __device__ constexpr int phases_a_step(const R& recurrence, PhaseList<P...>) {
    return (int{runs<P>(recurrence)} + ...);
}

// Sequences that a step has something to do for. Backward: also for those that it has just left.
template <class R>
__device__ inline int64_t sequences_of(const StepRows& rows) {
    return R::kBackward && rows.from > rows.batch ? rows.from : rows.batch;
}

template <class Tile, class T, class P, class R>
__device__ void run_product(const R& recurrence, const StepRows& rows, bool resident, T* slice, Accumulator<T>* tile) {
    const int64_t d = blockIdx.z;
    const WeightView<T> weights = P::template weights<T>(recurrence, d);
    const int64_t first_unit = int64_t{blockIdx.x} * Tile::kBlockUnits;
    if (first_unit >= weights.units) {
        return;
    }
    const int64_t sequences = sequences_of<R>(rows);
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

// The blocks that share rows take them in turn.
template <class Tile, class T, class P, class R>
__device__ void run_rows(const R& recurrence, const StepRows& rows, Accumulator<T>* scratch) {
    const int64_t sequences = sequences_of<R>(rows);
    for (int64_t own = blockIdx.x;; own += gridDim.x) {
        const int64_t first = (blockIdx.y + own / Tile::kBlockRows * gridDim.y) * Tile::kBlockRows;
        if (first >= sequences) {
            return;
        }
        if (const int64_t b = first + own % Tile::kBlockRows; b < sequences) {
            P::template run<T>(recurrence, rows, int64_t{blockIdx.z}, b, scratch);
        }
    }
}

template <class Tile, class T, class P, class R>
__device__ void run_phase(const R& recurrence, const StepRows& rows, bool resident, T* slice, Accumulator<T>* tile) {
    if constexpr (IsProduct<P>) {
        run_product<Tile, T, P>(recurrence, rows, resident, slice, tile);
    } else {
        run_rows<Tile, T, P>(recurrence, rows, tile);
    }
}

// Phase number `at` of a step, counting those that run.
template <class Tile, class T, class R, class... P>
__device__ void run_phase_at(int at, const R& recurrence, PhaseList<P...>, const StepRows& rows, bool resident,
                             T* const (&slices)[sizeof...(P)], Accumulator<T>* tile) {
    int place = 0;
    ((runs<P>(recurrence) && at-- == 0 ? run_phase<Tile, T, P>(recurrence, rows, resident, slices[place], tile)
                                       : void(),
      ++place),
     ...);
}

// Copies all of the block's weights for P; the end of their room.
template <class Tile, class T, class P, class R>
__device__ T* stage_all_weights(T* slice, const R& recurrence) {
    if constexpr (!IsProduct<P>) {
        return slice;
    } else if (!runs<P>(recurrence)) {
        return slice;
    } else {
        const WeightView<T> weights = P::template weights<T>(recurrence, blockIdx.z);
        stage_weights<Tile, P::kCols>(slice, weights, int64_t{blockIdx.x} * Tile::kBlockUnits, 0,
                                      static_cast<int>(passes_of<Tile>(weights.inner)));
        return slice + weight_slice_elements<Tile, P::kCols>(weights.inner);
    }
}

// Copies those of all products, one after the other; slices: where those of each phase start.
template <class Tile, class T, class R, class... P>
__device__ void stage_all_products(const R& recurrence, PhaseList<P...>, T* (&slices)[sizeof...(P)]) {
    T* end = slices[0];
    int place = 0;
    ((slices[place++] = end, end = stage_all_weights<Tile, T, P>(end, recurrence)), ...);
}

// grid.x = unit blocks, grid.y = row blocks, grid.z = directions.
struct RecurrentPlan {
    dim3 grid;
    size_t shared_bytes;
    bool cooperative;
    bool resident;  // weights stay in shared memory
};

// Where the weights of each phase start in shared memory; one place for all where they are streamed.
template <class T, class Phases>
struct Slices;
template <class T, class... P>
struct Slices<T, PhaseList<P...>> {
    T* start[sizeof...(P)];
    __device__ explicit Slices(T* slice) {
        for (T*& each : start) {
            each = slice;
        }
    }
};

// A barrier among the blocks that share rows: those with the same grid.y and grid.z. The counters lie in different
// cache lines.
constexpr int64_t kCounterStride = 16;

__device__ inline void rows_barrier(unsigned long long* counters) {
    grid_barrier(counters + (int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * kCounterStride, gridDim.x);
}

// Phases first_phase .. end_phase. Shared memory: the tile of states, then the block's weights (all of them, or one
// tile).
template <class Tile, class T, class R>
__global__ void __launch_bounds__(kThreads, 1)
    recurrence_kernel(const __grid_constant__ R recurrence, const __grid_constant__ RecurrentPlan plan,
                      unsigned long long* counters, int64_t first_phase, int64_t end_phase) {
    constexpr typename R::Phases phases{};
    const Steps& steps = recurrence.layer().steps;
    auto* tile = reinterpret_cast<Accumulator<T>*>(shared_memory());
    Slices<T, typename R::Phases> slices(reinterpret_cast<T*>(tile + Tile::kBlockRows * Tile::kTileK));
    if (plan.resident) {
        stage_all_products<Tile, T>(recurrence, phases, slices.start);
    }
    const int a_step = phases_a_step(recurrence, phases);
    const bool descending = (blockIdx.z == 1) != R::kBackward;
    for (int64_t phase = first_phase; phase < end_phase; ++phase) {
        const int64_t step = phase / a_step;
        const StepRows rows = rows_of_step(steps, descending ? steps.count - 1 - step : step, descending);
        run_phase_at<Tile, T>(static_cast<int>(phase % a_step), recurrence, phases, rows, plan.resident, slices.start,
                              tile);
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
          sequences_(layer.directions * layer.steps.batch),
          hidden_(layer.hidden),
          bytes_(align_up(max_row_blocks(layer.steps.batch) * layer.directions * kCounterStride *
                          int64_t{sizeof(unsigned long long)})) {}
    // Room for [D, B, H], or another width.
    void* take(int64_t value_bytes) { return take(value_bytes, hidden_); }
    void* take(int64_t value_bytes, int64_t width) {
        void* part = base_ != nullptr ? base_ + bytes_ : nullptr;
        bytes_ += align_up(sequences_ * width * value_bytes);
        return part;
    }
    size_t bytes() const { return static_cast<size_t>(bytes_); }

  private:
    unsigned char* base_;
    int64_t sequences_, hidden_, bytes_;
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

// What the products of a recurrence take of a block, all together.
struct ProductSizes {
    int64_t units = 0;                   // of the widest
    int64_t resident = 0, streamed = 0;  // elements of shared memory: for all weights, or for a tile of one product's
};

template <class Tile, class T, class P, class R>
void add_product(ProductSizes* sizes, const R& recurrence) {
    if constexpr (IsProduct<P>) {
        if (runs<P>(recurrence)) {
            const WeightView<T> weights = P::template weights<T>(recurrence, 0);
            sizes->units = std::max(sizes->units, weights.units);
            sizes->resident += weight_slice_elements<Tile, P::kCols>(weights.inner);
            sizes->streamed = std::max(sizes->streamed, weight_slice_elements<Tile, P::kCols>(Tile::kTileK));
        }
    }
}

template <class Tile, class T, class R, class... P>
ProductSizes product_sizes(const R& recurrence, PhaseList<P...>) {
    ProductSizes sizes;
    (add_product<Tile, T, P>(&sizes, recurrence), ...);
    return sizes;
}

// Plans and launches all phases: one launch, or one each.
template <class Tile, class T, class R>
cudaError_t launch_recurrence(const R& recurrence, unsigned long long* counters, cudaStream_t stream) {
    const RecurrentLayer& layer = recurrence.layer();
    const ProductSizes sizes = product_sizes<Tile, T>(recurrence, typename R::Phases{});
    const int64_t tile_bytes = int64_t{Tile::kBlockRows} * Tile::kTileK * int64_t{sizeof(Accumulator<T>)};
    const auto shared_bytes = [&](int64_t elements) {
        return static_cast<size_t>(tile_bytes + elements * int64_t{sizeof(T)});
    };
    const auto kernel = recurrence_kernel<Tile, T, R>;
    RecurrentPlan plan;
    if (cudaError_t error = plan_recurrence<Tile>(&plan, kernel, layer, sizes.units, shared_bytes(sizes.resident),
                                                  shared_bytes(sizes.streamed));
        error != cudaSuccess) {
        return error;
    }

    int64_t steps = layer.steps.count;
    if constexpr (R::kBackward) {
        steps += recurrence.gradients().grad_h0 != nullptr ? 1 : 0;
    }
    const int64_t phases = steps * phases_a_step(recurrence, typename R::Phases{});
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
