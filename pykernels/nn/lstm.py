"""`LSTM` and `LSTMCell`, to be used in the place of torch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import Parameter, init
from torch.nn.utils.rnn import PackedSequence

from ..functional.lstm import lstm, lstm_cell
from ._base import CellBase, check_bool, dtype_name
from ._varied import VariedBase

__all__ = ["LSTM", "LSTMCell"]


class LSTM(VariedBase):
    r"""Long short-term memory, with the arguments, parameters, results and errors of `torch.nn.LSTM`.

    For each layer, with the logistic function :math:`\sigma` and :math:`*` the elementwise product,

    .. math::
        i_t &= \sigma(W_{ii} x_t + b_{ii} + W_{hi} h_{t-1} + b_{hi} + p_i * c_{t-1}) \\
        f_t &= \sigma(W_{if} x_t + b_{if} + W_{hf} h_{t-1} + b_{hf} + p_f * c_{t-1}) \\
        g_t &= \tanh(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
        c_t &= f_t * c_{t-1} + i_t * g_t \\
        o_t &= \sigma(W_{io} x_t + b_{io} + W_{ho} h_{t-1} + b_{ho} + p_o * c_t) \\
        h_t &= W_{hr} (o_t * \tanh(c_t))

    where the terms in p belong to ``peephole=True`` and :math:`W_{hr}` to ``proj_size > 0``.

    Args:
        input_size: the number of inputs I.
        hidden_size: the number of hidden units H.
        num_layers: how many layers, each on the output of the one before it.
        bias: whether there are biases.
        batch_first: input and output are [B, T, ...] instead of [T, B, ...]; the states are not affected.
        dropout: the probability with which, in training, an element of what one layer gives the next is zeroed.
        bidirectional: a second set of weights runs over the steps from the last to the first.
        proj_size: P; if not zero, the hidden state is projected to this many units.
        device, dtype: of the parameters.
        peephole: the gates also see the cell state, through diagonal weights.
        layer_norm: the products of input and state are normalised inside the cell, and c where it goes out.
        zoneout: the probability with which, in training, a unit keeps its last h, and its last c; a pair gives one for
            each. In evaluation the state is what it is on average.
        recurrent_dropout: the probability with which, in training, a unit of the state is not fed back, at any step.
        weight_dropout: the probability with which, in training, a recurrent weight is zeroed.

        The formulas of these four are those of `pykernels.functional.lstm`.

    Inputs:
        input: [T, B, I], [B, T, I] if `batch_first`, [T, I] for one sequence, or a `PackedSequence`.
        hx: (h_0, c_0) of [num_layers*D, B, Ho] and [num_layers*D, B, H], without B for one sequence; zeros by default.
            D is the number of directions, Ho is P with a projection and H without.

    Returns:
        output of [T, B, D*Ho] (in the input's form) and (h_n, c_n) in the shapes of (h_0, c_0).

    Attributes:
        weight_ih_l{k}: [4H, I], and [4H, D*Ho] from the second layer on; the gates in the order i, f, g, o.
        weight_hh_l{k}: [4H, Ho].
        bias_ih_l{k}, bias_hh_l{k}: [4H].
        weight_hr_l{k}: [P, H].
        weight_peephole_l{k}: [3, H]; rows i, f, o.
        weight_ln_ih_l{k}, weight_ln_hh_l{k}: [4H], the gains of `layer_norm`; ones at first.
        weight_ln_c_l{k}, bias_ln_c_l{k}: [H], gain and shift of the cell's; ones and zeros at first.

        The other direction's names end in `_reverse`. All but those are drawn from the uniform distribution between
        -1/sqrt(H) and 1/sqrt(H), in the order in which torch draws them.

    Raises:
        ValueError, TypeError, RuntimeError: with the messages of `torch.nn.LSTM`.

    Under autocast, output and states have the dtype of autocast, for packed and projected sequences too.

    Sources: Hochreiter and Schmidhuber 1997 (https://doi.org/10.1162/neco.1997.9.8.1735); peepholes: Gers and
    Schmidhuber 2000 (https://doi.org/10.1109/IJCNN.2000.861302); projections: Sak, Senior and Beaufays 2014
    (https://arxiv.org/abs/1402.1128).

    Example::

        >>> lstm = pykernels.LSTM(10, 20, num_layers=2)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))

    A long sequence in pieces: the states that come out go in with the next piece (in one direction, where that gives
    what the whole would). Detached, they carry their values on but no gradient: truncated backpropagation through
    time::

        >>> state = None
        >>> for piece in torch.randn(40, 3, 10).split(8):
        ...     output, (h, c) = lstm(piece, state)
        ...     output.square().mean().backward()
        ...     state = (h.detach(), c.detach())
    """

    peephole: bool
    wrong_rank = "LSTM: Expected input to be 2D or 3D, got {}D instead"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        peephole: bool = False,
        layer_norm: bool = False,
        zoneout: float | Sequence[float] = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size,
            device=device, dtype=dtype,
        )  # fmt: skip
        self.peephole = check_bool("peephole", peephole)
        if peephole:
            self.add_weights("weight_peephole", (3, hidden_size), device, dtype)
        self.vary(layer_norm, zoneout, recurrent_dropout, weight_dropout)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("peephole", False)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", peephole=True" if self.peephole else "")

    def get_expected_cell_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        layers, batch, _ = self.get_expected_hidden_size(input, batch_sizes)
        return layers, batch, self.hidden_size

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Any, tuple[Tensor, Tensor]]:
        return self.run(input, hx)

    def map_states(self, function: Callable[[Tensor], Tensor], hx: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return function(hx[0]), function(hx[1])

    def check_ranks(self, hx: tuple[Tensor, Tensor], rank: int) -> None:
        if hx[0].dim() != rank or hx[1].dim() != rank:
            raise RuntimeError(
                f"For {'batched' if rank == 3 else 'unbatched'} {rank}-D input, hx and cx should also be {rank}-D "
                f"but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
            )

    def check_states(self, input: Tensor, hx: tuple[Tensor, Tensor], batch_sizes: Tensor | None) -> None:
        expected = self.get_expected_hidden_size(input, batch_sizes)
        self.check_hidden_size(hx[0], expected, "Expected hidden[0] size {}, got {}")
        expected = (*expected[:2], self.hidden_size)
        self.check_hidden_size(hx[1], expected, "Expected hidden[1] size {}, got {}")
        if len(hx) != 2:
            raise RuntimeError("lstm expects two hidden states")

    def _forward_packed(
        self, input: PackedSequence, hx: tuple[Tensor, Tensor] | None
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]:
        first: Any = self._flat_weights[0]
        if input.data.dtype != first.dtype and not torch._C._is_any_autocast_enabled():
            raise RuntimeError(
                "mat1 and mat2 must have the same dtype, "
                f"but got {dtype_name(input.data.dtype)} and {dtype_name(first.dtype)}"
            )
        return super()._forward_packed(input, hx)

    def compute(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None, weights: list[Tensor], batch_sizes: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        output, h_n, c_n = lstm(
            input,
            hx,
            weights,
            batch_sizes=batch_sizes,
            bias=self.bias,
            num_layers=self.num_layers,
            dropout=self.dropout,
            training=self.training,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first,
            projection=self.proj_size > 0,
            peephole=self.peephole,
            **self.varied(),
        )
        return output, (h_n, c_n)


class LSTMCell(CellBase):
    r"""One step of long short-term memory, with the arguments, parameters, results and errors of `torch.nn.LSTMCell`.

    .. math::
        i &= \sigma(W_{ii} x + b_{ii} + W_{hi} h + b_{hi} + p_i * c) \\
        f &= \sigma(W_{if} x + b_{if} + W_{hf} h + b_{hf} + p_f * c) \\
        g &= \tanh(W_{ig} x + b_{ig} + W_{hg} h + b_{hg}) \\
        c' &= f * c + i * g \\
        o &= \sigma(W_{io} x + b_{io} + W_{ho} h + b_{ho} + p_o * c') \\
        h' &= o * \tanh(c')

    where the terms in p belong to ``peephole=True``.

    Args:
        input_size: the number of inputs I.
        hidden_size: the number of hidden units H.
        bias: whether there are biases.
        device, dtype: of the parameters.
        peephole: the gates also see the cell state, through diagonal weights.

    Inputs:
        input: [B, I], or [I].
        hx: (h, c), [B, H] or [H] each; zeros by default.

    Returns:
        (h', c') in the shapes of (h, c).

    Attributes:
        weight_ih: [4H, I], the gates in the order i, f, g, o.
        weight_hh: [4H, H].
        bias_ih, bias_hh: [4H].
        weight_peephole: [3, H]; rows i, f, o.

    Raises:
        ValueError, RuntimeError: with the messages of `torch.nn.LSTMCell`.

    Sources: as for `LSTM`.

    Example::

        >>> cell = pykernels.LSTMCell(10, 20)
        >>> h, c = cell(torch.randn(3, 10))
        >>> h, c = cell(torch.randn(3, 10), (h, c))
        >>> h.shape
        torch.Size([3, 20])

    For truncated backpropagation through time, detach h and c where the gradient is to end.
    """

    peephole: bool

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        peephole: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)
        self.peephole = check_bool("peephole", peephole)
        if peephole:
            self.weight_peephole = Parameter(torch.empty((3, hidden_size), device=device, dtype=dtype))
            bound = 1 / hidden_size**0.5 if hidden_size > 0 else 0
            init.uniform_(self.weight_peephole, -bound, bound)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("peephole", False)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", peephole=True" if self.peephole else "")

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        if input.dim() not in (1, 2):
            raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if hx is not None:
            for index, state in enumerate(hx):
                if state.dim() not in (1, 2):
                    raise ValueError(f"LSTMCell: Expected hx[{index}] to be 1D or 2D, got {state.dim()}D instead")
            if not isinstance(hx, (tuple, list)):
                raise TypeError(
                    f"lstm_cell(): argument 'hx' (position 2) must be tuple of Tensors, not {type(hx).__name__}"
                )
            if len(hx) != 2:
                raise RuntimeError("lstm_cell expects two hidden states")

        if input.dim() == 2:
            return self._run(input, hx)
        h, c = self._run(input.unsqueeze(0), None if hx is None else (hx[0].unsqueeze(0), hx[1].unsqueeze(0)))
        return h.squeeze(0), c.squeeze(0)

    def _run(self, input: Tensor, hx: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        compiling = is_compiling()
        if compiling:
            self.check_forward_args(input, *(hx or ()))
        try:
            return lstm_cell(input, hx, *self.weights(compiling), self.weight_peephole if self.peephole else None)
        except (RuntimeError, IndexError):
            # torch's words for it, where it has any
            self.check_forward_args(input, *(hx or ()))
            raise
