// The extension module for CUDA: every raw kernel by name. The operators register themselves when it is loaded.
#include "csrc/ops/registry.h"

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "Native kernels of pykernels for CUDA GPUs.";
    for (const auto& define : pykernels::RawKernel::all()) {
        define(m);
    }
}
