"""Drawn calls of multi-head attention, ours beside torch's."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

import pykernels
from tests.functional.compiling import forget_what_was_compiled
from tests.helpers import SEED, with_gradients

assert forget_what_was_compiled  # around every test
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched", "ignore:The PyTorch API of nested tensors")
FLAG = [False, True]


@pytest.fixture(autouse=True)
def slow_path():
    """torch's own fast path is off, but where a test sets it."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@dataclasses.dataclass(frozen=True)
class Heads:
    """One problem: modules, inputs and masks follow from these fields."""

    batch_first: bool = True
    bias: bool = True
    add_bias_kv: bool = False
    add_zero_attn: bool = False
    sizes: tuple[int | None, int | None] = (None, None)  # kdim, vdim
    given: str = "self"  # or "memory" (key is value), "apart"
    unbatched: bool = False
    padding: str = "none"  # or "bool", "float"
    mask: str = "none"  # or "bool", "float", "bool3", "float3"
    causal: str = "none"  # the mask is, and "hint": is said to be
    need_weights: bool = True
    average: bool = True
    heads: int = 2
    batch: int = 3
    rows: int = 5
    keys: int = 7
    seed: int = 0

    @property
    def hinted(self) -> bool:
        return self.causal == "hint" and self.mask in ("bool", "float")

    def torch_is_wrong(self) -> bool:
        """With the hint its way without weights shows the appended keys to the last rows only."""
        return self.hinted and (self.add_bias_kv or self.add_zero_attn)

    def make(self, kind: Any, dtype: torch.dtype = torch.float64, device: Any = "cpu", **options: Any) -> Any:
        torch.manual_seed(self.seed)
        kdim, vdim = self.sizes if self.given != "self" else (None, None)
        options = {"bias": self.bias, "add_bias_kv": self.add_bias_kv, "add_zero_attn": self.add_zero_attn, **options}
        module = kind(4 * self.heads, self.heads, kdim=kdim, vdim=vdim, batch_first=self.batch_first, **options)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape)) if "bias" in name else None
        return module.to(device, dtype)

    def inputs(self, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> dict[str, torch.Tensor]:
        draw, size = torch.Generator().manual_seed(self.seed + 1), 4 * self.heads
        kdim, vdim = (s or size for s in self.sizes)
        kinds = {"self": {"query": size}, "memory": {"query": size, "key": size}}
        widths = kinds.get(self.given, {"query": size, "key": kdim, "value": vdim})
        if self.given == "memory" and kdim == vdim:
            widths["key"] = kdim
        made = {}
        for name, width in widths.items():
            length = self.rows if name == "query" else self.seen
            shape = (length, width) if self.unbatched else (self.batch, length, width)
            made[name] = torch.randn(shape, generator=draw, dtype=torch.float64)
            if not self.batch_first and not self.unbatched:
                made[name] = made[name].transpose(0, 1).contiguous()
        return {name: t.to(device, dtype).requires_grad_() for name, t in made.items()}

    @property
    def seen(self) -> int:
        return self.rows if self.given == "self" or self.hinted else self.keys

    def options(self, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> dict[str, Any]:
        draw = torch.Generator().manual_seed(self.seed + 2)
        found: dict[str, Any] = {"need_weights": self.need_weights, "average_attn_weights": self.average}

        def mask(
            kind, *shape
        ):  # the first key is always seen: of a row that sees nothing torch's values are no numbers
            hidden = torch.rand(shape, generator=draw) > 0.6
            hidden[..., 0] = False
            if "bool" in kind:
                return hidden.to(device)
            return (
                torch.randn(shape, generator=draw, dtype=torch.float64).masked_fill(hidden, -math.inf).to(device, dtype)
            )

        if self.padding != "none":
            found["key_padding_mask"] = mask(self.padding, *([] if self.unbatched else [self.batch]), self.seen)
        if self.hinted:
            hidden = torch.ones(self.rows, self.seen, dtype=torch.bool).triu(1)
            added = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, -math.inf)
            found["attn_mask"], found["is_causal"] = (hidden if self.mask == "bool" else added).to(device), True
        elif self.mask != "none":
            many = [self.heads * (1 if self.unbatched else self.batch)] if "3" in self.mask else []
            found["attn_mask"] = mask(self.mask, *many, self.rows, self.seen)
        return found

    def call(self, module: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        query = inputs["query"]
        key = inputs.get("key", query)
        y, weights = module(query, key, inputs.get("value", key), **self.options(query.dtype, query.device))
        assert (weights is not None) == self.need_weights
        return {"y": y} | ({} if weights is None else {"weights": weights})

    def run(self, module: Any, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> dict[str, torch.Tensor]:
        leaves = self.inputs(dtype, device)
        results = self.call(module, leaves)
        return with_gradients(results, leaves | dict(module.named_parameters()))


def pair(case: Heads, dtype: torch.dtype = torch.float64, device: Any = "cpu", **options: Any) -> tuple[Any, Any]:
    ours, theirs = (case.make(kind.MultiheadAttention, dtype, device, **options) for kind in (pykernels, nn))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


SPACE: dict[str, Any] = {
    "batch_first": FLAG,
    "bias": FLAG,
    "add_bias_kv": [False, False, True],
    "add_zero_attn": [False, False, True],
    "sizes": [(None, None), (None, None), (6, None), (None, 10), (6, 10), (6, 6)],
    "given": ["self", "memory", "apart"],
    "unbatched": [False, False, True],
    "padding": ["none", "bool", "float"],
    "mask": ["none", "bool", "float", "bool3", "float3"],
    "causal": ["none", "hint"],
    "need_weights": FLAG,
    "average": FLAG,
    "heads": (1, 3),
    "batch": (1, 3),
    "rows": [1, 4, 5, 17],
    "keys": [1, 3, 7, 20],
    "seed": SEED,
}


def sound(case: Heads) -> Heads:
    """Without what does not fit together."""
    if case.given == "memory" and case.sizes != (6, 6):  # one tensor is both
        case = dataclasses.replace(case, sizes=(None, None))
    return dataclasses.replace(case, need_weights=True) if case.torch_is_wrong() else case
