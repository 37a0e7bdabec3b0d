// Stand-in: the tensors lie on the processor, and there is no device to change.
#pragma once

#include <c10/core/Device.h>

namespace c10::cuda {

struct CUDAGuard {
    explicit CUDAGuard(Device) {}
    CUDAGuard(const CUDAGuard&) = delete;
    CUDAGuard& operator=(const CUDAGuard&) = delete;
    ~CUDAGuard() {}  // keeps an unused guard from being a warning
};

}  // namespace c10::cuda
