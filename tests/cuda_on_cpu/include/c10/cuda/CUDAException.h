// Stand-in: a failed launch raises with the executor's report.
#pragma once

#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#define C10_CUDA_CHECK(call)                                                                            \
    do {                                                                                                \
        const cudaError_t error_of_call = (call);                                                       \
        TORCH_CHECK(error_of_call == cudaSuccess, "CUDA error ", static_cast<int>(error_of_call), ": ", \
                    cudaGetErrorString(error_of_call));                                                 \
    } while (0)
