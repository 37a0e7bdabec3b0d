#include "core/mask.h"

#include <algorithm>

#include "core/parallel.h"
#include "core/philox_vector.h"
#include "core/types.h"

namespace pykernels {
namespace {

constexpr int64_t kGrain = 1 << 16;

}  // namespace

template <typename Element>
void fill_mask(uint64_t key, uint32_t stream, uint64_t threshold, Element value, int64_t count, Element* mask) {
    if (threshold == 0) {
        std::fill_n(mask, count, Element(0));
        return;
    }
    const auto last = static_cast<uint32_t>(std::min<uint64_t>(threshold, uint64_t{1} << 32) - 1);
    const int64_t quarter = (count + 3) / 4;
    parallel_region(threads_for(static_cast<double>(count), kGrain), [&](const Team& team) {
        const Range own = share(quarter, team.rank, team.size, kPhiloxTogether);
        alignas(64) uint32_t numbers[4][kPhiloxTogether];
        for (int64_t begin = own.begin; begin < own.end; begin += kPhiloxTogether) {
            philox_together(key, static_cast<uint32_t>(begin), static_cast<uint32_t>(begin >> 32), stream, numbers);
            const int64_t used = std::min(kPhiloxTogether, own.end - begin);
            for (int w = 0; w < 4; ++w) {
                const int64_t first = w * quarter + begin, here = std::clamp<int64_t>(count - first, 0, used);
                for (int64_t i = 0; i < here; ++i) mask[first + i] = numbers[w][i] <= last ? value : Element(0);
            }
        }
    });
}

template void fill_mask(uint64_t, uint32_t, uint64_t, float, int64_t, float*);
template void fill_mask(uint64_t, uint32_t, uint64_t, double, int64_t, double*);
template void fill_mask(uint64_t, uint32_t, uint64_t, c10::Half, int64_t, c10::Half*);
template void fill_mask(uint64_t, uint32_t, uint64_t, c10::BFloat16, int64_t, c10::BFloat16*);
template void fill_mask(uint64_t, uint32_t, uint64_t, std::uint8_t, int64_t, std::uint8_t*);

}  // namespace pykernels
