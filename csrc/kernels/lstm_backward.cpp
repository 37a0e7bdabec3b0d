// The LSTM's backward: a time loop from each sequence's last step to its first that turns gradients of the states into
// gradients of the gates, then the parameters' gradients as a few large products over all steps at once.
#include "core/product.h"
#include "kernels/lstm.h"
#include "kernels/recurrence.h"

namespace pykernels {
namespace {

constexpr int kGates = 4;

template <typename T>
class BackwardDirection {
    static constexpr int width = kWidth<T>;
    using V = Vec<T>;

  public:
    BackwardDirection(const LstmBackward<T>& call, int d, const TimeLoopPlan& plan)
        : call(call),
          shape(call.shape),
          weights(call.weights[d]),
          gradients(call.gradients[d]),
          d(d),
          gate_stride(kGates * shape.hidden),
          outputs(Panels<T>::for_parts(shape.output(), gate_stride, plan.groups)),
          units(Panels<T>::for_parts(shape.hidden, shape.projection, plan.groups)),
          state_panels(outputs.size()),
          projection_panels(shape.projection ? units.size() : 0),
          cell(shape.batch * shape.hidden),
          grad_projected(shape.projection ? shape.rows * shape.projection : 0),
          projected_from(gradients.projection ? shape.rows * shape.hidden : 0),
          last_rows(shape.rows, nullptr),
          last_cells(shape.rows, nullptr),
          start(shape.batch) {
        if (call.grad_c_n) {
            std::copy_n(call.grad_c_n + d * shape.batch * shape.hidden, shape.batch * shape.hidden, cell.get());
        } else {
            std::fill(cell.get(), cell.get() + shape.batch * shape.hidden, T(0));
        }
        find_last_rows();
    }

    void pack(const TimeLoopPart& part) {
        const auto own = part.slices == 1 ? share(outputs.count(), part.group, part.groups)
                                          : share(outputs.count(), part.local, part.locals);
        pack_row_panels(weights.hidden, outputs, own.begin, own.end, state_panels.get());
        if (shape.projection) {
            const auto mine = share(units.count(), part.local, part.locals);
            pack_row_panels(weights.projection, units, mine.begin, mine.end, projection_panels.get());
        }
        if (part.slices > 1 || shape.projection) part.all_done();
    }

    void run(const TimeLoopPart& part) {
        const auto batch = share(shape.batch, part.slice, part.slices);
        const auto own = share(outputs.count(), part.group, part.groups);
        const auto own_units = share(units.count(), part.group, part.groups);
        for (int64_t s = 0; s < shape.steps; ++s) {
            const int64_t t = d == 0 ? shape.steps - 1 - s : s;
            const int64_t later = d == 0 ? t + 1 : t - 1;  // the step that read this one's state
            const Range live{batch.begin, std::clamp(shape.live(t), batch.begin, batch.end)};
            const int64_t fed =
                s == 0 ? batch.begin : std::clamp(std::min(shape.live(t), shape.live(later)), batch.begin, batch.end);
            // Rows whose state went on into a later step, then rows whose state was the last.
            state_gradient(t, {live.begin, fed}, own, s == 0 ? false : shape.live(later) == 1,
                           [&](int64_t b) { return grad_gates(later, b); });
            state_gradient(t, {fed, live.end}, own, false, [](int64_t) -> const T* { return nullptr; });
            if (shape.projection) {
                part.step_done();
                through_projection(t, live, own_units);
            }
            part.step_done();
        }
        if (call.grad_h0) first_state_gradient(batch, own);
        if (call.grad_c0) {
            const auto& panels = shape.projection ? units : outputs;
            const auto& mine = shape.projection ? own_units : own;
            const int64_t begin = std::min(panels.column(mine.begin), shape.hidden),
                          end = std::min(panels.column(mine.end), shape.hidden);
            for (int64_t b = batch.begin; b < batch.end; ++b)
                std::copy(cell + b * shape.hidden + begin, cell + b * shape.hidden + end,
                          call.grad_c0 + (d * shape.batch + b) * shape.hidden + begin);
        }
    }

    // Parameters' gradients, this thread's share.
    void parameter_gradients(int64_t part, int64_t parts) const {
        std::vector<const T*> gates(shape.rows), x(shape.rows), h(shape.rows);
        const std::vector<T> zeros(shape.output(), T(0));
        for (int64_t t = 0; t < shape.steps; ++t)
            for (int64_t b = 0; b < shape.live(t); ++b) {
                const int64_t row = shape.first(t) + b;
                gates[row] = grad_gates(row);
                x[row] = call.x.row(t, b);
                h[row] = last_rows[row] ? last_rows[row] : zeros.data();
            }
        if (gradients.hidden)
            outer_products_share<T>({gates.data(), gate_stride}, {x.data(), shape.input, gradients.input},
                                    {h.data(), shape.output(), gradients.hidden}, shape.rows, gradients.bias, part,
                                    parts);
        if (gradients.projection) {
            for (int64_t r = 0; r < shape.rows; ++r) {
                gates[r] = grad_projected + r * shape.projection;
                x[r] = projected_from + r * shape.hidden;
            }
            outer_products_share<T>({gates.data(), shape.projection}, {x.data(), shape.hidden, gradients.projection},
                                    {nullptr, 0, nullptr}, shape.rows, nullptr, part, parts);
        }
        if (gradients.peephole) peephole_gradient(part, parts);
    }

    const T* grad_gates(int64_t row) const { return call.grad_gates + (d * shape.rows + row) * gate_stride; }

  private:
    const T* grad_gates(int64_t t, int64_t b) const { return grad_gates(shape.first(t) + b); }

    // For every row the hidden and cell state it started from (null: zeros), and every sequence's first row.
    void find_last_rows() {
        const int64_t out = shape.output();
        for (int64_t t = 0; t < shape.steps; ++t) {
            const int64_t before = d == 0 ? t - 1 : t + 1;
            const int64_t continued =
                before < 0 || before >= shape.steps ? 0 : std::min(shape.live(before), shape.live(t));
            for (int64_t b = 0; b < shape.live(t); ++b) {
                const int64_t row = shape.first(t) + b;
                if (b < continued) {
                    const int64_t from = shape.first(before) + b;
                    last_rows[row] = call.y + (from * shape.directions + d) * out;
                    last_cells[row] = call.cells + (d * shape.rows + from) * shape.hidden;
                } else {
                    if (call.h0) last_rows[row] = call.h0 + (d * shape.batch + b) * out;
                    if (call.c0) last_cells[row] = call.c0 + (d * shape.batch + b) * shape.hidden;
                    start[b] = row;
                }
            }
        }
    }

    // Gradient of h_t for rows of step t, for own columns: through the recurrent weights from the gates that
    // later_gates(b) points at (null: from the final state's gradient), plus the output's own.
    template <typename Gates>
    void state_gradient(int64_t t, const Range& rows, const Range& own, bool single, const Gates& later_gates) {
        for (int64_t p = own.begin; p < own.end; ++p)
            with_vectors(outputs.vectors(p), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                for_row_tiles(rows.size(), [&]<int Rows>(std::integral_constant<int, Rows>, int64_t tile_row) {
                    alignas(64) T grad[Rows * Vectors * width] = {};
                    const int64_t first = rows.begin + tile_row, column = outputs.column(p);
                    if (later_gates(first)) {
                        back_through_weights<Rows, Vectors>(
                            p, single, [&](int m) { return later_gates(first + m); }, grad,
                            [&](int64_t part, int64_t parts) {
                                const int64_t count = std::min<int64_t>(Vectors * width, shape.output() - column);
                                for (int64_t m = Rows * part / parts; m < Rows * (part + 1) / parts; ++m)
                                    prefetch_row(shape.first(t) + first + m, column, count);
                            });
                    } else if (call.grad_h_n) {
                        for (int m = 0; m < Rows; ++m)
                            std::copy_n(call.grad_h_n + (d * shape.batch + first + m) * shape.output() + column,
                                        std::min<int64_t>(Vectors * width, shape.output() - column),
                                        grad + m * Vectors * width);
                    }
                    for (int m = 0; m < Rows; ++m)
                        for (int v = 0; v < Vectors; ++v) {
                            const int64_t unit = column + v * width, row = shape.first(t) + first + m;
                            const int used = static_cast<int>(std::min<int64_t>(width, shape.output() - unit));
                            V dh = V::loadu(grad + (m * Vectors + v) * width);
                            if (call.grad_y)
                                dh = dh + load_as<T>(call.grad_y + (row * shape.directions + d) * shape.output() + unit,
                                                     used);
                            if (shape.projection) {
                                store_as<T>(grad_projected + row * shape.projection + unit, dh, used);
                            } else {
                                gate_gradients(row, first + m, unit, used, dh);
                            }
                        }
                });
            });
    }

    // grad = (gradients of the gates) W_hh for one tile. ahead(part, parts) is called between pieces of the product: a
    // few cache lines asked for at a time arrive while it runs, all at once they would hold it up.
    template <int Rows, int Vectors, typename Gates, typename Ahead>
    void back_through_weights(int64_t panel, bool single, const Gates& gates, T* grad, const Ahead& ahead) const {
        const int64_t pieces = single ? 1 : std::clamp<int64_t>(gate_stride / 128, 1, Rows);
        for (int64_t piece = 0; piece < pieces; ++piece) {
            const auto k = share(gate_stride, piece, pieces);
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
        const T* gates = call.gates + (d * shape.rows + row) * gate_stride + unit;
        const T* cells = call.cells + (d * shape.rows + row) * shape.hidden + unit;
        for (int64_t u = 0; u < count; u += line) {
            for (int g = 0; g < kGates; ++g) __builtin_prefetch(gates + g * shape.hidden + u);
            __builtin_prefetch(cells + u);
            if (last_cells[row]) __builtin_prefetch(last_cells[row] + unit + u);
            if (call.grad_y) __builtin_prefetch(call.grad_y + (row * shape.directions + d) * shape.output() + unit + u);
        }
    }

    // With a projection: from the gradient of W_hr (o tanh(c)) to that of o tanh(c).
    void through_projection(int64_t t, const Range& live, const Range& own) {
        const bool single = shape.live(t) == 1;
        for (int64_t p = own.begin; p < own.end; ++p)
            with_vectors(units.vectors(p), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                for_row_tiles(live.size(), [&]<int Rows>(std::integral_constant<int, Rows>, int64_t tile_row) {
                    const int64_t b = live.begin + tile_row, row = shape.first(t) + b;
                    RowPointers<T, Rows> a;
                    for (int m = 0; m < Rows; ++m) a.row[m] = grad_projected + (row + m) * shape.projection;
                    alignas(64) T grad[Rows * Vectors * width];
                    multiply_rows<T, Rows, Vectors>(a, projection_panels + units.offset(p), shape.projection, single,
                                                    nullptr, 0, grad, Vectors * width);
                    for (int m = 0; m < Rows; ++m)
                        for (int v = 0; v < Vectors; ++v) {
                            const int64_t unit = units.column(p) + v * width;
                            const int used = static_cast<int>(std::min<int64_t>(width, shape.hidden - unit));
                            gate_gradients(row + m, b + m, unit, used, V::loadu(grad + (m * Vectors + v) * width));
                        }
                });
            });
    }

    // The ending: from the gradient of o tanh(c) to those of the gates before their activations, and on to c_{t-1}.
    [[gnu::always_inline]] void gate_gradients(int64_t row, int64_t b, int64_t unit, int used, const V& dh) {
        const V one(T(1));
        const T* saved = call.gates + (d * shape.rows + row) * gate_stride + unit;
        const V i = load_as<T>(saved, used), f = load_as<T>(saved + shape.hidden, used);
        const V g = load_as<T>(saved + 2 * shape.hidden, used), o = load_as<T>(saved + 3 * shape.hidden, used);
        const V tanh_c = tanh(load_as<T>(call.cells + (d * shape.rows + row) * shape.hidden + unit, used));
        const V last = last_cells[row] ? load_as<T>(last_cells[row] + unit, used) : V(T(0));
        T* carried = cell + b * shape.hidden + unit;

        const V d_o = dh * tanh_c * o * (one - o);
        V d_c = at::vec::fmadd(dh * o, at::vec::fnmadd(tanh_c, tanh_c, one), load_as<T>(carried, used));
        const T* peephole = weights.peephole ? weights.peephole + unit : nullptr;
        if (peephole) d_c = at::vec::fmadd(d_o, load_as<T>(peephole + 2 * shape.hidden, used), d_c);
        const V d_i = d_c * g * i * (one - i);
        const V d_f = d_c * last * f * (one - f);
        const V d_g = d_c * i * at::vec::fnmadd(g, g, one);
        V d_last = d_c * f;
        if (peephole) {
            d_last = at::vec::fmadd(d_i, load_as<T>(peephole, used), d_last);
            d_last = at::vec::fmadd(d_f, load_as<T>(peephole + shape.hidden, used), d_last);
        }
        store_as<T>(carried, d_last, used);
        T* out = call.grad_gates + (d * shape.rows + row) * gate_stride + unit;
        store_as<T>(out, d_i, used);
        store_as<T>(out + shape.hidden, d_f, used);
        store_as<T>(out + 2 * shape.hidden, d_g, used);
        store_as<T>(out + 3 * shape.hidden, d_o, used);
        if (gradients.projection) store_as<T>(projected_from + row * shape.hidden + unit, o * tanh_c, used);
    }

    void first_state_gradient(const Range& batch, const Range& own) const {
        for (int64_t p = own.begin; p < own.end; ++p)
            with_vectors(outputs.vectors(p), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                for_row_tiles(batch.size(), [&]<int Rows>(std::integral_constant<int, Rows>, int64_t tile_row) {
                    const int64_t first = batch.begin + tile_row, column = outputs.column(p);
                    alignas(64) T grad[Rows * Vectors * width];
                    back_through_weights<Rows, Vectors>(
                        p, shape.batch == 1, [&](int m) { return grad_gates(start[first + m]); }, grad,
                        [](int64_t, int64_t) {});
                    for (int m = 0; m < Rows; ++m)
                        std::copy_n(grad + m * Vectors * width,
                                    std::min<int64_t>(Vectors * width, shape.output() - column),
                                    call.grad_h0 + (d * shape.batch + first + m) * shape.output() + column);
                });
            });
    }

    // out[column] = sum over rows of load(row, column, lanes), row after row: long runs of memory, one order.
    template <typename Load>
    void sum_columns(const Range& columns, const Load& load, T* out) const {
        std::fill(out + columns.begin, out + columns.end, T(0));
        for (int64_t r = 0; r < shape.rows; ++r)
            for (int64_t c = columns.begin; c < columns.end; c += width) {
                const int used = static_cast<int>(std::min<int64_t>(width, columns.end - c));
                store_as<T>(out + c, load_as<T>(out + c, used) + load(r, c, used), used);
            }
    }

    void peephole_gradient(int64_t part, int64_t parts) const {
        const auto own = share(shape.hidden, part, parts, 4 * width);
        const int64_t H = shape.hidden;
        for (int g = 0; g < 2; ++g)  // i and f see the last cell state
            sum_columns(
                own,
                [&](int64_t r, int64_t u, int count) {
                    if (!last_cells[r]) return V(T(0));
                    return load_as<T>(grad_gates(r) + g * H + u, count) * load_as<T>(last_cells[r] + u, count);
                },
                gradients.peephole + g * H);
        sum_columns(
            own,
            [&](int64_t r, int64_t u, int count) {
                const T* cells = call.cells + (d * shape.rows + r) * H;
                return load_as<T>(grad_gates(r) + 3 * H + u, count) * load_as<T>(cells + u, count);
            },
            gradients.peephole + 2 * H);
    }

    const LstmBackward<T>& call;
    const LstmShape& shape;
    const LstmWeights<T, T>& weights;
    const typename LstmBackward<T>::Gradients& gradients;
    const int d;
    const int64_t gate_stride;
    const Panels<T> outputs, units;
    Buffer<T> state_panels, projection_panels, cell, grad_projected, projected_from;
    std::vector<const T*> last_rows, last_cells;
    std::vector<int64_t> start;
};

// grad_x = gradients of the gates (both directions) W_ih, this thread's share.
template <typename T>
void input_gradient(const LstmBackward<T>& call, int64_t part, int64_t parts) {
    const auto& shape = call.shape;
    const int64_t gates = kGates * shape.hidden;
    std::vector<const T*> rows(gates);
    for (int d = 0; d < shape.directions; ++d) {
        for (int64_t k = 0; k < gates; ++k) rows[k] = call.weights[d].input + k * shape.input;
        const T* grad_gates = call.grad_gates + d * shape.rows * gates;
        product_share<T>(rows_of_a<T>([&](int64_t r) { return grad_gates + r * gates; }), shape.rows,
                         {rows.data(), shape.input}, gates, call.grad_x, d > 0, part, parts);
    }
}

}  // namespace

template <typename T>
void lstm_backward(const LstmBackward<T>& call) {
    const auto& shape = call.shape;
    const int64_t weights = kGates * shape.hidden * shape.output();
    const int available = thread_limit();
    const TimeLoopPlan plan(available, shape.directions, shape.steps, shape.batch, weights, sizeof(T),
                            (shape.output() + kWidth<T> - 1) / kWidth<T>);
    std::vector<std::unique_ptr<BackwardDirection<T>>> directions;
    for (int d = 0; d < shape.directions; ++d)
        directions.push_back(std::make_unique<BackwardDirection<T>>(call, d, plan));
    run_time_loops(plan, directions);
    const double work = static_cast<double>(shape.rows) * static_cast<double>(shape.directions) * kGates *
                        static_cast<double>(shape.hidden) * static_cast<double>(shape.input + shape.output());
    parallel_region(threads_for(work, 1e5), [&](const Team& team) {
        for (const auto& direction : directions) direction->parameter_gradients(team.rank, team.size);
        if (call.grad_x) input_gradient(call, team.rank, team.size);
    });
}

template void lstm_backward(const LstmBackward<float>&);
template void lstm_backward(const LstmBackward<double>&);

}  // namespace pykernels
