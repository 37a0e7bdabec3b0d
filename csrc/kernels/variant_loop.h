// The time loops of the recurrent variants. A step is products and endings in turn: all threads multiply, each with its
// columns of the weights; they meet; then each ends its share of the sequences, row by row, for layer normalisation
// needs whole rows. A kind is what it does with a row.
#pragma once

#include "core/product.h"
#include "core/row_norm.h"
#include "kernels/recurrence.h"
#include "kernels/rows.h"
#include "kernels/step_product.h"
#include "kernels/variant.h"

namespace pykernels {

// What a kind's products read and where in the weights they are.
template <typename T>
struct VariantProduct {
    const T* weight = nullptr;
    int64_t rows = 0, columns = 0;  // none of them: there is no product
};

// The lanes whose byte is not zero.
template <typename T>
[[gnu::always_inline]] inline Vec<T> mask_of(const std::uint8_t* bytes, int used) {
    alignas(64) T lanes[kWidth<T>] = {};
    for (int j = 0; j < used; ++j) lanes[j] = static_cast<T>(bytes[j]);
    return Vec<T>::loadu(lanes) != Vec<T>(T(0));
}

// One sequence at one step.
struct VariantRow {
    int64_t batch, row;
};

template <typename T>
class VariantForwardLoop {
  public:
    // first: [rows, output] by the state; second: [rows, hidden] by what first() has left in `middle`.
    VariantForwardLoop(const VariantForward<T>& call, int d, const TimeLoopPlan& plan, const VariantProduct<T>& first,
                       const VariantProduct<T>& second);
    virtual ~VariantForwardLoop() = default;
    void pack(const TimeLoopPart& part) const;
    void run(const TimeLoopPart& part) const;

  protected:
    using V = Vec<T>;
    static constexpr int width = kWidth<T>;

    virtual void first(const VariantRow& at, const T* part) const = 0;
    virtual void second(const VariantRow&, const T* /*part*/) const {}

    T* sums(const VariantRow& at) const { return sums_ + at.batch * first_.stride(); }
    T* second_sums(const VariantRow& at) const { return second_sums_ + at.batch * second_.stride(); }
    T* middle(const VariantRow& at) const { return middle_ + at.batch * shape.hidden; }
    T* cell(const VariantRow& at) const { return cell_ + at.batch * shape.hidden; }
    const T* state(const VariantRow& at) const { return state_ + at.batch * shape.output(); }
    const T* fed(const VariantRow& at) const { return (fed_ ? fed_ : state_) + at.batch * shape.output(); }
    T* saved_gates(const VariantRow& at, int64_t gates) const {
        return call.gates ? call.gates + (d * shape.rows + at.row) * gates * shape.hidden : nullptr;
    }

    // Normalises a row of sums in place, where there is a gain.
    void normalize(const VariantRow& at, int64_t stats) const;
    // Element i of a row of the recurrent part: sums with gain and bias.
    [[gnu::always_inline]] V recurrent(const T* sums, int64_t i, int used) const {
        V value = load_as<T>(sums + i, used);
        if (weights.gain) value = value * load_as<T>(weights.gain + i, used);
        return weights.bias ? value + load_as<T>(weights.bias + i, used) : value;
    }
    // What becomes of a unit whose state may stay: by the mask's bytes, or by the share.
    [[gnu::always_inline]] static V zone_out(const std::uint8_t* stay, T share, const V& before, const V& after,
                                             int used) {
        if (stay) return V::blendv(after, before, mask_of<T>(stay, used));
        return share != 0 ? at::vec::fmadd(V(share), before - after, after) : after;
    }
    // Puts out new values of the state.
    [[gnu::always_inline]] void put_out(const VariantRow& at, int64_t unit, int used, V value) const {
        T* state = state_ + at.batch * shape.output() + unit;
        const std::uint8_t* stay =
            call.noise.stay ? call.noise.stay + (d * shape.rows + at.row) * shape.output() + unit : nullptr;
        value = zone_out(stay, call.noise.zoneout, load_as<T>(state, used), value, used);
        store_as<T>(state, value, used);
        store_as<T>(call.y + (at.row * shape.directions + d) * shape.output() + unit, value, used);
        if (fed_) {
            const T* scale = call.noise.state_scale + (d * shape.batch + at.batch) * shape.output() + unit;
            store_as<T>(fed_ + at.batch * shape.output() + unit, value * load_as<T>(scale, used), used);
        }
    }

    const VariantForward<T>& call;
    const RecurrentShape& shape;
    const VariantWeights<T>& weights;
    const int d;

  private:
    template <typename End>
    void rows(const TimeLoopPart& part, int64_t t, const Range& live, const End& end) const;

    const StepProduct<T> first_, second_;
    const Buffer<T> state_, fed_, cell_, sums_, second_sums_, middle_;
};

template <typename T>
class VariantBackwardLoop {
  public:
    // first: [rows, output] and second: [rows, hidden] as in forward.
    VariantBackwardLoop(const VariantBackward<T>& call, int d, const TimeLoopPlan& plan, const VariantProduct<T>& first,
                        const VariantProduct<T>& second, bool has_cells);
    virtual ~VariantBackwardLoop() = default;
    void pack(const TimeLoopPart& part) const;
    void run(const TimeLoopPart& part) const;
    // This thread's share of the parameters' gradients.
    virtual void parameter_gradients(int64_t part, int64_t parts) const = 0;

  protected:
    using V = Vec<T>;
    static constexpr int width = kWidth<T>;

    // From the gradient of the state that was put out to what goes back through the second product, or the first.
    virtual void first(const VariantRow& at) const = 0;
    virtual void second(const VariantRow&) const {}
    // Rows of step's first row on: what goes back through the first product, and through the second.
    virtual std::pair<const T*, int64_t> fed_back(int64_t row) const = 0;
    virtual std::pair<const T*, int64_t> second_back(int64_t) const { return {nullptr, 0}; }

    T* grad_part(int64_t row) const { return call.grad_parts + (row * shape.directions + d) * shape.input; }
    int64_t part_stride() const { return shape.directions * shape.input; }
    const T* saved_gates(const VariantRow& at, int64_t gates) const {
        return call.gates + (d * shape.rows + at.row) * gates * shape.hidden;
    }
    const T* normalized(int64_t row) const { return call.normalized + (d * shape.rows + row) * shape.input; }
    const T* middle(const VariantRow& at) const { return middle_ + at.batch * second_.stride(); }
    T* carry(const VariantRow& at) const { return carry_ + at.batch * shape.output(); }
    T* cell_carry(const VariantRow& at) const { return cell_carry_ + at.batch * shape.hidden; }
    const T* scale(int64_t batch) const {
        return call.noise.state_scale ? call.noise.state_scale + (d * shape.batch + batch) * shape.output() : nullptr;
    }

    // The whole gradient of the state that was put out, and what of it passes to the new values; the rest is laid
    // where the state before finds it.
    [[gnu::always_inline]] V new_state_gradient(const VariantRow& at, int64_t unit, int used) const {
        V grad = back_and_carried(at.batch, unit, used);
        if (call.grad_y)
            grad = grad + load_as<T>(call.grad_y + (at.row * shape.directions + d) * shape.output() + unit, used);
        const std::uint8_t* stay =
            call.noise.stay ? call.noise.stay + (d * shape.rows + at.row) * shape.output() + unit : nullptr;
        const auto [before, fresh] = shared(stay, call.noise.zoneout, grad, used);
        store_as<T>(carry_ + at.batch * shape.output() + unit, before, used);
        return fresh;
    }
    // A gradient's parts for the state before, which may stay, and for the new one.
    struct Shared {
        V before, fresh;
    };
    [[gnu::always_inline]] static Shared shared(const std::uint8_t* stay, T share, const V& grad, int used) {
        const V zero(T(0));
        if (stay) {
            const V stays = mask_of<T>(stay, used);
            return {V::blendv(zero, grad, stays), V::blendv(grad, zero, stays)};
        }
        if (share == 0) return {zero, grad};
        const V before = grad * V(share);
        return {before, grad - before};
    }
    // gradient of the recurrent part -> of the sums it came from, where they were normalised.
    void through_norm(const VariantRow& at, const T* grad, T* out, int64_t stats) const;

    // out[columns] = sum over all rows of load(row, column, lanes), a thread's share.
    template <typename Load>
    void sum_rows(int64_t columns, int64_t part, int64_t parts, const Load& load, T* out) const {
        sum_columns<T>(shape.rows, share(columns, part, parts, 4 * width), load, out);
    }
    // d weight_hh, bias and gain from rows of the gradients of the recurrent part and of the sums, `stride` apart.
    void recurrent_gradients(const T* recurrent, int64_t recurrent_stride, const T* sums, int64_t sums_stride,
                             int64_t part, int64_t parts) const;
    // The state that was fed back to a row.
    const T* fed_before(int64_t row) const {
        if (scaled_) return scaled_ + row * shape.output();
        return before.states[row] ? before.states[row] : zeros_.data();
    }

    const VariantBackward<T>& call;
    const RecurrentShape& shape;
    const VariantWeights<T>& weights;
    const typename VariantBackward<T>::Gradients& gradients;
    const int d;
    const RowsBefore<T> before;

  private:
    [[gnu::always_inline]] V back_and_carried(int64_t batch, int64_t unit, int used) const {
        const V back = load_as<T>(back_ + batch * first_.stride() + unit, used);
        const V carried = load_as<T>(carry_ + batch * shape.output() + unit, used);
        const T* factor = scale(batch);
        return factor ? at::vec::fmadd(back, load_as<T>(factor + unit, used), carried) : back + carried;
    }
    template <typename End>
    void rows(const TimeLoopPart& part, int64_t t, const Range& live, const End& end) const;

    const StepProduct<T> first_, second_;
    const Buffer<T> back_, carry_, cell_carry_, middle_, scaled_;
    const std::vector<T> zeros_;
};

// Runs Loop, a kind's, in every direction.
template <typename Base, typename Loop, typename Call>
TimeLoopPlan run_variant_loops(const Call& call, std::vector<std::unique_ptr<Base>>& directions) {
    const auto& shape = call.shape;
    using T = std::remove_const_t<std::remove_pointer_t<decltype(call.h0)>>;
    const TimeLoopPlan plan(thread_limit(), shape.directions, shape.steps, shape.batch, shape.input * shape.output(),
                            sizeof(T), (shape.output() + kWidth<T> - 1) / kWidth<T>);
    for (int d = 0; d < shape.directions; ++d) directions.push_back(std::make_unique<Loop>(call, d, plan));
    run_time_loops(plan, directions);
    return plan;
}

template <typename Loop, typename T>
void run_variant_forward(const VariantForward<T>& call) {
    std::vector<std::unique_ptr<VariantForwardLoop<T>>> directions;
    run_variant_loops<VariantForwardLoop<T>, Loop>(call, directions);
}

template <typename Loop, typename T>
void run_variant_backward(const VariantBackward<T>& call) {
    std::vector<std::unique_ptr<VariantBackwardLoop<T>>> directions;
    run_variant_loops<VariantBackwardLoop<T>, Loop>(call, directions);
    if (!call.want_weights) return;
    const auto& shape = call.shape;
    const double work = static_cast<double>(shape.rows) * static_cast<double>(shape.directions * shape.input) *
                        static_cast<double>(shape.output());
    parallel_region(threads_for(work, 1e5), [&](const Team& team) {
        for (const auto& direction : directions) direction->parameter_gradients(team.rank, team.size);
    });
}

}  // namespace pykernels
