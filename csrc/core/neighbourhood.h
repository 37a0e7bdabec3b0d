// How far what happens to a unit of a map reaches.
#pragma once

namespace pykernels {

enum class Neighbourhood {
    kGaussian,    // exp(-d^2 / (2 sigma^2))
    kBubble,      // 1 where d <= sigma
    kMexicanHat,  // (1 - d^2 / (m sigma^2)) exp(-d^2 / (2 sigma^2)) on a grid of m dimensions: its sum is zero
};

// Of d^2 this is within a bubble of width sigma; a little more, for what rounding does to units that are just as far.
inline double bubble_reach(double sigma) { return (sigma + 1e-4) * (sigma + 1e-4); }

}  // namespace pykernels
