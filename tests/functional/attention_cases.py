"""Drawn problems of attention, and runs that return results and gradients."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from tests.helpers import SEED, check_form, distance, drawn, with_gradients


@dataclasses.dataclass(frozen=True)
class Attention:
    """One problem: every tensor of it follows from these fields."""

    batch: int = 2
    groups: int = 2
    share: int = 1  # query heads that read one head of keys
    rows: int = 5
    keys: int = 7
    depth: int = 8
    value_depth: int = 8
    mask: str = "none"  # or "bool", "float", "hidden": float with -inf
    mask_shape: str = "BHLS"  # the dimensions that are not broadcast
    causal: str | None = None
    window: tuple[int | None, int | None] | None = None
    softcap: float | None = None
    scale: float | None = None
    dropout: float = 0.0
    lengths: str = "none"  # or "both", "rows", "keys"
    seed: int = 0

    def draw(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def tensors(self, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> dict[str, Tensor]:
        """query, key, value, and the mask if it is of numbers."""
        draw, heads = self.draw(), self.groups * self.share
        made = {
            "query": torch.randn(self.batch, heads, self.rows, self.depth, generator=draw, dtype=torch.float64),
            "key": torch.randn(self.batch, self.groups, self.keys, self.depth, generator=draw, dtype=torch.float64),
            "value": torch.randn(
                self.batch, self.groups, self.keys, self.value_depth, generator=draw, dtype=torch.float64
            ),
        }
        if self.mask in ("float", "hidden"):
            made["mask"] = self._mask(draw)
        return {name: t.to(device, dtype).requires_grad_() for name, t in made.items()}

    def _mask(self, draw: torch.Generator) -> Tensor:
        full = {"B": self.batch, "H": self.groups * self.share, "L": self.rows, "S": self.keys}
        shape = [size if name in self.mask_shape else 1 for name, size in full.items()]
        while len(shape) > 2 and shape[0] == 1 and self.seed % 2:
            shape = shape[1:]  # as often given without its first dimensions
        mask = torch.randn(shape, generator=draw, dtype=torch.float64)
        if self.mask == "hidden":
            mask = mask.masked_fill(torch.rand(shape, generator=draw) < 0.3, -math.inf)
        return mask

    def options(self, device: Any = "cpu") -> dict[str, Any]:
        draw = self.draw()
        found: dict[str, Any] = {
            "causal": self.causal, "window": self.window, "softcap": self.softcap, "scale": self.scale,
            "dropout_p": self.dropout, "enable_gqa": self.share > 1, "return_lse": True,
        }  # fmt: skip
        if self.mask == "bool":
            found["attn_mask"] = (self._mask(draw) > -0.5).to(device)
        if self.lengths != "none":
            rows = torch.randint(self.rows + 1, (self.batch,), generator=draw).to(device)
            keys = torch.randint(self.keys + 1, (self.batch,), generator=draw).to(device)
            pairs = {"both": (rows, keys), "rows": (rows, None), "keys": (None, keys)}
            found["lengths"] = pairs[self.lengths]
        return found


MASKS = ["none", "none", "bool", "float", "hidden"]
SHAPES = ["BHLS", "LS", "S", "BS", "HLS", "L", "BH", ""]
FEATURES: dict[str, Any] = {
    "mask": MASKS,
    "mask_shape": SHAPES,
    "causal": [None, None, "top-left", "bottom-right"],
    "window": [None, None, (3, None), (None, 2), (40, 7), (1, 0)],
    "softcap": [None, None, 2.0],
    "scale": [None, None, 0.3, -0.2],
    "dropout": [0.0, 0.0, 0.3],
    "lengths": ["none", "none", "both", "rows", "keys"],
    "seed": SEED,
}
TINY = {"batch": (1, 2), "groups": (1, 2), "share": (1, 2), "rows": (1, 4), "keys": (1, 4), "depth": (1, 3),
        "value_depth": (1, 3)}  # fmt: skip
SIZES: dict[str, Any] = {
    "batch": (1, 3),
    "groups": (1, 2),
    "share": (1, 2),
    "rows": [1, 2, 3, 6, 13, 64, 97, 130],
    "keys": [2, 3, 15, 16, 17, 33, 64, 65, 129, 200, 600],
    "depth": [1, 2, 7, 16, 33, 64],
    "value_depth": [1, 5, 16, 31, 64, 70],
}


def drawn_attention(examples: int, **space: Any):
    return drawn(examples, of=Attention, **space)


def call(where: Any, case: Attention, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """y and l by name; l is 0 where nothing is seen, so that it can be weighted."""
    torch.manual_seed(case.seed)  # of dropout
    options = case.options(tensors["query"].device)
    mask = options.pop("attn_mask", tensors.get("mask"))
    y, lse = where.scaled_dot_product_attention(tensors["query"], tensors["key"], tensors["value"], mask, **options)
    return {"y": y, "lse": torch.where(lse == -math.inf, 0.0, lse)}


def run(where: Any, case: Attention, dtype: torch.dtype, device: Any = "cpu", draw_as: Any = None):
    """Results and all gradients; drawn in `draw_as`, so that a float64 run gives the truth about a lower dtype."""
    tensors = {name: t.detach().to(dtype) for name, t in case.tensors(draw_as or dtype, device).items()}
    leaves = {name: t.requires_grad_() for name, t in tensors.items()}
    return with_gradients(call(where, case, leaves), leaves)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    """Equality up to `tolerance` of the largest entry of all results, of all gradients: where a row sees one key only,
    no gradient goes to its score, and what is found there is rounding."""
    check_form(found, expected)
    for gradients in (False, True):
        names = [name for name in found if name.startswith("grad") == gradients and found[name].numel()]
        largest = max((float(expected[name].abs().max()) for name in names), default=0.0)
        for name in names:
            assert found[name].dtype == expected[name].dtype, f"{name} is {found[name].dtype}"
            off = distance(found[name], expected[name], largest + 1e-300)
            assert off <= tolerance, f"{name} is off by {off}"
