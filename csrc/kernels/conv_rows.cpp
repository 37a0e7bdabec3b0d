#include "kernels/conv_rows.h"

namespace pykernels {

PYKERNELS_ROWS(, float)
PYKERNELS_ROWS(, double)
PYKERNELS_ROWS(, c10::BFloat16)
PYKERNELS_ROWS(, c10::Half)

}  // namespace pykernels
