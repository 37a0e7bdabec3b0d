// Stand-in: torch's own header, but what a backend registers stays out of the dispatcher. These tests call the raw
// kernels, and the operators of the process must remain those of the real modules.
#pragma once

#include_next <torch/library.h>

#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(ns, key, m) [[maybe_unused]] static void unregistered_##ns##_##key(torch::Library& m)
