#include "core/parallel.h"

#include <ATen/Parallel.h>
#include <pthread.h>
#include <sched.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pykernels {
namespace {

std::atomic<bool> forked{false};

[[maybe_unused]] const int watch_forks = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });

}  // namespace

int thread_limit() {
    if (forked.load(std::memory_order_relaxed) || at::in_parallel_region()) return 1;
    return at::get_num_threads();
}

void wait_a_little(int spin) {
    constexpr int kSpins = 4096;
    if (spin >= kSpins) {
        sched_yield();
        return;
    }
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace pykernels
