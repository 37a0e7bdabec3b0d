"""The LSTM as functions: `lstm` over whole sequences, `lstm_cell` for one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..reference import lstm_layer as twin
from ..reference.recurrent import run_layers
from . import _dispatch, _lstm_ops
from ._dispatch import any_autocast, is_eager, needs_twin, raw_kernels, wants_grad

__all__ = ["lstm", "lstm_cell"]


class LSTMFunction(torch.autograd.Function):
    """One layer by the raw kernels. The old style, with `ctx` in forward, is the one that costs least."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Any,
        input: Tensor,
        batch_sizes: Tensor | None,
        h0: Tensor | None,
        c0: Tensor | None,
        flags: tuple[bool, bool, bool, bool],
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        output, h_n, c_n, gates, cells = kernels.lstm_forward(input, batch_sizes, h0, c0, weights, *flags, True)
        ctx.kernels, ctx.flags = kernels, flags
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, batch_sizes, h0, c0, output, gates, cells, *weights)
        return output, h_n, c_n

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        input, batch_sizes, h0, c0, output, gates, cells, *weights = ctx.saved_tensors
        _, need_input, _, need_h0, need_c0, _, *need_weights = ctx.needs_input_grad
        flags = ctx.flags

        if needs_twin(*grads):

            def layer(tensors: list[Any]) -> tuple[Tensor, ...]:
                x, h, c, *w = tensors
                return twin(x, batch_sizes, h, c, w, *flags)

            for_input, for_h0, for_c0, *for_weights = _dispatch.twin_vjp(
                layer, (input, h0, c0, *weights), (need_input, need_h0, need_c0, *need_weights), grads
            )
            return None, for_input, None, for_h0, for_c0, None, *for_weights

        call = ctx.kernels.lstm_backward if is_eager(output) else _lstm_ops.backward
        grad_input, grad_h0, grad_c0, grad_weights = call(
            *grads, input, batch_sizes, h0, c0, weights, output, gates, cells, *flags,
            need_input, need_h0 or need_c0, True in need_weights,
        )  # fmt: skip
        return (
            None,
            grad_input if need_input else None,
            None,
            grad_h0 if need_h0 else None,
            grad_c0 if need_c0 else None,
            None,
            *(grad_weights if True in need_weights else [None] * len(weights)),
        )


class LSTMCellFunction(torch.autograd.Function):
    """One step by the raw kernels."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Any,
        input: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        bias: bool,
        peephole: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        h, c, gates, cells = kernels.lstm_cell_forward(input, h0, c0, weights, bias, peephole, True)
        ctx.kernels, ctx.bias, ctx.peephole = kernels, bias, peephole
        ctx.set_materialize_grads(False)
        # not the outputs, which may be changed in place (a state that is reset between two steps)
        ctx.save_for_backward(input, h0, c0, gates, cells, *weights)
        return h, c

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor | None, grad_c: Tensor | None) -> tuple[Any, ...]:
        input, h0, c0, gates, cells, *weights = ctx.saved_tensors
        _, need_input, need_h0, need_c0, _, _, *need_weights = ctx.needs_input_grad
        bias, peephole = ctx.bias, ctx.peephole

        if needs_twin(grad_h, grad_c) or not is_eager(cells):

            def cell(tensors: list[Any]) -> tuple[Tensor, ...]:
                x, h, c, *w = tensors
                return _cell_twin(x, h, c, w, bias, peephole)

            for_input, for_h0, for_c0, *for_weights = _dispatch.twin_vjp(
                cell, (input, h0, c0, *weights), (need_input, need_h0, need_c0, *need_weights), (grad_h, grad_c)
            )
            return None, for_input, for_h0, for_c0, None, None, *for_weights

        grad_input, grad_h0, grad_c0, grad_weights = ctx.kernels.lstm_cell_backward(
            grad_h, grad_c, input, h0, c0, weights, gates, cells, bias, peephole,
            need_input, need_h0 or need_c0, True in need_weights,
        )  # fmt: skip
        return (
            None,
            grad_input if need_input else None,
            grad_h0 if need_h0 else None,
            grad_c0 if need_c0 else None,
            None,
            None,
            *(grad_weights if True in need_weights else [None] * len(weights)),
        )


_apply_lstm, _apply_cell = _dispatch.direct_apply(LSTMFunction), _dispatch.direct_apply(LSTMCellFunction)


def _layer(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    flags: tuple[bool, bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer over all steps; `flags` are bias, projection, peephole, bidirectional."""
    kernels = raw_kernels(input, weights[0])
    if kernels is None:
        _dispatch.check_devices("lstm", input, h0, c0, *weights)
        save = _dispatch.should_save(input, h0, c0, *weights)
        return _lstm_ops.forward(input, batch_sizes, h0, c0, list(weights), *flags, save)[:3]
    if wants_grad(weights[0], input, h0, c0, *weights):
        return _apply_lstm(kernels, input, batch_sizes, h0, c0, flags, *weights)
    return kernels.lstm_forward(input, batch_sizes, h0, c0, weights, *flags, False)[:3]


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

    Args:
        input: [T, B, I], or [B, T, I] if `batch_first`, or the data [N, I] of a `PackedSequence`. float32, float64,
            bfloat16 or float16, as all the other tensors; T is at least 1.
        hx: the initial states h0 [num_layers*D, B, Ho] and c0 [num_layers*D, B, H], or None for zeros.
        weights: flat, layer by layer and direction by direction, each weight_ih [4H, I or D*Ho], weight_hh [4H, Ho],
            then bias_ih and bias_hh [4H] if `bias`, weight_hr [P, H] if `projection`, weight_peephole [3, H]
            (rows i, f, o) if `peephole`. The gates lie in the order i, f, g, o.
        batch_sizes: of the `PackedSequence`, int64 on the CPU: how many sequences still run at each step.
        dropout: the probability with which an element between two layers is zeroed, if `training`.

    Returns:
        output [T, B, D*Ho], [B, T, D*Ho] or [N, D*Ho] as the input is, h_n [num_layers*D, B, Ho] and
        c_n [num_layers*D, B, H].
        Under autocast all of them have the dtype of autocast.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit together, or there is no kernel for them.

    Sources: Hochreiter and Schmidhuber 1997 (https://doi.org/10.1162/neco.1997.9.8.1735); peepholes: Gers and
    Schmidhuber 2000 (https://doi.org/10.1109/IJCNN.2000.861302); projections: Sak, Senior and Beaufays 2014
    (https://arxiv.org/abs/1402.1128).

    Example::

        >>> layer = torch.nn.LSTM(10, 20)
        >>> weights = list(layer.parameters())
        >>> output, h_n, c_n = pykernels.functional.lstm(torch.randn(5, 3, 10), None, weights)
        >>> output.shape
        torch.Size([5, 3, 20])
    """
    if any_autocast() and (dtype := _dispatch.autocast_dtype(input)) is not None:
        input = _dispatch.cast(input, dtype)
        hx = None if hx is None else (_dispatch.cast(hx[0], dtype), _dispatch.cast(hx[1], dtype))
        weights = [_dispatch.cast(w, dtype) for w in weights]

    flags = (bias, projection, peephole, bidirectional)
    turned = batch_first and batch_sizes is None
    if turned:
        input = input.transpose(0, 1)
    if num_layers == 1:
        h0, c0 = (None, None) if hx is None else hx
        output, h_n, c_n = _layer(input, batch_sizes, h0, c0, weights, flags)
    else:

        def layer(
            input: Tensor, batch_sizes: Tensor | None, states: tuple[Tensor, ...] | None, weights: Sequence[Tensor]
        ) -> tuple[Tensor, ...]:
            h0, c0 = (None, None) if states is None else states
            return _layer(input, batch_sizes, h0, c0, weights, flags)

        output, h_n, c_n = run_layers(
            layer, input, batch_sizes, hx, weights, num_layers, bidirectional, dropout, training
        )
    return output.transpose(0, 1) if turned else output, h_n, c_n


def _cell_twin(
    input: Tensor, h0: Tensor | None, c0: Tensor | None, weights: list[Tensor], bias: bool, peephole: bool
) -> tuple[Tensor, Tensor]:
    hx = None if h0 is None or c0 is None else (h0, c0)
    bias_ih, bias_hh = weights[2:4] if bias else (None, None)
    return reference.lstm_cell(input, hx, weights[0], weights[1], bias_ih, bias_hh, weights[-1] if peephole else None)


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
    elif bias_ih is None and bias_hh is None:
        weights = (weight_ih, weight_hh)
    else:
        present = bias_hh if bias_ih is None else bias_ih
        absent = torch.zeros_like(present)  # type: ignore[arg-type]
        biases = (absent, present) if bias_ih is None else (present, absent)
        weights = (weight_ih, weight_hh, *biases)
    bias = len(weights) == 4
    peephole = weight_peephole is not None
    if weight_peephole is not None:
        weights = (*weights, weight_peephole)

    if any_autocast() and (dtype := _dispatch.autocast_dtype(input)) is not None:
        dtype = torch.promote_types(dtype, (input if c0 is None else c0).dtype)
        input, weights = _dispatch.cast(input, dtype), tuple(_dispatch.cast(w, dtype) for w in weights)
        if h0 is not None and c0 is not None:
            h0, c0 = _dispatch.cast(h0, dtype), _dispatch.cast(c0, dtype)

    kernels = raw_kernels(input, weight_ih)
    if not hasattr(kernels, "lstm_cell_forward"):
        # traced, or a backend without a cell of its own: a sequence of one step
        if h0 is not None and c0 is not None:
            h0, c0 = h0.unsqueeze(0), c0.unsqueeze(0)
        _, h, c = _layer(input.unsqueeze(0), None, h0, c0, weights, (bias, False, peephole, False))
        return h.squeeze(0), c.squeeze(0)
    if wants_grad(weight_ih, input, h0, c0, *weights):
        return _apply_cell(kernels, input, h0, c0, bias, peephole, *weights)
    return kernels.lstm_cell_forward(input, h0, c0, weights, bias, peephole, False)[:2]
