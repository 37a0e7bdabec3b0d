// The forward time loop of every recurrent kind. The input part of a few steps is one product; each step adds the
// recurrent product to it and lets the kind finish the gates of a vector of units while they are at hand. A kind with a
// second product a step (a projection, or a reset before the product) gives what that one reads, and finishes it too.
#pragma once

#include "kernels/recurrence.h"
#include "kernels/recurrent.h"

namespace pykernels {

// Gates has
//   kGates, kInput[], kHidden[]  which gates of the weights the input part and the recurrent product have, side by side
//   kConstant                    the recurrent bias of the last gate stays apart from its input part (GRU)
//   kKeepsState                  the ending reads the state before, from `kept` (GRU)
// Kind derives from this class and has
//   finish(at, gates, input)  -> what is put out, or what the second product reads
//   finish_second(at, sum)    -> what is put out, with a second product
//   pack_panel(unit, used)    packs what else it needs of a vector of units
template <typename Kind, typename Gates, typename Call>
class ForwardLoop {
  protected:
    using Op = typename Call::Op;
    using S = typename Call::S;
    using W = typename Call::W;
    using A = typename Call::A;
    using V = Vec<A>;
    static constexpr int width = kWidth<A>;
    static constexpr int64_t kDirectRows = 8;  // up to so many rows in all, the weights are read where they lie
    static constexpr int64_t kChunkRows = 96;  // rows of the input part computed at once: they stay in the cache

  public:
    // Rows, and gate of the weights if the second product has an input part of its own (else -1).
    struct Second {
        const W* weight = nullptr;
        int64_t columns = 0;
        const A* bias = nullptr;
        int input_gate = -1;
    };

    ForwardLoop(const Call& call, int d, const TimeLoopPlan& plan, const Second& second = {})
        : call(call),
          shape(call.shape),
          weights(call.weights[d]),
          d(d),
          units((shape.hidden + width - 1) / width * width),
          panels(shape.hidden, plan.groups),
          second(second),
          second_panels(second.columns, plan.groups),
          direct(std::is_same_v<Op, A> && shape.rows <= kDirectRows && !second.weight),
          input_depth(operand_depth<Op>(shape.input)),
          state_depth(operand_depth<Op>(shape.output())),
          state_stride(operand_depth<Op>((shape.output() + width - 1) / width * width)),
          middle_depth(operand_depth<Op>(shape.hidden)),
          middle_stride(operand_depth<Op>(units)),
          input_panels(direct ? 0 : panels.total() * input_depth),
          state_panels(direct ? 0 : panels.total() * state_depth),
          middle_panels(second_panels.total() * middle_depth),
          second_input_panels(second.input_gate >= 0 ? second_panels.total() * input_depth : 0),
          bias(panels.total()),
          constant(Gates::kConstant ? units : 0),
          second_bias(second_panels.total()),
          cell(call.c_n ? shape.batch * units : 0),
          kept_stride((shape.output() + width - 1) / width * width),
          kept(Gates::kKeepsState ? shape.batch * kept_stride : 0),
          middle(second.weight ? shape.batch * middle_stride : 0) {
        for (auto& h : state) h = Buffer<Op>(shape.batch * state_stride);
        load_states();
    }

    // Packs this thread's share of the weights.
    void pack(const TimeLoopPart& part) {
        const auto own = part.slices == 1 ? share(panels.count(), part.group, part.groups)
                                          : share(panels.count(), part.local, part.locals);
        for (int64_t p = own.begin; p < own.end; ++p) {
            if (!direct) {
                pack_units<Op>(weights.input, Gates::kInput, shape.hidden, shape.input, panels, p,
                               input_panels + panels.before(p) * input_depth);
                pack_units<Op>(weights.hidden, Gates::kHidden, shape.hidden, shape.output(), panels, p,
                               state_panels + panels.before(p) * state_depth);
            }
            A* sums = bias + panels.before(p);
            for (int v = 0; v < panels.unit_vectors(p); ++v) {
                const int64_t unit = panels.unit(p) + v * width;
                const int used = used_lanes(unit, shape.hidden);
                for (const int gate : Gates::kInput) {
                    const bool apart = Gates::kConstant && gate == Gates::kHidden[Gates::kGates - 1];
                    bias_of(gate, unit, used, !apart).store(sums);
                    sums += width;
                    if (apart) bias_part(weights.bias_hidden, gate, unit, used).store(constant + unit);
                }
                kind().pack_panel(unit, used);
            }
        }
        const auto mine = share(second_panels.count(), part.local, part.locals);
        for (int64_t p = mine.begin; p < mine.end; ++p) pack_second(p);
        if (part.slices > 1 || second.weight) part.all_done();
    }

    void run(const TimeLoopPart& part) {
        const auto batch = share(shape.batch, part.slice, part.slices);
        const auto own = share(panels.count(), part.group, part.groups);
        const auto mine = share(second_panels.count(), part.group, part.groups);
        const int64_t chunk = std::clamp<int64_t>(kChunkRows / std::max<int64_t>(batch.size(), 1), 1, shape.steps);
        const int64_t capacity = chunk * batch.size();
        const Buffer<A> pre((input_before(own.end) - input_before(own.begin)) * capacity);
        const Buffer<A> second_pre(
            second.input_gate < 0 ? 0 : (second_panels.before(mine.end) - second_panels.before(mine.begin)) * capacity);
        if constexpr (Gates::kConstant) lay_constants(own, pre, capacity);
        std::vector<const Op*> rows;
        const Buffer<Op> padded(shape.input % Operand<Op>::kPerElement ? capacity * input_depth : 0);
        for (int64_t begin = 0; begin < shape.steps; begin += chunk) {
            const int64_t end = std::min(begin + chunk, shape.steps);
            collect_rows(begin, end, batch, rows, padded);
            for (int64_t p = own.begin; p < own.end; ++p)
                input_part(panels, p, rows, bias, input_panels, input_of(pre, own, p, capacity), input_stride(p));
            for (int64_t p = mine.begin; second_pre && p < mine.end; ++p)
                input_part(second_panels, p, rows, second_bias, second_input_panels,
                           second_of(second_pre, mine, p, capacity), second_panels.columns(p));
            int64_t row = 0;
            for (int64_t s = begin; s < end; ++s) {
                const int64_t t = step(s), live = live_rows(t, batch);
                recurrent_part(s, t, batch, live, own, pre, capacity, row);
                if (second.weight) {
                    part.step_done();
                    second_part(s, t, batch, live, mine, second_pre, capacity, row);
                }
                finish_sequences(s, t, batch, own, mine);
                part.step_done();
                row += live;
            }
        }
    }

  protected:
    static int used_lanes(int64_t unit, int64_t count) {
        return static_cast<int>(std::min<int64_t>(width, count - unit));
    }

    const Call& call;
    const RecurrentShape& shape;
    const RecurrentWeights<W, A>& weights;
    const int d;
    const int64_t units;  // padded to whole vectors

  private:
    static constexpr int kColumns =
        Gates::kGates + (Gates::kConstant ? 1 : 0);  // vectors of a unit vector's input part

    Kind& kind() { return static_cast<Kind&>(*this); }
    int64_t step(int64_t s) const { return d == 0 ? s : shape.steps - 1 - s; }
    int64_t live_rows(int64_t t, const Range& batch) const {
        return std::clamp<int64_t>(shape.live(t) - batch.begin, 0, batch.size());
    }

    // Where panel p's input part of a chunk lies: row after row.
    int64_t input_before(int64_t p) const { return panels.before(p) / Gates::kGates * kColumns; }
    int64_t input_stride(int64_t p) const { return panels.columns(p) / Gates::kGates * kColumns; }
    A* input_of(A* pre, const Range& own, int64_t p, int64_t capacity) const {
        return pre + (input_before(p) - input_before(own.begin)) * capacity;
    }
    A* second_of(A* pre, const Range& mine, int64_t p, int64_t capacity) const {
        return pre + (second_panels.before(p) - second_panels.before(mine.begin)) * capacity;
    }

    void load_states() {
        std::fill(cell.get(), cell.get() + (cell ? shape.batch * units : 0), A(0));
        for (int64_t b = 0; b < shape.batch && call.c0; ++b)
            std::copy_n(call.c0 + (d * shape.batch + b) * shape.hidden, shape.hidden, cell + b * units);
        std::fill(kept.get(), kept.get() + (kept ? shape.batch * kept_stride : 0), A(0));
        for (auto& h : state) {
            std::memset(static_cast<void*>(h.get()), 0, shape.batch * state_stride * sizeof(Op));
            for (int64_t b = 0; b < shape.batch && call.h0; ++b) {
                auto* to = reinterpret_cast<W*>(h + b * state_stride);
                const int64_t first = (d * shape.batch + b) * shape.output();
                const A* from = call.h0 + first;
                for (int64_t u = 0; u < shape.output(); ++u) {
                    to[u] = static_cast<W>(static_cast<S>(from[u]));
                    if (kept) kept[b * kept_stride + u] = from[u];
                }
            }
        }
        // Lanes beyond the last unit feed the second product's padding and must be finite.
        if (middle) std::memset(static_cast<void*>(middle.get()), 0, shape.batch * middle_stride * sizeof(Op));
    }

    V bias_part(const A* bias, int gate, int64_t unit, int used) const {
        return bias ? load_as<A>(bias + gate * shape.hidden + unit, used) : V(A(0));
    }
    V bias_of(int gate, int64_t unit, int used, bool both) const {
        const V sum = bias_part(weights.bias_input, gate, unit, used);
        return both ? sum + bias_part(weights.bias_hidden, gate, unit, used) : sum;
    }

    void pack_second(int64_t p) {
        static constexpr int gate[] = {0};
        pack_units<Op>(second.weight, gate, second.columns, shape.hidden, second_panels, p,
                       middle_panels + second_panels.before(p) * middle_depth);
        if (second.input_gate >= 0)
            pack_units<Op>(weights.input + second.input_gate * shape.hidden * shape.input, gate, second.columns,
                           shape.input, second_panels, p, second_input_panels + second_panels.before(p) * input_depth);
        for (int v = 0; v < second_panels.unit_vectors(p); ++v) {
            const int64_t unit = second_panels.unit(p) + v * width;
            const int used = used_lanes(unit, second.columns);
            const V sum = second.input_gate >= 0 ? bias_of(second.input_gate, unit, used, true)
                          : second.bias          ? load_as<A>(second.bias + unit, used)
                                                 : V(A(0));
            sum.store(second_bias + unit);
        }
    }

    void lay_constants(const Range& own, A* pre, int64_t capacity) const {
        for (int64_t p = own.begin; p < own.end; ++p)
            for (int64_t row = 0; row < capacity; ++row)
                V::loadu(constant + panels.unit(p))
                    .store(input_of(pre, own, p, capacity) + row * input_stride(p) + Gates::kGates * width);
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

    // out[row] = W_ih x + b for one panel.
    template <typename UnitPanels>
    void input_part(const UnitPanels& all, int64_t p, const std::vector<const Op*>& rows, const A* biases,
                    const Op* packed, A* out, int64_t stride) const {
        const auto count = static_cast<int64_t>(rows.size());
        const bool single = shape.rows == 1;
        const A* start = biases + all.before(p);
        if constexpr (std::is_same_v<Op, A>)
            if (direct) {
                for (int64_t row = 0; row < count; ++row)
                    add_dot_products(weights.input, Gates::kInput, shape.input, rows[row], p, start,
                                     out + row * stride);
                return;
            }
        all.with_panel(p, [&]<int Vectors>(std::integral_constant<int, Vectors>) {
            for_row_tiles<rows_beside(Vectors)>(count, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                RowPointers<Op, Rows> a;
                for (int m = 0; m < Rows; ++m) a.row[m] = rows[row + m];
                multiply_rows<Op, Rows, Vectors>(a, packed + all.before(p) * input_depth, input_depth, single, start, 0,
                                                 out + row * stride, stride);
            });
        });
    }

    // One step: gates of every live row and own unit from `pre` and the last state.
    void recurrent_part(int64_t s, int64_t t, const Range& batch, int64_t live, const Range& own, A* pre,
                        int64_t capacity, int64_t pre_row) {
        const Op* last = state[s & 1];
        const bool single = shape.live(t) == 1;
        // Weights larger than the cache are walked there and back, so that half of them are still in it.
        const bool back = s & 1;
        for (int64_t i = own.begin; i < own.end; ++i) {
            const int64_t p = back ? own.end - 1 - (i - own.begin) : i, stride = input_stride(p);
            const A* input = input_of(pre, own, p, capacity) + pre_row * stride;
            const A* start = input + (Gates::kConstant ? width : 0);
            if constexpr (std::is_same_v<Op, A>)
                if (direct) {
                    alignas(64) A gates[kTileVectors * width];
                    for (int64_t row = 0; row < live; ++row) {
                        add_dot_products(weights.hidden, Gates::kHidden, shape.hidden,
                                         last + (batch.begin + row) * state_stride, p, start + row * stride, gates);
                        finish_rows(s, t, batch.begin + row, 1, p, gates, input + row * stride, stride);
                    }
                    continue;
                }
            panels.with_panel(p, [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                for_row_tiles<rows_beside(Vectors)>(
                    live, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                        RowPointers<Op, Rows> a;
                        for (int m = 0; m < Rows; ++m) a.row[m] = last + (batch.begin + row + m) * state_stride;
                        alignas(64) A gates[Rows * Vectors * width];
                        multiply_rows<Op, Rows, Vectors>(a, state_panels + panels.before(p) * state_depth, state_depth,
                                                         single, start + row * stride, stride, gates, Vectors * width);
                        finish_rows(s, t, batch.begin + row, Rows, p, gates, input + row * stride, stride);
                    });
            });
        }
    }

    // out = addend + W x for the gates of one panel, W in place.
    void add_dot_products(const A* weight, const int (&gates)[Gates::kGates], int64_t depth, const A* x, int64_t panel,
                          const A* addend, A* out) const {
        for (int v = 0; v < panels.unit_vectors(panel); ++v) {
            const int64_t unit = panels.unit(panel) + v * width;
            for (int g = 0; g < Gates::kGates; ++g, addend += width, out += width) {
                const A* rows = weight + (gates[g] * shape.hidden + unit) * depth;
                (V::loadu(addend) + dot_rows<A>(rows, depth, used_lanes(unit, shape.hidden), x, depth)).store(out);
            }
        }
    }

    // The ending of a tile, in a function of its own: one for all heights and widths of tiles.
    [[gnu::noinline]] void finish_rows(int64_t s, int64_t t, int64_t b, int rows, int64_t panel, const A* gates,
                                       const A* input, int64_t stride) {
        const int64_t columns = panels.columns(panel);
        const int unit_vectors = panels.unit_vectors(panel);
        for (int m = 0; m < rows; ++m)
            for (int v = 0; v < unit_vectors; ++v) {
                const int64_t unit = panels.unit(panel) + v * width;
                const UnitAt at{b + m, shape.first(t) + b + m, unit, used_lanes(unit, shape.hidden)};
                const V h = kind().finish(at, gates + m * columns + v * Gates::kGates * width, input + m * stride);
                if (second.weight) {
                    store_operand(middle + at.batch * middle_stride, unit, h, at.used);
                } else {
                    put_out(s, at, h);
                }
            }
    }

    [[gnu::noinline]] void finish_second_rows(int64_t s, int64_t t, int64_t b, int rows, int64_t panel, const A* sums) {
        const int vectors = second_panels.unit_vectors(panel);
        for (int m = 0; m < rows; ++m)
            for (int v = 0; v < vectors; ++v, sums += width) {
                const int64_t unit = second_panels.unit(panel) + v * width;
                const UnitAt at{b + m, shape.first(t) + b + m, unit, used_lanes(unit, second.columns)};
                put_out(s, at, kind().finish_second(at, V::loadu(sums)));
            }
    }

    // The second product of a step, from what the first left in `middle`.
    void second_part(int64_t s, int64_t t, const Range& batch, int64_t live, const Range& mine, A* pre,
                     int64_t capacity, int64_t pre_row) {
        const bool single = shape.live(t) == 1;
        for (int64_t p = mine.begin; p < mine.end; ++p) {
            const int64_t stride = pre ? second_panels.columns(p) : 0;
            const A* start =
                pre ? second_of(pre, mine, p, capacity) + pre_row * stride : second_bias + second_panels.before(p);
            second_panels.with_panel(p, [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                for_row_tiles<rows_beside(Vectors)>(
                    live, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                        RowPointers<Op, Rows> a;
                        for (int m = 0; m < Rows; ++m) a.row[m] = middle + (batch.begin + row + m) * middle_stride;
                        alignas(64) A sums[Rows * Vectors * width];
                        multiply_rows<Op, Rows, Vectors>(a, middle_panels + second_panels.before(p) * middle_depth,
                                                         middle_depth, single, start + row * stride, stride, sums,
                                                         Vectors * width);
                        finish_second_rows(s, t, batch.begin + row, Rows, p, sums);
                    });
            });
        }
    }

    [[gnu::always_inline]] void put_out(int64_t s, const UnitAt& at, const V& h) {
        if constexpr (Gates::kKeepsState) h.store(kept + at.batch * kept_stride + at.unit);
        store_operand(state[~s & 1] + at.batch * state_stride, at.unit, h, at.used);
        store_as<A>(call.y + (at.row * shape.directions + d) * shape.output() + at.unit, h, at.used);
    }

    // Final states of the sequences that end with this step.
    void finish_sequences(int64_t s, int64_t t, const Range& batch, const Range& own, const Range& mine) const {
        const int64_t later = s + 1 == shape.steps ? 0 : d == 0 ? shape.live(t + 1) : shape.batch;
        const auto of = [](const auto& all, const Range& range, int64_t count) {
            return Range{std::min(all.unit(range.begin), count), std::min(all.unit(range.end), count)};
        };
        const Range cells = of(panels, own, shape.hidden);
        const Range outputs = second.weight ? of(second_panels, mine, second.columns) : cells;
        for (int64_t b = std::max(later, batch.begin); b < std::min(shape.live(t), batch.end); ++b) {
            const auto* h = reinterpret_cast<const W*>(state[~s & 1] + b * state_stride);
            for (int64_t u = outputs.begin; u < outputs.end; ++u)
                call.h_n[(d * shape.batch + b) * shape.output() + u] = static_cast<S>(h[u]);
            for (int64_t u = cells.begin; call.c_n && u < cells.end; ++u)
                call.c_n[(d * shape.batch + b) * shape.hidden + u] = static_cast<S>(cell[b * units + u]);
        }
    }

    // The state as the next product reads it: rounded to the storage type.
    static void store_operand(Op* row, int64_t unit, const V& h, int used) {
        if constexpr (std::is_same_v<Op, A>) {
            round_to<S>(h).store(row + unit);
        } else {
            store_as<A>(reinterpret_cast<W*>(row) + unit, h, used);  // a pair's other half stays zero
        }
    }

    const UnitPanels<Op, Gates::kGates> panels;
    const Second second;
    const UnitPanels<Op, 1> second_panels;
    const bool direct;
    const int64_t input_depth, state_depth, state_stride, middle_depth, middle_stride;
    Buffer<Op> input_panels, state_panels, middle_panels, second_input_panels;
    Buffer<A> bias, constant, second_bias;

  protected:
    Buffer<A> cell;  // [batch, units]: the cell state, of a kind that has one
    const int64_t kept_stride;
    Buffer<A> kept;  // [batch, kept_stride]: the state in full precision, where the ending reads it

  private:
    Buffer<Op> middle, state[2];
};

// Runs `Loop` of every direction.
template <typename Loop, typename Call, typename... Arguments>
void run_forward(const Call& call, int gates, const Arguments&... arguments) {
    const auto& shape = call.shape;
    const TimeLoopPlan plan(thread_limit(), shape.directions, shape.steps, shape.batch,
                            gates * shape.hidden * shape.output(), sizeof(typename Call::W),
                            (shape.hidden + kWidth<typename Call::A> - 1) / kWidth<typename Call::A>);
    std::vector<std::unique_ptr<Loop>> directions;
    for (int d = 0; d < shape.directions; ++d)
        directions.push_back(std::make_unique<Loop>(call, d, plan, arguments...));
    run_time_loops(plan, directions);
}

}  // namespace pykernels
