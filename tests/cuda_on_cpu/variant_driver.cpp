// The variants' kernels for recurrent_driver.cpp: forward and backward of one layer, with all that can be asked for.
#include "driver.h"

namespace driver {

void run_variant(Layer& layer, RecurrentKind kind, bool own, bool layer_norm) {
    auto& [buffers, D, N, B, H, S, offsets, common, error] = layer;
    const bool lstm = kind == RecurrentKind::lstm, gru = kind == RecurrentKind::gru;
    const int64_t width = gates_of(kind) * H, gates = kind == RecurrentKind::rnn ? H : 4 * H;
    const bool packed = common.steps.offsets != nullptr;
    auto variant = with_common<VariantLayer>(layer);
    variant.kind = kind;
    variant.form = gru ? !own : own;
    variant.layer_norm = layer_norm;
    for (int64_t d = 0; d < D; ++d) {
        variant.bias[d] = buffers.drawn(width);
        variant.peephole[d] = lstm && own ? buffers.drawn(3 * H) : nullptr;
        variant.gain[d] = layer_norm ? buffers.drawn(width) : nullptr;
        variant.cell_gain[d] = lstm && layer_norm ? buffers.drawn(H) : nullptr;
        variant.cell_shift[d] = lstm && layer_norm ? buffers.drawn(H) : nullptr;
    }
    variant.c0 = lstm ? buffers.drawn(D * B * H) : nullptr;
    variant.state_scale = buffers.drawn(D * B * S);
    variant.zoneout = {packed ? buffers.mask(D * N * S) : nullptr, 0.25};
    variant.zoneout_cell = {packed && lstm ? buffers.mask(D * N * H) : nullptr, lstm ? 0.125 : 0};

    VariantForward forward{};
    forward.layer = variant;
    forward.input = buffers.drawn(N * D * width);
    forward.fed0 = buffers.drawn(D * B * S);
    forward.states = layer.states();
    forward.c_n = lstm ? buffers.output(D * B * H) : nullptr;
    forward.gates = buffers.output(D * N * gates);
    forward.cells = lstm ? buffers.output(D * N * H) : nullptr;
    forward.normalized = layer_norm ? buffers.output(D * N * width) : nullptr;
    forward.stats = layer_norm ? buffers.output(D * N * (lstm ? 3 : 1)) : nullptr;
    forward.workspace = buffers.raw(variant_forward_workspace(variant));
    layer.then(variant_forward(forward, nullptr));

    VariantBackward backward{};
    backward.layer = variant;
    backward.gradients = layer.gradients();
    backward.grad_c_n = lstm ? buffers.drawn(D * B * H) : nullptr;
    backward.gates = forward.gates;
    backward.cells = forward.cells;
    backward.normalized = forward.normalized;
    backward.stats = forward.stats;
    backward.output = forward.states.output;
    backward.grad_input = buffers.output(N * D * width);
    backward.grad_recurrent = gru && variant.form ? buffers.output(D * N * width) : nullptr;
    backward.grad_sums = layer_norm ? buffers.output(D * N * width) : nullptr;
    backward.fed = buffers.output(D * N * S);
    backward.cell_new = lstm ? buffers.output(D * N * H) : nullptr;
    backward.grad_seen = lstm && layer_norm ? buffers.output(D * N * H) : nullptr;
    backward.grad_c0 = lstm ? buffers.output(D * B * H) : nullptr;
    backward.workspace = buffers.raw(variant_backward_workspace(variant));
    layer.then(variant_backward(backward, nullptr));
}

}  // namespace driver
