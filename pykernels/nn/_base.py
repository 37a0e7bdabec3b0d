"""What the recurrent modules share: their weights, packed sequences, and the shapes of input and states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import Parameter, init
from torch.nn.modules import rnn
from torch.nn.utils.rnn import PackedSequence

States = Any
"""One tensor, or the LSTM's two in a tuple."""


class RecurrentBase(rnn.RNNBase):
    """`torch.nn.RNNBase`, which it must be an instance of, run by our functions.

    The weights are taken from the module at each call, so that whatever puts other tensors in their place
    (parametrizations, `torch.func.functional_call`, weight tying) is seen.

    A subclass has `forward`, which calls `run`, and `compute`; where its state is not one tensor, `map_states`,
    `check_ranks` and `check_states` too.
    """

    wrong_rank: str
    """torch's text for an input of a wrong number of dimensions."""

    def compute(
        self, input: Tensor, hx: States | None, weights: list[Tensor], batch_sizes: Tensor | None
    ) -> tuple[Tensor, States]:
        """The output and the final states of valid batched input."""
        raise NotImplementedError

    def flatten_parameters(self) -> None:
        """Do nothing: our kernels take the weights where they lie."""

    def add_weights(self, name: str, shape: tuple[int, ...], device: Any = None, dtype: Any = None) -> None:
        """Add to each layer and direction the parameter `name`_l{layer}{_reverse}, drawn as the others are."""
        bound = 1 / self.hidden_size**0.5
        for names, suffix in zip(self._all_weights, self.suffixes(), strict=True):
            parameter = Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name + suffix, parameter)
            names.append(name + suffix)
            init.uniform_(parameter, -bound, bound)
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self._init_flat_weights()

    def suffixes(self) -> list[str]:
        """How the names of the parameters end, layer by layer and direction by direction."""
        directions = ("", "_reverse") if self.bidirectional else ("",)
        return [f"_l{layer}{direction}" for layer in range(self.num_layers) for direction in directions]

    def weights(self, compiling: bool) -> list[Tensor]:
        """The tensors that now stand under the parameters' names, layer by layer and direction by direction."""
        if not compiling:
            try:
                own: Any = self._parameters
                return [own[name] for name in self._flat_weights_names]
            except KeyError:
                pass  # some other tensor stands in a parameter's place
        return [getattr(self, name) for name in self._flat_weights_names]

    # --- the states: one tensor

    def map_states(self, function: Callable[[Tensor], Tensor], hx: States) -> States:
        """The states with `function` applied to each tensor."""
        return function(hx)

    def check_ranks(self, hx: States, rank: int) -> None:
        """Raise what torch raises if a state has not `rank` dimensions."""
        if hx.dim() != rank:
            raise RuntimeError(
                f"For {'batched' if rank == 3 else 'unbatched'} {rank}-D input, hx should also be {rank}-D "
                f"but got {hx.dim()}-D tensor"
            )

    def check_states(self, input: Tensor, hx: States, batch_sizes: Tensor | None) -> None:
        """Raise what torch raises for states of other sizes than the input calls for."""
        self.check_hidden_size(hx, self.get_expected_hidden_size(input, batch_sizes))

    # --- running

    def run(self, input: Any, hx: States | None) -> tuple[Any, States]:
        """What `forward` does."""
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)

        dim = input.dim()
        if dim == 3:
            if hx is not None:
                self.check_ranks(hx, 3)
            return self._run(input, hx, None)

        # one sequence without a batch
        if dim != 2:
            raise ValueError(self.wrong_rank.format(dim))
        if hx is not None:
            self.check_ranks(hx, 2)
            hx = self.map_states(lambda state: state.unsqueeze(1), hx)
        batch_dim = 0 if self.batch_first else 1
        output, hidden = self._run(input.unsqueeze(batch_dim), hx, None)
        return output.squeeze(batch_dim), self.map_states(lambda state: state.squeeze(1), hidden)

    def _forward_packed(self, input: PackedSequence, hx: States | None) -> tuple[PackedSequence, States]:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if hx is not None:
            # the states come in the order of the sequences as they were given, not as they were packed
            hx = self.permute_hidden(hx, sorted_indices)
        output, hidden = self._run(data, hx, batch_sizes)
        return (
            PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices),
            self.permute_hidden(hidden, unsorted_indices),
        )

    def _run(self, input: Tensor, hx: States | None, batch_sizes: Tensor | None) -> tuple[Tensor, States]:
        compiling = is_compiling()
        weights = self.weights(compiling)
        simple = hx is None and batch_sizes is None and not compiling
        if not simple or input.dtype != weights[0].dtype or input.shape[-1] != self.input_size:
            self.check_forward_args(input, hx, batch_sizes)
        if compiling:
            self.check_devices(input, hx, weights)
        try:
            return self.compute(input, hx, weights, batch_sizes)
        except RuntimeError:
            # torch's words for it, where it has any
            self.check_devices(input, hx, weights)
            raise

    def permute_hidden(self, hx: States, permutation: Tensor | None) -> States:
        if permutation is None:
            return hx
        return self.map_states(lambda state: state.index_select(1, permutation), hx)

    # --- checks

    def check_forward_args(self, input: Tensor, hidden: States | None, batch_sizes: Tensor | None) -> None:
        """Raise what torch raises for input or states that do not fit the module."""
        self.check_input(input, batch_sizes)
        if batch_sizes is not None and is_compiling():
            return  # the batch is a number in batch_sizes, which only the operator reads
        if hidden is not None:
            self.check_states(input, hidden, batch_sizes)

    def check_devices(self, input: Tensor, hx: States | None, weights: list[Tensor]) -> None:
        """Raise what torch raises where devices, dtypes or the number of steps cannot be computed with."""
        single = isinstance(hx, Tensor)
        states: Any = (hx,) if single else hx or ()
        for name, tensors in (("hidden", states), ("parameter", weights)):
            for tensor in tensors:
                if tensor.device != input.device:
                    raise RuntimeError(
                        f"Input and {name} tensors are not at the same device, found input tensor at {input.device} "
                        f"and {name} tensor at {tensor.device}"
                    )
                if tensor.dtype != input.dtype and not torch._C._is_any_autocast_enabled():
                    mine, its = dtype_name(input.dtype), dtype_name(tensor.dtype)
                    if single and name == "hidden":
                        raise RuntimeError(f"mat1 and mat2 must have the same dtype, but got {its} and {mine}")
                    raise RuntimeError(
                        f"Input and {name} tensors are not the same dtype, found input tensor with {mine} and {name} "
                        f"tensor with {its}"
                    )
        if input.shape[1 if self.batch_first and input.dim() == 3 else 0] == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")


class CellBase(rnn.RNNCellBase):
    """`torch.nn.RNNCellBase`, which it must be an instance of, run by our functions."""

    def weights(self, compiling: bool) -> tuple[Any, Any, Any, Any]:
        """The tensors that now stand under the names of the parameters that every cell has."""
        own: Any = self._parameters
        if not compiling and "weight_ih" in own and "weight_hh" in own and "bias_ih" in own and "bias_hh" in own:
            # a quarter of the time that four attributes take
            return own["weight_ih"], own["weight_hh"], own["bias_ih"], own["bias_hh"]
        return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh

    def check_forward_args(self, input: Tensor, *states: Tensor) -> None:
        """Raise what torch raises for shapes and dtypes that do not fit together; all tensors are batched."""
        if input.shape[1] != self.input_size:
            raise RuntimeError(
                f"input has inconsistent input_size: got {input.shape[1]} expected {self.weight_ih.shape[1]}"
            )
        for index, state in enumerate(states):
            if state.size(0) != input.shape[0]:
                raise RuntimeError(
                    f"Input batch size {input.shape[0]} doesn't match hidden{index} batch size {state.size(0)}"
                )
            if state.size(1) != self.hidden_size:
                raise RuntimeError(
                    f"hidden{index} has inconsistent hidden_size: got {state.size(1)}, expected {self.hidden_size}"
                )
        if input.device != self.weight_ih.device:
            raise RuntimeError(
                f"Tensor on device {self.weight_ih.device} is not on the expected device {input.device}!"
            )
        for tensor in (input, *states[:1]):
            if tensor.dtype != self.weight_ih.dtype and not torch._C._is_any_autocast_enabled():
                raise RuntimeError(
                    "mat1 and mat2 must have the same dtype, "
                    f"but got {dtype_name(tensor.dtype)} and {dtype_name(self.weight_ih.dtype)}"
                )


class OneStateCell(CellBase):
    """A cell whose state is one tensor. A subclass has `forward`, which calls `run`, and `compute`."""

    name: str
    """torch's name for it, in its messages."""

    def compute(self, input: Tensor, hx: Tensor | None, weights: tuple[Any, Any, Any, Any]) -> Tensor:
        """The new state of valid batched input."""
        raise NotImplementedError

    def run(self, input: Tensor, hx: Tensor | None) -> Tensor:
        """What `forward` does."""
        dim = input.dim()
        if dim not in (1, 2):
            raise ValueError(f"{self.name}: Expected input to be 1D or 2D, got {dim}D instead")
        if hx is not None and hx.dim() not in (1, 2):
            raise ValueError(f"{self.name}: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")
        if dim == 2:
            return self._run(input, hx)
        return self._run(input.unsqueeze(0), None if hx is None else hx.unsqueeze(0)).squeeze(0)

    def _run(self, input: Tensor, hx: Tensor | None) -> Tensor:
        states = () if hx is None else (hx,)
        compiling = is_compiling()
        if compiling:
            self.check_forward_args(input, *states)
        try:
            return self.compute(input, hx, self.weights(compiling))
        except (RuntimeError, IndexError, ValueError):
            # torch's words for it, where it has any
            self.check_forward_args(input, *states)
            raise


def refuse_projection(positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Raise what torch raises where RNN or GRU are given the projection that RNNBase takes."""
    if "proj_size" in keywords or (positional and type(positional[0]) is int and positional[0] > 0):
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


def check_bool(name: str, value: Any) -> bool:
    """The value, if it is a bool; or else the error that torch's modules raise."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")
    return value


def dtype_name(dtype: torch.dtype) -> str:
    """The name that torch's C++ messages have for a dtype."""
    return _DTYPE_NAMES.get(dtype, str(dtype))


_DTYPE_NAMES = {
    torch.float32: "Float",
    torch.float64: "Double",
    torch.bfloat16: "BFloat16",
    torch.float16: "Half",
    torch.bool: "Bool",
    torch.uint8: "Byte",
    torch.int8: "Char",
    torch.int16: "Short",
    torch.int32: "Int",
    torch.int64: "Long",
    torch.complex64: "ComplexFloat",
    torch.complex128: "ComplexDouble",
}
