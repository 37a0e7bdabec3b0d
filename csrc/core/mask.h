// Random masks: element e is number e / quarter of Philox's counter e % quarter, so that neighbours in memory are
// neighbouring counters and a vector of them is computed at once.
#pragma once

#include <cstdint>

namespace pykernels {

using std::int64_t;

// Writes where(number < threshold, value, 0); `Element` is a floating type or a byte.
template <typename Element>
void fill_mask(uint64_t key, uint32_t stream, uint64_t threshold, Element value, int64_t count, Element* mask);

}  // namespace pykernels
