#include "core/product.h"

namespace pykernels {

PYKERNELS_PRODUCTS(, float)
PYKERNELS_PRODUCTS(, double)

}  // namespace pykernels
