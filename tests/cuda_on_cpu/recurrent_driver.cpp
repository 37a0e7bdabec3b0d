// Runs the recurrent kernels on buffers that are exactly as large as the contracts say, without torch:
//   recurrent_driver KIND SEED          KIND: lstm, gru or rnn
// prints, for each of some layers, a hash of every output's bits; a failed launch prints "error: <report>", exit 3.
// Under AddressSanitizer a read or write beyond a buffer ends it; with several seeds, a race changes a hash.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cuda/kernels/gru.h"
#include "cuda/kernels/lstm.h"
#include "cuda/kernels/rnn.h"
#include "executor.h"

namespace {

using namespace pykernels::cuda;

class Buffers {
  public:
    explicit Buffers(DType dtype) : dtype_(dtype) {}

    // Drawn values in [-0.5, 0.5).
    void* drawn(int64_t count) {
        unsigned char* bytes = raw(count * storage_bytes(dtype_));
        for (int64_t i = 0; i < count; ++i) {
            state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
            const double value = static_cast<double>(state_ >> 40) / (1 << 24) - 0.5;
            const auto narrow = static_cast<float>(value);
            uint32_t bits;
            std::memcpy(&bits, &narrow, 4);
            const auto upper = static_cast<uint16_t>(bits >> 16);  // truncated to bf16; some number as fp16
            const void* source = dtype_ == DType::f64   ? static_cast<const void*>(&value)
                                 : dtype_ == DType::f32 ? static_cast<const void*>(&narrow)
                                                        : static_cast<const void*>(&upper);
            std::memcpy(bytes + i * storage_bytes(dtype_), source, static_cast<size_t>(storage_bytes(dtype_)));
        }
        return bytes;
    }
    // Not-a-numbers; hashed at the end.
    void* output(int64_t count) {
        unsigned char* bytes = raw(count * storage_bytes(dtype_));
        std::memset(bytes, 0xff, static_cast<size_t>(count * storage_bytes(dtype_)));
        return hashed(bytes, count);
    }
    // Drawn, and overwritten with what is hashed at the end.
    void* in_place(int64_t count) { return hashed(drawn(count), count); }
    unsigned char* raw(int64_t bytes) {
        held_.emplace_back(static_cast<unsigned char*>(std::malloc(static_cast<size_t>(bytes))), &std::free);
        return held_.back().get();
    }
    void* raw(size_t bytes) { return raw(static_cast<int64_t>(bytes)); }
    uint64_t hash() const {
        uint64_t value = 14695981039346656037ull;
        for (const auto& [bytes, size] : hashed_) {
            for (size_t i = 0; i < size; ++i) {
                value = (value ^ bytes[i]) * 1099511628211ull;
            }
        }
        return value;
    }

  private:
    void* hashed(void* data, int64_t count) {
        auto* bytes = static_cast<unsigned char*>(data);
        hashed_.push_back({bytes, static_cast<size_t>(count * storage_bytes(dtype_))});
        return data;
    }

    DType dtype_;
    uint64_t state_ = 1;
    std::vector<std::unique_ptr<unsigned char, decltype(&std::free)>> held_;
    std::vector<std::pair<unsigned char*, size_t>> hashed_;
};

struct Drawing {
    DType dtype;
    LaunchForm form;
    std::vector<int64_t> batch_sizes;
    bool packed;
    int64_t directions, hidden, projection;
    bool variant;  // lstm: peepholes; gru: the reset comes before the product; rnn: ReLU
};

// A drawn layer: what all kinds have.
struct Layer {
    Buffers buffers;
    int64_t D, N, B, H, S;
    std::vector<int64_t> offsets{0};
    RecurrentLayer common{};
    cudaError_t error = cudaSuccess;

    Layer(const Drawing& drawing, int64_t gates) : buffers(drawing.dtype) {
        const auto steps = static_cast<int64_t>(drawing.batch_sizes.size());
        for (const int64_t size : drawing.batch_sizes) {
            offsets.push_back(offsets.back() + size);
        }
        D = drawing.directions;
        N = offsets.back();
        B = drawing.batch_sizes[0];
        H = drawing.hidden;
        S = drawing.projection > 0 ? drawing.projection : H;
        common.dtype = drawing.dtype;
        common.form = drawing.form;
        common.steps = {nullptr, steps, B, N};
        common.directions = D;
        common.hidden = H;
        common.state = S;
        common.projection = drawing.projection > 0;
        for (int64_t d = 0; d < D; ++d) {
            common.weight_hh[d] = buffers.drawn(gates * H * S);
            common.weight_projection[d] = common.projection ? buffers.drawn(S * H) : nullptr;
        }
        common.h0 = buffers.drawn(D * B * S);
        if (drawing.packed) {
            auto* on_device = reinterpret_cast<int64_t*>(buffers.raw((steps + 1) * 8));
            then(write_offsets(on_device, offsets.data(), steps + 1, nullptr));
            common.steps.offsets = on_device;
        }
    }
    RecurrentStates states() { return {buffers.output(N * D * S), buffers.output(D * B * S)}; }
    RecurrentGradients gradients() {
        return {buffers.drawn(N * D * S), buffers.drawn(D * B * S),
                common.projection ? buffers.output(D * N * S) : nullptr, buffers.output(D * B * S)};
    }
    // Keeps the first error.
    void then(cudaError_t next) { error = error != cudaSuccess ? error : next; }
};

// The kind's own part of the layer is what `Kind` adds to RecurrentLayer.
template <class Kind>
Kind with_common(const Layer& layer) {
    Kind kind{};
    static_cast<RecurrentLayer&>(kind) = layer.common;
    return kind;
}

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
    const std::string kind = argv[1];
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
        drawing.projection = kind == "gru" ? 0 : drawing.projection;
        // Once with room for the weights, once (with long rows) without.
        for (const uint64_t shared_limit : {227 * 1024, 66 * 1024}) {
            cuda_on_cpu_configure(seed, 64, shared_limit);
            Layer layer(drawing, kind == "lstm" ? 4 : kind == "gru" ? 3 : 1);
            (kind == "lstm" ? run_lstm : kind == "gru" ? run_gru : run_rnn)(layer, drawing.variant);
            if (layer.error != cudaSuccess) {
                std::printf("error: %d %s\n", static_cast<int>(layer.error), cudaGetErrorString(layer.error));
                return 3;
            }
            std::printf("%016llx\n", static_cast<unsigned long long>(layer.buffers.hash()));
        }
    }
    return 0;
}
