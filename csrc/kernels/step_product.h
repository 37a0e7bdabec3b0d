// A product whose weights are packed once and which then runs many times, on some rows at a time.
#pragma once

#include "core/gemm.h"
#include "core/parallel.h"

namespace pykernels {

// out = x W.
template <typename T>
class StepProduct {
  public:
    // `turned`: the matrix is [columns, depth], or else [depth, columns]. No columns: there is no product.
    StepProduct(const T* weight, int64_t columns, int64_t depth, bool turned, int64_t parts);

    int64_t count() const { return panels_.count(); }
    int64_t stride() const { return (panels_.columns + kWidth<T> - 1) / kWidth<T> * kWidth<T>; }  // of rows of out
    void pack(const Range& panels) const;
    // Rows of x and of out, each `stride` apart.
    void run(const Range& panels, int64_t rows, bool single, const T* x, int64_t x_stride, T* out) const;

  private:
    const T* weight_;
    const bool turned_;
    const Panels<T> panels_;
    const Buffer<T> packed_;
};

}  // namespace pykernels
