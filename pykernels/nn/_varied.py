"""What `LSTM`, `GRU` and `RNN` have beyond torch's: layer normalisation, zoneout, dropout of what is fed back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import init

from ..reference.varied import check_variants
from ._base import RecurrentBase, check_bool

VARIANTS = ("layer_norm", "zoneout", "recurrent_dropout", "weight_dropout")


class VariedBase(RecurrentBase):
    """A `RecurrentBase` with variants. Its `__init__` ends with `vary`, and its function is given `varied()`.

    The attributes may be changed between calls, all but `layer_norm`, which has parameters.
    """

    layer_norm: bool
    zoneout: float | Sequence[float]
    recurrent_dropout: float
    weight_dropout: float

    def vary(
        self,
        layer_norm: bool = False,
        zoneout: float | Sequence[float] = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
    ) -> None:
        """Check and keep the variants, and add the parameters that they have."""
        states = 2 if self.mode == "LSTM" else 1
        check_variants(check_bool("layer_norm", layer_norm), zoneout, recurrent_dropout, weight_dropout, states)
        self.layer_norm, self.zoneout = layer_norm, tuple(zoneout) if isinstance(zoneout, Sequence) else zoneout
        self.recurrent_dropout, self.weight_dropout = recurrent_dropout, weight_dropout
        if layer_norm:
            first: Any = self._flat_weights[0]
            shapes = {"weight_ln_ih": first.shape[0], "weight_ln_hh": first.shape[0]}
            if states == 2:
                shapes |= {"weight_ln_c": self.hidden_size, "bias_ln_c": self.hidden_size}
            for name, width in shapes.items():
                self.add_weights(name, (width,), first.device, first.dtype)
            self._reset_norms()

    def varied(self) -> dict[str, Any]:
        """The keyword arguments that tell the function of the variants."""
        if self.layer_norm or self.zoneout or self.recurrent_dropout or self.weight_dropout:
            return {name: getattr(self, name) for name in VARIANTS}
        return {}

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self._reset_norms()

    def _reset_norms(self) -> None:
        """Normalisation starts with gain one and shift zero."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.startswith("weight_ln_"):
                    init.ones_(parameter)
                elif name.startswith("bias_ln_"):
                    init.zeros_(parameter)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("layer_norm", False)
        for name in VARIANTS[1:]:
            self.__dict__.setdefault(name, 0.0)

    def extra_repr(self) -> str:
        return super().extra_repr() + "".join(f", {name}={value}" for name, value in self.varied().items() if value)


def take_variants(keywords: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `vary`, taken out of a constructor's."""
    return {name: keywords.pop(name) for name in VARIANTS if name in keywords}
