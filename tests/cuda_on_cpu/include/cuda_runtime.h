// Stand-in for cuda_runtime.h: the words of the language. `__shared__` is left out on purpose: a static variable would
// be one for all blocks, so kernels take shared memory from cuda/core's accessor.
#pragma once

#include "cuda_runtime_api.h"
#include "executor.h"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)

#define threadIdx (::cuda_on_cpu::current_thread().index)
#define blockIdx (::cuda_on_cpu::current_thread().block_index())
#define blockDim (::cuda_on_cpu::current_thread().block_dim())
#define gridDim (::cuda_on_cpu::current_thread().grid_dim())
