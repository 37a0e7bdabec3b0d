"""The modern Hopfield network, whose states are continuous: attention over the stored patterns."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..functional.attention import scaled_dot_product_attention
from ._arrays import as_tensor

__all__ = ["ModernHopfield"]


class ModernHopfield(nn.Module):
    r"""A modern Hopfield network: a state is led to the stored pattern that is most like it.

    .. math::
        \xi \leftarrow X^T \operatorname{softmax}(\beta X \xi), \qquad
        E = -\beta^{-1} \log \sum_k e^{\beta x_k \cdot \xi} + \tfrac12 \lVert \xi \rVert^2 + \beta^{-1} \log M +
        \tfrac12 \max_k \lVert x_k \rVert^2

    with the M patterns x as the rows of X. The energy never rises. One update is attention with the patterns as keys
    and values, by :func:`pykernels.functional.scaled_dot_product_attention`; it is differentiable in state and
    patterns.

    Args:
        patterns: X, [M, N], a tensor or an array.
        beta: the inverse temperature; None for :math:`1 / \sqrt N`.
        max_steps: at most so many updates.
        tolerance: updates end when no value changes by more. 0: all of `max_steps` are made. (It is not looked at under
            torch.compile, nor in other transforms.)
        trainable: the patterns are a parameter, and else a buffer.
        device, dtype: of the patterns.

    Shapes: state [..., N] to the same.

    Raises:
        ValueError: the patterns are no matrix, or `beta`, `max_steps` or `tolerance` are out of range.
        RuntimeError: the state does not fit.

    Source: Ramsauer et al. 2020 (https://arxiv.org/abs/2008.02217).

    Example::

        >>> net = pykernels.ModernHopfield(torch.randn(1000, 64), beta=8.0)
        >>> y = net(x)
    """

    patterns: Tensor

    def __init__(
        self,
        patterns: Any,
        *,
        beta: float | None = None,
        max_steps: int = 1,
        tolerance: float = 0.0,
        trainable: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        x = as_tensor(patterns, torch.device(device or "cpu")).detach()
        x = x.to(device=device, dtype=dtype or (x.dtype if x.is_floating_point() else torch.get_default_dtype()))
        if x.dim() != 2 or 0 in x.shape:
            raise ValueError(f"[ModernHopfield] expected patterns of shape [patterns, units], got {list(x.shape)}")
        if beta is not None and not beta > 0:
            raise ValueError(f"[ModernHopfield] expected beta above 0, got {beta}")
        if max_steps < 1 or not tolerance >= 0:
            raise ValueError(
                f"[ModernHopfield] expected max_steps of 1 at least and a tolerance of 0 at least, got {max_steps} and "
                f"{tolerance}"
            )
        self.beta = 1 / math.sqrt(x.shape[1]) if beta is None else float(beta)
        self.max_steps, self.tolerance = max_steps, tolerance
        if trainable:
            self.patterns = nn.Parameter(x.clone())
        else:
            self.register_buffer("patterns", x.clone())

    def forward(self, state: Tensor) -> Tensor:
        """The state after the updates."""
        self._check(state)
        rows = state.reshape(1, 1, -1, state.shape[-1])
        keys = self.patterns[None, None]
        looks = (
            self.tolerance > 0 and not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()
        )
        for _ in range(self.max_steps):
            before = rows
            rows = scaled_dot_product_attention(rows, keys, keys, scale=self.beta)
            if looks and bool(((rows - before).detach().abs() <= self.tolerance).all()):
                break
        return rows.reshape(state.shape)

    def energy(self, state: Tensor) -> Tensor:
        """E of each state, [...]."""
        self._check(state)
        x = self.patterns
        scores = torch.logsumexp(self.beta * (state @ x.T), -1) / self.beta
        constant = math.log(len(x)) / self.beta + x.square().sum(-1).max() / 2
        return state.square().sum(-1) / 2 - scores + constant

    def _check(self, state: Tensor) -> None:
        units = self.patterns.shape[1]
        if state.dim() < 1 or state.shape[-1] != units:
            raise RuntimeError(f"[ModernHopfield] expected a state of shape [..., {units}], got {list(state.shape)}")

    def extra_repr(self) -> str:
        patterns, units = self.patterns.shape
        return f"{patterns} patterns, {units} units, beta={self.beta:.3g}, max_steps={self.max_steps}"
