// Runs CUDA kernels on one processor thread: each CUDA thread is a fiber that runs until it waits for others. Whenever
// several may go on, the next is drawn from a seeded generator, so what depends on a missing barrier changes with the
// seed. Waiting that can never end (a thread left, or waits somewhere else) is an error with a report, not a hang.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>

namespace cuda_on_cpu {

using Place = std::source_location;

struct Block;

// What a running kernel may ask about its thread.
struct Thread {
    uint3 index;
    Block* block = nullptr;
    int number = 0;  // in the block, x fastest

    const uint3& block_index() const;
    const dim3& block_dim() const;
    const dim3& grid_dim() const;
};
const Thread& current_thread();

// The block's dynamic shared memory: exactly as large as asked for, not-a-numbers that depend on the seed at first.
unsigned char* shared_memory();

// Waits for all threads of the block, which must wait at the same place.
void block_barrier(const Place& place);

// Waits for the lanes in `lanes`, then copies `bytes` of the value given by lane `source_lane` to `result`.
void exchange(const void* value, void* result, size_t bytes, int source_lane, unsigned lanes, const Place& place);

// Waits for all lanes of the warp; then `work` is called once with what each of them gave.
void together(void* own, void (*work)(void* const* lanes), const Place& place);

// Copies `bytes` and zeros up to `whole` once the thread waits for it; until then there are not-a-numbers.
void copy_later(void* to, const void* from, size_t bytes, size_t whole);
void end_copy_group();
// Makes the thread's copies happen, but for those of its last `pending` groups.
void wait_for_copies(size_t pending);

// Ends the launch with a report.
void fail(const char* what, const Place& place);

// Adds one to *counter and waits until it has reached the next multiple of `blocks`.
void count_and_wait(unsigned long long* counter, unsigned long long blocks, const Place& place);

cudaError_t run(dim3 grid, dim3 block, size_t shared_bytes, bool cooperative, const std::function<void()>& kernel);

struct Settings {
    uint64_t seed = 0;
    int64_t resident_blocks = 64;        // that a cooperative launch may have
    uint64_t shared_limit = 227 * 1024;  // bytes a block may have
};
Settings& settings();

}  // namespace cuda_on_cpu

// For drivers: settings, the last error's text, and how many launches there were since it was asked last.
#define PYKERNELS_VISIBLE __attribute__((visibility("default")))
extern "C" {
PYKERNELS_VISIBLE void cuda_on_cpu_configure(uint64_t seed, int64_t resident_blocks, uint64_t shared_limit);
PYKERNELS_VISIBLE const char* cuda_on_cpu_report();
PYKERNELS_VISIBLE int64_t cuda_on_cpu_launches(int cooperative);
}
