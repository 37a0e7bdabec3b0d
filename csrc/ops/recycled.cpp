#include "ops/recycled.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>

#include "core/scratch.h"

namespace pykernels {
namespace {

constexpr std::size_t kRecycled = 4 * kScratchBlock;  // smaller ones the allocator finds again itself

// A storage of it can be resized, shared and profiled like any of torch's.
class Recycler final : public c10::Allocator {
  public:
    c10::DataPtr allocate(std::size_t bytes) override {
        void* const memory = bytes ? take_scratch(bytes) : nullptr;
        if (memory) c10::profiledCPUMemoryReporter().New(memory, bytes);
        return {memory, memory, release, c10::Device(c10::DeviceType::CPU)};
    }
    c10::DeleterFnPtr raw_deleter() const override { return release; }
    void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }

  private:
    static void release(void* memory) {
        if (!memory) return;
        c10::profiledCPUMemoryReporter().Delete(memory);
        give_scratch(memory);
    }
};

}  // namespace

at::Tensor empty_recycled(at::IntArrayRef size, const at::TensorOptions& options, at::MemoryFormat format) {
    static auto* const recycler = new Recycler;  // never destroyed: tensors may be freed while the process ends
    const auto dtype = c10::typeMetaToScalarType(options.dtype());
    const auto bytes = static_cast<std::size_t>(c10::multiply_integers(size)) * options.dtype().itemsize();
    if (bytes < kRecycled) return at::detail::empty_cpu(size, dtype, false, format);
    return at::detail::empty_generic(size, recycler, c10::DispatchKeySet(c10::DispatchKey::CPU), dtype, format);
}

}  // namespace pykernels
