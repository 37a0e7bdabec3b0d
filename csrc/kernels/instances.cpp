#include "kernels/instances.h"

namespace pykernels {

bool has_bf16_products() {
#ifdef __AVX512BF16__
    return true;
#else
    return false;
#endif
}

}  // namespace pykernels
