#include "core/scratch.h"

#include <array>
#include <atomic>

namespace pykernels {
namespace {

constexpr std::align_val_t kAlignment{64};

// Stands in front of what is handed out.
struct alignas(64) Block {
    std::size_t bytes;
};

void release(Block* block) { ::operator delete(block, kAlignment); }

// The blocks that wait for the next call, the one given last at the end.
class Shelf {
  public:
    // The smallest block that holds `bytes` and is at most a quarter larger, or null.
    Block* take(std::size_t bytes) {
        if (!lock()) return nullptr;
        std::size_t best = count_;
        for (std::size_t i = 0; i < count_; ++i)
            if (blocks_[i]->bytes >= bytes && blocks_[i]->bytes - bytes <= bytes / 4 &&
                (best == count_ || blocks_[i]->bytes <= blocks_[best]->bytes))
                best = i;
        Block* const found = best < count_ ? remove(best) : nullptr;
        busy_.clear(std::memory_order_release);
        return found;
    }

    void give(Block* block) {
        if (block->bytes > kScratchKept || !lock()) return release(block);
        while (count_ == blocks_.size() || total_ + block->bytes > kScratchKept) release(remove(0));
        blocks_[count_++] = block;
        total_ += block->bytes;
        busy_.clear(std::memory_order_release);
    }

  private:
    // A shelf long in use is passed by: after a fork it may stay so for ever.
    bool lock() {
        for (int attempt = 0; attempt < 1000; ++attempt)
            if (!busy_.test_and_set(std::memory_order_acquire)) return true;
        return false;
    }
    Block* remove(std::size_t at) {
        Block* const block = blocks_[at];
        for (--count_; at < count_; ++at) blocks_[at] = blocks_[at + 1];
        total_ -= block->bytes;
        return block;
    }

    std::atomic_flag busy_;
    std::array<Block*, 32> blocks_{};
    std::size_t count_ = 0, total_ = 0;
};

Shelf& shelf() {
    static auto* const shared = new Shelf;  // never destroyed: buffers may be given back while the process ends
    return *shared;
}

}  // namespace

void* take_scratch(std::size_t bytes) {
    const std::size_t whole = (bytes + kScratchBlock - 1) / kScratchBlock * kScratchBlock;
    Block* block = shelf().take(whole);
    if (!block) {
        block = static_cast<Block*>(::operator new(whole + sizeof(Block), kAlignment));
        block->bytes = whole;
    }
    return block + 1;
}

void give_scratch(void* memory) noexcept {
    if (memory) shelf().give(static_cast<Block*>(memory) - 1);
}

}  // namespace pykernels
