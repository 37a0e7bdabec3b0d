#include "kernels/conv_planar.h"

namespace pykernels {

PYKERNELS_PLANAR(, float)
PYKERNELS_PLANAR(, double)
PYKERNELS_PLANAR(, c10::BFloat16)
PYKERNELS_PLANAR(, c10::Half)

}  // namespace pykernels
