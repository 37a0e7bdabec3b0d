// Tensors in memory that the next call finds again (core/scratch.h). Large ones from the system come page by page, each
// cleared at its first touch, and go back when they are freed: where a kernel does little more than move memory, that
// is more than half of its time.
#pragma once

#include <ATen/core/Tensor.h>

namespace pykernels {

// Like at::empty, of dense tensors on the CPU.
at::Tensor empty_recycled(at::IntArrayRef size, const at::TensorOptions& options,
                          at::MemoryFormat format = at::MemoryFormat::Contiguous);

}  // namespace pykernels
