// The arithmetic of an LSTM's cell for one vector of units, forward and backward.
#pragma once

#include "core/math.h"

namespace pykernels {

// Gates of a vector of units. `diagonal`: the peepholes of these units, rows i, f, o `stride` apart, or null.
template <typename T>
struct CellGates {
    using V = Vec<T>;
    V i, f, g, o;

    // From sums to activations; the new cell state.
    [[gnu::always_inline]] V activate(const V& last, const T* diagonal, int64_t stride, int used) {
        if (diagonal) {
            i = at::vec::fmadd(load_as<T>(diagonal, used), last, i);
            f = at::vec::fmadd(load_as<T>(diagonal + stride, used), last, f);
        }
        i = sigmoid(i);
        f = sigmoid(f);
        g = tanh(g);
        const V c = at::vec::fmadd(f, last, i * g);
        if (diagonal) o = at::vec::fmadd(load_as<T>(diagonal + 2 * stride, used), c, o);
        o = sigmoid(o);
        return c;
    }

    // Four vectors, `stride` apart.
    template <typename S>
    [[gnu::always_inline]] void store(S* to, int64_t stride, int used) const {
        store_as<T>(to, i, used);
        store_as<T>(to + stride, f, used);
        store_as<T>(to + 2 * stride, g, used);
        store_as<T>(to + 3 * stride, o, used);
    }
    [[gnu::always_inline]] static CellGates load(const T* from, int64_t stride, int used) {
        return {load_as<T>(from, used), load_as<T>(from + stride, used), load_as<T>(from + 2 * stride, used),
                load_as<T>(from + 3 * stride, used)};
    }

    // Gradients of the sums of i, f and g, from that of the new cell state; with d_o they are stored by store().
    [[gnu::always_inline]] CellGates back(const V& d_c, const V& d_o, const V& last) const {
        const V one(T(1));
        return {d_c * g * i * (one - i), d_c * last * f * (one - f), d_c * i * at::vec::fnmadd(g, g, one), d_o};
    }
    // Of these gradients, what goes to the last cell state through the peepholes of i and f, added to `grad`.
    [[gnu::always_inline]] V back_through(const T* diagonal, int64_t stride, int used, V grad) const {
        if (!diagonal) return grad;
        grad = at::vec::fmadd(i, load_as<T>(diagonal, used), grad);
        return at::vec::fmadd(f, load_as<T>(diagonal + stride, used), grad);
    }
};

}  // namespace pykernels
