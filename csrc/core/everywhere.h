// PYKERNELS_EVERYWHERE: in front of a function that both the processor and the GPU call.
#pragma once

#ifdef __CUDACC__
#define PYKERNELS_EVERYWHERE __host__ __device__
#else
#define PYKERNELS_EVERYWHERE
#endif
