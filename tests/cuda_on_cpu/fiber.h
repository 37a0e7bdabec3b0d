// Stacks that one processor thread runs in turn. AddressSanitizer is told of every change of the stack.
#pragma once

#include <functional>

namespace cuda_on_cpu {

// Where a stack was left: what the compiler's own setjmp keeps.
using Point = void* [5];

class Stack {
  public:
    Stack() = default;
    Stack(const Stack&) = delete;
    Stack& operator=(const Stack&) = delete;
    ~Stack();  // what runs on it is forgotten: no destructors

    // Starts main(), or goes on where it left; returns when it leaves. Not from within another stack.
    void resume(const std::function<void()>& main);
    // Called on this stack: back to resume(). With `for_good` it is not resumed again.
    void leave(bool for_good = false);

  private:
    static void start();

    unsigned char* memory_ = nullptr;
    bool started_ = false;
    const std::function<void()>* main_ = nullptr;
    Point point_;
    void* fake_stack_ = nullptr;
};

}  // namespace cuda_on_cpu
