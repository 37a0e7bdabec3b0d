#include "cuda/core/recurrent.cuh"
#include "cuda/kernels/lstm.h"

// The walk is the forward's, turned round, with one step more at its end (batch 0) in which what is left flows into the
// initial states. At each step, for every sequence that runs at it or ran at the step walked before:
//   dh = dgates(step before) W_hh, or grad_h_n where the sequence begins here
//   runs here:      dh += grad_output; (with a projection: dh is stored, then dh = dh W_hr); the cell; dgates, dc
//   stored no longer runs: its first step has been left, so dh and dc are the gradients of its initial state

namespace pykernels::cuda {
namespace {

// Workspace: barrier counters, and the gradient of the cell state [D, B, H] in the accumulator's type.
int64_t grad_cell_at(const LstmLayer& layer) { return align_up(counter_bytes(layer.steps.batch, layer.directions)); }

struct BackwardArgs {
    LstmBackward op;
    void* grad_cell;
};

// Column `unit` of W_hh, along the four gates.
template <class T>
__device__ WeightView<T> state_weights(const LstmLayer& layer, int64_t d) {
    return {static_cast<const T*>(layer.weight_hh[d]), 1, 0, layer.state, layer.state, 4 * layer.hidden};
}

// Column `unit` of W_hr.
template <class T>
__device__ WeightView<T> projection_weights(const LstmLayer& layer, int64_t d) {
    return {static_cast<const T*>(layer.weight_hr[d]), 1, 0, layer.hidden, layer.hidden, layer.state};
}

// From dh, the gradient of o tanh(c) of unit u, sequence b, to the gates and the cell state of the step before.
// rows.from is the step walked before (one later in time), rows.to the next (one earlier).
template <class T>
__device__ void finish_cell(const BackwardArgs& args, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                            Accumulator<T> dh) {
    using A = Accumulator<T>;
    const LstmBackward& op = args.op;
    const LstmLayer& layer = op.layer;
    const int64_t H = layer.hidden, N = layer.steps.rows;
    const int64_t of_sequence = (d * layer.steps.batch + b) * H + u;
    A* grad_cell = static_cast<A*>(args.grad_cell) + of_sequence;
    A dc = b < rows.from ? *grad_cell : load_or_zero(static_cast<const T*>(op.grad_c_n), of_sequence);
    if (b >= rows.batch) {
        if (op.grad_c0 != nullptr) {
            static_cast<T*>(op.grad_c0)[of_sequence] = to_storage<T>(dc);
        }
        return;
    }
    const int64_t row = d * N + rows.row + b;
    const T* gates = static_cast<const T*>(op.gates) + row * 4 * H + u;
    const T* cells = static_cast<const T*>(op.cells) + d * N * H + u;
    const A i = to_accumulator(gates[0]);
    const A f = to_accumulator(gates[H]);
    const A g = to_accumulator(gates[2 * H]);
    const A o = to_accumulator(gates[3 * H]);
    const A squashed = hyperbolic_tangent(to_accumulator(cells[(rows.row + b) * H]));
    const A before = b < rows.to ? to_accumulator(cells[(rows.row_to + b) * H])
                                 : load_or_zero(static_cast<const T*>(layer.c0), of_sequence);
    const T* peephole = static_cast<const T*>(layer.peephole[d]);

    const A d_o = dh * squashed * o * (A(1) - o);
    dc += dh * o * (A(1) - squashed * squashed);
    if (peephole != nullptr) {
        dc += d_o * to_accumulator(peephole[2 * H + u]);
    }
    const A d_i = dc * g * i * (A(1) - i);
    const A d_f = dc * before * f * (A(1) - f);
    const A d_g = dc * i * (A(1) - g * g);
    A dc_before = dc * f;
    if (peephole != nullptr) {
        dc_before += d_i * to_accumulator(peephole[u]) + d_f * to_accumulator(peephole[H + u]);
    }

    T* grad_gates = static_cast<T*>(op.grad_gates) + row * 4 * H + u;
    grad_gates[0] = to_storage<T>(d_i);
    grad_gates[H] = to_storage<T>(d_f);
    grad_gates[2 * H] = to_storage<T>(d_g);
    grad_gates[3 * H] = to_storage<T>(d_o);
    *grad_cell = dc_before;
}

// dh = dgates W_hh; without a projection the cell follows at once.
template <class Tile, class T>
__device__ void state_phase(const BackwardArgs& args, const StepRows& rows, bool resident, T* slice,
                            Accumulator<T>* tile) {
    using A = Accumulator<T>;
    const LstmBackward& op = args.op;
    const LstmLayer& layer = op.layer;
    const int64_t d = blockIdx.z, B = layer.steps.batch, N = layer.steps.rows, S = layer.state;
    const int64_t first_unit = int64_t{blockIdx.x} * Tile::kBlockUnits;
    if (first_unit >= S) {
        return;
    }
    const auto* grad_gates = static_cast<const T*>(op.grad_gates);
    const WeightView<T> weights = state_weights<T>(layer, d);
    const int64_t end = rows.batch > rows.from ? rows.batch : rows.from;
    for (int64_t first = int64_t{blockIdx.y} * Tile::kBlockRows; first < end;
         first += int64_t{gridDim.y} * Tile::kBlockRows) {
        auto grad_gates_after = [&](int64_t row) -> const T* {
            const int64_t b = first + row;
            return b < rows.from ? grad_gates + (d * N + rows.row_from + b) * 4 * layer.hidden : nullptr;
        };
        A sum[1] = {0};
        if (first < rows.from) {
            recurrent_product<Tile, 1, T>(sum, grad_gates_after, weights, first_unit, resident, slice, tile);
        }
        const int64_t b = first + Tile::row(), u = first_unit + Tile::unit();
        if (!Tile::owns() || b >= end || u >= S) {
            continue;
        }
        const int64_t of_sequence = (d * B + b) * S + u;
        A dh = b < rows.from ? sum[0] : load_or_zero(static_cast<const T*>(op.grad_h_n), of_sequence);
        if (b < rows.batch) {
            dh += load_or_zero(static_cast<const T*>(op.grad_output), ((rows.row + b) * layer.directions + d) * S + u);
            if (layer.projection) {
                static_cast<T*>(op.grad_projected)[(d * N + rows.row + b) * S + u] = to_storage<T>(dh);
            }
        } else if (op.grad_h0 != nullptr) {
            static_cast<T*>(op.grad_h0)[of_sequence] = to_storage<T>(dh);
        }
        if (!layer.projection) {
            finish_cell<T>(args, rows, d, b, u, dh);
        }
    }
}

// With a projection: the gradient of o tanh(c) = dh W_hr, then the cell.
template <class Tile, class T>
__device__ void projection_phase(const BackwardArgs& args, const StepRows& rows, bool resident, T* slice,
                                 Accumulator<T>* tile) {
    const LstmBackward& op = args.op;
    const LstmLayer& layer = op.layer;
    const int64_t d = blockIdx.z, N = layer.steps.rows;
    const int64_t first_unit = int64_t{blockIdx.x} * Tile::kBlockUnits;
    const auto* grad_projected = static_cast<const T*>(op.grad_projected);
    const WeightView<T> weights = projection_weights<T>(layer, d);
    const int64_t end = rows.batch > rows.from ? rows.batch : rows.from;
    for (int64_t first = int64_t{blockIdx.y} * Tile::kBlockRows; first < end;
         first += int64_t{gridDim.y} * Tile::kBlockRows) {
        auto grad_projected_row = [&](int64_t row) -> const T* {
            const int64_t b = first + row;
            return b < rows.batch ? grad_projected + (d * N + rows.row + b) * layer.state : nullptr;
        };
        Accumulator<T> sum[1] = {0};
        recurrent_product<Tile, 1, T>(sum, grad_projected_row, weights, first_unit, resident, slice, tile);
        const int64_t b = first + Tile::row(), u = first_unit + Tile::unit();
        if (Tile::owns() && b < end && u < layer.hidden) {
            finish_cell<T>(args, rows, d, b, u, sum[0]);
        }
    }
}

// Shared memory: the tile of gradients, then the block's weights (all of them, or one tile).
template <class Tile, class T>
__global__ void __launch_bounds__(kThreads, 1)
    lstm_backward_kernel(const __grid_constant__ BackwardArgs args, const __grid_constant__ RecurrentPlan plan,
                         unsigned long long* counters, int64_t first_phase, int64_t end_phase) {
    const LstmLayer& layer = args.op.layer;
    const int64_t d = blockIdx.z;
    auto* tile = reinterpret_cast<Accumulator<T>*>(shared_memory());
    auto* slice = reinterpret_cast<T*>(tile + Tile::kBlockRows * Tile::kTileK);
    T* projection_slice = slice;
    if (plan.resident) {
        const int64_t first_unit = int64_t{blockIdx.x} * Tile::kBlockUnits;
        stage_weights<Tile, 1>(slice, state_weights<T>(layer, d), first_unit, 0,
                               static_cast<int>(passes_of<Tile>(4 * layer.hidden)));
        if (layer.projection) {
            projection_slice += weight_slice_elements<Tile, 1>(4 * layer.hidden);
            stage_weights<Tile, 1>(projection_slice, projection_weights<T>(layer, d), first_unit, 0,
                                   static_cast<int>(passes_of<Tile>(layer.state)));
        }
    }
    const int phases_a_step = layer.projection ? 2 : 1;
    for (int64_t phase = first_phase; phase < end_phase; ++phase) {
        const int64_t step = phase / phases_a_step;
        const bool descending = d == 0;
        const StepRows rows = rows_of_step(layer.steps, descending ? layer.steps.count - 1 - step : step, descending);
        if (phase % phases_a_step == 0) {
            state_phase<Tile, T>(args, rows, plan.resident, slice, tile);
        } else {
            projection_phase<Tile, T>(args, rows, plan.resident, projection_slice, tile);
        }
        if (phase + 1 < end_phase) {
            rows_barrier(counters);
        }
    }
}

template <class Tile, class T>
cudaError_t run(const BackwardArgs& args, cudaStream_t stream) {
    const LstmLayer& layer = args.op.layer;
    const int64_t tile_bytes = int64_t{Tile::kBlockRows} * Tile::kTileK * int64_t{sizeof(Accumulator<T>)};
    const int64_t resident = weight_slice_elements<Tile, 1>(4 * layer.hidden) +
                             (layer.projection ? weight_slice_elements<Tile, 1>(layer.state) : 0);
    const int64_t streamed = weight_slice_elements<Tile, 1>(Tile::kTileK);
    RecurrentPlan plan;
    const auto kernel = lstm_backward_kernel<Tile, T>;
    if (cudaError_t error =
            plan_recurrence<Tile>(&plan, kernel, layer.form, layer.hidden, layer.steps.batch, layer.directions,
                                  static_cast<size_t>(tile_bytes + resident * int64_t{sizeof(T)}),
                                  static_cast<size_t>(tile_bytes + streamed * int64_t{sizeof(T)}));
        error != cudaSuccess) {
        return error;
    }
    const int64_t steps = layer.steps.count + (args.op.grad_h0 != nullptr ? 1 : 0);
    auto* counters = static_cast<unsigned long long*>(args.op.workspace);
    return launch_recurrence(kernel, plan, args, counters, steps * (layer.projection ? 2 : 1), stream);
}

template <class T>
cudaError_t run(const BackwardArgs& args, cudaStream_t stream) {
    return args.op.layer.steps.batch <= kNarrowBatch ? run<NarrowTile, T>(args, stream)
                                                     : run<WideTile, T>(args, stream);
}

}  // namespace

size_t lstm_backward_workspace(const LstmLayer& layer) {
    const int64_t values = layer.directions * layer.steps.batch * layer.hidden;
    return static_cast<size_t>(grad_cell_at(layer) + align_up(values * accumulator_bytes(layer.dtype)));
}

cudaError_t lstm_backward(const LstmBackward& args, cudaStream_t stream) {
    if (args.layer.steps.rows == 0) {
        return cudaSuccess;
    }
    const BackwardArgs kernel_args{args, static_cast<unsigned char*>(args.workspace) + grad_cell_at(args.layer)};
    switch (args.layer.dtype) {
        case DType::f32:
            return run<float>(kernel_args, stream);
        case DType::f64:
            return run<double>(kernel_args, stream);
        case DType::bf16:
            return run<bf16>(kernel_args, stream);
        case DType::f16:
            return run<fp16>(kernel_args, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace pykernels::cuda
