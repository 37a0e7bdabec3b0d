"""Tensors or numpy arrays: what comes out is what went in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def as_tensor(given: Any, device: torch.device) -> Tensor:
    """What is given as a tensor; arrays (and lists of numbers) move to the device."""
    if isinstance(given, Tensor):
        return given
    return torch.as_tensor(given, device=device)


def like_input(result: Tensor, given: Any, keep_dtype: bool) -> Any:
    """The result as what was given is: an array for an array, and of its dtype if that is kept."""
    if keep_dtype and hasattr(given, "dtype"):
        dtype = given.dtype if isinstance(given, Tensor) else torch.as_tensor(given[..., :0]).dtype
        result = result if dtype in (result.dtype, torch.bool) else result.to(dtype)
    if isinstance(given, Tensor) or not hasattr(given, "__array__"):
        return result
    return result.cpu().numpy()
