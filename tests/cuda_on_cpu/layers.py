"""Drawn layers of GRU and RNN: their tensors, and their values and gradients in float64 from the equations."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer: every tensor of it follows from these fields."""

    kind: str = "gru"  # or "rnn"
    steps: int = 4
    batch: int = 3
    inputs: int = 5
    hidden: int = 6
    bias: bool = True
    bidirectional: bool = False
    packed: bool = False
    states: bool = True
    reset_after: bool = True  # of a GRU
    relu: bool = False  # of an RNN
    outputs: int = 0  # of an RNN: width of the projection, 0 for none
    seed: int = 0

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def state(self) -> int:
        return self.outputs or self.hidden

    @property
    def flags(self) -> list[bool]:
        """What both operators take after the tensors."""
        own = [self.reset_after] if self.kind == "gru" else [self.outputs > 0, self.relu]
        return [self.bias, *own, self.bidirectional]

    def batch_sizes(self) -> Tensor:
        """Sequences running at each step: the longest has all steps, the rest are drawn."""
        if not self.packed:
            return torch.full((self.steps,), self.batch)
        draw = random.Random(self.seed)
        lengths = [self.steps] + [draw.randint(1, self.steps) for _ in range(self.batch - 1)]
        return torch.tensor([sum(length > step for length in lengths) for step in range(self.steps)])

    def weight_shapes(self) -> list[tuple[int, ...]]:
        """Of one direction, in the order of the list."""
        gates = (3 if self.kind == "gru" else 1) * self.hidden
        shapes: list[tuple[int, ...]] = [(gates, self.inputs), (gates, self.state)]
        shapes += [(gates,), (gates,)] if self.bias else []
        if self.outputs:
            shapes += [(self.outputs, self.hidden)] + ([(self.outputs,)] if self.bias else [])
        return shapes

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor | None, list[Tensor]]:
        """(input, batch_sizes, h0, weights)."""
        draw = torch.Generator().manual_seed(self.seed)
        rows = (int(self.batch_sizes().sum()),) if self.packed else (self.steps, self.batch)
        input = torch.randn(*rows, self.inputs, generator=draw).to(dtype)
        h0 = torch.randn(self.directions, self.batch, self.state, generator=draw).to(dtype)
        shapes = self.weight_shapes() * self.directions
        scale = self.hidden**-0.5
        weights = [((torch.rand(shape, generator=draw) * 2 - 1) * scale).to(dtype) for shape in shapes]
        return input, self.batch_sizes() if self.packed else None, h0 if self.states else None, weights

    def weightings(self, dtype: torch.dtype) -> list[Tensor]:
        """Gradients of the output and of h_n."""
        draw = torch.Generator().manual_seed(self.seed + 1)
        rows = (int(self.batch_sizes().sum()),) if self.packed else (self.steps, self.batch)
        shapes = (*rows, self.directions * self.state), (self.directions, self.batch, self.state)
        return [torch.randn(shape, generator=draw).to(dtype) for shape in shapes]


def step(layer: Layer, x: Tensor, before: Tensor, weights: list[Tensor]) -> Tensor:
    """The state after one step of one direction, without biases where the layer has none."""
    w_ih, w_hh, *others = weights
    b_ih, b_hh = others[:2] if layer.bias else (w_ih.new_zeros(len(w_ih)),) * 2
    x = x @ w_ih.T + b_ih
    if layer.kind == "rnn":
        h = x + before @ w_hh.T + b_hh
        h = torch.relu(h) if layer.relu else torch.tanh(h)
        if not layer.outputs:
            return h
        w_ho, *b_ho = others[2:] if layer.bias else others
        return h @ w_ho.T + (b_ho[0] if b_ho else 0)
    (x_r, x_z, x_n), (w_r, w_z, w_n), (b_r, b_z, b_n) = x.chunk(3, 1), w_hh.chunk(3), b_hh.chunk(3)
    r = torch.sigmoid(x_r + before @ w_r.T + b_r)
    z = torch.sigmoid(x_z + before @ w_z.T + b_z)
    if layer.reset_after:
        n = torch.tanh(x_n + r * (before @ w_n.T + b_n))
    else:
        n = torch.tanh(x_n + (r * before) @ w_n.T + b_n)
    return (1 - z) * n + z * before


def evaluate(layer: Layer, input: Tensor, h0: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(output, h_n) of all steps and directions."""
    sizes = layer.batch_sizes().tolist()
    steps = input.reshape(-1, layer.inputs).split(sizes)
    outputs, last = [], []
    per_direction = len(layer.weight_shapes())
    for d in range(layer.directions):
        own = weights[d * per_direction : (d + 1) * per_direction]
        state, rows = h0[d], [input] * len(steps)
        for t in reversed(range(len(steps))) if d else range(len(steps)):
            rows[t] = step(layer, steps[t], state[: sizes[t]], own)
            state = torch.cat([rows[t], state[sizes[t] :]])
        outputs.append(torch.cat(rows))
        last.append(state)
    output = torch.cat(outputs, 1)
    return output.view(*input.shape[:-1], output.shape[1]), torch.stack(last)


def named(results: Any, gradients: Any) -> dict[str, Tensor]:
    """Results and gradients by name; gradients: of the input, of h0, then of each weight."""
    names = ["output", "h_n", "grad input", "grad h0", *(f"grad weight {i}" for i in range(len(gradients) - 2))]
    return dict(zip(names, [*results, *gradients], strict=True))


def truth(layer: Layer, dtype: torch.dtype) -> dict[str, Tensor]:
    """In float64, on what the dtype stores."""
    input, _, h0, weights = layer.tensors(dtype)
    h0 = torch.zeros(layer.directions, layer.batch, layer.state) if h0 is None else h0
    leaves = [tensor.double().requires_grad_() for tensor in (input, h0, *weights)]
    results = evaluate(layer, leaves[0], leaves[1], leaves[2:])
    gradients = torch.autograd.grad(results, leaves, [weight.double() for weight in layer.weightings(dtype)])
    return named([result.detach() for result in results], gradients)
