#include "executor.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"

namespace cuda_on_cpu {
namespace {

constexpr int kWarp = 32;

enum class Wait { none, block_barrier, exchange, together, count, finished };

const char* name_of(Wait wait) {
    switch (wait) {
        case Wait::block_barrier:
            return "wait at the block barrier";
        case Wait::exchange:
            return "wait in a shuffle";
        case Wait::together:
            return "wait in an instruction of the whole warp";
        case Wait::count:
            return "wait at the grid barrier";
        case Wait::finished:
            return "have left the kernel";
        default:
            return "could run";
    }
}

struct Copy {
    unsigned char* to;
    const unsigned char* from;
    size_t bytes, whole;
};

struct Fiber : Thread {
    Wait wait = Wait::none;
    Place place;
    // exchange
    const void* value = nullptr;
    void* result = nullptr;
    size_t bytes = 0;
    int source_lane = 0;
    unsigned lanes = 0;
    // together
    void* own = nullptr;
    std::vector<Copy> copies;  // since the last end of a group
    std::deque<std::vector<Copy>> groups;
    // count
    const unsigned long long* counter = nullptr;
    unsigned long long target = 0;
    Stack stack;

    int lane() const { return number % kWarp; }
};

struct Launch {
    dim3 grid, block;
    bool cooperative;
    const std::function<void()>* kernel;
    std::vector<Fiber*> runnable;
    std::vector<Fiber*> counting;  // waiting at a grid barrier
    std::string error;
};

}  // namespace

struct Block {
    Launch* launch = nullptr;
    uint3 index;
    std::deque<Fiber> fibers;
    size_t at_barrier = 0;
    std::unique_ptr<unsigned char, decltype(&std::free)> shared{nullptr, &std::free};
};

namespace {

Launch* launch_now = nullptr;
Fiber* fiber_now = nullptr;
uint64_t random_state = 0;
std::string last_report;
int64_t launches[2] = {0, 0};

uint64_t draw() {  // splitmix64
    uint64_t z = (random_state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

size_t draw_below(size_t bound) { return static_cast<size_t>(draw() % bound); }

std::string text(const uint3& p) {
    return "(" + std::to_string(p.x) + "," + std::to_string(p.y) + "," + std::to_string(p.z) + ")";
}

std::string text(const Place& place) {
    const std::string file = place.file_name();
    return file.substr(file.rfind('/') + 1) + ":" + std::to_string(place.line());
}

bool same(const Place& a, const Place& b) {
    return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

// Waiting -------------------------------------------------------------------------------------------------------------

void make_runnable(Fiber* fiber) {
    fiber->wait = Wait::none;
    launch_now->runnable.push_back(fiber);
}

// The first error ends the launch.
void fail(const std::string& message) {
    if (launch_now->error.empty()) {
        launch_now->error = message;
    }
}

void wait_here(Wait wait, const Place& place) {
    fiber_now->wait = wait;
    fiber_now->place = place;
}

// Who waits where, one line for each place, as the report of a wait that cannot end.
std::string describe(const std::deque<Block>& blocks) {
    std::map<std::string, std::pair<std::string, size_t>> places;
    for (const Block& block : blocks) {
        for (const Fiber& fiber : block.fibers) {
            std::string what = name_of(fiber.wait);
            if (fiber.wait != Wait::finished && fiber.wait != Wait::none) {
                what += " at " + text(fiber.place);
            }
            auto& [first, count] = places[what];
            if (count++ == 0) {
                first = "thread " + text(fiber.index) + " of block " + text(block.index);
            }
        }
    }
    std::string report = "divergence: threads wait for others that will not come;";
    for (const auto& [what, who] : places) {
        report += " " + std::to_string(who.second) + " " + what + " (first: " + who.first + ");";
    }
    return report;
}

void run_blocks(Launch& launch, std::deque<Block>& blocks, size_t shared_bytes) {
    for (Block& block : blocks) {
        block.shared.reset(static_cast<unsigned char*>(std::malloc(shared_bytes)));
        for (size_t i = 0; i + 1 < shared_bytes; i += 2) {  // not a number as float, double, bf16 and fp16
            const auto poison = static_cast<uint16_t>(0xff80u | (1 + draw_below(127)));
            std::memcpy(block.shared.get() + i, &poison, sizeof(poison));
        }
        for (Fiber& fiber : block.fibers) {
            launch.runnable.push_back(&fiber);
        }
    }
    const std::function<void()> whole_fiber = [&launch] {
        (*launch.kernel)();
        fiber_now->wait = Wait::finished;
    };
    size_t unfinished = launch.runnable.size();
    while (!launch.runnable.empty() && launch.error.empty()) {
        const size_t chosen = draw_below(launch.runnable.size());
        Fiber* fiber = launch.runnable[chosen];
        launch.runnable[chosen] = launch.runnable.back();
        launch.runnable.pop_back();
        fiber_now = fiber;
        fiber->stack.resume(whole_fiber);
        unfinished -= fiber->wait == Wait::finished ? 1 : 0;
    }
    if (launch.error.empty() && unfinished > 0) {
        launch.error = describe(blocks);
    }
    launch.runnable.clear();
}

void fill(Block& block, Launch& launch, size_t number) {
    block.launch = &launch;
    const auto i = static_cast<unsigned>(number);
    block.index = {i % launch.grid.x, i / launch.grid.x % launch.grid.y, i / launch.grid.x / launch.grid.y};
    for (unsigned n = 0; n < launch.block.count(); ++n) {
        Fiber& fiber = block.fibers.emplace_back();
        fiber.index = {n % launch.block.x, n / launch.block.x % launch.block.y, n / launch.block.x / launch.block.y};
        fiber.block = &block;
        fiber.number = static_cast<int>(n);
    }
}

}  // namespace

// What kernels call
// -----------------------------------------------------------------------------------------------------

const uint3& Thread::block_index() const { return block->index; }
const dim3& Thread::block_dim() const { return block->launch->block; }
const dim3& Thread::grid_dim() const { return block->launch->grid; }
const Thread& current_thread() { return *fiber_now; }
unsigned char* shared_memory() { return fiber_now->block->shared.get(); }

void block_barrier(const Place& place) {
    Fiber* fiber = fiber_now;
    Block& block = *fiber->block;
    wait_here(Wait::block_barrier, place);
    if (++block.at_barrier == block.fibers.size()) {
        block.at_barrier = 0;
        for (Fiber& other : block.fibers) {
            if (!same(other.place, place)) {
                fail("divergence: threads of block " + text(block.index) + " wait at two block barriers, " +
                     text(place) + " and " + text(other.place));
            }
            make_runnable(&other);
        }
    }
    fiber->stack.leave();
}

void exchange(const void* value, void* result, size_t bytes, int source_lane, unsigned lanes, const Place& place) {
    Fiber* fiber = fiber_now;
    std::deque<Fiber>& fibers = fiber->block->fibers;
    wait_here(Wait::exchange, place);
    fiber->value = value;
    fiber->result = result;
    fiber->bytes = bytes;
    fiber->source_lane = source_lane;
    fiber->lanes = lanes;
    const size_t warp = static_cast<size_t>(fiber->number / kWarp * kWarp);
    auto takes_part = [&](int lane) { return lane >= 0 && lane < kWarp && (lanes >> lane & 1u) != 0; };
    if (!takes_part(fiber->lane()) || !takes_part(source_lane)) {
        fail("shuffle at " + text(place) + ": lane " + std::to_string(fiber->lane()) + " reads lane " +
             std::to_string(source_lane) + ", and not both take part");
    }
    bool complete = true;
    for (int lane = 0; lane < kWarp; ++lane) {
        if (takes_part(lane)) {
            const size_t number = warp + static_cast<size_t>(lane);
            complete = complete && number < fibers.size() && fibers[number].wait == Wait::exchange &&
                       fibers[number].lanes == lanes && fibers[number].bytes == bytes &&
                       same(fibers[number].place, place);
        }
    }
    if (complete && launch_now->error.empty()) {
        for (int lane = 0; lane < kWarp; ++lane) {
            if (takes_part(lane)) {
                Fiber& reader = fibers[warp + static_cast<size_t>(lane)];
                std::memcpy(reader.result, fibers[warp + static_cast<size_t>(reader.source_lane)].value, bytes);
                make_runnable(&reader);
            }
        }
    }
    fiber->stack.leave();
}

void together(void* own, void (*work)(void* const* lanes), const Place& place) {
    Fiber* fiber = fiber_now;
    std::deque<Fiber>& fibers = fiber->block->fibers;
    wait_here(Wait::together, place);
    fiber->own = own;
    const size_t warp = static_cast<size_t>(fiber->number / kWarp * kWarp);
    void* lanes[kWarp];
    bool complete = warp + kWarp <= fibers.size();
    for (size_t lane = 0; complete && lane < kWarp; ++lane) {
        const Fiber& other = fibers[warp + lane];
        complete = other.wait == Wait::together && same(other.place, place);
        lanes[lane] = other.own;
    }
    if (complete) {
        work(lanes);
        for (size_t lane = 0; lane < kWarp; ++lane) {
            make_runnable(&fibers[warp + lane]);
        }
    }
    fiber->stack.leave();
}

void copy_later(void* to, const void* from, size_t bytes, size_t whole) {
    std::memset(to, 0xff, whole);
    fiber_now->copies.push_back(
        {static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), bytes, whole});
}

void end_copy_group() { fiber_now->groups.push_back(std::exchange(fiber_now->copies, {})); }

void wait_for_copies(size_t pending) {
    for (auto& groups = fiber_now->groups; groups.size() > pending; groups.pop_front()) {
        for (const Copy& copy : groups.front()) {
            std::copy_n(copy.from, copy.bytes, copy.to);
            std::fill(copy.to + copy.bytes, copy.to + copy.whole, static_cast<unsigned char>(0));
        }
    }
}

void fail(const char* what, const Place& place) { fail(std::string(what) + " at " + text(place)); }

void count_and_wait(unsigned long long* counter, unsigned long long blocks, const Place& place) {
    Fiber* fiber = fiber_now;
    if (!launch_now->cooperative) {
        fail("grid barrier at " + text(place) + " in a launch that is not cooperative");
    }
    wait_here(Wait::count, place);
    fiber->counter = counter;
    fiber->target = (*counter / blocks + 1) * blocks;
    *counter += 1;
    std::vector<Fiber*>& waiting = launch_now->counting;
    waiting.push_back(fiber);
    for (size_t i = 0; i < waiting.size();) {
        if (*waiting[i]->counter >= waiting[i]->target) {
            make_runnable(waiting[i]);
            waiting[i] = waiting.back();
            waiting.pop_back();
        } else {
            ++i;
        }
    }
    fiber->stack.leave();
}

cudaError_t run(dim3 grid, dim3 block, size_t shared_bytes, bool cooperative, const std::function<void()>& kernel) {
    const bool too_many = cooperative && static_cast<int64_t>(grid.count()) > settings().resident_blocks;
    if (block.count() > 1024 || block.count() * grid.count() == 0 || shared_bytes > settings().shared_limit) {
        return cudaErrorInvalidConfiguration;
    }
    if (too_many) {
        return cudaErrorCooperativeLaunchTooLarge;
    }
    ++launches[cooperative ? 1 : 0];
    Launch launch{grid, block, cooperative, &kernel, {}, {}, {}};
    launch_now = &launch;
    random_state = settings().seed * 0x2545f4914f6cdd1dull + 1;
    std::vector<size_t> order(grid.count());
    for (size_t i = 0; i < order.size(); ++i) {
        order[i] = i;
        std::swap(order[i], order[draw_below(i + 1)]);
    }
    // Blocks of a cooperative launch run together, others one after the other in any order.
    const size_t together = cooperative ? order.size() : 1;
    for (size_t first = 0; first < order.size() && launch.error.empty(); first += together) {
        std::deque<Block> blocks(together);
        for (size_t i = 0; i < together; ++i) {
            fill(blocks[i], launch, order[first + i]);
        }
        run_blocks(launch, blocks, shared_bytes);
    }
    launch_now = nullptr;
    if (!launch.error.empty()) {
        last_report = launch.error;
        return cudaErrorLaunchFailure;
    }
    return cudaSuccess;
}

Settings& settings() {
    static Settings value;
    return value;
}

}  // namespace cuda_on_cpu

const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorLaunchFailure ? cuda_on_cpu::last_report.c_str() : "CUDA error without a launch failure";
}

void cuda_on_cpu_configure(uint64_t seed, int64_t resident_blocks, uint64_t shared_limit) {
    cuda_on_cpu::settings() = {seed, resident_blocks, shared_limit};
}

const char* cuda_on_cpu_report() { return cuda_on_cpu::last_report.c_str(); }

int64_t cuda_on_cpu_launches(int cooperative) {
    return std::exchange(cuda_on_cpu::launches[cooperative != 0 ? 1 : 0], 0);
}
