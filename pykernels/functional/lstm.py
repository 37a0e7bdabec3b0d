"""The LSTM as functions: `lstm` over whole sequences, `lstm_cell` for one step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..reference import lstm_layer
from . import _recurrent, _variants
from ._recurrent_ops import Kind

__all__ = ["lstm", "lstm_cell"]


def _widths(weights: Sequence[Tensor], flags: Sequence[bool]) -> tuple[Sequence[int], Sequence[int]]:
    gates, hidden = weights[0].shape[0], weights[0].shape[0] // 4
    return (weights[1].shape[1], hidden), (gates, hidden)


_LSTM = Kind(
    "lstm",
    lstm_layer,
    states=2,  # h, c
    kept=2,  # the gates, and c of every step
    flags=4,  # bias, projection, peephole, bidirectional
    widths=_widths,
    layer_flags=lambda bias, peephole: (bias, False, peephole, False),
)


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    *,
    batch_sizes: Tensor | None = None,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    projection: bool = False,
    peephole: bool = False,
    layer_norm: bool = False,
    zoneout: float | Sequence[float] = 0.0,
    recurrent_dropout: float = 0.0,
    weight_dropout: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Long short-term memory over whole sequences, `num_layers` deep, in one or both directions.

    For each layer, with the logistic function :math:`\sigma` and :math:`*` the elementwise product,

    .. math::
        i_t &= \sigma(W_{ii} x_t + b_{ii} + W_{hi} h_{t-1} + b_{hi} + p_i * c_{t-1}) \\
        f_t &= \sigma(W_{if} x_t + b_{if} + W_{hf} h_{t-1} + b_{hf} + p_f * c_{t-1}) \\
        g_t &= \tanh(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
        c_t &= f_t * c_{t-1} + i_t * g_t \\
        o_t &= \sigma(W_{io} x_t + b_{io} + W_{ho} h_{t-1} + b_{ho} + p_o * c_t) \\
        h_t &= W_{hr} (o_t * \tanh(c_t))

    where the terms in p belong to `peephole` and :math:`W_{hr}` to `projection`. In the shapes below T is the number of
    steps, B the batch, I the inputs, H the hidden units, D the number of directions, P the width of the projection, and
    Ho is P with a projection and H without.

    Variants, which compose with each other and with everything else:

    - `layer_norm`: layer normalisation N over all gates, with :math:`\epsilon = 10^{-5}`, of the products before they
      are added, :math:`\gamma_i * N(W_i x_t) + b_i + \gamma_h * N(W_h h_{t-1}) + b_h`, and of the cell where it goes
      out, :math:`o_t * \tanh(\gamma_c * N(c_t) + \beta_c)`. The weights of each direction then end with
      :math:`\gamma_i` and :math:`\gamma_h` [4H], :math:`\gamma_c` and :math:`\beta_c` [H].
    - `zoneout`: in training each unit keeps its last h with this probability, at each step anew, and its last c by
      another draw: :math:`h_t = z_t * h_{t-1} + (1 - z_t) * \tilde{h}_t`, where :math:`\tilde{h}_t` comes from the new
      c, whether that stays or not. Otherwise z is the probability itself. A pair gives h and c one each.
    - `recurrent_dropout`: in training :math:`m * h_{t-1}` is fed back in the place of :math:`h_{t-1}`, with one mask m,
      of 0 and 1 / (1 - p), for all steps of a sequence.
    - `weight_dropout` (DropConnect): in training elements of :math:`W_h` are zero with this probability and the others
      divided by 1 - p, for all steps and sequences of the call.

    The masks are drawn by `random_mask` with one number for each layer from torch's generator of the CPU, so that
    `torch.manual_seed` gives the same ones on every device. (Inductor has a generator of its own, with other masks; a
    captured CUDA graph replays those that it was captured with; `torch.vmap` wants to be told its `randomness`.)

    Args:
        input: [T, B, I], or [B, T, I] if `batch_first`, or the data [N, I] of a `PackedSequence`. float32, float64,
            bfloat16 or float16, as all the other tensors; T is at least 1.
        hx: the initial states h0 [num_layers*D, B, Ho] and c0 [num_layers*D, B, H], or None for zeros.
        weights: flat, layer by layer and direction by direction, each weight_ih [4H, I or D*Ho], weight_hh [4H, Ho],
            then bias_ih and bias_hh [4H] if `bias`, weight_hr [P, H] if `projection`, weight_peephole [3, H]
            (rows i, f, o) if `peephole`. The gates lie in the order i, f, g, o.
        batch_sizes: of the `PackedSequence`, int64 on the CPU: how many sequences still run at each step.
        dropout: the probability with which an element between two layers is zeroed, if `training`.
        layer_norm, zoneout, recurrent_dropout, weight_dropout: as above.

    Returns:
        output [T, B, D*Ho], [B, T, D*Ho] or [N, D*Ho] as the input is, h_n [num_layers*D, B, Ho] and
        c_n [num_layers*D, B, H].
        Under autocast all of them have the dtype of autocast.

    Raises:
        ValueError: a probability is not in [0, 1], or variants do not go together.
        RuntimeError: shapes, dtypes or devices do not fit together, or there is no kernel for them.

    Sources: Hochreiter and Schmidhuber 1997 (https://doi.org/10.1162/neco.1997.9.8.1735); peepholes: Gers and
    Schmidhuber 2000 (https://doi.org/10.1109/IJCNN.2000.861302); projections: Sak, Senior and Beaufays 2014
    (https://arxiv.org/abs/1402.1128). The variants: layer normalisation,
    Ba, Kiros and Hinton 2016 (https://arxiv.org/abs/1607.06450); zoneout, Krueger et al. 2017
    (https://arxiv.org/abs/1606.01305); one mask for all steps, Gal and Ghahramani 2016 (https://arxiv.org/abs/1512.05287);
    DropConnect of the recurrent weights, Merity, Keskar and Socher 2018 (https://arxiv.org/abs/1708.02182).

    Example::

        >>> layer = torch.nn.LSTM(10, 20)
        >>> weights = list(layer.parameters())
        >>> output, h_n, c_n = pykernels.functional.lstm(torch.randn(5, 3, 10), None, weights)
        >>> output.shape
        torch.Size([5, 3, 20])
    """
    h0, c0 = (None, None) if hx is None else hx
    flags = (bias, projection, peephole, bidirectional)
    run = _variants.runner(_LSTM, training, layer_norm, zoneout, recurrent_dropout, weight_dropout)
    return _recurrent.run_sequence(  # type: ignore[return-value]
        _LSTM, input, batch_sizes, (h0, c0), weights, flags, num_layers, dropout, training, batch_first, run
    )


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    weight_peephole: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""One step of long short-term memory: (x, (h, c)) -> (h', c').

    The equations are those of `lstm`.

    Args:
        input: [B, I].
        hx: h and c, [B, H] each, or None for zeros.
        weight_ih: [4H, I], the gates in the order i, f, g, o.
        weight_hh: [4H, H].
        bias_ih: [4H], or None; likewise bias_hh.
        weight_peephole: [3, H], rows i, f, o, or None.

    Returns:
        h' and c', [B, H] each. Under autocast they have the wider of the dtypes of c (of input, without hx) and of
        autocast, as with `torch.nn.LSTMCell`, so that a float32 cell state stays float32 from step to step.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit together, or there is no kernel for them.

    Example::

        >>> cell = torch.nn.LSTMCell(10, 20)
        >>> h, c = pykernels.functional.lstm_cell(torch.randn(3, 10), None, *cell.parameters())
        >>> h.shape
        torch.Size([3, 20])
    """
    h0, c0 = (None, None) if hx is None else hx
    weights: tuple[Tensor, ...]
    if bias_ih is not None and bias_hh is not None:
        weights = (weight_ih, weight_hh, bias_ih, bias_hh)
    else:
        weights = _recurrent.step_weights(weight_ih, weight_hh, bias_ih, bias_hh)
    flags = (len(weights) == 4, weight_peephole is not None)
    if weight_peephole is not None:
        weights = (*weights, weight_peephole)
    return _recurrent.run_step(_LSTM, input, (h0, c0), weights, flags)  # type: ignore[return-value]
