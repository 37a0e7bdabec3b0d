// The LSTM's forward time loop. The input part of a few steps is one product; each step adds the recurrent product to
// it and finishes the gates of a vector of units while they are at hand.
#include <stdexcept>

#include "kernels/lstm.h"
#include "kernels/recurrence.h"

namespace pykernels {
namespace {

constexpr int kGates = 4;
constexpr int64_t kDirectRows = 8;  // up to so many rows in all, the weights are read in place instead of being packed
constexpr int64_t kChunkRows = 96;  // rows of the input part computed at once: they stay in the second-level cache

template <typename Op, typename S, typename W, typename A>
class Direction {
    static constexpr int width = kWidth<A>;
    static constexpr int64_t columns = int64_t(kGates) * width;

  public:
    using Call = LstmForward<Op, S, W, A>;

    Direction(const Call& call, int d, const TimeLoopPlan& plan)
        : call(call),
          shape(call.shape),
          weights(call.weights[d]),
          d(d),
          units((shape.hidden + width - 1) / width * width),
          panels(units / width),
          direct(std::is_same_v<Op, A> && shape.rows <= kDirectRows && !shape.projection),
          input_depth(operand_depth<Op>(shape.input)),
          state_depth(operand_depth<Op>(shape.output())),
          state_stride(operand_depth<Op>((shape.output() + width - 1) / width * width)),
          projection(Panels<Op>::for_parts(shape.projection, operand_depth<Op>(shape.hidden), plan.groups)),
          input_panels(direct ? 0 : panels * columns * input_depth),
          state_panels(direct ? 0 : panels * columns * state_depth),
          projection_panels(shape.projection ? projection.size() : 0),
          bias(panels * columns),
          peephole(weights.peephole ? 3 * units : 0),
          cell(shape.batch * units),
          hidden(shape.projection ? shape.batch * operand_depth<Op>(units) : 0) {
        for (auto& h : state) h = Buffer<Op>(shape.batch * state_stride);
        load_states();
    }

    // Packs this thread's share of the weights.
    void pack(const TimeLoopPart& part) {
        const auto own =
            part.slices == 1 ? share(panels, part.group, part.groups) : share(panels, part.local, part.locals);
        if (!direct) {
            pack_gate_panels<Op>(weights.input, kGates, shape.hidden, shape.input, own.begin, own.end,
                                 input_panels.get());
            pack_gate_panels<Op>(weights.hidden, kGates, shape.hidden, shape.output(), own.begin, own.end,
                                 state_panels.get());
        }
        for (int64_t p = own.begin; p < own.end; ++p) {
            for (int g = 0; g < kGates; ++g) {
                const int64_t unit = g * shape.hidden + p * width;
                const int used = used_lanes(p);
                Vec<A> sum(A(0));
                if (weights.bias_input) sum = sum + load_as<A>(weights.bias_input + unit, used);
                if (weights.bias_hidden) sum = sum + load_as<A>(weights.bias_hidden + unit, used);
                sum.store(bias + p * columns + g * width);
            }
            for (int g = 0; weights.peephole && g < 3; ++g)
                load_as<A>(weights.peephole + g * shape.hidden + p * width, used_lanes(p))
                    .store(peephole + g * units + p * width);
        }
        if (shape.projection) {
            const auto mine = share(projection.count(), part.local, part.locals);
            pack_column_panels<Op>(weights.projection, projection, shape.hidden, mine.begin, mine.end,
                                   projection_panels.get());
        }
        if (part.slices > 1 || shape.projection) part.all_done();
    }

    void run(const TimeLoopPart& part) {
        const auto batch = share(shape.batch, part.slice, part.slices);
        const auto own = share(panels, part.group, part.groups);
        const int64_t chunk = std::clamp<int64_t>(kChunkRows / std::max<int64_t>(batch.size(), 1), 1, shape.steps);
        Buffer<A> pre(own.size() * columns * chunk * batch.size());
        std::vector<const Op*> rows;
        Buffer<Op> padded(shape.input % Operand<Op>::kPerElement ? chunk * batch.size() * input_depth : 0);
        for (int64_t begin = 0; begin < shape.steps; begin += chunk) {
            const int64_t end = std::min(begin + chunk, shape.steps);
            collect_rows(begin, end, batch, rows, padded);
            input_part(rows, own, pre);
            int64_t row = 0;
            for (int64_t s = begin; s < end; ++s) {
                const int64_t t = step(s), live = live_rows(t, batch);
                recurrent_part(s, t, batch, live, own, pre + row * columns, static_cast<int64_t>(rows.size()));
                if (shape.projection) {
                    part.step_done();
                    project(s, t, batch, live, part);
                }
                finish_sequences(s, t, batch, own, part);
                part.step_done();
                row += live;
            }
        }
    }

  private:
    int64_t step(int64_t s) const { return d == 0 ? s : shape.steps - 1 - s; }
    int64_t live_rows(int64_t t, const Range& batch) const {
        return std::clamp<int64_t>(shape.live(t) - batch.begin, 0, batch.size());
    }
    int used_lanes(int64_t panel) const {
        return static_cast<int>(std::min<int64_t>(width, shape.hidden - panel * width));
    }

    void load_states() {
        std::fill(cell.get(), cell.get() + shape.batch * units, A(0));
        for (int64_t b = 0; b < shape.batch && call.c0; ++b)
            std::copy_n(call.c0 + (d * shape.batch + b) * shape.hidden, shape.hidden, cell + b * units);
        for (auto& h : state) {
            std::memset(static_cast<void*>(h.get()), 0, shape.batch * state_stride * sizeof(Op));
            for (int64_t b = 0; b < shape.batch && call.h0; ++b) {
                auto* to = reinterpret_cast<W*>(h + b * state_stride);
                const A* from = call.h0 + (d * shape.batch + b) * shape.output();
                for (int64_t u = 0; u < shape.output(); ++u) to[u] = static_cast<W>(static_cast<S>(from[u]));
            }
        }
        // Lanes beyond the last unit feed the projection's padding and must be finite.
        if (shape.projection)
            std::memset(static_cast<void*>(hidden.get()), 0, shape.batch * operand_depth<Op>(units) * sizeof(Op));
    }

    // The input rows of steps [begin, end) in processing order.
    void collect_rows(int64_t begin, int64_t end, const Range& batch, std::vector<const Op*>& rows, Op* padded) const {
        rows.clear();
        for (int64_t s = begin; s < end; ++s) {
            const int64_t t = step(s), live = live_rows(t, batch);
            for (int64_t b = 0; b < live; ++b) {
                const W* source = call.x.row(t, batch.begin + b);
                if (padded) {
                    Op* copy = padded + static_cast<int64_t>(rows.size()) * input_depth;
                    copy[input_depth - 1] = Op{};
                    std::memcpy(static_cast<void*>(copy), source, shape.input * sizeof(W));
                    rows.push_back(copy);
                } else {
                    rows.push_back(reinterpret_cast<const Op*>(source));
                }
            }
        }
    }

    // pre[panel][row] = W_ih x + b.
    void input_part(const std::vector<const Op*>& rows, const Range& own, A* pre) const {
        const auto count = static_cast<int64_t>(rows.size());
        const bool single = shape.rows == 1;
        for (int64_t p = own.begin; p < own.end; ++p) {
            A* out = pre + (p - own.begin) * count * columns;
            if constexpr (std::is_same_v<Op, A>)
                if (direct) {
                    for (int64_t row = 0; row < count; ++row)
                        add_dot_products(weights.input, shape.input, rows[row], p, bias + p * columns,
                                         out + row * columns);
                    continue;
                }
            const Op* panel = input_panels + p * columns * input_depth;
            for_row_tiles(count, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                RowPointers<Op, Rows> a;
                for (int m = 0; m < Rows; ++m) a.row[m] = rows[row + m];
                multiply_rows<Op, Rows, kGates>(a, panel, input_depth, single, bias + p * columns, 0,
                                                out + row * columns, columns);
            });
        }
    }

    // One step: gates of every live row and own unit from `pre` and the last state.
    void recurrent_part(int64_t s, int64_t t, const Range& batch, int64_t live, const Range& own, const A* pre,
                        int64_t pre_rows) {
        const Op* last = state[s & 1];
        const bool single = shape.live(t) == 1;
        // Weights larger than the cache are walked there and back, so that half of them are still in it.
        const bool back = s & 1;
        for (int64_t i = own.begin; i < own.end; ++i) {
            const int64_t p = back ? own.end - 1 - (i - own.begin) : i;
            const A* part = pre + (p - own.begin) * pre_rows * columns;
            if constexpr (std::is_same_v<Op, A>)
                if (direct) {
                    alignas(64) A gates[columns];
                    for (int64_t row = 0; row < live; ++row) {
                        add_dot_products(weights.hidden, shape.hidden, last + (batch.begin + row) * state_stride, p,
                                         part + row * columns, gates);
                        finish_gates(s, t, batch.begin + row, p, gates);
                    }
                    continue;
                }
            const Op* panel = state_panels + p * columns * state_depth;
            for_row_tiles(live, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                RowPointers<Op, Rows> a;
                for (int m = 0; m < Rows; ++m) a.row[m] = last + (batch.begin + row + m) * state_stride;
                alignas(64) A gates[Rows * columns];
                multiply_rows<Op, Rows, kGates>(a, panel, state_depth, single, part + row * columns, columns, gates,
                                                columns);
                for (int m = 0; m < Rows; ++m) finish_gates(s, t, batch.begin + row + m, p, gates + m * columns);
            });
        }
    }

    // out = addend + W x for the gates of one panel, W in place.
    void add_dot_products(const A* weight, int64_t depth, const A* x, int64_t panel, const A* addend, A* out) const {
        for (int g = 0; g < kGates; ++g) {
            const A* rows = weight + (g * shape.hidden + panel * width) * depth;
            (Vec<A>::loadu(addend + g * width) + dot_rows<A>(rows, depth, used_lanes(panel), x, depth))
                .store(out + g * width);
        }
    }

    // The ending: activations, new cell and hidden state of one row and one vector of units.
    [[gnu::always_inline]] void finish_gates(int64_t s, int64_t t, int64_t b, int64_t panel, const A* pre) {
        using V = Vec<A>;
        const int64_t unit = panel * width, row = shape.first(t) + b;
        const int used = used_lanes(panel);
        V i = V::loadu(pre), f = V::loadu(pre + width), g = V::loadu(pre + 2 * width), o = V::loadu(pre + 3 * width);
        V c = V::loadu(cell + b * units + unit);
        if (peephole) {
            i = at::vec::fmadd(V::loadu(peephole + unit), c, i);
            f = at::vec::fmadd(V::loadu(peephole + units + unit), c, f);
        }
        i = sigmoid(i);
        f = sigmoid(f);
        g = tanh(g);
        c = at::vec::fmadd(f, c, i * g);
        if (peephole) o = at::vec::fmadd(V::loadu(peephole + 2 * units + unit), c, o);
        o = sigmoid(o);
        const V h = o * tanh(c);
        c.store(cell + b * units + unit);
        if (shape.projection) {
            store_operand(hidden + b * operand_depth<Op>(units), unit, h, used);
        } else {
            store_operand(state[~s & 1] + b * state_stride, unit, h, used);
            store_as<A>(call.y + (row * shape.directions + d) * shape.hidden + unit, h, used);
        }
        if (call.gates) {
            S* saved = call.gates + (d * shape.rows + row) * kGates * shape.hidden + unit;
            store_as<A>(saved, i, used);
            store_as<A>(saved + shape.hidden, f, used);
            store_as<A>(saved + 2 * shape.hidden, g, used);
            store_as<A>(saved + 3 * shape.hidden, o, used);
            store_as<A>(call.cells + (d * shape.rows + row) * shape.hidden + unit, c, used);
        }
    }

    // h = W_hr (o tanh(c)) for own columns of the projection.
    void project(int64_t s, int64_t t, const Range& batch, int64_t live, const TimeLoopPart& part) {
        const auto own = share(projection.count(), part.group, part.groups);
        const bool single = shape.live(t) == 1;
        for (int64_t p = own.begin; p < own.end; ++p)
            with_vectors(projection.vectors(p), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                for_row_tiles(live, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                    RowPointers<Op, Rows> a;
                    for (int m = 0; m < Rows; ++m)
                        a.row[m] = hidden + (batch.begin + row + m) * operand_depth<Op>(units);
                    alignas(64) A out[Rows * Vectors * width];
                    multiply_rows<Op, Rows, Vectors>(a, projection_panels + projection.offset(p), projection.depth,
                                                     single, nullptr, 0, out, Vectors * width);
                    for (int m = 0; m < Rows; ++m)
                        for (int v = 0; v < Vectors; ++v) {
                            const int64_t b = batch.begin + row + m, unit = projection.column(p) + v * width;
                            const auto h = Vec<A>::loadu(out + (m * Vectors + v) * width);
                            const int used = static_cast<int>(std::min<int64_t>(width, shape.projection - unit));
                            store_operand(state[~s & 1] + b * state_stride, unit, h, used);
                            store_as<A>(
                                call.y + ((shape.first(t) + b) * shape.directions + d) * shape.projection + unit, h,
                                used);
                        }
                });
            });
    }

    // Final states of the sequences that end with this step.
    void finish_sequences(int64_t s, int64_t t, const Range& batch, const Range& own, const TimeLoopPart& part) const {
        const int64_t later = s + 1 == shape.steps ? 0 : d == 0 ? shape.live(t + 1) : shape.batch;
        const auto mine = share(projection.count(), part.group, part.groups);
        const Range units_own{own.begin * width, std::min(own.end * width, shape.hidden)};
        const Range outputs = shape.projection ? Range{std::min(projection.column(mine.begin), shape.projection),
                                                       std::min(projection.column(mine.end), shape.projection)}
                                               : units_own;
        for (int64_t b = std::max(later, batch.begin); b < std::min(shape.live(t), batch.end); ++b) {
            const auto* h = reinterpret_cast<const W*>(state[~s & 1] + b * state_stride);
            for (int64_t u = outputs.begin; u < outputs.end; ++u)
                call.h_n[(d * shape.batch + b) * shape.output() + u] = static_cast<S>(h[u]);
            for (int64_t u = units_own.begin; u < units_own.end; ++u)
                call.c_n[(d * shape.batch + b) * shape.hidden + u] = static_cast<S>(cell[b * units + u]);
        }
    }

    // The state as the next product reads it: rounded to the storage type.
    static void store_operand(Op* row, int64_t unit, const Vec<A>& h, int used) {
        if constexpr (std::is_same_v<Op, A>) {
            round_to<S>(h).store(row + unit);
        } else {
            store_as<A>(reinterpret_cast<W*>(row) + unit, h, used);  // a pair's other half stays zero
        }
    }

    const Call& call;
    const LstmShape& shape;
    const LstmWeights<W, A>& weights;
    const int d;
    const int64_t units, panels;
    const bool direct;
    const int64_t input_depth, state_depth, state_stride;
    const Panels<Op> projection;
    Buffer<Op> input_panels, state_panels, projection_panels;
    Buffer<A> bias, peephole, cell;
    Buffer<Op> hidden, state[2];
};

}  // namespace

template <typename Op, typename S, typename W, typename A>
void lstm_forward(const LstmForward<Op, S, W, A>& call) {
    const auto& shape = call.shape;
    const TimeLoopPlan plan(thread_limit(), shape.directions, shape.steps, shape.batch,
                            kGates * shape.hidden * shape.output(), sizeof(W),
                            (shape.hidden + kWidth<A> - 1) / kWidth<A>);
    std::vector<std::unique_ptr<Direction<Op, S, W, A>>> directions;
    for (int d = 0; d < shape.directions; ++d)
        directions.push_back(std::make_unique<Direction<Op, S, W, A>>(call, d, plan));
    run_time_loops(plan, directions);
}

template void lstm_forward(const LstmForward<float, float, float, float>&);
template void lstm_forward(const LstmForward<double, double, double, double>&);
template void lstm_forward(const LstmForward<float, c10::BFloat16, float, float>&);
template void lstm_forward(const LstmForward<float, c10::Half, float, float>&);

#ifdef __AVX512BF16__
template void lstm_forward(const LstmForward<Bf16Pair, c10::BFloat16, c10::BFloat16, float>&);
bool has_bf16_products() { return true; }
#else
template <>
void lstm_forward(const LstmForward<Bf16Pair, c10::BFloat16, c10::BFloat16, float>&) {
    throw std::logic_error("this build has no bf16 dot products");
}
bool has_bf16_products() { return false; }
#endif

}  // namespace pykernels
