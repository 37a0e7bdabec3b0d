// The only place that knows OpenMP: how many threads a call may use, one region for a whole time loop, and a cheap
// barrier.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>

#include "core/types.h"

namespace pykernels {

// Threads that a call may use now: torch.get_num_threads(), but one inside another parallel region and in a forked
// child (whose OpenMP workers did not survive the fork).
int thread_limit();

// Splits [0, count) into `parts` runs of nearly equal length, each a multiple of `grain` but the last.
struct Range {
    int64_t begin, end;
    int64_t size() const { return end - begin; }
};
inline Range share(int64_t count, int64_t part, int64_t parts, int64_t grain = 1) {
    const int64_t grains = (count + grain - 1) / grain;
    const int64_t begin = grains * part / parts, end = grains * (part + 1) / parts;
    return {std::min(begin * grain, count), std::min(end * grain, count)};
}

// Gives the processor a rest while waiting: `spin` counts the calls. Short waits spin, long ones give the processor
// away, so that more threads than cores still make progress.
void wait_a_little(int spin);

// A place that threads pass one after the other, in an order that is known: number n waits until n have passed.
class Turn {
  public:
    void wait(int64_t number) const {
        for (int spin = 0; passed_.load(std::memory_order_acquire) != number; ++spin) wait_a_little(spin);
    }
    void pass() { passed_.fetch_add(1, std::memory_order_release); }

  private:
    std::atomic<int64_t> passed_{0};
};

// A barrier for the threads of one region. (A step of a time loop takes microseconds.)
class Barrier {
  public:
    // Waits until `count` threads have come. False when another thread of the region has failed.
    bool wait(int count) {
        if (count <= 1) return true;
        const uint32_t phase = phase_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(count)) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return !broken_.load(std::memory_order_relaxed);
        }
        for (int spin = 0; phase_.load(std::memory_order_acquire) == phase; ++spin) {
            if (broken_.load(std::memory_order_relaxed)) return false;
            wait_a_little(spin);
        }
        return !broken_.load(std::memory_order_relaxed);
    }
    void break_up() { broken_.store(true, std::memory_order_relaxed); }

  private:
    alignas(64) std::atomic<uint32_t> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    alignas(64) std::atomic<bool> broken_{false};
};

// Thrown inside a region by a thread whose team mate has failed; never leaves the region.
struct TeamBroken {};

// One thread's view of a region: its rank, how many threads there really are, and the barriers they share.
class Team {
  public:
    Team(int rank, int size, Barrier* barriers) : rank(rank), size(size), barriers_(barriers) {}
    // Barrier number `group` (0 … 2 size - 1), shared by `count` threads.
    void wait(int group, int count) const {
        if (!barriers_[group].wait(count)) throw TeamBroken{};
    }
    void wait() const { wait(0, size); }
    const int rank, size;

  private:
    Barrier* barriers_;
};

// Runs body(team) on up to `threads` threads at once. An exception in any thread ends the others at their next barrier
// and is thrown again here.
template <typename Body>
void parallel_region(int threads, const Body& body) {
    threads = std::max(1, threads);
    const auto barriers = std::make_unique<Barrier[]>(2 * threads);
    if (threads == 1) {
        body(Team(0, 1, barriers.get()));
        return;
    }
    std::exception_ptr error;
    std::atomic_flag failed = ATOMIC_FLAG_INIT;
#pragma omp parallel num_threads(threads)
    {
        try {
            body(Team(omp_get_thread_num(), omp_get_num_threads(), barriers.get()));
        } catch (const TeamBroken&) {
        } catch (...) {
            if (!failed.test_and_set()) error = std::current_exception();
            for (int i = 0; i < 2 * threads; ++i) barriers[i].break_up();
        }
    }
    if (error) std::rethrow_exception(error);
}

// Threads worth starting for `work` operations, when one thread should have at least `grain` of them.
inline int threads_for(double work, double grain) {
    return static_cast<int>(std::clamp(work / grain, 1.0, static_cast<double>(thread_limit())));
}

}  // namespace pykernels
