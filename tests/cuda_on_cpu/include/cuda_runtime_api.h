// Stand-in for the host side of the CUDA runtime: just what the kernels' launch code uses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorLaunchFailure = 719,
    cudaErrorCooperativeLaunchTooLarge = 720,
    cudaErrorNotSupported = 801,
};
using cudaStream_t = struct CUstream_st*;

struct uint3 {
    unsigned x = 0, y = 0, z = 0;
};
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
    constexpr size_t count() const { return size_t{x} * y * z; }
};

// Every launch ends before it returns, so the stream is always empty.
inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t = nullptr) {
    std::memset(data, value, bytes);
    return cudaSuccess;
}

// The text of the last failed launch.
const char* cudaGetErrorString(cudaError_t error);
