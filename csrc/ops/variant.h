// Contract of the operators of the recurrent variants, for every backend: a layer from its input parts on, with layer
// normalisation of the recurrent sums and of an LSTM's cell, zoneout, and a mask on the state that is fed back.
//
// In the shapes G is the number of gates (LSTM 4: i, f, g, o; GRU 3: r, z, n; RNN 1), D, T, B, N, H, S as in
// recurrent.h. The equations: pykernels/reference/variants.py.
//
// input       the input parts [T, B, D * G H], or [N, D * G H] when packed: direction d has columns d G H ...
// weights     of each direction weight_hh [G H, S], bias_hh [G H] if bias, weight_hr [P, H] if projection,
//             weight_peephole [3, H] if peephole, with layer_norm the gain [G H] and, LSTM, gain and shift [H] of the
//             cell
// noise       state_scale [D, B, S]; stay [D, N, S] and stay_cell [D, N, H] of uint8, not zero where the state before
//             stays; without them `zoneout`, `zoneout_cell` is the share of the state before, everywhere
//
// Saved, [0] where there is none:
//   gates       [D, N, 4 H] activated i, f, g, o; GRU r, z, n, m, where m is W_hn h's part of the candidate
//   (normalised,
//               with its bias) or, with the reset before the product, r * (what is fed back); RNN [D, N, H]: f(...)
//   cells       [D, N, H] c after zoneout; LSTM
//   normalized  [D, N, G H] the recurrent sums less their mean, divided by their deviation; layer_norm
//   stats       [D, N, 3] 1 / deviation of the sums, then mean and 1 / deviation of the cell; GRU and RNN [D, N, 1]
#pragma once

#include "kernels/variant.h"
#include "ops/recurrent.h"

namespace pykernels {

struct VariantFlags {
    bool bias = true, projection = false, peephole = false;
    bool form = false;  // GRU: the reset comes after the product; RNN: relu
    bool layer_norm = false, bidirectional = false;
};

struct VariantNoiseTensors {
    const OptionalTensor &state_scale, &stay, &stay_cell;
    double zoneout, zoneout_cell;
};

// One direction's parameters, in the order of the flat list; undefined where there is none.
struct VariantParameters {
    Tensor hidden, bias, projection, peephole, gain, cell_gain, cell_shift;
};

// Everything that says what an operator is to do, beside its tensors.
struct VariantContract {
    RecurrentKind kind;
    VariantFlags flags;

    int64_t gates() const { return gates_of(kind); }
    bool cell_states() const { return kind == RecurrentKind::lstm; }
    int64_t saved_gates() const { return kind == RecurrentKind::rnn ? 1 : 4; }
    int64_t stats() const { return cell_states() ? 3 : 1; }
    const char* name() const;
    size_t per_direction() const;
    VariantParameters parameters(at::TensorList weights, int64_t direction) const;

    // sizes.input is the width of one direction's input part.
    RecurrentSizes check(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                         const OptionalTensor& c0, at::TensorList weights, const VariantNoiseTensors& noise) const;
};

// What forward leaves for backward.
struct VariantSaved {
    Tensor gates, cells, normalized, stats;
};

struct VariantGiven {
    const OptionalTensor &grad_output, &grad_h_n;
    OptionalTensor grad_c_n;
    const Tensor& output;
    VariantSaved saved;
    bool need_input, need_states, need_weights;
};

void check_variant_backward(const VariantContract& contract, const RecurrentSizes& sizes, const Tensor& input,
                            const VariantGiven& given);

}  // namespace pykernels
