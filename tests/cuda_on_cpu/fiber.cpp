#include "fiber.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdlib>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// A stack is entered by setcontext, which asks the system, and changed from then on by the compiler's setjmp and
// longjmp, which do not. (Before those of the library AddressSanitizer clears the whole stack: half of the time of a
// test.)

namespace cuda_on_cpu {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kGuardBytes = 4096;

std::vector<unsigned char*> free_memory;
Stack* running = nullptr;
Point outside;

__attribute__((noinline, noreturn, no_sanitize_address)) void jump(Point& to) { __builtin_longjmp(to, 1); }

unsigned char* take_memory() {
    if (!free_memory.empty()) {
        unsigned char* memory = free_memory.back();
        free_memory.pop_back();
#if defined(__SANITIZE_ADDRESS__)
        ASAN_UNPOISON_MEMORY_REGION(memory + kGuardBytes, kStackBytes);
#endif
        return memory;
    }
    void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        std::abort();
    }
    mprotect(memory, kGuardBytes, PROT_NONE);  // stacks grow down: an overflow ends the process
    return static_cast<unsigned char*>(memory);
}

#if defined(__SANITIZE_ADDRESS__)
const void* outside_stack = nullptr;
size_t outside_bytes = 0;
void* outside_fake_stack = nullptr;

void before_entering(unsigned char* memory) {
    __sanitizer_start_switch_fiber(&outside_fake_stack, memory + kGuardBytes, kStackBytes);
}
void after_entering(void* fake_stack) { __sanitizer_finish_switch_fiber(fake_stack, &outside_stack, &outside_bytes); }
void before_leaving(void** fake_stack) { __sanitizer_start_switch_fiber(fake_stack, outside_stack, outside_bytes); }
void after_leaving() { __sanitizer_finish_switch_fiber(outside_fake_stack, nullptr, nullptr); }
#else
void before_entering(unsigned char*) {}
void after_entering(void*) {}
void before_leaving(void**) {}
void after_leaving() {}
#endif

}  // namespace

Stack::~Stack() {
    if (memory_ != nullptr) {
        free_memory.push_back(memory_);
    }
}

void Stack::start() {
    Stack* self = running;
    after_entering(self->fake_stack_);
    (*self->main_)();
    self->leave(true);
}

__attribute__((noinline, no_sanitize_address)) void Stack::leave(bool for_good) {
    if (__builtin_setjmp(point_) == 0) {
        before_leaving(for_good ? nullptr : &fake_stack_);
        jump(outside);
    }
    after_entering(fake_stack_);
}

__attribute__((noinline, no_sanitize_address)) void Stack::resume(const std::function<void()>& main) {
    running = this;
    if (__builtin_setjmp(outside) == 0) {
        if (!started_) {
            started_ = true;
            main_ = &main;
            memory_ = take_memory();
            ucontext_t context;
            getcontext(&context);
            context.uc_stack.ss_sp = memory_ + kGuardBytes;
            context.uc_stack.ss_size = kStackBytes;
            context.uc_link = nullptr;
            makecontext(&context, start, 0);
            before_entering(memory_);
            setcontext(&context);
        }
        before_entering(memory_);
        jump(point_);
    }
    after_leaving();
}

}  // namespace cuda_on_cpu
