"""Drawn layers of the recurrent variants: their tensors, and their values and gradients in float64 from the twins."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import torch
from torch import Tensor

from pykernels.reference import variants

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
LAYERS = {
    "lstm": variants.lstm_variant_layer,
    "gru": variants.gru_variant_layer,
    "rnn": variants.rnn_variant_layer,
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One layer from its input parts on: every tensor of it follows from these fields."""

    kind: str = "lstm"
    steps: int = 4
    batch: int = 3
    hidden: int = 6
    bias: bool = True
    projection: int = 0  # of an LSTM: its width, 0 for none
    peephole: bool = False  # of an LSTM
    form: bool = True  # of a GRU: the reset comes after the product; of an RNN: relu
    layer_norm: bool = False  # not of a GRU whose reset comes before
    bidirectional: bool = False
    packed: bool = False
    states: bool = True
    scale: bool = False  # of the state that is fed back
    zoneout: str = ""  # "mask" or "share"; of h
    zoneout_cell: str = ""  # of c
    seed: int = 0

    def of(self, kind: str) -> Variant:
        """The same for another kind, without what it does not have."""
        fields: dict[str, Any] = {"kind": kind}
        if kind != "lstm":
            fields |= {"projection": 0, "peephole": False, "zoneout_cell": ""}
        if kind == "gru" and self.layer_norm:
            fields["form"] = True
        return dataclasses.replace(self, **fields)

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def state(self) -> int:
        return self.projection or self.hidden

    @property
    def gates(self) -> int:
        return GATES[self.kind] * self.hidden

    @property
    def flags(self) -> list[bool]:
        own = [self.projection > 0, self.peephole] if self.kind == "lstm" else [self.form]
        return [self.bias, *own, self.layer_norm, self.bidirectional]

    @property
    def widths(self) -> list[int]:
        """Of each state."""
        return [self.state, self.hidden] if self.kind == "lstm" else [self.state]

    def batch_sizes(self) -> Tensor:
        """Sequences running at each step: the longest has all steps, the rest are drawn."""
        if not self.packed:
            return torch.full((self.steps,), self.batch)
        draw = random.Random(self.seed)
        lengths = [self.steps] + [draw.randint(1, self.steps) for _ in range(self.batch - 1)]
        return torch.tensor([sum(length > step for length in lengths) for step in range(self.steps)])

    @property
    def rows(self) -> int:
        return int(self.batch_sizes().sum())

    def weight_shapes(self) -> list[tuple[int, ...]]:
        """Of one direction, in the order of the list."""
        shapes: list[tuple[int, ...]] = [(self.gates, self.state)]
        shapes += [(self.gates,)] if self.bias else []
        shapes += [(self.projection, self.hidden)] if self.projection else []
        shapes += [(3, self.hidden)] if self.peephole else []
        if self.layer_norm:
            shapes += [(self.gates,)] + ([(self.hidden,)] * 2 if self.kind == "lstm" else [])
        return shapes

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The input parts, the states (also where the layer is run without) and the weights."""
        draw = torch.Generator().manual_seed(self.seed)
        lead = (self.rows,) if self.packed else (self.steps, self.batch)
        input = torch.randn(*lead, self.directions * self.gates, generator=draw).to(dtype)
        states = [torch.randn(self.directions, self.batch, width, generator=draw).to(dtype) for width in self.widths]
        scale = 2 * self.hidden**-0.5
        shapes = self.weight_shapes() * self.directions
        weights = [((torch.rand(shape, generator=draw) * 2 - 1) * scale).to(dtype) for shape in shapes]
        return input, states if self.states else [torch.zeros_like(state) for state in states], weights

    def noise(self, dtype: torch.dtype) -> tuple[list[Tensor | None], list[float]]:
        """(state_scale, the masks of the states that stay), the shares that stay where there is no mask."""
        draw = torch.Generator().manual_seed(self.seed + 2)
        chosen = torch.rand(self.directions, self.batch, self.state, generator=draw) < 0.7
        masks: list[Tensor | None] = [(chosen * 1.4).to(dtype) if self.scale else None]
        zoneouts = [self.zoneout, self.zoneout_cell][: len(self.widths)]
        for zoneout, width in zip(zoneouts, self.widths, strict=True):
            stay = torch.rand(self.directions, self.rows, width, generator=draw) < 0.3
            masks.append(stay.to(torch.uint8) * 7 if zoneout == "mask" else None)
        return masks, [
            share if zoneout == "share" else 0.0 for share, zoneout in zip((0.3, 0.15), zoneouts, strict=False)
        ]

    def sizes(self) -> Tensor | None:
        return self.batch_sizes() if self.packed else None

    def weightings(self, dtype: torch.dtype) -> list[Tensor]:
        """Gradients of the output and of the final states."""
        draw = torch.Generator().manual_seed(self.seed + 1)
        lead = (self.rows,) if self.packed else (self.steps, self.batch)
        shapes = [(*lead, self.directions * self.state), *((self.directions, self.batch, w) for w in self.widths)]
        return [torch.randn(shape, generator=draw).to(dtype) for shape in shapes]

    def named(self, results: Any, gradients: Any) -> dict[str, Tensor]:
        """Results and gradients by name; gradients: of the input, of the initial states, then of each weight."""
        states = ["h", "c"][: len(self.widths)]
        names = ["output", *(f"{s}_n" for s in states), "grad input", *(f"grad {s}0" for s in states)]
        names += [f"grad weight {i}" for i in range(len(self.weight_shapes()) * self.directions)]
        return dict(zip(names, [*results, *gradients], strict=True))


def truth(layer: Variant, dtype: torch.dtype) -> dict[str, Tensor]:
    """In float64, on what the dtype stores."""
    input, states, weights = layer.tensors(dtype)
    leaves = [tensor.double().requires_grad_() for tensor in (input, *states, *weights)]
    first = 1 + len(states)
    (scale, *stay), shares = layer.noise(dtype)
    scale = None if scale is None else scale.double()
    noise = [scale, *stay, *shares]
    results = LAYERS[layer.kind](leaves[0], layer.sizes(), *leaves[1:first], leaves[first:], *noise, *layer.flags)
    gradients = torch.autograd.grad(results, leaves, [weight.double() for weight in layer.weightings(dtype)])
    return layer.named([result.detach() for result in results], gradients)
