// The backward of every recurrent kind: a time loop from each sequence's last step to its first that turns gradients of
// the states into gradients of the gates, then the parameters' gradients as a few large products over all steps at
// once.
#pragma once

#include "core/product.h"
#include "kernels/recurrence.h"
#include "kernels/rows.h"

namespace pykernels {

// Kind derives from this and has
//   kCells              saved cell states belong to every row (LSTM)
//   kCarriesState       what is carried from step to step is part of the gradient of the state before (GRU)
//   finish(at, grad)    from the gradient of what finish() of the forward put out to those of the gates
//   first(at, grad)     the same for the state itself, with a second product; it writes what second_row(row) points at
//   input_row(k)        the row of the input weights that element k of a row of gradients belongs to
//   parameter_gradients(part, parts)
template <typename Kind, typename T>
class BackwardLoop {
  protected:
    static constexpr int width = kWidth<T>;
    using V = Vec<T>;

  public:
    // A row of grad_gates has `stride` elements; the recurrent product reads `depth` of them from `fed` on, which
    // belong to as many rows of the recurrent weights.
    struct Layout {
        int64_t stride, fed, depth;
    };
    // weight [depth, hidden]: of the product that runs backward through a second product of the forward.
    struct Second {
        const T* weight = nullptr;
        int64_t depth = 0;
    };

    BackwardLoop(const RecurrentBackward<T>& call, int d, const TimeLoopPlan& plan, const Layout& layout,
                 const Second& second = {})
        : call(call),
          shape(call.shape),
          weights(call.weights[d]),
          gradients(call.gradients[d]),
          d(d),
          layout(layout),
          cell_carry(Kind::kCells ? shape.batch * shape.hidden : 0),
          state_carry(Kind::kCarriesState ? shape.batch * shape.output() : 0),
          before(shape, d, call.y, call.h0, Kind::kCells, call.cells, call.c0),
          second(second),
          outputs(Panels<T>::for_parts(shape.output(), layout.depth, plan.groups)),
          units(Panels<T>::for_parts(second.weight ? shape.hidden : 0, second.depth, plan.groups)),
          state_panels(outputs.size()),
          second_panels(units.size()) {
        if (cell_carry) {
            const int64_t count = shape.batch * shape.hidden;
            call.grad_c_n ? std::copy_n(call.grad_c_n + d * count, count, cell_carry.get())
                          : std::fill_n(cell_carry.get(), count, T(0));
        }
        if (state_carry) std::fill_n(state_carry.get(), shape.batch * shape.output(), T(0));
    }

    void pack(const TimeLoopPart& part) {
        const auto own = part.slices == 1 ? share(outputs.count(), part.group, part.groups)
                                          : share(outputs.count(), part.local, part.locals);
        pack_row_panels(weights.hidden, outputs, own.begin, own.end, state_panels.get());
        if (second.weight) {
            const auto mine = share(units.count(), part.local, part.locals);
            pack_row_panels(second.weight, units, mine.begin, mine.end, second_panels.get());
        }
        if (part.slices > 1 || second.weight) part.all_done();
    }

    void run(const TimeLoopPart& part) {
        const auto batch = share(shape.batch, part.slice, part.slices);
        const auto own = share(outputs.count(), part.group, part.groups);
        const auto mine = share(units.count(), part.group, part.groups);
        for (int64_t s = 0; s < shape.steps; ++s) {
            const int64_t t = d == 0 ? shape.steps - 1 - s : s;
            const int64_t later = d == 0 ? t + 1 : t - 1;  // the step that read this one's state
            const Range live{batch.begin, std::clamp(shape.live(t), batch.begin, batch.end)};
            const int64_t fed =
                s == 0 ? batch.begin : std::clamp(std::min(shape.live(t), shape.live(later)), batch.begin, batch.end);
            // Rows whose state went on into a later step, then rows whose state was the last.
            state_gradient(t, {live.begin, fed}, own, s == 0 ? false : shape.live(later) == 1,
                           [&](int64_t b) { return fed_back(shape.first(later) + b); });
            state_gradient(t, {fed, live.end}, own, false, [](int64_t) -> const T* { return nullptr; });
            if (second.weight) {
                part.step_done();
                through_second(t, live, mine);
            }
            part.step_done();
        }
        if (call.grad_h0) first_state_gradient(batch, own);
        if (call.grad_c0) {
            const auto& panels = second.weight ? units : outputs;
            const auto& range = second.weight ? mine : own;
            const int64_t begin = std::min(panels.column(range.begin), shape.hidden),
                          end = std::min(panels.column(range.end), shape.hidden);
            for (int64_t b = batch.begin; b < batch.end; ++b)
                std::copy(cell_carry + b * shape.hidden + begin, cell_carry + b * shape.hidden + end,
                          call.grad_c0 + (d * shape.batch + b) * shape.hidden + begin);
        }
    }

    // grad_x (+)= gradients of the gates W_ih, a thread's share.
    void input_gradient(int64_t part, int64_t parts) const {
        const int64_t gates = Kind::kGates * shape.hidden;
        std::vector<const T*> rows(gates);
        for (int64_t k = 0; k < gates; ++k) rows[k] = weights.input + kind().input_row(k) * shape.input;
        product_share(RowsOfA<T>{grad_gates(0), layout.stride}, shape.rows, Factor<T>{rows.data(), shape.input}, gates,
                      call.grad_x, d > 0, part, parts);
    }

  protected:
    T* grad_gates(int64_t row) const { return call.grad_gates + (d * shape.rows + row) * layout.stride; }

    // What the steps read, row by row, for the parameters' gradients.
    struct Read {
        std::vector<const T*> x, h;
        std::vector<T> zeros;
    };
    Read rows_read() const {
        Read read{std::vector<const T*>(shape.rows), before.states, std::vector<T>(shape.output(), T(0))};
        for (int64_t t = 0; t < shape.steps; ++t)
            for (int64_t b = 0; b < shape.live(t); ++b) read.x[shape.first(t) + b] = call.x.row(t, b);
        for (auto& h : read.h)
            if (!h) h = read.zeros.data();
        return read;
    }
    // Gradients of the gates from element `offset` on, row after row.
    std::vector<const T*> grad_rows(int64_t offset) const {
        return rows_at<T>(grad_gates(0) + offset, shape.rows, layout.stride);
    }

    const RecurrentBackward<T>& call;
    const RecurrentShape& shape;
    const RecurrentWeights<T, T>& weights;
    const typename RecurrentBackward<T>::Gradients& gradients;
    const int d;
    const Layout layout;
    Buffer<T> cell_carry;   // [batch, hidden]: gradient of the cell state (LSTM)
    Buffer<T> state_carry;  // [batch, output]: the part of the state's that goes round the products (GRU)
    const RowsBefore<T> before;

  private:
    Kind& kind() { return static_cast<Kind&>(*this); }
    const Kind& kind() const { return static_cast<const Kind&>(*this); }
    const T* fed_back(int64_t row) const { return grad_gates(row) + layout.fed; }

    // Gradient of h_t for rows of step t, for own columns: through the recurrent weights from the gates that
    // later_gates(b) points at (null: from the final state's gradient), plus the output's own.
    template <typename Gates>
    void state_gradient(int64_t t, const Range& rows, const Range& own, bool single, const Gates& later_gates) {
        for (int64_t p = own.begin; p < own.end; ++p)
            with_vectors(outputs.vectors(p), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                for_row_tiles(rows.size(), [&]<int Rows>(std::integral_constant<int, Rows>, int64_t tile_row) {
                    alignas(64) T grad[Rows * Vectors * width] = {};
                    const int64_t first = rows.begin + tile_row, column = outputs.column(p);
                    const int64_t count = std::min<int64_t>(Vectors * width, shape.output() - column);
                    if (later_gates(first)) {
                        back_through_weights<Rows, Vectors>(
                            p, single, [&](int m) { return later_gates(first + m); }, grad,
                            [&](int64_t part, int64_t parts) {
                                for (int64_t m = Rows * part / parts; m < Rows * (part + 1) / parts; ++m)
                                    prefetch_row(shape.first(t) + first + m, column, count);
                            });
                    } else if (call.grad_h_n) {
                        for (int m = 0; m < Rows; ++m)
                            std::copy_n(call.grad_h_n + (d * shape.batch + first + m) * shape.output() + column, count,
                                        grad + m * Vectors * width);
                    }
                    end_state(t, first, Rows, column, Vectors, grad);
                });
            });
    }

    // The endings of a tile, in functions of their own: one for all heights and widths of tiles.
    [[gnu::noinline]] void end_state(int64_t t, int64_t b, int rows, int64_t column, int vectors, const T* grad) {
        for (int m = 0; m < rows; ++m)
            for (int v = 0; v < vectors; ++v, grad += width) {
                const int64_t unit = column + v * width, row = shape.first(t) + b + m;
                const UnitAt at{b + m, row, unit, static_cast<int>(std::min<int64_t>(width, shape.output() - unit))};
                V dh = V::loadu(grad);
                if constexpr (Kind::kCarriesState)
                    dh = dh + load_as<T>(state_carry + at.batch * shape.output() + unit, at.used);
                if (call.grad_y)
                    dh = dh + load_as<T>(call.grad_y + (row * shape.directions + d) * shape.output() + unit, at.used);
                second.weight ? kind().first(at, dh) : kind().finish(at, dh);
            }
    }
    [[gnu::noinline]] void end_second(int64_t row, int64_t b, int rows, int64_t column, int vectors, const T* grad) {
        for (int m = 0; m < rows; ++m)
            for (int v = 0; v < vectors; ++v, grad += width) {
                const int64_t unit = column + v * width;
                const int used = static_cast<int>(std::min<int64_t>(width, shape.hidden - unit));
                kind().finish({b + m, row + m, unit, used}, V::loadu(grad));
            }
    }

    // grad = (gradients of the gates) W_hh for one tile. ahead(part, parts) is called between pieces of the product: a
    // few cache lines asked for at a time arrive while it runs, all at once they would hold it up.
    template <int Rows, int Vectors, typename Gates, typename Ahead>
    void back_through_weights(int64_t panel, bool single, const Gates& gates, T* grad, const Ahead& ahead) const {
        const int64_t pieces = single ? 1 : std::clamp<int64_t>(layout.depth / 128, 1, Rows);
        for (int64_t piece = 0; piece < pieces; ++piece) {
            const auto k = share(layout.depth, piece, pieces);
            RowPointers<T, Rows> a;
            for (int m = 0; m < Rows; ++m) a.row[m] = gates(m) + k.begin;
            ahead(piece, pieces);
            multiply_rows<T, Rows, Vectors>(a, state_panels + outputs.offset(panel) + k.begin * Vectors * width,
                                            k.size(), single, piece ? grad : nullptr, Vectors * width, grad,
                                            Vectors * width);
        }
    }

    // Asks for what the ending of a row will read.
    void prefetch_row(int64_t row, int64_t unit, int64_t count) const {
        constexpr int64_t line = 64 / sizeof(T);
        const int64_t at = d * shape.rows + row;
        const auto ask = [](const T* from, int64_t size) {
            for (int64_t u = 0; u < size; u += line) __builtin_prefetch(from + u);
        };
        for (int g = 0; call.gates && g < kSavedGates; ++g)
            ask(call.gates + (at * kSavedGates + g) * shape.hidden + unit, count);
        if (call.cells) ask(call.cells + at * shape.hidden + unit, count);
        if (Kind::kCells && before.cells[row]) ask(before.cells[row] + unit, count);
        if (call.grad_y) ask(call.grad_y + (row * shape.directions + d) * shape.output() + unit, count);
    }

    // From what first() wrote to the gradient of what finish() of the forward put out.
    void through_second(int64_t t, const Range& live, const Range& mine) {
        const bool single = shape.live(t) == 1;
        for (int64_t p = mine.begin; p < mine.end; ++p)
            with_vectors(units.vectors(p), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                for_row_tiles(live.size(), [&]<int Rows>(std::integral_constant<int, Rows>, int64_t tile_row) {
                    const int64_t b = live.begin + tile_row, row = shape.first(t) + b;
                    RowPointers<T, Rows> a;
                    for (int m = 0; m < Rows; ++m) a.row[m] = kind().second_row(row + m);
                    alignas(64) T grad[Rows * Vectors * width];
                    multiply_rows<T, Rows, Vectors>(a, second_panels + units.offset(p), second.depth, single, nullptr,
                                                    0, grad, Vectors * width);
                    end_second(row, b, Rows, units.column(p), Vectors, grad);
                });
            });
    }

    void first_state_gradient(const Range& batch, const Range& own) const {
        for (int64_t p = own.begin; p < own.end; ++p)
            with_vectors(outputs.vectors(p), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                for_row_tiles(batch.size(), [&]<int Rows>(std::integral_constant<int, Rows>, int64_t tile_row) {
                    const int64_t first = batch.begin + tile_row, column = outputs.column(p);
                    const int64_t count = std::min<int64_t>(Vectors * width, shape.output() - column);
                    alignas(64) T grad[Rows * Vectors * width];
                    back_through_weights<Rows, Vectors>(
                        p, shape.batch == 1, [&](int m) { return fed_back(before.start[first + m]); }, grad,
                        [](int64_t, int64_t) {});
                    for (int m = 0; m < Rows; ++m) {
                        const int64_t b = first + m;
                        T* row = grad + m * Vectors * width;
                        for (int64_t u = 0; state_carry && u < count; ++u)
                            row[u] += state_carry[b * shape.output() + column + u];
                        std::copy_n(row, count, call.grad_h0 + (d * shape.batch + b) * shape.output() + column);
                    }
                });
            });
    }

    const Second second;
    const Panels<T> outputs, units;
    Buffer<T> state_panels, second_panels;
};

// Runs `Loop` of every direction, then the products over all steps.
template <typename Loop, typename T, typename... Arguments>
void run_backward(const RecurrentBackward<T>& call, const Arguments&... arguments) {
    const auto& shape = call.shape;
    const int64_t gates = Loop::kGates * shape.hidden;
    const TimeLoopPlan plan(thread_limit(), shape.directions, shape.steps, shape.batch, gates * shape.output(),
                            sizeof(T), (shape.output() + kWidth<T> - 1) / kWidth<T>);
    std::vector<std::unique_ptr<Loop>> directions;
    for (int d = 0; d < shape.directions; ++d)
        directions.push_back(std::make_unique<Loop>(call, d, plan, arguments...));
    run_time_loops(plan, directions);
    const double work = static_cast<double>(shape.rows) * static_cast<double>(shape.directions * gates) *
                        static_cast<double>(shape.input + shape.output());
    parallel_region(threads_for(work, 1e5), [&](const Team& team) {
        for (const auto& direction : directions) direction->parameter_gradients(team.rank, team.size);
        for (const auto& direction : directions)
            if (call.grad_x) direction->input_gradient(team.rank, team.size);
    });
}

}  // namespace pykernels
