// Runs the recurrent kernels on buffers that are exactly as large as the contracts say, without torch:
//   recurrent_driver KIND SEED          KIND: lstm, gru or rnn, or one of these and _variant
// prints, for each of some layers, a hash of every output's bits; a failed launch prints "error: <report>", exit 3.
// Under AddressSanitizer a read or write beyond a buffer ends it; with several seeds, a race changes a hash.
#include <cstdio>
#include <string>

#include "cuda/kernels/gru.h"
#include "cuda/kernels/lstm.h"
#include "cuda/kernels/rnn.h"
#include "driver.h"
#include "executor.h"

namespace {

using namespace driver;

void run_lstm(Layer& layer, bool peephole) {
    auto& [buffers, D, N, B, H, S, offsets, common, error] = layer;
    auto lstm = with_common<LstmLayer>(layer);
    for (int64_t d = 0; d < D; ++d) {
        lstm.peephole[d] = peephole ? buffers.drawn(3 * H) : nullptr;
    }
    lstm.c0 = buffers.drawn(D * B * H);
    const LstmForward forward{lstm,
                              layer.states(),
                              buffers.in_place(D * N * 4 * H),
                              buffers.output(D * N * H),
                              buffers.output(D * B * H),
                              buffers.raw(lstm_forward_workspace(lstm)),
                              true};
    layer.then(lstm_forward(forward, nullptr));
    const LstmBackward backward{lstm,
                                layer.gradients(),
                                forward.gates,
                                forward.cells,
                                buffers.drawn(D * B * H),
                                buffers.output(D * N * 4 * H),
                                buffers.output(D * B * H),
                                buffers.raw(lstm_backward_workspace(lstm))};
    layer.then(lstm_backward(backward, nullptr));
    layer.then(gather_previous_states(
        {common.dtype, common.steps, D, S, forward.states.output, S, D * S, common.h0, buffers.output(D * N * S)},
        nullptr));
}

void run_gru(Layer& layer, bool reset_before) {
    auto& [buffers, D, N, B, H, S, offsets, common, error] = layer;
    auto gru = with_common<GruLayer>(layer);
    gru.reset_after = !reset_before;
    for (int64_t d = 0; d < D; ++d) {
        gru.bias_hn[d] = reset_before ? nullptr : buffers.drawn(H);
    }
    for (const bool save : {false, true}) {
        const int64_t columns = save ? 4 : 3;
        const GruForward forward{gru, layer.states(), buffers.in_place(D * N * columns * H),
                                 buffers.raw(gru_forward_workspace(gru)), save};
        layer.then(gru_forward(forward, nullptr));
        if (save) {
            const GruBackward backward{gru,
                                       layer.gradients(),
                                       forward.gates,
                                       forward.states.output,
                                       buffers.output(D * N * (reset_before ? 3 : 4) * H),
                                       buffers.raw(gru_backward_workspace(gru))};
            layer.then(gru_backward(backward, nullptr));
        }
    }
}

void run_rnn(Layer& layer, bool relu) {
    auto& [buffers, D, N, B, H, S, offsets, common, error] = layer;
    auto rnn = with_common<RnnLayer>(layer);
    rnn.relu = relu;
    for (int64_t d = 0; d < D; ++d) {
        rnn.bias_projection[d] = common.projection ? buffers.drawn(S) : nullptr;
    }
    RnnForward forward{rnn, layer.states(), nullptr, buffers.raw(rnn_forward_workspace(rnn))};
    if (common.projection) {
        forward.hidden = buffers.in_place(D * N * H);
    } else {
        forward.states.output = buffers.in_place(N * D * S);
    }
    layer.then(rnn_forward(forward, nullptr));
    const RnnBackward backward{rnn,
                               layer.gradients(),
                               forward.states.output,
                               forward.hidden,
                               buffers.output(D * N * H),
                               buffers.raw(rnn_backward_workspace(rnn))};
    layer.then(rnn_backward(backward, nullptr));
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        return 2;
    }
    std::string kind = argv[1];
    const bool variant = kind.ends_with("_variant");
    kind = kind.substr(0, kind.find('_'));
    const bool lstm = kind == "lstm", gru = kind == "gru";
    const uint64_t seed = std::strtoull(argv[2], nullptr, 10);
    const auto together = LaunchForm::cooperative, apart = LaunchForm::per_step;
    const std::vector<Drawing> drawings = {
        {DType::f32, together, {3, 3, 3}, false, 2, 9, 0, true},
        {DType::f32, together, {35, 20, 5, 1}, true, 2, 17, 5, true},
        {DType::f32, apart, {35, 20, 5, 1}, true, 2, 17, 5, true},
        {DType::f32, together, {6, 5, 2}, true, 2, 17, 0, false},
        {DType::f64, together, {6, 6}, false, 1, 131, 0, false},
        {DType::f64, apart, {6, 6}, false, 1, 131, 0, false},
        {DType::bf16, together, {2, 1, 1}, true, 2, 21, 26, false},
        {DType::f16, apart, {9, 8, 3}, true, 1, 12, 0, true},
    };
    for (Drawing drawing : drawings) {
        drawing.projection = gru || (variant && !lstm) ? 0 : drawing.projection;
        // Once with room for the weights, once (with long rows) without.
        for (const uint64_t shared_limit : {227 * 1024, 66 * 1024}) {
            cuda_on_cpu_configure(seed, 64, shared_limit);
            Layer layer(drawing, lstm ? 4 : gru ? 3 : 1);
            if (variant) {
                const auto of = lstm ? RecurrentKind::lstm : gru ? RecurrentKind::gru : RecurrentKind::rnn;
                run_variant(layer, of, drawing.variant, false);
                run_variant(layer, of, gru ? false : drawing.variant, true);
            } else {
                (lstm ? run_lstm : gru ? run_gru : run_rnn)(layer, drawing.variant);
            }
            if (layer.error != cudaSuccess) {
                std::printf("error: %d %s\n", static_cast<int>(layer.error), cudaGetErrorString(layer.error));
                return 3;
            }
            std::printf("%016llx\n", static_cast<unsigned long long>(layer.buffers.hash()));
        }
    }
    return 0;
}
