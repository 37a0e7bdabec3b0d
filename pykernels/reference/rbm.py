r"""The restricted Boltzmann machine in plain PyTorch, with the random numbers of `pykernels.functional`.

Energy of visible units v and hidden units h, with biases b and c and temperature T:

.. math::
    E(v, h) = -b^\top v - c^\top h - h^\top W v, \qquad p(v, h) \propto e^{-E(v, h) / T}

for units of 0 and 1, so that a unit is on with probability :math:`\sigma(\Delta E / T)`, where
:math:`\Delta E_i = \sum_j w_{ij} s_j + b_i`. Gaussian visible units have :math:`\tfrac12 |v - b|^2` in the place of
:math:`-b^\top v`, and are normal with mean :math:`b + W^\top h` and variance T.

Sources: Hinton 2002 (https://doi.org/10.1162/089976602760128018), Hinton 2012
(https://doi.org/10.1007/978-3-642-35289-8_32), Tieleman 2008 (https://doi.org/10.1145/1390156.1390290).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .random import LOW, draw_seed, philox

__all__ = ["rbm_contrastive_divergence", "rbm_free_energy", "rbm_mean", "rbm_sample", "rbm_train_"]

UNITS = ("bernoulli", "gaussian")


def draw_numbers(seed: Tensor, stream: int, rows: int, columns: int, first_row: int, device: Any) -> Tensor:
    """The 24 bits of each number that the operators read: [rows, columns] with columns whole blocks of 64, of int64."""
    blocks = (columns + 63) // 64
    start = int(seed.item())
    lane = torch.arange(16, dtype=torch.int64, device=device) + 16 * torch.arange(blocks, device=device)[:, None]
    row = (torch.arange(rows, dtype=torch.int64, device=device) + first_row)[:, None, None]
    zero = torch.zeros_like(row + lane)
    numbers = philox((lane + zero, row + zero, zero + stream, zero), (start & LOW, start >> 32 & LOW))
    return (torch.stack(numbers, 2) >> 8).reshape(rows, 64 * blocks)


def uniforms(
    seed: Tensor, stream: int, rows: int, columns: int, first_row: int = 0, device: Any = "cpu", dtype: Any = None
) -> Tensor:
    """u of [rows, columns], uniform in [0, 1): exact in float32 and float64."""
    numbers = draw_numbers(seed, stream, rows, columns, first_row, device)[:, :columns]
    return numbers.to(dtype or torch.float64) * 2.0**-24


def normals(
    seed: Tensor, stream: int, rows: int, columns: int, first_row: int = 0, device: Any = "cpu", dtype: Any = None
) -> Tensor:
    """n of [rows, columns], standard normal."""
    numbers = draw_numbers(seed, stream, rows, columns, first_row, device)
    blocks = numbers.shape[1] // 64
    pairs = numbers.to(dtype or torch.float64).reshape(rows, blocks, 2, 2, 16)  # blocks, pairs, first or second
    radius = (-2 * ((pairs[..., 0, :] + 1) * 2.0**-24).log()).sqrt()
    angle = pairs[..., 1, :] * 2.0**-24 * (2 * math.pi)
    normal = torch.stack([radius * angle.cos(), radius * angle.sin()], -2)
    return normal.reshape(rows, 64 * blocks)[:, :columns]


def units_mean(
    input: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, gaussian: bool, temperature: float
) -> Tensor:
    """One side given the other, summed in float32 for low precision, and not rounded to it."""
    sums = input.dtype if input.dtype.itemsize > 2 else torch.float32
    weight = (weight.t() if transposed else weight).to(sums)
    given = F.linear(input.to(sums), weight, None if bias is None else bias.to(sums))
    return given if gaussian else torch.sigmoid(given / temperature)


def units_sample(
    mean: Tensor, seed: Tensor, stream: int, gaussian: bool, temperature: float, first_row: int = 0
) -> Tensor:
    """Draws of units [*, N] with these means."""
    rows, columns = mean.shape[:-1].numel(), mean.shape[-1]
    draw = normals if gaussian else uniforms
    drawn = draw(seed, stream, rows, columns, first_row, mean.device, mean.dtype).reshape(mean.shape)
    mean = mean.detach()
    if gaussian:
        return mean + math.sqrt(temperature) * drawn
    return (drawn < mean).to(mean.dtype) + (mean - mean)  # what is no number stays none


def sample_operator(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seed: Tensor | None,
    stream: int,
    transposed: bool,
    gaussian: bool,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """What `torch.ops.pykernels.rbm_sample` computes."""
    mean = units_mean(input, weight, bias, transposed, gaussian, temperature)
    if seed is None:
        return mean.to(input.dtype), mean.new_empty(0, dtype=input.dtype)
    sample = units_sample(mean, seed, stream, gaussian, temperature)
    return mean.to(input.dtype), sample.to(input.dtype)


def rbm_mean(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    units: str = "bernoulli",
    transposed: bool = False,
    temperature: float = 1.0,
) -> Tensor:
    """The twin of `pykernels.functional.rbm_mean`: the same arguments."""
    return sample_operator(input, weight, bias, None, 0, transposed, is_gaussian("rbm_mean", units), temperature)[0]


def rbm_sample(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    units: str = "bernoulli",
    transposed: bool = False,
    temperature: float = 1.0,
    seed: int | Tensor | None = None,
    stream: int = 0,
) -> tuple[Tensor, Tensor]:
    """The twin of `pykernels.functional.rbm_sample`: the same arguments and, but for the rounding of means, draws."""
    gaussian = is_gaussian("rbm_sample", units)
    return sample_operator(input, weight, bias, seed_of(seed), stream, transposed, gaussian, temperature)


def rbm_free_energy(
    visible: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    units: str = "bernoulli",
    temperature: float = 1.0,
) -> Tensor:
    """The twin of `pykernels.functional.rbm_free_energy`: the same arguments."""
    hidden = F.softplus(F.linear(visible, weight, hidden_bias) / temperature).sum(-1) * temperature
    if is_gaussian("rbm_free_energy", units):
        return (visible - visible_bias).square().sum(-1) / 2 - hidden
    return -(visible @ visible_bias) - hidden


def statistics(
    data: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    chain: Tensor | None,
    seed: Tensor,
    steps: int,
    gaussian: bool,
    temperature: float,
    first_row: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `torch.ops.pykernels.rbm_contrastive_divergence` computes."""
    hidden0 = units_mean(data, weight, hidden_bias, False, False, temperature)
    states = units_sample(hidden0, seed, 0, False, temperature, first_row) if chain is None else chain
    for step in range(1, steps + 1):
        mean = units_mean(states, weight, visible_bias, True, gaussian, temperature)
        visible = units_sample(mean, seed, 2 * step - 1, gaussian, temperature, first_row)
        hidden = units_mean(visible, weight, hidden_bias, False, False, temperature)
        states = units_sample(hidden, seed, 2 * step, False, temperature, first_row)
    of_weight = hidden0.t() @ data / len(data) - hidden.t() @ visible / len(visible)
    rest = data.mean(0) - visible.mean(0), hidden0.mean(0) - hidden.mean(0)
    return of_weight, *rest, data.new_empty(0) if chain is None else states


def rbm_contrastive_divergence(
    data: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    chain: Tensor | None = None,
    k: int = 1,
    visible: str = "bernoulli",
    temperature: float = 1.0,
    seed: int | Tensor | None = None,
    first_row: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The twin of `pykernels.functional.rbm_contrastive_divergence`: the same arguments."""
    gaussian = is_gaussian("rbm_contrastive_divergence", visible)
    tensors = data, weight, visible_bias, hidden_bias, chain, seed_of(seed)
    of_weight, of_b, of_c, states = statistics(*tensors, k, gaussian, temperature, first_row)
    return of_weight, of_b, of_c, None if chain is None else states


@torch.no_grad()
def rbm_train_(
    data: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    learning_rate: float,
    batch_size: int,
    order: Tensor | None = None,
    velocity: tuple[Tensor, Tensor, Tensor] | None = None,
    chain: Tensor | None = None,
    k: int = 1,
    visible: str = "bernoulli",
    temperature: float = 1.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    seed: int | Tensor | None = None,
    first_row: int = 0,
) -> None:
    """The twin of `pykernels.functional.rbm_train_`: the same arguments."""
    gaussian, seed = is_gaussian("rbm_train_", visible), seed_of(seed)
    parameters = weight, visible_bias, hidden_bias
    data = data if order is None else data[order]
    stride = max(min(batch_size, len(data)), 0 if chain is None else len(chain))
    for number, batch in enumerate(data.split(batch_size)):
        row = first_row + number * stride
        *found, states = statistics(batch, *parameters, chain, seed, k, gaussian, temperature, row)
        found[0] -= weight_decay * weight
        for i, (parameter, step) in enumerate(zip(parameters, found, strict=True)):
            if velocity is None:
                parameter += learning_rate * step
            else:
                velocity[i].mul_(momentum).add_(learning_rate * step)
                parameter += velocity[i]
        if chain is not None:
            chain.copy_(states)


# --- arguments


def is_gaussian(op: str, units: str) -> bool:
    if units not in UNITS:
        raise ValueError(f"[{op}] expected units 'bernoulli' or 'gaussian', got {units!r}")
    return units == "gaussian"


def seed_of(seed: int | Tensor | None) -> Tensor:
    """As the operators take it; drawn from torch's generator where there is none."""
    if seed is None:
        return draw_seed()
    return seed if isinstance(seed, Tensor) else torch.tensor([seed], dtype=torch.int64)
