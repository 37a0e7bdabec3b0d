"""The recurrent variants of cuda/, glue and kernels unchanged, executed on the processor, against their equations."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pykernels.reference.random import random_mask
from tests.helpers import FLAG, SEED, assert_same_bits, drawn

from .device import Device, assert_near, plans
from .variants import GATES, Variant, truth

ZONEOUT = ["", "mask", "share"]
SPACE: dict[str, Any] = {
    "steps": (1, 5), "batch": (1, 6), "hidden": (1, 40), "projection": [0, 0, 3, 50], "peephole": FLAG, "form": FLAG,
    "layer_norm": FLAG, "bias": FLAG, "bidirectional": FLAG, "packed": FLAG, "states": FLAG, "scale": FLAG,
    "zoneout": ZONEOUT, "zoneout_cell": ZONEOUT, "seed": SEED,
}  # fmt: skip
every_kind = pytest.mark.parametrize("kind", list(GATES))


def given(layer: Variant, dtype: torch.dtype) -> tuple[list[Any], list[Any]]:
    """What both operators take: the tensors, then the noise and the flags."""
    input, states, weights = layer.tensors(dtype)
    masks, shares = layer.noise(dtype)
    own = states if layer.states else [None] * len(states)
    return [input, layer.sizes(), *own, weights], [*masks, *shares, *layer.flags]


def run(device: Device, layer: Variant, dtype: torch.dtype, need=(True, True, True)) -> dict[str, Tensor]:
    forward, backward = (getattr(device.kernels, f"{layer.kind}_variant_{way}") for way in ("forward", "backward"))
    tensors, others = given(layer, dtype)
    found = forward(*tensors, *others, True)
    results, saved = found[: 1 + len(layer.widths)], found[1 + len(layer.widths) :]
    *gradients, weights = backward(*layer.weightings(dtype), *tensors, results[0], *saved, *others, *need)
    return layer.named(results, [*gradients, *weights])


def close(layer: Variant, results: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    """In float64 up to what few units under a normalisation lose; in lower precision also relative to the largest."""
    if dtype == torch.float64 and not layer.layer_norm:
        assert_near(results, expected, dtype)
        return
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 2e-1}[dtype]
    for name, right in expected.items():
        assert results[name].dtype == dtype and results[name].shape == right.shape, name
        error = float((results[name].double() - right).abs().max() / (right.abs().max() + 1)) if right.numel() else 0.0
        assert error <= tolerance, f"{name} is off by {error:.3g}"


def check(device: Device, layer: Variant, dtype: torch.dtype) -> None:
    """One launch, with all row blocks at once or in turn, and one a step, in different orders of the threads: the
    equations' values, and the same bits."""
    expected = truth(layer, dtype)
    if dtype not in (torch.float64, torch.float32):
        expected = {name: tensor for name, tensor in expected.items() if not name.startswith("grad")}
    first = None
    for seed, resident_blocks in enumerate((256, 2 * -(-max(layer.hidden, layer.state) // 8), 0)):
        device.configure(layer.seed + seed, resident_blocks)
        device.cooperative_launches()
        results = run(device, layer, dtype)
        assert device.cooperative_launches() == (2 if resident_blocks else 0)
        if first is None:
            close(layer, results, expected, dtype)
        first = first or results
        assert_same_bits(results, first)


@every_kind
@drawn(40, of=Variant, **SPACE)
def test_equals_its_equations(device, kind, case):
    check(device, case, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_kind
@drawn(12, of=Variant, **SPACE)
def test_in_other_dtypes(device, kind, dtype, case):
    check(device, case, dtype)
