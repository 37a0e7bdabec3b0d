"""The Elman and the Jordan RNN as functions: `rnn` over whole sequences, `rnn_cell` for one step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..reference import rnn_layer
from ..reference.rnn import is_relu
from . import _recurrent, _variants
from ._recurrent_ops import Kind

__all__ = ["rnn", "rnn_cell"]


def _widths(weights: Sequence[Tensor], flags: Sequence[bool]) -> tuple[Sequence[int], Sequence[int]]:
    projection = flags[1]
    return (weights[1].shape[1],), (weights[0].shape[0] if projection else 0,)


_RNN = Kind(
    "rnn",
    rnn_layer,
    states=1,  # h, or o with a projection
    kept=1,  # h of every step where that is not the output
    flags=4,  # bias, projection, relu, bidirectional
    widths=_widths,
    layer_flags=lambda bias, relu: (bias, False, relu, False),
    cell_keeps=False,
    cell_promotes=False,
)


def rnn(
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
    nonlinearity: str = "tanh",
    projection: bool = False,
    layer_norm: bool = False,
    zoneout: float = 0.0,
    recurrent_dropout: float = 0.0,
    weight_dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""A simple recurrent network over whole sequences, `num_layers` deep, in one or both directions.

    For each layer of Elman's form

    .. math::
        h_t = f(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    and of Jordan's, which is ``projection=True``,

    .. math::
        h_t &= f(W_{ih} x_t + b_{ih} + W_{hh} o_{t-1} + b_{hh}) \\
        o_t &= W_{ho} h_t + b_{ho}

    with the `nonlinearity` f. In the shapes below T is the number of steps, B the batch, I the inputs, H the hidden
    units, D the number of directions, and S the width of the state, which is put out and fed back: h, or o with a
    projection.

    Variants, which compose with each other and with everything else but `projection`:

    - `layer_norm`: layer normalisation N over all units, with :math:`\epsilon = 10^{-5}`, of the products before they
      are added, :math:`\gamma_i * N(W_i x_t) + b_i + \gamma_h * N(W_h h_{t-1}) + b_h`. The weights of each
      direction then end with :math:`\gamma_i` and :math:`\gamma_h` [H].
    - `zoneout`: in training each unit keeps its last state with this probability, at each step anew:
      :math:`h_t = z_t * h_{t-1} + (1 - z_t) * \tilde{h}_t`. Otherwise z is the probability itself.
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
        hx: the initial state [num_layers*D, B, S], or None for zeros.
        weights: flat, layer by layer and direction by direction, each weight_ih [H, I or D*S], weight_hh [H, S],
            then bias_ih and bias_hh [H] if `bias`, weight_ho [S, H] if `projection`, bias_ho [S] if both.
        batch_sizes: of the `PackedSequence`, int64 on the CPU: how many sequences still run at each step.
        dropout: the probability with which an element between two layers is zeroed, if `training`.
        nonlinearity: "tanh", or "relu" for max(0, .).
        layer_norm, zoneout, recurrent_dropout, weight_dropout: as above.

    Returns:
        output [T, B, D*S], [B, T, D*S] or [N, D*S] as the input is, and the final state [num_layers*D, B, S].
        Under autocast both have the dtype of autocast.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit together, or there is no kernel for them.
        ValueError: an unknown nonlinearity, a probability is not in [0, 1], or variants do not go together.

    Sources: Elman 1990 (https://doi.org/10.1207/s15516709cog1402_1); Jordan 1986, Serial order (technical report 8604,
    Institute for Cognitive Science, University of California, San Diego). The variants: layer normalisation,
    Ba, Kiros and Hinton 2016 (https://arxiv.org/abs/1607.06450); zoneout, Krueger et al. 2017
    (https://arxiv.org/abs/1606.01305); one mask for all steps, Gal and Ghahramani 2016 (https://arxiv.org/abs/1512.05287);
    DropConnect of the recurrent weights, Merity, Keskar and Socher 2018 (https://arxiv.org/abs/1708.02182).

    Example::

        >>> layer = torch.nn.RNN(10, 20)
        >>> output, h_n = pykernels.functional.rnn(torch.randn(5, 3, 10), None, list(layer.parameters()))
        >>> output.shape
        torch.Size([5, 3, 20])
    """
    flags = (bias, projection, is_relu(nonlinearity), bidirectional)
    run = _variants.runner(_RNN, training, layer_norm, zoneout, recurrent_dropout, weight_dropout)
    return _recurrent.run_sequence(  # type: ignore[return-value]
        _RNN, input, batch_sizes, (hx,), weights, flags, num_layers, dropout, training, batch_first, run
    )


def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
) -> Tensor:
    r"""One step of Elman's recurrent network: (x, h) -> h'.

    .. math::
        h' = f(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})

    Args:
        input: [B, I].
        hx: h, [B, H], or None for zeros.
        weight_ih: [H, I].
        weight_hh: [H, H].
        bias_ih: [H], or None; likewise bias_hh.
        nonlinearity: "tanh", or "relu" for max(0, .).

    Returns:
        h', [B, H]. Under autocast it has the dtype of autocast.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit together, or there is no kernel for them.
        ValueError: an unknown nonlinearity.

    Example::

        >>> cell = torch.nn.RNNCell(10, 20)
        >>> h = pykernels.functional.rnn_cell(torch.randn(3, 10), None, *cell.parameters())
        >>> h.shape
        torch.Size([3, 20])
    """
    weights = _recurrent.step_weights(weight_ih, weight_hh, bias_ih, bias_hh)
    return _recurrent.run_step(_RNN, input, (hx,), weights, (len(weights) == 4, is_relu(nonlinearity)))[0]
