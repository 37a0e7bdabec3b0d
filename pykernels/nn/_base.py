"""What the recurrent modules share: their weights, packed sequences, and the shapes of input and states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import Parameter, init
from torch.nn.modules import rnn

States = tuple[Tensor, ...]


class RecurrentBase(rnn.RNNBase):
    """`torch.nn.RNNBase`, which it must be an instance of, with what our kernels need in addition.

    The weights are taken from the module at each call, so that whatever puts other tensors in their place
    (parametrizations, `torch.func.functional_call`, weight tying) is seen.
    """

    def flatten_parameters(self) -> None:
        """Do nothing: our kernels take the weights where they lie."""

    def add_weights(self, name: str, shape: tuple[int, ...], device: Any = None, dtype: Any = None) -> None:
        """Add to each layer and direction the parameter `name`_l{layer}{_reverse}, drawn as the others are."""
        bound = 1 / self.hidden_size**0.5
        directions = 2 if self.bidirectional else 1
        for index, names in enumerate(self._all_weights):
            full = f"{name}_l{index // directions}{'_reverse' if index % directions else ''}"
            parameter = Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(full, parameter)
            names.append(full)
            init.uniform_(parameter, -bound, bound)
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self._init_flat_weights()

    def weights(self) -> list[Tensor]:
        """The tensors that now stand under the parameters' names, layer by layer and direction by direction."""
        if not is_compiling():
            try:
                own: Any = self._parameters
                return [own[name] for name in self._flat_weights_names]
            except KeyError:
                pass  # some other tensor stands in a parameter's place
        return [getattr(self, name) for name in self._flat_weights_names]

    def check_devices(self, input: Tensor, hx: States | None, weights: list[Tensor]) -> None:
        """Raise what torch raises where devices, dtypes or the number of steps cannot be computed with."""
        for name, tensors in (("hidden", hx or ()), ("parameter", weights)):
            for tensor in tensors:
                if tensor.device != input.device:
                    raise RuntimeError(
                        f"Input and {name} tensors are not at the same device, found input tensor at {input.device} "
                        f"and {name} tensor at {tensor.device}"
                    )
                if tensor.dtype != input.dtype and not torch._C._is_any_autocast_enabled():
                    raise RuntimeError(
                        f"Input and {name} tensors are not the same dtype, found input tensor with "
                        f"{dtype_name(input.dtype)} and {name} tensor with {dtype_name(tensor.dtype)}"
                    )
        if input.shape[1 if self.batch_first and input.dim() == 3 else 0] == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")


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
