// From a dtype that is known when the program runs to a type.
#pragma once

#include "cuda/core/common.cuh"
#include "cuda/core/types.h"

namespace pykernels::cuda {

// Calls run.template operator()<T>() for the dtype.
template <class Run>
cudaError_t for_types(DType dtype, const Run& run) {
    switch (dtype) {
        case DType::f32:
            return run.template operator()<float>();
        case DType::f64:
            return run.template operator()<double>();
        case DType::bf16:
            return run.template operator()<bf16>();
        case DType::f16:
            return run.template operator()<fp16>();
    }
    return cudaErrorInvalidValue;
}

}  // namespace pykernels::cuda
