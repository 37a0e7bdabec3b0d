#include "kernels/variant_loop.h"

namespace pykernels {
namespace {

int64_t step_at(const RecurrentShape& shape, int64_t s, bool descending) {
    return descending ? shape.steps - 1 - s : s;
}

Range live_rows(const RecurrentShape& shape, int64_t t, const Range& batch) {
    return {batch.begin, std::clamp(shape.live(t), batch.begin, batch.end)};
}

template <typename T>
void fill_states(const T* from, int64_t count, T* to) {
    if (!to) return;
    from ? std::copy_n(from, count, to) : std::fill_n(to, count, T(0));
}

}  // namespace

// --- forward

template <typename T>
VariantForwardLoop<T>::VariantForwardLoop(const VariantForward<T>& call, int d, const TimeLoopPlan& plan,
                                          const VariantProduct<T>& first, const VariantProduct<T>& second)
    : call(call),
      shape(call.shape),
      weights(call.weights[d]),
      d(d),
      first_(first.weight, first.rows, first.columns, true, plan.groups),
      second_(second.weight, second.rows, second.columns, true, plan.groups),
      state_(shape.batch * shape.output()),
      fed_(call.noise.state_scale ? shape.batch * shape.output() : 0),
      cell_(call.c_n ? shape.batch * shape.hidden : 0),
      sums_(shape.batch * first_.stride()),
      second_sums_(shape.batch * second_.stride()),
      middle_(second.rows ? shape.batch * shape.hidden : 0) {
    const int64_t count = shape.batch * shape.output();
    fill_states(call.h0 ? call.h0 + d * count : nullptr, count, state_.get());
    fill_states(call.c0 ? call.c0 + d * shape.batch * shape.hidden : nullptr, shape.batch * shape.hidden, cell_.get());
    for (int64_t i = 0; fed_ && i < count; ++i) fed_[i] = state_[i] * call.noise.state_scale[d * count + i];
}

template <typename T>
void VariantForwardLoop<T>::pack(const TimeLoopPart& part) const {
    first_.pack(share(first_.count(), part.local, part.locals));
    second_.pack(share(second_.count(), part.local, part.locals));
    part.all_done();
}

// This thread's rows of a step, each by end(at, input part).
template <typename T>
template <typename End>
void VariantForwardLoop<T>::rows(const TimeLoopPart& part, int64_t t, const Range& live, const End& end) const {
    const Range own = share(live.size(), part.group, part.groups);
    for (int64_t b = live.begin + own.begin; b < live.begin + own.end; ++b)
        end(VariantRow{b, shape.first(t) + b}, call.parts.row(t, b) + d * shape.input);
}

template <typename T>
void VariantForwardLoop<T>::run(const TimeLoopPart& part) const {
    const auto batch = share(shape.batch, part.slice, part.slices);
    const auto own = share(first_.count(), part.group, part.groups);
    const auto mine = share(second_.count(), part.group, part.groups);
    const T* fed = fed_ ? fed_ : state_;
    for (int64_t s = 0; s < shape.steps; ++s) {
        const int64_t t = step_at(shape, s, d == 1);
        const Range live = live_rows(shape, t, batch);
        const bool single = shape.live(t) == 1;
        first_.run(own, live.size(), single, fed + batch.begin * shape.output(), shape.output(),
                   sums_ + batch.begin * first_.stride());
        part.step_done();
        rows(part, t, live, [&](const VariantRow& at, const T* input) { first(at, input); });
        part.step_done();
        if (!second_.count()) continue;
        second_.run(mine, live.size(), single, middle_ + batch.begin * shape.hidden, shape.hidden,
                    second_sums_ + batch.begin * second_.stride());
        part.step_done();
        rows(part, t, live, [&](const VariantRow& at, const T* input) { second(at, input); });
        part.step_done();
    }
    // Rows of sequences that have ended stay as they were.
    rows(part, 0, batch, [&](const VariantRow& at, const T*) {
        const int64_t b = d * shape.batch + at.batch;
        std::copy_n(state(at), shape.output(), call.h_n + b * shape.output());
        if (cell_) std::copy_n(cell(at), shape.hidden, call.c_n + b * shape.hidden);
    });
}

template <typename T>
void VariantForwardLoop<T>::normalize(const VariantRow& at, int64_t stats) const {
    if (!weights.gain) return;
    T* row = sums(at);
    const auto [mean, scale] = row_stats(row, shape.input, T(kNormEpsilon));
    const int64_t saved = d * shape.rows + at.row;
    T* normalized = call.normalized ? call.normalized + saved * shape.input : nullptr;
    each_vector<T>(shape.input, [&](int64_t i, int used) {
        const V value = (load_as<T>(row + i, used) - V(mean)) * V(scale);
        store_as<T>(row + i, value, used);
        if (normalized) store_as<T>(normalized + i, value, used);
    });
    if (call.stats) call.stats[saved * stats] = scale;
}

// --- backward

template <typename T>
VariantBackwardLoop<T>::VariantBackwardLoop(const VariantBackward<T>& call, int d, const TimeLoopPlan& plan,
                                            const VariantProduct<T>& first, const VariantProduct<T>& second,
                                            bool has_cells)
    : call(call),
      shape(call.shape),
      weights(call.weights[d]),
      gradients(call.gradients[d]),
      d(d),
      before(shape, d, call.y, call.h0, has_cells, call.cells, call.c0),
      first_(first.weight, first.columns, first.rows, false, plan.groups),
      second_(second.weight, second.columns, second.rows, false, plan.groups),
      back_(shape.batch * first_.stride()),
      carry_(shape.batch * shape.output()),
      cell_carry_(has_cells ? shape.batch * shape.hidden : 0),
      middle_(shape.batch * second_.stride()),
      scaled_(call.noise.state_scale ? shape.rows * shape.output() : 0),
      zeros_(shape.output(), T(0)) {
    std::fill_n(back_.get(), shape.batch * first_.stride(), T(0));
    const int64_t count = shape.batch * shape.output(), cells = shape.batch * shape.hidden;
    fill_states(call.grad_h_n ? call.grad_h_n + d * count : nullptr, count, carry_.get());
    fill_states(call.grad_c_n ? call.grad_c_n + d * cells : nullptr, cells, cell_carry_.get());
}

template <typename T>
void VariantBackwardLoop<T>::pack(const TimeLoopPart& part) const {
    first_.pack(share(first_.count(), part.local, part.locals));
    second_.pack(share(second_.count(), part.local, part.locals));
    part.all_done();
}

template <typename T>
template <typename End>
void VariantBackwardLoop<T>::rows(const TimeLoopPart& part, int64_t t, const Range& live, const End& end) const {
    const Range own = share(live.size(), part.group, part.groups);
    for (int64_t b = live.begin + own.begin; b < live.begin + own.end; ++b) end(VariantRow{b, shape.first(t) + b});
}

template <typename T>
void VariantBackwardLoop<T>::run(const TimeLoopPart& part) const {
    const auto batch = share(shape.batch, part.slice, part.slices);
    const auto own = share(first_.count(), part.group, part.groups);
    const auto mine = share(second_.count(), part.group, part.groups);
    for (int64_t s = 0; s < shape.steps; ++s) {
        const int64_t t = step_at(shape, s, d == 0), row = shape.first(t) + batch.begin;
        const Range live = live_rows(shape, t, batch);
        const bool single = shape.live(t) == 1;
        rows(part, t, live, [&](const VariantRow& at) {
            if (scaled_) {
                const T* state = before.states[at.row] ? before.states[at.row] : zeros_.data();
                const T* factor = scale(at.batch);
                T* out = scaled_ + at.row * shape.output();
                for (int64_t u = 0; u < shape.output(); ++u) out[u] = state[u] * factor[u];
            }
            first(at);
        });
        part.step_done();
        if (second_.count()) {
            const auto [x, stride] = second_back(row);
            second_.run(mine, live.size(), single, x, stride, middle_ + batch.begin * second_.stride());
            part.step_done();
            rows(part, t, live, [&](const VariantRow& at) { second(at); });
            part.step_done();
        }
        const auto [x, stride] = fed_back(row);
        first_.run(own, live.size(), single, x, stride, back_ + batch.begin * first_.stride());
        part.step_done();
    }
    rows(part, 0, batch, [&](const VariantRow& at) {
        const int64_t b = d * shape.batch + at.batch;
        each_vector<T>(call.grad_h0 ? shape.output() : 0, [&](int64_t u, int used) {
            store_as<T>(call.grad_h0 + b * shape.output() + u, back_and_carried(at.batch, u, used), used);
        });
        if (call.grad_c0) std::copy_n(cell_carry(at), shape.hidden, call.grad_c0 + b * shape.hidden);
    });
}

template <typename T>
void VariantBackwardLoop<T>::through_norm(const VariantRow& at, const T* grad, T* out, int64_t stats) const {
    const T* row = normalized(at.row);
    row_norm_backward<T>(
        shape.input, call.stats[(d * shape.rows + at.row) * stats],
        [&](int64_t i, int used) { return load_as<T>(grad + i, used) * load_as<T>(weights.gain + i, used); },
        [&](int64_t i, int used) { return load_as<T>(row + i, used); },
        [&](int64_t i, int used, const V& value) { store_as<T>(out + i, value, used); });
}

template <typename T>
void VariantBackwardLoop<T>::recurrent_gradients(const T* recurrent, int64_t recurrent_stride, const T* sums,
                                                 int64_t sums_stride, int64_t part, int64_t parts) const {
    std::vector<const T*> fed(shape.rows);
    for (int64_t r = 0; r < shape.rows; ++r) fed[r] = fed_before(r);
    outer_products_share<T>({rows_at<T>(sums, shape.rows, sums_stride).data(), shape.input},
                            {fed.data(), shape.output(), gradients.hidden}, {nullptr, 0, nullptr}, shape.rows,
                            weights.gain ? nullptr : gradients.bias, part, parts);
    if (!weights.gain) return;
    norm_gradients<T>(
        shape.rows, share(shape.input, part, parts, 4 * width),
        [&](int64_t r, int64_t i, int used) { return load_as<T>(recurrent + r * recurrent_stride + i, used); },
        [&](int64_t r, int64_t i, int used) { return load_as<T>(normalized(r) + i, used); }, gradients.bias,
        gradients.gain);
}

#define PYKERNELS_VARIANT_LOOPS(T)        \
    template class VariantForwardLoop<T>; \
    template class VariantBackwardLoop<T>;
PYKERNELS_VARIANT_LOOPS(float)
PYKERNELS_VARIANT_LOOPS(double)

}  // namespace pykernels
