// Runs the attention kernels on buffers that are exactly as large as the contract says, without torch:
//   attention_driver SEED
// prints, for each of some calls, a hash of every output's bits; a failed launch prints "error: <report>", exit 3.
#include <cstdio>
#include <string>

#include "cuda/kernels/attention.h"
#include "driver.h"
#include "executor.h"

namespace {

using namespace driver;

struct Drawn {
    DType dtype;
    int64_t batch, heads, groups, rows, keys, depth, value_depth, left, right;
    bool mask, lengths, dropout, softcap;
    uint64_t shared_limit = 227 * 1024;
};

// Heads and rows either way round, so that strides differ.
template <class Heads>
Heads heads_of(decltype(Heads::data) data, int64_t heads, int64_t rows, int64_t columns, bool rows_first) {
    if (rows_first) {
        return {data, rows * heads * columns, columns, heads * columns};
    }
    return {data, heads * rows * columns, rows * columns, columns};
}

int run(const Drawn& d) {
    Buffers stored(d.dtype), sums(d.dtype == DType::f64 ? DType::f64 : DType::f32);
    const int64_t B = d.batch, H = d.heads, G = d.groups, L = d.rows, S = d.keys, E = d.depth, F = d.value_depth;
    const auto in = [&](int64_t heads, int64_t rows, int64_t columns, bool rows_first) {
        return heads_of<HeadsIn>(stored.drawn(B * heads * rows * columns), heads, rows, columns, rows_first);
    };
    const auto out = [&](int64_t heads, int64_t rows, int64_t columns, bool rows_first) {
        return heads_of<HeadsOut>(stored.output(B * heads * rows * columns), heads, rows, columns, rows_first);
    };
    AttentionShape shape{d.dtype, B, H, G, L, S, E, F, nullptr, nullptr, d.left, d.right, true, 0.3};
    if (d.lengths) {
        auto* lengths = reinterpret_cast<int64_t*>(stored.raw(2 * B * 8));
        for (int64_t b = 0; b < B; ++b) {
            lengths[b] = L - b;
            lengths[B + b] = S - 3 * b;
        }
        shape.row_lengths = lengths;
        shape.key_lengths = lengths + B;
    }
    shape.softcap = d.softcap ? 2.0 : 0.0;
    shape.dropout_key = 7;
    shape.dropout_below = d.dropout ? 1u << 30 : 0;
    shape.kept = 4.0 / 3;

    AttentionForward forward{shape, in(H, L, E, true), in(G, S, E, false), in(G, S, F, true), {}, out(H, L, F, true)};
    if (d.mask) {  // one for all heads
        forward.mask = {stored.drawn(B * L * S), nullptr, L * S, 0, S, 1};
    } else if (d.softcap) {  // one for all rows
        forward.mask = {nullptr, stored.mask(B * S), S, 0, 0, 1};
    }
    forward.lse = sums.output(B * H * L);
    cudaError_t error = attention_forward(forward, nullptr);

    AttentionWeights weights{shape, forward.query, forward.key, forward.mask, forward.lse, {}, false};
    for (const bool average : {false, true}) {
        weights.average = average;
        weights.out = out(average ? 1 : H, L, S, average);
        error = error == cudaSuccess ? attention_weights(weights, nullptr) : error;
    }

    AttentionBackward backward{shape, forward.query, forward.key, forward.value};
    backward.out = {forward.out.data, forward.out.batch_stride, forward.out.head_stride, forward.out.row_stride};
    backward.grad_out = in(H, L, F, false);
    backward.mask = forward.mask;
    backward.lse = forward.lse;
    backward.grad_lse = sums.drawn(B * H * L);
    backward.delta = sums.output(B * H * L);
    backward.grad_query = out(H, L, E, false);
    backward.grad_key = out(G, S, E, true);
    backward.grad_value = out(G, S, F, false);
    if (d.mask) {  // its gradient for each row, with the others, and then alone for all rows
        backward.grad_mask = sums.output(L * H * S);
        backward.grad_mask_head = L * S;
        backward.grad_mask_row = S;
    }
    error = error == cudaSuccess ? attention_backward(backward, nullptr) : error;
    if (d.mask) {
        backward.grad_query = backward.grad_key = backward.grad_value = {};
        backward.grad_mask = sums.output(H * S);
        backward.grad_mask_head = S;
        backward.grad_mask_row = 0;
        error = error == cudaSuccess ? attention_backward(backward, nullptr) : error;
    }
    if (error != cudaSuccess) {
        std::printf("error: %d %s\n", static_cast<int>(error), cudaGetErrorString(error));
        return 3;
    }
    std::printf("%016llx\n", static_cast<unsigned long long>(stored.hash() * 31 + sums.hash()));
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        return 2;
    }
    const std::vector<Drawn> drawings = {
        {DType::bf16, 2, 2, 1, 70, 130, 24, 32, -1, 0, false, true, false, false},
        {DType::f16, 3, 1, 1, 70, 70, 40, 33, 50, 20, true, false, true, false},
        {DType::bf16, 1, 1, 1, 40, 70, 100, 128, -1, -1, true, true, false, true},
        {DType::bf16, 1, 1, 1, 70, 40, 128, 70, -1, 0, false, false, false, false},
        {DType::f16, 1, 1, 1, 20, 70, 256, 131, -1, -1, true, false, true, false},
        {DType::bf16, 1, 1, 1, 20, 40, 160, 200, -1, -1, false, false, false, false},
        {DType::f32, 2, 1, 1, 70, 70, 20, 70, -1, 0, true, true, true, true},
        {DType::f64, 1, 1, 1, 70, 3, 70, 1, 10, 10, false, false, false, true},
        {DType::bf16, 1, 1, 1, 20, 70, 24, 16, -1, 0, true, false, true, false, 32 * 1024},
    };
    for (const Drawn& drawn : drawings) {
        cuda_on_cpu_configure(std::strtoull(argv[1], nullptr, 10), 64, drawn.shared_limit);
        if (const int code = run(drawn); code != 0) {
            return code;
        }
    }
    return 0;
}
