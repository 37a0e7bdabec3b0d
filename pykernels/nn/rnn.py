"""`RNN` and `RNNCell`, to be used in the place of torch's, and `JordanRNN`."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor
from torch.nn import Parameter

from ..functional.rnn import rnn, rnn_cell
from ._base import OneStateCell, RecurrentBase, refuse_projection
from ._varied import VariedBase, take_variants

__all__ = ["RNN", "RNNCell", "JordanRNN"]


class _SimpleRNN(RecurrentBase):
    """What Elman's and Jordan's network share."""

    nonlinearity: str
    projection: bool

    def varied(self) -> dict[str, Any]:
        return {}

    def compute(
        self, input: Tensor, hx: Tensor | None, weights: list[Tensor], batch_sizes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return rnn(
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
            nonlinearity=_NONLINEARITIES[self.mode],
            projection=self.projection,
            **self.varied(),
        )


class RNN(VariedBase, _SimpleRNN):
    r"""Elman's recurrent network, with the arguments, parameters, results and errors of `torch.nn.RNN`.

    For each layer, with the nonlinearity f,

    .. math::
        h_t = f(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    Args:
        input_size: the number of inputs I.
        hidden_size: the number of hidden units H.
        num_layers: how many layers, each on the output of the one before it.
        nonlinearity: f, "tanh" or "relu".
        bias: whether there are biases.
        batch_first: input and output are [B, T, ...] instead of [T, B, ...]; the state is not affected.
        dropout: the probability with which, in training, an element of what one layer gives the next is zeroed.
        bidirectional: a second set of weights runs over the steps from the last to the first.
        device, dtype: of the parameters.
        layer_norm: the products of input and state are normalised inside the cell.
        zoneout: the probability with which, in training, a unit keeps its last state. In evaluation the
            state is what it is on average.
        recurrent_dropout: the probability with which, in training, a unit of the state is not fed back, at any step.
        weight_dropout: the probability with which, in training, a recurrent weight is zeroed.

        The formulas of these four are those of `pykernels.functional.rnn`.

    Inputs:
        input: [T, B, I], [B, T, I] if `batch_first`, [T, I] for one sequence, or a `PackedSequence`.
        hx: h_0 of [num_layers*D, B, H], without B for one sequence; zeros by default. D is the number of directions.

    Returns:
        output of [T, B, D*H] (in the input's form) and h_n in the shape of h_0.

    Attributes:
        weight_ih_l{k}: [H, I], and [H, D*H] from the second layer on.
        weight_hh_l{k}: [H, H].
        bias_ih_l{k}, bias_hh_l{k}: [H].
        weight_ln_ih_l{k}, weight_ln_hh_l{k}: [H], the gains of `layer_norm`; ones at first.

        The other direction's names end in `_reverse`. All but those are drawn from the uniform distribution between
        -1/sqrt(H) and 1/sqrt(H), in the order in which torch draws them.

    Raises:
        ValueError, TypeError, RuntimeError: with the messages of `torch.nn.RNN`.

    Under autocast, output and state have the dtype of autocast.

    Source: Elman 1990 (https://doi.org/10.1207/s15516709cog1402_1).

    Example::

        >>> rnn = pykernels.RNN(10, 20, num_layers=2, nonlinearity="relu")
        >>> output, h_n = rnn(torch.randn(5, 3, 10))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))

    A long sequence in pieces: the state that comes out goes in with the next piece (in one direction, where that gives
    what the whole would). Detached, it carries its values on but no gradient: truncated backpropagation through time::

        >>> h = None
        >>> for piece in torch.randn(40, 3, 10).split(8):
        ...     output, h = rnn(piece, h)
        ...     output.square().mean().backward()
        ...     h = h.detach()
    """

    projection = False
    wrong_rank = "RNN: Expected input to be 2D or 3D, got {}D tensor instead"

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
    ) -> None: ...

    @overload
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse_projection(args[8:9], kwargs)
        if len(args) > 3:
            nonlinearity, args = args[3], args[:3] + args[4:]
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        mode = _mode(nonlinearity)
        variants = take_variants(kwargs)
        super().__init__(mode, *args, **kwargs)
        self.nonlinearity = nonlinearity
        self.vary(**variants)

    def forward(self, input: Any, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        return self.run(input, hx)


class JordanRNN(_SimpleRNN):
    r"""Jordan's recurrent network, in which the output is fed back.

    For each layer, with the nonlinearity f,

    .. math::
        h_t &= f(W_{ih} x_t + b_{ih} + W_{hh} o_{t-1} + b_{hh}) \\
        o_t &= W_{ho} h_t + b_{ho}

    Args:
        input_size: the number of inputs I.
        hidden_size: the number of hidden units H.
        output_size: the number of outputs O, which are the state too.
        num_layers: how many layers, each on the output of the one before it.
        nonlinearity: f, "tanh" or "relu".
        bias: whether there are biases.
        batch_first: input and output are [B, T, ...] instead of [T, B, ...]; the state is not affected.
        dropout: the probability with which, in training, an element of what one layer gives the next is zeroed.
        bidirectional: a second set of weights runs over the steps from the last to the first.
        device, dtype: of the parameters.

    Inputs:
        input: [T, B, I], [B, T, I] if `batch_first`, [T, I] for one sequence, or a `PackedSequence`.
        hx: o_0 of [num_layers*D, B, O], without B for one sequence; zeros by default. D is the number of directions.

    Returns:
        output of [T, B, D*O] (in the input's form) and o_n in the shape of o_0: each layer's and direction's output
        after its last step, for each sequence at its own length. Many-to-one use takes o_n.

    Attributes:
        weight_ih_l{k}: [H, I], and [H, D*O] from the second layer on.
        weight_hh_l{k}: [H, O].
        bias_ih_l{k}, bias_hh_l{k}: [H].
        weight_ho_l{k}: [O, H].
        bias_ho_l{k}: [O].

        The other direction's names end in `_reverse`. All are drawn from the uniform distribution between
        -1/sqrt(H) and 1/sqrt(H).

    Raises:
        ValueError, TypeError, RuntimeError: with the messages of `torch.nn.RNN`.

    Under autocast, output and state have the dtype of autocast.

    Source: Jordan 1986, Serial order: a parallel distributed processing approach (technical report 8604, Institute for
    Cognitive Science, University of California, San Diego).

    Example::

        >>> rnn = pykernels.JordanRNN(10, 20, 4)
        >>> output, o_n = rnn(torch.randn(5, 3, 10))
        >>> output.shape, o_n.shape
        (torch.Size([5, 3, 4]), torch.Size([1, 3, 4]))

    Many-to-one, with sequences of several lengths::

        >>> packed = torch.nn.utils.rnn.pack_sequence([torch.randn(n, 10) for n in (5, 2, 7)], enforce_sorted=False)
        >>> _, o_n = rnn(packed)
        >>> loss = torch.nn.functional.cross_entropy(o_n[-1], torch.tensor([0, 3, 1]))

    A long sequence in pieces: the state that comes out goes in with the next piece (in one direction, where that gives
    what the whole would). Detached, it carries its values on but no gradient: truncated backpropagation through time::

        >>> o = None
        >>> for piece in torch.randn(40, 3, 10).split(8):
        ...     output, o = rnn(piece, o)
        ...     output.square().mean().backward()
        ...     o = o.detach()
    """

    output_size: int
    projection = True
    wrong_rank = "JordanRNN: Expected input to be 2D or 3D, got {}D instead"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        # torch's checks and attributes; its parameters, which have other shapes, without memory
        super().__init__(
            _mode(nonlinearity), input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            device="meta",
        )  # fmt: skip
        if not isinstance(output_size, int):
            raise TypeError(f"output_size should be of type int, got: {type(output_size).__name__}")
        if output_size <= 0:
            raise ValueError("output_size must be greater than zero")
        self.nonlinearity, self.output_size = nonlinearity, output_size

        self._parameters.clear()
        self._all_weights = []
        directions = 2 if bidirectional else 1
        for index, suffix in enumerate(self.suffixes()):
            width = input_size if index < directions else directions * output_size
            shapes: dict[str, tuple[int, ...]] = {
                "weight_ih": (hidden_size, width),
                "weight_hh": (hidden_size, output_size),
                "bias_ih": (hidden_size,),
                "bias_hh": (hidden_size,),
                "weight_ho": (output_size, hidden_size),
                "bias_ho": (output_size,),
            }
            names = [name for name in shapes if bias or not name.startswith("bias")]
            for name in names:
                parameter = Parameter(torch.empty(shapes[name], device=device, dtype=dtype))
                self.register_parameter(name + suffix, parameter)
            self._all_weights.append([name + suffix for name in names])
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self._init_flat_weights()
        self.reset_parameters()

    def extra_repr(self) -> str:
        sizes = f"{self.input_size}, {self.hidden_size}"
        nonlinearity = "" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity}"
        return f"{sizes}, {self.output_size}{super().extra_repr().removeprefix(sizes)}{nonlinearity}"

    def get_expected_hidden_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        layers, batch, _ = super().get_expected_hidden_size(input, batch_sizes)
        return layers, batch, self.output_size

    def forward(self, input: Any, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        return self.run(input, hx)


class RNNCell(OneStateCell):
    r"""One step of Elman's network, with the arguments, parameters, results and errors of `torch.nn.RNNCell`.

    .. math::
        h' = f(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})

    Args:
        input_size: the number of inputs I.
        hidden_size: the number of hidden units H.
        bias: whether there are biases.
        nonlinearity: f, "tanh" or "relu".
        device, dtype: of the parameters.

    Inputs:
        input: [B, I], or [I].
        hx: h, [B, H] or [H]; zeros by default.

    Returns:
        h' in the shape of h.

    Attributes:
        weight_ih: [H, I].
        weight_hh: [H, H].
        bias_ih, bias_hh: [H].

    Raises:
        ValueError, RuntimeError: with the messages of `torch.nn.RNNCell`.

    Source: as for `RNN`.

    Example::

        >>> cell = pykernels.RNNCell(10, 20)
        >>> h = cell(torch.randn(3, 10))
        >>> h = cell(torch.randn(3, 10), h)
        >>> h.shape
        torch.Size([3, 20])

    For truncated backpropagation through time, detach h where the gradient is to end: ``h = h.detach()``.
    """

    nonlinearity: str
    name = "RNNCell"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return self.run(input, hx)

    def check_forward_args(self, input: Tensor, *states: Tensor) -> None:
        if self.nonlinearity not in _NONLINEARITIES.values():
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        super().check_forward_args(input, *states)

    def compute(self, input: Tensor, hx: Tensor | None, weights: tuple[Any, Any, Any, Any]) -> Tensor:
        return rnn_cell(input, hx, *weights, nonlinearity=self.nonlinearity)


def _mode(nonlinearity: str) -> str:
    """torch's name for the kind of network."""
    for mode, name in _NONLINEARITIES.items():
        if name == nonlinearity:
            return mode
    raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")


_NONLINEARITIES = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}
