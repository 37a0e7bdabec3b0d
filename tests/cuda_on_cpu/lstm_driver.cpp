// Runs the LSTM kernels on buffers that are exactly as large as the contract says, without torch:
//   lstm_driver SEED
// prints, for each of some layers, a hash of every output's bits; a failed launch prints "error: <report>", exit 3.
// Under AddressSanitizer a read or write beyond a buffer ends it; with several seeds, a race changes a hash.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "cuda/kernels/lstm.h"
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
        hashed_.push_back({bytes, static_cast<size_t>(count * storage_bytes(dtype_))});
        return bytes;
    }
    unsigned char* raw(int64_t bytes) {
        held_.emplace_back(static_cast<unsigned char*>(std::malloc(static_cast<size_t>(bytes))), &std::free);
        return held_.back().get();
    }
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
    bool peephole;
};

cudaError_t run(const Drawing& drawing, uint64_t* hash) {
    const auto steps = static_cast<int64_t>(drawing.batch_sizes.size());
    const int64_t D = drawing.directions, H = drawing.hidden, S = drawing.projection > 0 ? drawing.projection : H;
    const int64_t B = drawing.batch_sizes[0];
    Buffers buffers(drawing.dtype);
    std::vector<int64_t> offsets{0};
    for (const int64_t size : drawing.batch_sizes) {
        offsets.push_back(offsets.back() + size);
    }
    const int64_t N = offsets.back();

    LstmLayer layer{};
    layer.dtype = drawing.dtype;
    layer.form = drawing.form;
    layer.steps = {nullptr, steps, B, N};
    layer.directions = D;
    layer.hidden = H;
    layer.state = S;
    layer.projection = drawing.projection > 0;
    for (int64_t d = 0; d < D; ++d) {
        layer.weight_hh[d] = buffers.drawn(4 * H * S);
        layer.weight_hr[d] = layer.projection ? buffers.drawn(S * H) : nullptr;
        layer.peephole[d] = drawing.peephole ? buffers.drawn(3 * H) : nullptr;
    }
    layer.h0 = buffers.drawn(D * B * S);
    layer.c0 = buffers.drawn(D * B * H);
    cudaError_t error = cudaSuccess;
    if (drawing.packed) {
        auto* on_device = reinterpret_cast<int64_t*>(buffers.raw((steps + 1) * 8));
        error = write_offsets(on_device, offsets.data(), steps + 1, nullptr);
        layer.steps.offsets = on_device;
    }

    LstmForward forward{};
    forward.layer = layer;
    forward.gates = buffers.drawn(D * N * 4 * H);
    forward.cells = buffers.output(D * N * H);
    forward.output = buffers.output(N * D * S);
    forward.h_n = buffers.output(D * B * S);
    forward.c_n = buffers.output(D * B * H);
    forward.workspace = buffers.raw(static_cast<int64_t>(lstm_forward_workspace(layer)));
    forward.save = true;
    error = error != cudaSuccess ? error : lstm_forward(forward, nullptr);

    LstmBackward backward{};
    backward.layer = layer;
    backward.gates = forward.gates;
    backward.cells = forward.cells;
    backward.grad_output = buffers.drawn(N * D * S);
    backward.grad_h_n = buffers.drawn(D * B * S);
    backward.grad_c_n = buffers.drawn(D * B * H);
    backward.grad_gates = buffers.output(D * N * 4 * H);
    backward.grad_projected = layer.projection ? buffers.output(D * N * S) : nullptr;
    backward.grad_h0 = buffers.output(D * B * S);
    backward.grad_c0 = buffers.output(D * B * H);
    backward.workspace = buffers.raw(static_cast<int64_t>(lstm_backward_workspace(layer)));
    error = error != cudaSuccess ? error : lstm_backward(backward, nullptr);

    PreviousStates previous{
        layer.dtype, layer.steps, D, S, forward.output, S, D * S, layer.h0, buffers.output(D * N * S)};
    error = error != cudaSuccess ? error : gather_previous_states(previous, nullptr);
    *hash = buffers.hash();
    return error;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        return 2;
    }
    const uint64_t seed = std::strtoull(argv[1], nullptr, 10);
    const auto together = LaunchForm::cooperative, apart = LaunchForm::per_step;
    const std::vector<Drawing> drawings = {
        {DType::f32, together, {3, 3, 3}, false, 2, 9, 0, true},
        {DType::f32, together, {35, 20, 5, 1}, true, 2, 17, 5, true},
        {DType::f32, apart, {35, 20, 5, 1}, true, 2, 17, 5, true},
        {DType::f64, together, {6, 6}, false, 1, 131, 0, false},
        {DType::f64, apart, {6, 6}, false, 1, 131, 0, false},
        {DType::bf16, together, {2, 1, 1}, true, 2, 21, 7, false},
        {DType::f16, apart, {9, 8, 3}, true, 1, 12, 0, true},
    };
    for (const Drawing& drawing : drawings) {
        // Once with room for the weights, once (with long rows) without.
        for (const uint64_t shared_limit : {227 * 1024, 66 * 1024}) {
            cuda_on_cpu_configure(seed, 64, shared_limit);
            uint64_t hash = 0;
            if (const cudaError_t error = run(drawing, &hash); error != cudaSuccess) {
                std::printf("error: %d %s\n", static_cast<int>(error), cudaGetErrorString(error));
                return 3;
            }
            std::printf("%016llx\n", static_cast<unsigned long long>(hash));
        }
    }
    return 0;
}
