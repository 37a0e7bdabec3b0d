// Unfold and fold on the CPU.
#include "ops/unfold.h"

#include "kernels/unfold.h"

#include <torch/library.h>

#include "ops/by_type.h"
#include "ops/recycled.h"
#include "ops/registry.h"

namespace pykernels {
namespace {

Tensor unfold_image(const Tensor& image, const UnfoldSizes& sizes) {
    const Tensor out = empty_recycled(sizes.columns, image.options()), x = image.contiguous();
    by_type(image, [&]<typename S>(S) { unfold(Unfold<S>{sizes.shape, x.const_data_ptr<S>(), out.data_ptr<S>()}); });
    return out;
}

Tensor fold_columns(const Tensor& columns, const UnfoldSizes& sizes) {
    const Tensor out = empty_recycled(sizes.image, columns.options()), x = columns.contiguous();
    by_type(columns, [&]<typename S>(S) { fold(Fold<S>{sizes.shape, x.const_data_ptr<S>(), out.data_ptr<S>()}); });
    return out;
}

using Operators = UnfoldOperators<unfold_image, fold_columns>;

}  // namespace

TORCH_LIBRARY_FRAGMENT(pykernels, m) {
    m.def("unfold(Tensor input, SymInt[] kernel, SymInt[] stride, SymInt[] padding, SymInt[] dilation) -> Tensor",
          {at::Tag::pt2_compliant_tag});
    m.def(
        "fold(Tensor columns, SymInt[] size, SymInt[] kernel, SymInt[] stride, SymInt[] padding, SymInt[] dilation) "
        "-> Tensor",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
    m.impl("unfold", Operators::unfold);
    m.impl("fold", Operators::fold);
}

static const RawKernel raw_kernels[] = {{"unfold", Operators::unfold}, {"fold", Operators::fold}};

}  // namespace pykernels
