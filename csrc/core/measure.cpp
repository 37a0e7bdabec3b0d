#include "core/measure.h"

#include <chrono>
#include <stdexcept>
#include <vector>

#include "core/parallel.h"
#include "core/product.h"

#ifndef PYKERNELS_ISA
#define PYKERNELS_ISA "baseline"
#endif

namespace pykernels {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Best rate of run(), in GFLOP/s, over at least `seconds`.
template <typename Run>
double best_rate(double operations, double seconds, const Run& run) {
    double best = 0;
    run();
    for (const double end = now() + seconds; now() < end;) {
        const double begin = now();
        run();
        best = std::max(best, operations / (now() - begin));
    }
    return best * 1e-9;
}

// One thread's multiply-adds: enough independent chains to hide their latency, nothing loaded.
[[gnu::noinline]] float spin_multiply_adds(int64_t count) {
    constexpr int chains = kRegisters - 4;
    Vec<float> sum[chains];
    const Vec<float> a(1.0001f), b(0.9999f);
    for (auto& s : sum) s = Vec<float>(0.f);
    for (int64_t i = 0; i < count; ++i)
#pragma GCC unroll 32
        for (int j = 0; j < chains; ++j) sum[j] = at::vec::fmadd(a, sum[j], b);
    Vec<float> total(0.f);
#pragma GCC unroll 32
    for (int j = 0; j < chains; ++j) total = total + sum[j];
    float lanes[kWidth<float>];
    total.store(lanes);
    return lanes[0];
}

template <typename T>
Buffer<T> filled(int64_t count) {
    Buffer<T> buffer(count);
    uint32_t state = 1;
    for (int64_t i = 0; i < count; ++i) {
        state = state * 1664525u + 1013904223u;
        const float value = static_cast<float>(state >> 8) / (1 << 24) - 0.5f;
        if constexpr (requires { buffer[i].value; }) {
            buffer[i] = {{c10::BFloat16(value), c10::BFloat16(-value)}};
        } else {
            buffer[i] = static_cast<T>(value);
        }
    }
    return buffer;
}

// A row-major [M, depth], B packed beforehand: each thread takes some panels.
template <typename Op>
double packed_rate(int64_t M, int64_t N, int64_t K, int threads, double seconds) {
    using Acc = AccOf<Op>;
    const int64_t depth = (K + Operand<Op>::kPerElement - 1) / Operand<Op>::kPerElement;
    const Panels<Op> panels{N, depth};
    const auto a = filled<Op>(M * depth), b = filled<Op>(panels.size());
    const Buffer<Acc> c(M * panels.count() * panels.span());
    const auto run = [&] {
        parallel_region(threads, [&](const Team& team) {
            const auto own = share(panels.count(), team.rank, team.size);
            for (int64_t p = own.begin; p < own.end; ++p)
                for_row_tiles(M, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                    RowPointers<Op, Rows> rows;
                    for (int m = 0; m < Rows; ++m) rows.row[m] = a + (row + m) * depth;
                    const int64_t stride = panels.count() * panels.span();
                    multiply<Op, Rows, kTileVectors>(rows, b + panels.offset(p), depth, nullptr, 0,
                                                     c + row * stride + panels.column(p), stride);
                });
        });
    };
    if (N % panels.span()) throw std::invalid_argument("[measure] expected N to be whole panels for a packed product");
    return best_rate(2.0 * M * N * K, seconds, run);
}

template <typename T>
double blocked_rate(int64_t M, int64_t N, int64_t K, int threads, double seconds) {
    const auto a = filled<T>(M * K), b = filled<T>(K * N);
    const Buffer<T> c(M * N);
    std::vector<const T*> rows(K);
    for (int64_t k = 0; k < K; ++k) rows[k] = b + k * N;
    return best_rate(2.0 * M * N * K, seconds, [&] {
        parallel_region(threads, [&](const Team& team) {
            product_share(RowsOfA<T>{a, K}, M, Factor<T>{rows.data(), N}, K, c.get(), false, int64_t{team.rank},
                          int64_t{team.size});
        });
    });
}

}  // namespace

std::string instruction_set() { return PYKERNELS_ISA; }

std::string compiler() {
#if defined(__clang__)
    return "clang " __clang_version__;
#else
    return "gcc " __VERSION__;
#endif
}

double measure_fma_peak(int threads, double seconds) {
    constexpr int64_t count = 100000;
    const double operations = 2.0 * (kRegisters - 4) * kWidth<float> * count;
    std::atomic<float> sink{0};
    int running = threads;
    const double rate = best_rate(operations, seconds, [&] {
        parallel_region(threads, [&](const Team& team) {
            if (team.rank == 0) running = team.size;
            sink.store(spin_multiply_adds(count));
        });
    });
    return rate * running;
}

double measure_gemm(int64_t M, int64_t N, int64_t K, int threads, double seconds, const std::string& dtype,
                    bool prepacked) {
    if (dtype == "float32") return (prepacked ? packed_rate<float> : blocked_rate<float>)(M, N, K, threads, seconds);
    if (dtype == "float64") return (prepacked ? packed_rate<double> : blocked_rate<double>)(M, N, K, threads, seconds);
#ifdef __AVX512BF16__
    if (dtype == "bfloat16") return packed_rate<Bf16Pair>(M, N, K, threads, seconds);
#endif
    throw std::invalid_argument(
        "[measure] expected dtype float32, float64, or bfloat16 where the build multiplies it, got " + dtype);
}

}  // namespace pykernels
