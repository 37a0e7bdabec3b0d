#include "ops/radial_basis.h"

namespace pykernels {

RadialBasisSizes check_radial_basis(const Tensor& input, const Tensor& centers, double gamma) {
    constexpr std::string_view op = "radial_basis";
    check_floating(op, "input", input);
    check_like(op, "centers", centers, input);
    TORCH_CHECK(input.dim() == 2, "[", op, "] expected input of shape [samples, features], got ", input.sizes());
    TORCH_CHECK(centers.dim() == 2 && centers.size(1) == input.size(1), "[", op,
                "] expected centers of shape [centers, ", input.size(1), "] like the input of shape ", input.sizes(),
                ", got ", centers.sizes());
    TORCH_CHECK_VALUE(gamma >= 0, "[", op, "] expected gamma of 0 or more, got ", gamma);
    return {input.size(0), centers.size(0), input.size(1)};
}

}  // namespace pykernels
