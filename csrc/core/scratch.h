// Memory that outlives a call. The system hands out large blocks page by page, each at its first touch, and takes them
// back when they are freed: for a call of a few milliseconds that is up to a fifth of its time. A few blocks are
// therefore kept for the next call, kScratchKept bytes at most, the ones that were used last.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace pykernels {

using std::int64_t;

inline constexpr std::size_t kScratchBlock = 64 << 10;  // smaller ones are left to the allocator
inline constexpr std::size_t kScratchKept = 96 << 20;

// Uninitialised memory, aligned to cache lines; throws std::bad_alloc. Any thread may take and give.
void* take_scratch(std::size_t bytes);
void give_scratch(void* block) noexcept;

// An uninitialised array, aligned to cache lines.
template <typename T>
class Buffer {
  public:
    explicit Buffer(int64_t count = 0) {
        if (count <= 0) return;
        const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
        const bool scratch = bytes >= kScratchBlock;
        data_ = {static_cast<T*>(scratch ? take_scratch(bytes) : ::operator new(bytes, std::align_val_t{64})),
                 Free{scratch}};
    }
    T* get() const { return data_.get(); }
    T& operator[](int64_t i) const { return data_.get()[i]; }
    operator T*() const { return data_.get(); }

  private:
    struct Free {
        bool scratch = false;
        void operator()(T* p) const { scratch ? give_scratch(p) : ::operator delete(p, std::align_val_t{64}); }
    };
    std::unique_ptr<T[], Free> data_;
};

}  // namespace pykernels
