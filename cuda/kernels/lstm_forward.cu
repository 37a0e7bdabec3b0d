#include "cuda/core/recurrent.cuh"
#include "cuda/kernels/lstm.h"

namespace pykernels::cuda {
namespace {

// Workspace: barrier counters, the cell state [D, B, H] in the accumulator's type, and with a projection what is to be
// projected, o tanh(c) [D, B, H].
struct Workspace {
    unsigned long long* counters;
    void* cell_state;
    void* hidden;
};

// Places the parts and returns the size of all.
size_t lay_out(Workspace* parts, void* base, const LstmLayer& layer) {
    auto* bytes = static_cast<unsigned char*>(base);
    const int64_t values = layer.directions * layer.steps.batch * layer.hidden;
    const int64_t cells_at = align_up(counter_bytes(layer.steps.batch, layer.directions));
    const int64_t hidden_at = cells_at + align_up(values * accumulator_bytes(layer.dtype));
    const int64_t end = hidden_at + (layer.projection ? align_up(values * storage_bytes(layer.dtype)) : 0);
    if (base != nullptr) {
        *parts = {reinterpret_cast<unsigned long long*>(bytes), bytes + cells_at, bytes + hidden_at};
    }
    return static_cast<size_t>(end);
}

struct ForwardArgs {
    LstmForward op;
    void* cell_state;
    void* hidden;
};

template <class T>
__device__ WeightView<T> gate_weights(const LstmLayer& layer, int64_t d) {
    return {static_cast<const T*>(layer.weight_hh[d]),
            layer.state,
            layer.hidden * layer.state,
            1,
            layer.hidden,
            layer.state};
}

template <class T>
__device__ WeightView<T> projection_weights(const LstmLayer& layer, int64_t d) {
    return {static_cast<const T*>(layer.weight_hr[d]), layer.hidden, 0, 1, layer.state, layer.hidden};
}

// From the four sums of W_hh h' to the cell and h of unit u, sequence b.
template <class T>
__device__ void finish_gates(const ForwardArgs& args, const StepRows& rows, int64_t d, int64_t b, int64_t u,
                             const Accumulator<T> (&sum)[4]) {
    using A = Accumulator<T>;
    const LstmForward& op = args.op;
    const LstmLayer& layer = op.layer;
    const int64_t H = layer.hidden, B = layer.steps.batch;
    const int64_t row = d * layer.steps.rows + rows.row + b;
    const int64_t of_sequence = (d * B + b) * H + u;
    T* gates = static_cast<T*>(op.gates) + row * 4 * H + u;
    A* cell_state = static_cast<A*>(args.cell_state) + of_sequence;
    const A before = b < rows.from ? *cell_state : load_or_zero(static_cast<const T*>(layer.c0), of_sequence);

    A i = to_accumulator(gates[0]) + sum[0];
    A f = to_accumulator(gates[H]) + sum[1];
    A g = to_accumulator(gates[2 * H]) + sum[2];
    A o = to_accumulator(gates[3 * H]) + sum[3];
    const T* peephole = static_cast<const T*>(layer.peephole[d]);
    if (peephole != nullptr) {
        i += to_accumulator(peephole[u]) * before;
        f += to_accumulator(peephole[H + u]) * before;
    }
    i = logistic(i);
    f = logistic(f);
    g = hyperbolic_tangent(g);
    const A cell = f * before + i * g;
    if (peephole != nullptr) {
        o += to_accumulator(peephole[2 * H + u]) * cell;
    }
    o = logistic(o);
    const T h = to_storage<T>(o * hyperbolic_tangent(cell));

    *cell_state = cell;
    if (op.save) {
        gates[0] = to_storage<T>(i);
        gates[H] = to_storage<T>(f);
        gates[2 * H] = to_storage<T>(g);
        gates[3 * H] = to_storage<T>(o);
        static_cast<T*>(op.cells)[row * H + u] = to_storage<T>(cell);
    }
    const bool last = b >= rows.to;
    if (last) {
        static_cast<T*>(op.c_n)[of_sequence] = to_storage<T>(cell);
    }
    if (layer.projection) {
        static_cast<T*>(args.hidden)[of_sequence] = h;
    } else {
        static_cast<T*>(op.output)[((rows.row + b) * layer.directions + d) * H + u] = h;
        if (last) {
            static_cast<T*>(op.h_n)[of_sequence] = h;
        }
    }
}

// Gates of one step: h' W_hh^T, then the cell.
template <class Tile, class T>
__device__ void gates_phase(const ForwardArgs& args, const StepRows& rows, bool resident, T* slice,
                            Accumulator<T>* tile) {
    const LstmLayer& layer = args.op.layer;
    const int64_t d = blockIdx.z, S = layer.state;
    const int64_t first_unit = int64_t{blockIdx.x} * Tile::kBlockUnits;
    const auto* output = static_cast<const T*>(args.op.output);
    const auto* h0 = static_cast<const T*>(layer.h0);
    const WeightView<T> weights = gate_weights<T>(layer, d);
    for (int64_t first = int64_t{blockIdx.y} * Tile::kBlockRows; first < rows.batch;
         first += int64_t{gridDim.y} * Tile::kBlockRows) {
        auto state_before = [&](int64_t row) -> const T* {
            const int64_t b = first + row;
            if (b < rows.from) {
                return output + ((rows.row_from + b) * layer.directions + d) * S;
            }
            return b < rows.batch && h0 != nullptr ? h0 + (d * layer.steps.batch + b) * S : nullptr;
        };
        Accumulator<T> sum[4];
        recurrent_product<Tile, 4, T>(sum, state_before, weights, first_unit, resident, slice, tile);
        const int64_t b = first + Tile::row(), u = first_unit + Tile::unit();
        if (Tile::owns() && b < rows.batch && u < layer.hidden) {
            finish_gates<T>(args, rows, d, b, u, sum);
        }
    }
}

// Projection of one step: h = (o tanh(c)) W_hr^T.
template <class Tile, class T>
__device__ void projection_phase(const ForwardArgs& args, const StepRows& rows, bool resident, T* slice,
                                 Accumulator<T>* tile) {
    const LstmForward& op = args.op;
    const LstmLayer& layer = op.layer;
    const int64_t d = blockIdx.z, B = layer.steps.batch, S = layer.state;
    const int64_t first_unit = int64_t{blockIdx.x} * Tile::kBlockUnits;
    if (first_unit >= S) {
        return;
    }
    const auto* hidden = static_cast<const T*>(args.hidden);
    const WeightView<T> weights = projection_weights<T>(layer, d);
    for (int64_t first = int64_t{blockIdx.y} * Tile::kBlockRows; first < rows.batch;
         first += int64_t{gridDim.y} * Tile::kBlockRows) {
        auto hidden_row = [&](int64_t row) -> const T* {
            const int64_t b = first + row;
            return b < rows.batch ? hidden + (d * B + b) * layer.hidden : nullptr;
        };
        Accumulator<T> sum[1];
        recurrent_product<Tile, 1, T>(sum, hidden_row, weights, first_unit, resident, slice, tile);
        const int64_t b = first + Tile::row(), u = first_unit + Tile::unit();
        if (Tile::owns() && b < rows.batch && u < S) {
            const T h = to_storage<T>(sum[0]);
            static_cast<T*>(op.output)[((rows.row + b) * layer.directions + d) * S + u] = h;
            if (b >= rows.to) {
                static_cast<T*>(op.h_n)[(d * B + b) * S + u] = h;
            }
        }
    }
}

// Shared memory: the tile of states, then the block's weights (all of them, or one tile).
template <class Tile, class T>
__global__ void __launch_bounds__(kThreads, 1)
    lstm_forward_kernel(const __grid_constant__ ForwardArgs args, const __grid_constant__ RecurrentPlan plan,
                        unsigned long long* counters, int64_t first_phase, int64_t end_phase) {
    const LstmLayer& layer = args.op.layer;
    const int64_t d = blockIdx.z;
    auto* tile = reinterpret_cast<Accumulator<T>*>(shared_memory());
    auto* slice = reinterpret_cast<T*>(tile + Tile::kBlockRows * Tile::kTileK);
    T* projection_slice = slice;
    if (plan.resident) {
        const int64_t first_unit = int64_t{blockIdx.x} * Tile::kBlockUnits;
        stage_weights<Tile, 4>(slice, gate_weights<T>(layer, d), first_unit, 0,
                               static_cast<int>(passes_of<Tile>(layer.state)));
        if (layer.projection) {
            projection_slice += weight_slice_elements<Tile, 4>(layer.state);
            stage_weights<Tile, 1>(projection_slice, projection_weights<T>(layer, d), first_unit, 0,
                                   static_cast<int>(passes_of<Tile>(layer.hidden)));
        }
    }
    const int phases_a_step = layer.projection ? 2 : 1;
    for (int64_t phase = first_phase; phase < end_phase; ++phase) {
        const int64_t step = phase / phases_a_step;
        const bool descending = d == 1;
        const StepRows rows = rows_of_step(layer.steps, descending ? layer.steps.count - 1 - step : step, descending);
        if (phase % phases_a_step == 0) {
            gates_phase<Tile, T>(args, rows, plan.resident, slice, tile);
        } else {
            projection_phase<Tile, T>(args, rows, plan.resident, projection_slice, tile);
        }
        if (phase + 1 < end_phase) {
            rows_barrier(counters);
        }
    }
}

template <class Tile, class T>
cudaError_t run(const ForwardArgs& args, unsigned long long* counters, cudaStream_t stream) {
    const LstmLayer& layer = args.op.layer;
    const int64_t tile_bytes = int64_t{Tile::kBlockRows} * Tile::kTileK * int64_t{sizeof(Accumulator<T>)};
    const int64_t resident = weight_slice_elements<Tile, 4>(layer.state) +
                             (layer.projection ? weight_slice_elements<Tile, 1>(layer.hidden) : 0);
    const int64_t streamed = weight_slice_elements<Tile, 4>(Tile::kTileK);
    RecurrentPlan plan;
    const auto kernel = lstm_forward_kernel<Tile, T>;
    if (cudaError_t error =
            plan_recurrence<Tile>(&plan, kernel, layer.form, layer.hidden, layer.steps.batch, layer.directions,
                                  static_cast<size_t>(tile_bytes + resident * int64_t{sizeof(T)}),
                                  static_cast<size_t>(tile_bytes + streamed * int64_t{sizeof(T)}));
        error != cudaSuccess) {
        return error;
    }
    const int64_t phases = layer.steps.count * (layer.projection ? 2 : 1);
    return launch_recurrence(kernel, plan, args, counters, phases, stream);
}

template <class T>
cudaError_t run(const ForwardArgs& args, unsigned long long* counters, cudaStream_t stream) {
    return args.op.layer.steps.batch <= kNarrowBatch ? run<NarrowTile, T>(args, counters, stream)
                                                     : run<WideTile, T>(args, counters, stream);
}

}  // namespace

size_t lstm_forward_workspace(const LstmLayer& layer) { return lay_out(nullptr, nullptr, layer); }

cudaError_t lstm_forward(const LstmForward& args, cudaStream_t stream) {
    if (args.layer.steps.rows == 0) {
        return cudaSuccess;
    }
    Workspace parts{};
    lay_out(&parts, args.workspace, args.layer);
    const ForwardArgs kernel_args{args, parts.cell_state, parts.hidden};
    switch (args.layer.dtype) {
        case DType::f32:
            return run<float>(kernel_args, parts.counters, stream);
        case DType::f64:
            return run<double>(kernel_args, parts.counters, stream);
        case DType::bf16:
            return run<bf16>(kernel_args, parts.counters, stream);
        case DType::f16:
            return run<fp16>(kernel_args, parts.counters, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace pykernels::cuda
