#include "kernels/step_product.h"

#include "kernels/recurrence.h"

namespace pykernels {

template <typename T>
StepProduct<T>::StepProduct(const T* weight, int64_t columns, int64_t depth, bool turned, int64_t parts)
    : weight_(weight), turned_(turned), panels_(Panels<T>::for_parts(columns, depth, parts)), packed_(panels_.size()) {}

template <typename T>
void StepProduct<T>::pack(const Range& panels) const {
    if (!turned_) return pack_row_panels(weight_, panels_, panels.begin, panels.end, packed_.get());
    for (int64_t p = panels.begin; p < panels.end; ++p) {
        const int64_t column = panels_.column(p), columns = int64_t(panels_.vectors(p)) * kWidth<T>;
        const int64_t used = std::min(columns, panels_.columns - column);
        T* panel = packed_ + panels_.offset(p);
        if (used < columns) std::fill_n(panel, columns * panels_.depth, T(0));
        pack_transposed(weight_ + column * panels_.depth, panels_.depth, used, panels_.depth, panel, columns);
    }
}

template <typename T>
void StepProduct<T>::run(const Range& panels, int64_t rows, bool single, const T* x, int64_t x_stride, T* out) const {
    const int64_t stride = this->stride();
    for (int64_t p = panels.begin; p < panels.end; ++p)
        with_vectors(panels_.vectors(p), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
            for_row_tiles(rows, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                RowPointers<T, Rows> a;
                for (int m = 0; m < Rows; ++m) a.row[m] = x + (row + m) * x_stride;
                multiply_rows<T, Rows, Vectors>(a, packed_ + panels_.offset(p), panels_.depth, single, nullptr, 0,
                                                out + row * stride + panels_.column(p), stride);
            });
        });
}

template class StepProduct<float>;
template class StepProduct<double>;

}  // namespace pykernels
