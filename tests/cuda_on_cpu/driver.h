// Buffers and drawn layers for the drivers, without torch: each buffer is exactly as large as the contract says.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "cuda/kernels/recurrent.h"
#include "cuda/kernels/variant.h"

namespace driver {

using namespace pykernels::cuda;
using pykernels::gates_of;
using pykernels::RecurrentKind;

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
    // 0 or 3, of bytes.
    const uint8_t* mask(int64_t count) {
        unsigned char* bytes = raw(count);
        for (int64_t i = 0; i < count; ++i) {
            state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
            bytes[i] = (state_ >> 60) < 5 ? 3 : 0;
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

// One of the variants' kinds; `own` is the kind's own flag, as in Drawing.
void run_variant(Layer& layer, RecurrentKind kind, bool own, bool layer_norm);

}  // namespace driver
