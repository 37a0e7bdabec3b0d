// How far two rows are apart.
#pragma once

namespace pykernels {

enum class Metric {
    kEuclidean,  // sqrt(sum (x - w)^2)
    kCosine,     // 1 - x w / (|x| |w|); 1 where either is zero
    kManhattan,  // sum |x - w|
};

}  // namespace pykernels
