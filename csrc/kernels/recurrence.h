// What the recurrent kernels share: who does what in a time loop, and recurrent weights as panels of interleaved gates.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "core/gemm.h"
#include "core/parallel.h"

namespace pykernels {

// Splits a time loop over threads: first by direction, then by slices of the batch (which never wait for each other)
// while each slice keeps enough rows and the weights fit every core's cache, then by units of the state (whose threads
// meet at a barrier each step).
struct TimeLoopPlan {
    int threads = 1, teams = 1, slices = 1, groups = 1;

    static constexpr double kWorkPerThread = 7e3;       // multiply-adds a step, below which a thread does not pay
    static constexpr double kWorkPerCall = 6e4;         // the same for the whole call: starting a thread costs more
    static constexpr int64_t kCachedBytes = 320 << 10;  // of weights that each core may keep for itself
    static constexpr int64_t kSliceRows = 8;

    TimeLoopPlan(int available, int directions, int64_t steps, int64_t batch, int64_t weights, int64_t bytes_each,
                 int64_t panels) {
        const double work = static_cast<double>(directions) * static_cast<double>(batch) * static_cast<double>(weights);
        const double useful = std::min(work / kWorkPerThread, work * static_cast<double>(steps) / kWorkPerCall);
        threads = static_cast<int>(std::clamp(useful, 1.0, static_cast<double>(available)));
        teams = threads >= directions ? directions : 1;
        const int team = threads / teams;
        if (weights * bytes_each <= kCachedBytes)
            slices = static_cast<int>(std::clamp<int64_t>(batch / kSliceRows, 1, team));
        groups = static_cast<int>(std::clamp<int64_t>(panels, 1, team / slices));
        threads = teams * slices * groups;
    }
};

// One thread's part of the plan.
struct TimeLoopPart {
    int directions[2], direction_count;
    int slice, slices, group, groups;
    Team team;
    int slice_barrier, team_barrier, local, locals;

    // With fewer threads than planned for, every thread does the whole plan of a smaller machine.
    TimeLoopPart(const TimeLoopPlan& plan, const Team& team, int directions_total) : team(team) {
        const bool whole = team.size == plan.threads;
        const int teams = whole ? plan.teams : 1;
        slices = whole ? plan.slices : 1;
        groups = whole ? plan.groups : team.size;
        locals = slices * groups;
        const int which = team.rank / locals;
        local = team.rank % locals;
        slice = local / groups;
        group = local % groups;
        direction_count = teams == 1 ? directions_total : 1;
        directions[0] = teams == 1 ? 0 : which;
        directions[1] = 1;
        slice_barrier = which * slices + slice;
        team_barrier = team.size + which;
    }
    // Meets the threads that share this slice's state.
    void step_done() const { team.wait(slice_barrier, groups); }
    // Meets all threads of this direction.
    void all_done() const { team.wait(team_barrier, locals); }
};

// Runs every direction's loop as planned: each packs its weights, then goes through its steps.
template <typename Loop>
void run_time_loops(const TimeLoopPlan& plan, const std::vector<std::unique_ptr<Loop>>& directions) {
    parallel_region(plan.threads, [&](const Team& team) {
        const TimeLoopPart part(plan, team, static_cast<int>(directions.size()));
        for (int i = 0; i < part.direction_count; ++i) {
            auto& direction = *directions[part.directions[i]];
            direction.pack(part);
            direction.run(part);
        }
    });
}

// One vector of units of one sequence at one step.
struct UnitAt {
    int64_t batch, row, unit;
    int used;  // lanes
};

// Elements of Op that hold `count` summed values.
template <typename Op>
constexpr int64_t operand_depth(int64_t count) {
    return (count + Operand<Op>::kPerElement - 1) / Operand<Op>::kPerElement;
}

// Rows source[0 … count) of `depth` values, `stride` apart, as columns of a panel; pads an odd depth of pairs.
template <typename Op, typename W>
void pack_columns(const W* source, int64_t stride, int64_t count, int64_t depth, Op* panel, int64_t columns) {
    if constexpr (Operand<Op>::kPerElement == 1) {
        pack_transposed(source, stride, count, depth, panel, columns);
    } else {
        const int64_t pairs = operand_depth<Op>(depth);
        std::vector<W> even(static_cast<size_t>(count * pairs * 2), W(0.f));
        for (int64_t j = 0; j < count; ++j) std::memcpy(&even[j * pairs * 2], source + j * stride, depth * sizeof(W));
        pack_transposed(reinterpret_cast<const Op*>(even.data()), pairs, count, pairs, panel, columns);
    }
}

// The columns of a recurrent product as panels. With several gates, a panel is one vector of units with its gates side
// by side, so that a tile has all gates of its units; with one gate, a few vectors of units.
template <typename Op, int Gates>
class UnitPanels {
    static constexpr int width = kWidth<AccOf<Op>>;

  public:
    UnitPanels(int64_t units, int64_t parts)
        : single(Gates == 1 ? Panels<Op>::for_parts(units, 1, parts) : Panels<Op>{units, 1, 1}) {}

    int64_t count() const { return single.count(); }
    int64_t unit(int64_t panel) const { return single.column(panel); }
    int unit_vectors(int64_t panel) const { return Gates == 1 ? single.vectors(panel) : 1; }
    int64_t columns(int64_t panel) const { return int64_t(unit_vectors(panel)) * Gates * width; }
    // Columns, padded to whole vectors, before a panel, and of all of them.
    int64_t before(int64_t panel) const { return std::min(single.column(panel) * Gates, total()); }
    int64_t total() const { return single.size() * Gates; }

    // Calls visit(std::integral_constant<int, n>) with the vectors n of a panel.
    template <typename Visit>
    [[gnu::always_inline]] void with_panel(int64_t panel, const Visit& visit) const {
        if constexpr (Gates == 1) {
            with_vectors(single.vectors(panel), visit);
        } else {
            visit(std::integral_constant<int, Gates>{});
        }
    }

  private:
    Panels<Op> single;
};

// Rows of a tile beside so many vectors of a panel: about as many sums as the registers hold.
constexpr int rows_beside(int vectors) { return vectors == 3 ? (kTileRows * 4) / 3 : kTileRows; }

// One panel of the given gates of a matrix [gates * units, depth].
template <typename Op, int Gates, typename W>
void pack_units(const W* weight, const int (&gates)[Gates], int64_t units, int64_t depth,
                const UnitPanels<Op, Gates>& panels, int64_t panel, Op* packed) {
    constexpr int width = kWidth<AccOf<Op>>;
    const int64_t columns = panels.columns(panel), unit = panels.unit(panel);
    const int64_t own = int64_t(panels.unit_vectors(panel)) * width, used = std::min(own, units - unit);
    if (used < own) std::memset(static_cast<void*>(packed), 0, columns * operand_depth<Op>(depth) * sizeof(Op));
    for (int g = 0; g < Gates; ++g)
        pack_columns<Op>(weight + (gates[g] * units + unit) * depth, depth, used, depth, packed + g * own, columns);
}

// Panels [first, last) of a matrix [depth, columns] (columns contiguous).
template <typename T>
void pack_row_panels(const T* weight, const Panels<T>& panels, int64_t first, int64_t last, T* packed) {
    for (int64_t p = first; p < last; ++p)
        pack_rows([&](int64_t k) { return weight + k * panels.columns; }, panels.depth, panels.column(p),
                  panels.columns, panels.vectors(p), packed + panels.offset(p));
}

// One tile of rows times a panel; a step with a single sequence uses the split chains.
template <typename Op, int Rows, int Vectors>
inline void multiply_rows(const RowPointers<Op, Rows>& rows, const Op* panel, int64_t depth, bool single,
                          const AccOf<Op>* start, int64_t start_stride, AccOf<Op>* out, int64_t stride) {
    if constexpr (Rows == 1) {
        if (single) return multiply_split<Op, Vectors>(rows.row[0], panel, depth, start, out);
    }
    multiply<Op, Rows, Vectors>(rows, panel, depth, start, start_stride, out, stride);
}

}  // namespace pykernels
