"""`GRU` and `GRUCell`, to be used in the place of torch's."""

from __future__ import annotations

from typing import Any, overload

from torch import Tensor

from ..functional.gru import gru, gru_cell
from ._base import OneStateCell, check_bool, refuse_projection
from ._varied import VariedBase, take_variants

__all__ = ["GRU", "GRUCell"]


class GRU(VariedBase):
    r"""Gated recurrent units, with the arguments, parameters, results and errors of `torch.nn.GRU`.

    For each layer, with the logistic function :math:`\sigma` and :math:`*` the elementwise product,

    .. math::
        r_t &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
        z_t &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
        n_t &= \tanh(W_{in} x_t + b_{in} + r_t * (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z_t) * n_t + z_t * h_{t-1}

    With ``reset_after=False`` the reset comes before the product, as in the original paper:

    .. math::
        n_t = \tanh(W_{in} x_t + b_{in} + W_{hn} (r_t * h_{t-1}) + b_{hn})

    Args:
        input_size: the number of inputs I.
        hidden_size: the number of hidden units H.
        num_layers: how many layers, each on the output of the one before it.
        bias: whether there are biases.
        batch_first: input and output are [B, T, ...] instead of [T, B, ...]; the state is not affected.
        dropout: the probability with which, in training, an element of what one layer gives the next is zeroed.
        bidirectional: a second set of weights runs over the steps from the last to the first.
        device, dtype: of the parameters.
        reset_after: whether the reset gate works on the hidden part of the candidate (torch, cuDNN) or on the state
            before it (Cho et al.). Weights learned with the one do not serve the other.
        layer_norm: the products of input and state are normalised inside the cell; needs `reset_after`.
        zoneout: the probability with which, in training, a unit keeps its last state. In evaluation the
            state is what it is on average.
        recurrent_dropout: the probability with which, in training, a unit of the state is not fed back, at any step.
        weight_dropout: the probability with which, in training, a recurrent weight is zeroed.

        The formulas of these four are those of `pykernels.functional.gru`.

    Inputs:
        input: [T, B, I], [B, T, I] if `batch_first`, [T, I] for one sequence, or a `PackedSequence`.
        hx: h_0 of [num_layers*D, B, H], without B for one sequence; zeros by default. D is the number of directions.

    Returns:
        output of [T, B, D*H] (in the input's form) and h_n in the shape of h_0.

    Attributes:
        weight_ih_l{k}: [3H, I], and [3H, D*H] from the second layer on; the gates in the order r, z, n.
        weight_hh_l{k}: [3H, H].
        bias_ih_l{k}, bias_hh_l{k}: [3H].
        weight_ln_ih_l{k}, weight_ln_hh_l{k}: [3H], the gains of `layer_norm`; ones at first.

        The other direction's names end in `_reverse`. All but those are drawn from the uniform distribution between
        -1/sqrt(H) and 1/sqrt(H), in the order in which torch draws them.

    Raises:
        ValueError, TypeError, RuntimeError: with the messages of `torch.nn.GRU`.

    Under autocast, steps are computed in its dtype; on the CPU, output and state have the dtypes that torch gives them.

    Sources: Cho et al. 2014 (https://arxiv.org/abs/1406.1078), whose z is 1 - z here, as in torch; the reset after the
    product: Appleyard, Kocisky and Blunsom 2016 (https://arxiv.org/abs/1604.01946).

    Example::

        >>> gru = pykernels.GRU(10, 20, num_layers=2)
        >>> output, h_n = gru(torch.randn(5, 3, 10))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))

    A long sequence in pieces: the state that comes out goes in with the next piece (in one direction, where that gives
    what the whole would). Detached, it carries its values on but no gradient: truncated backpropagation through time::

        >>> h = None
        >>> for piece in torch.randn(40, 3, 10).split(8):
        ...     output, h = gru(piece, h)
        ...     output.square().mean().backward()
        ...     h = h.detach()
    """

    reset_after: bool
    wrong_rank = "GRU: Expected input to be 2D or 3D, got {}D instead"

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        reset_after: bool = True,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
    ) -> None: ...

    @overload
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __init__(self, *args: Any, reset_after: bool = True, **kwargs: Any) -> None:
        refuse_projection(args[7:8], kwargs)
        variants = take_variants(kwargs)
        super().__init__("GRU", *args, **kwargs)
        self.reset_after = check_bool("reset_after", reset_after)
        if variants.get("layer_norm", False) is True and not reset_after:
            raise ValueError("layer_norm needs reset_after=True, where all gates are one product")
        self.vary(**variants)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("reset_after", True)

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")

    def forward(self, input: Any, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        return self.run(input, hx)

    def compute(
        self, input: Tensor, hx: Tensor | None, weights: list[Tensor], batch_sizes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return gru(
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
            reset_after=self.reset_after,
            **self.varied(),
        )


class GRUCell(OneStateCell):
    r"""One step of a gated recurrent unit, with the arguments, parameters, results and errors of `torch.nn.GRUCell`.

    .. math::
        r &= \sigma(W_{ir} x + b_{ir} + W_{hr} h + b_{hr}) \\
        z &= \sigma(W_{iz} x + b_{iz} + W_{hz} h + b_{hz}) \\
        n &= \tanh(W_{in} x + b_{in} + r * (W_{hn} h + b_{hn})) \\
        h' &= (1 - z) * n + z * h

    and with ``reset_after=False``

    .. math::
        n = \tanh(W_{in} x + b_{in} + W_{hn} (r * h) + b_{hn})

    Args:
        input_size: the number of inputs I.
        hidden_size: the number of hidden units H.
        bias: whether there are biases.
        device, dtype: of the parameters.
        reset_after: whether the reset gate works on the hidden part of the candidate or on the state before it.

    Inputs:
        input: [B, I], or [I].
        hx: h, [B, H] or [H]; zeros by default.

    Returns:
        h' in the shape of h.

    Attributes:
        weight_ih: [3H, I], the gates in the order r, z, n.
        weight_hh: [3H, H].
        bias_ih, bias_hh: [3H].

    Raises:
        ValueError, RuntimeError: with the messages of `torch.nn.GRUCell`.

    Sources: as for `GRU`.

    Example::

        >>> cell = pykernels.GRUCell(10, 20)
        >>> h = cell(torch.randn(3, 10))
        >>> h = cell(torch.randn(3, 10), h)
        >>> h.shape
        torch.Size([3, 20])

    For truncated backpropagation through time, detach h where the gradient is to end: ``h = h.detach()``.
    """

    reset_after: bool
    name = "GRUCell"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        reset_after: bool = True,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)
        self.reset_after = check_bool("reset_after", reset_after)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("reset_after", True)

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return self.run(input, hx)

    def compute(self, input: Tensor, hx: Tensor | None, weights: tuple[Any, Any, Any, Any]) -> Tensor:
        return gru_cell(input, hx, *weights, reset_after=self.reset_after)
