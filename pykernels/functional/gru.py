"""The GRU as functions: `gru` over whole sequences, `gru_cell` for one step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..reference import gru_layer
from . import _recurrent, _variants
from ._recurrent_ops import Kind

__all__ = ["gru", "gru_cell"]


def _widths(weights: Sequence[Tensor], flags: Sequence[bool]) -> tuple[Sequence[int], Sequence[int]]:
    hidden = weights[1].shape[1]
    return (hidden,), (4 * hidden,)


_GRU = Kind(
    "gru",
    gru_layer,
    states=1,  # h
    kept=1,  # the gates, and the hidden part of the candidate
    flags=3,  # bias, reset_after, bidirectional
    widths=_widths,
    layer_promotes=True,
    layer_flags=lambda bias, reset_after: (bias, reset_after, False),
)


def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    batch_sizes: Tensor | None = None,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    reset_after: bool = True,
    layer_norm: bool = False,
    zoneout: float = 0.0,
    recurrent_dropout: float = 0.0,
    weight_dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""Gated recurrent units over whole sequences, `num_layers` deep, in one or both directions.

    For each layer, with the logistic function :math:`\sigma` and :math:`*` the elementwise product,

    .. math::
        r_t &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
        z_t &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
        n_t &= \tanh(W_{in} x_t + b_{in} + r_t * (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z_t) * n_t + z_t * h_{t-1}

    With ``reset_after=False`` the reset comes before the product, as in the original paper:

    .. math::
        n_t = \tanh(W_{in} x_t + b_{in} + W_{hn} (r_t * h_{t-1}) + b_{hn})

    In the shapes below T is the number of steps, B the batch, I the inputs, H the hidden units and D the number of
    directions.

    Variants, which compose with each other and with everything else (but `layer_norm` needs `reset_after`):

    - `layer_norm`: layer normalisation N over all gates, with :math:`\epsilon = 10^{-5}`, of the products before they
      are added, :math:`\gamma_i * N(W_i x_t) + b_i + \gamma_h * N(W_h h_{t-1}) + b_h`. The weights of each
      direction then end with :math:`\gamma_i` and :math:`\gamma_h` [3H].
    - `zoneout`: in training each unit keeps its last state with this probability, at each step anew:
      :math:`h_t = k_t * h_{t-1} + (1 - k_t) * \tilde{h}_t`. Otherwise k is the probability itself.
    - `recurrent_dropout`: in training :math:`m * h_{t-1}` is fed back in the place of :math:`h_{t-1}`, with one mask m,
      of 0 and 1 / (1 - p), for all steps of a sequence (the update gate's :math:`z_t * h_{t-1}` has no mask).
    - `weight_dropout` (DropConnect): in training elements of :math:`W_h` are zero with this probability and the others
      divided by 1 - p, for all steps and sequences of the call.

    The masks are drawn by `random_mask` with one number for each layer from torch's generator of the CPU, so that
    `torch.manual_seed` gives the same ones on every device. (Inductor has a generator of its own, with other masks; a
    captured CUDA graph replays those that it was captured with; `torch.vmap` wants to be told its `randomness`.)

    Args:
        input: [T, B, I], or [B, T, I] if `batch_first`, or the data [N, I] of a `PackedSequence`. float32, float64,
            bfloat16 or float16, as all the other tensors; T is at least 1.
        hx: the initial state [num_layers*D, B, H], or None for zeros.
        weights: flat, layer by layer and direction by direction, each weight_ih [3H, I or D*H], weight_hh [3H, H],
            then bias_ih and bias_hh [3H] if `bias`. The gates lie in the order r, z, n.
        batch_sizes: of the `PackedSequence`, int64 on the CPU: how many sequences still run at each step.
        dropout: the probability with which an element between two layers is zeroed, if `training`.
        reset_after: whether the reset gate works on the hidden part of the candidate (as in `torch.nn.GRU` and cuDNN)
            or on the state before it.
        layer_norm, zoneout, recurrent_dropout, weight_dropout: as above.

    Returns:
        output [T, B, D*H], [B, T, D*H] or [N, D*H] as the input is, and h_n [num_layers*D, B, H].
        Under autocast they are computed in its dtype and, on the CPU, put out in the wider of that and the dtype of hx
        (of input, without hx), as with `torch.nn.GRU`.

    Raises:
        ValueError: a probability is not in [0, 1], or variants do not go together.
        RuntimeError: shapes, dtypes or devices do not fit together, or there is no kernel for them.

    Sources: Cho et al. 2014 (https://arxiv.org/abs/1406.1078), whose z is 1 - z here, as in torch; the reset after the
    product: Appleyard, Kocisky and Blunsom 2016 (https://arxiv.org/abs/1604.01946). The variants: layer normalisation,
    Ba, Kiros and Hinton 2016 (https://arxiv.org/abs/1607.06450); zoneout, Krueger et al. 2017
    (https://arxiv.org/abs/1606.01305); one mask for all steps, Gal and Ghahramani 2016 (https://arxiv.org/abs/1512.05287);
    DropConnect of the recurrent weights, Merity, Keskar and Socher 2018 (https://arxiv.org/abs/1708.02182).

    Example::

        >>> layer = torch.nn.GRU(10, 20)
        >>> output, h_n = pykernels.functional.gru(torch.randn(5, 3, 10), None, list(layer.parameters()))
        >>> output.shape
        torch.Size([5, 3, 20])
    """
    flags = (bias, reset_after, bidirectional)
    run = _variants.runner(_GRU, training, layer_norm, zoneout, recurrent_dropout, weight_dropout)
    return _recurrent.run_sequence(  # type: ignore[return-value]
        _GRU, input, batch_sizes, (hx,), weights, flags, num_layers, dropout, training, batch_first, run
    )


def gru_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    reset_after: bool = True,
) -> Tensor:
    r"""One step of a gated recurrent unit: (x, h) -> h'.

    The equations are those of `gru`.

    Args:
        input: [B, I].
        hx: h, [B, H], or None for zeros.
        weight_ih: [3H, I], the gates in the order r, z, n.
        weight_hh: [3H, H].
        bias_ih: [3H], or None; likewise bias_hh.
        reset_after: as for `gru`.

    Returns:
        h', [B, H]. Under autocast it has the wider of the dtypes of h (of input, without hx) and of autocast, as with
        `torch.nn.GRUCell`, so that a float32 state stays float32 from step to step.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit together, or there is no kernel for them.

    Example::

        >>> cell = torch.nn.GRUCell(10, 20)
        >>> h = pykernels.functional.gru_cell(torch.randn(3, 10), None, *cell.parameters())
        >>> h.shape
        torch.Size([3, 20])
    """
    weights = _recurrent.step_weights(weight_ih, weight_hh, bias_ih, bias_hh)
    return _recurrent.run_step(_GRU, input, (hx,), weights, (len(weights) == 4, reset_after))[0]
