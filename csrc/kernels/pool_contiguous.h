// What the pooling kernels of contiguous planes share: which rows a row of output is of, and the other way round.
#pragma once

#include <array>
#include <vector>

#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/pool.h"
#include "kernels/pool_vector.h"

namespace pykernels {

constexpr double kPoolGrain = 1 << 15;  // elements looked at that are worth a thread

// Visits the rows [begin, end) of dense [planes, depth, rows]: visit(plane, d, h).
template <typename Visit>
void each_row(const Range& own, int64_t depth, int64_t rows, const Visit& visit) {
    if (own.begin >= own.end) return;
    int64_t h = own.begin % rows, d = own.begin / rows % depth, plane = own.begin / rows / depth;
    for (int64_t i = own.begin; i < own.end; ++i) {
        visit(plane, d, h);
        if (++h == rows) {
            h = 0;
            if (++d == depth) d = 0, ++plane;
        }
    }
}

// The windows along one dimension, looked up: divisions for every row would take as long as short rows themselves.
class PoolAxis {
  public:
    explicit PoolAxis(const PoolDimension& d, bool holders) : d_(d), windows_(d.out), holders_(holders ? d.in : 0) {
        for (int64_t o = 0; o < d.out; ++o) windows_[o] = {d.start(o), d.taps(o)};
        for (int64_t i = 0; i < std::ssize(holders_); ++i) holders_[i] = d.holders(i);
    }
    const PoolDimension& dimension() const { return d_; }
    int64_t start(int64_t o) const { return windows_[o].start; }
    const PoolRange& taps(int64_t o) const { return windows_[o].taps; }
    const PoolRange& holders(int64_t i) const { return holders_[i]; }
    int64_t tap(int64_t o, int64_t i) const { return d_.dilation == 1 ? i - start(o) : d_.tap(o, i); }

  private:
    struct Window {
        int64_t start;
        PoolRange taps;
    };
    PoolDimension d_;
    std::vector<Window> windows_;
    std::vector<PoolRange> holders_;
};

// The rows of windows and positions; `holders` for backwards.
struct PoolAxes {
    PoolAxis depth, rows;
    PoolAxes(const PoolShape& s, bool holders) : depth(s.depth, holders), rows(s.rows, holders) {}

    // Calls visit(id, ih, first_place) for the rows of input that the windows of row (od, oh) of output lie in, in
    // ascending order. first_place is the place of their first column.
    template <typename Visit>
    void each_of_window(const PoolShape& s, int64_t od, int64_t oh, const Visit& visit) const {
        const PoolRange across = depth.taps(od), along = rows.taps(oh);
        for (int64_t kd = across.begin; kd < across.end; ++kd)
            for (int64_t kh = along.begin; kh < along.end; ++kh)
                visit(depth.start(od) + kd * s.depth.dilation, rows.start(oh) + kh * s.rows.dilation,
                      (kd * s.rows.kernel + kh) * s.columns.kernel);
    }

    // Calls visit(od, oh, first_place) for the rows of output whose windows hold row (id, ih) of input, in ascending
    // order.
    template <typename Visit>
    void each_holder(const PoolShape& s, int64_t id, int64_t ih, const Visit& visit) const {
        const PoolRange across = depth.holders(id), along = rows.holders(ih);
        for (int64_t od = across.begin; od < across.end; ++od) {
            const int64_t kd = depth.tap(od, id);
            if (kd < 0) continue;
            for (int64_t oh = along.begin; oh < along.end; ++oh)
                if (const int64_t kh = rows.tap(oh, ih); kh >= 0)
                    visit(od, oh, (kd * s.rows.kernel + kh) * s.columns.kernel);
        }
    }
};

// Rows as padded lines of the accumulator's type, each made once while the windows pass over it. `across` and `along`
// are how many neighbouring rows of each dimension are in use at a time.
template <typename Acc>
class PoolLines {
  public:
    PoolLines(int64_t across, int64_t along, int64_t length, Acc padding)
        : across_(across), along_(along), length_(length), lines_(across * along * length), made_(across * along) {
        std::fill_n(lines_.get(), across * along * length, padding);
    }
    struct Line {
        const Acc* data;
        bool noted;  // what make said of it
    };
    // Few enough for the first or second cache.
    static bool fit(int64_t across, int64_t along, int64_t length) {
        return across <= 64 && along <= 64 && across * along <= 256 && across * along * length <= 1 << 16;
    }
    // The line of row (d, h), the `number`th of all; make(line) writes it if it is not there yet, and may note
    // something.
    template <typename Make>
    Line of(int64_t number, int64_t d, int64_t h, const Make& make) {
        const int64_t slot = d % across_ * along_ + h % along_;
        Acc* line = lines_ + slot * length_;
        if (made_[slot].number != number) made_[slot] = {number, make(line)};
        return {line, made_[slot].noted};
    }

  private:
    struct Made {
        int64_t number = -1;
        bool noted = false;
    };
    int64_t across_, along_, length_;
    Buffer<Acc> lines_;
    std::vector<Made> made_;
};

inline double pool_work(const PoolShape& s) {
    const double windows = static_cast<double>(s.planes()) * static_cast<double>(s.out_plane());
    const double elements = static_cast<double>(s.planes()) * static_cast<double>(s.in_plane());
    return std::max(elements, windows * std::min(static_cast<double>(s.depth.kernel) * s.rows.kernel * s.columns.kernel,
                                                 static_cast<double>(s.in_plane())));
}

// Parts of the kernels in files of their own, for the storage types of pool.h.
template <typename S>
void max_pool_with_places(const MaxPoolForward<S>& call);
template <typename Call>
void pool_channels_last(const Call& call);

}  // namespace pykernels
