"""Rows of the recurrent variants: a training step of the layer-norm LSTM against the same cell in PyTorch, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import ours, recurrent
from bench.layers import LSTM, check_gradients, layer_work, training_step
from bench.pairs import fastest
from bench.recurrent import SMALL_STEP, Shape, label_of, over

SHAPES: list[Shape] = [*recurrent.SHAPES, (100, 8, 128, 256)]
WHY = {
    "lstm-layer-norm": "the input's part is a product and a normalisation by themselves, and an ending needs whole "
    "rows: the threads meet twice in a step; with few sequences also: " + SMALL_STEP
}


def cell(
    part: Tensor, h: Tensor, c: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, cell_gain: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """One step, as one would write it."""
    i, f, g, o = (part + F.layer_norm(F.linear(h, weight), gain.shape, gain, bias)).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(F.layer_norm(c, shift.shape, cell_gain, shift)), c


class Written(torch.nn.Module):
    """The layer in PyTorch: the input's part for all steps at once, then `step` in a loop."""

    def __init__(self, layer: Any, step: Callable[..., tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.step = step
        for name, parameter in layer.named_parameters():
            self.register_parameter(name, torch.nn.Parameter(parameter.detach().clone()))

    def forward(self, input: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        own: dict[str, Any] = {name.removesuffix("_l0"): tensor for name, tensor in self.named_parameters()}
        gain = own["weight_ln_ih"]
        parts = F.layer_norm(F.linear(input, own["weight_ih"]), gain.shape, gain, own["bias_ih"])
        h = c = input.new_zeros(input.shape[1], own["weight_hh"].shape[1])
        rest = [own[name] for name in ("weight_hh", "bias_hh", "weight_ln_hh", "weight_ln_c", "bias_ln_c")]
        outputs = []
        for part in parts.unbind(0):
            h, c = self.step(part, h, c, *rest)
            outputs.append(h)
        return torch.stack(outputs), (h[None], c[None])


@over(SHAPES)
def test_lstm_layer_norm(shape, compare, plan):
    steps, batch, inputs, hidden = shape
    torch.manual_seed(inputs + hidden)
    torch._dynamo.reset()
    mine = ours.library().LSTM(inputs, hidden, layer_norm=True)
    with torch.no_grad():  # with gains of one, rounding errors grow from step to step, and nothing could be compared
        mine.weight_ln_ih_l0.mul_(0.3)
        mine.weight_ln_hh_l0.mul_(0.3)
    x = torch.randn(steps, batch, inputs, requires_grad=True)
    grad_output = torch.randn(steps, batch, hidden)
    step = training_step(mine, x, grad_output)
    written = {"compiled": Written(mine, torch.compile(cell, dynamic=False)), "eager": Written(mine, cell)}
    ways = {name: training_step(module, x, grad_output) for name, module in written.items()}
    for name, module in written.items():
        check_gradients(mine, module, {"ours": step, name: ways[name]}, x)
    works = {"ours": step, "torch.compile": ways[fastest(ways, plan)]}
    work = layer_work(LSTM, steps * batch, steps, inputs, hidden, training=True)
    compare("lstm-layer-norm", label_of(shape), works, grad=True, target=5.0, work=work, why=WHY)
