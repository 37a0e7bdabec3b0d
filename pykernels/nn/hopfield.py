"""The Hopfield network: an associative memory of patterns of +1 and -1."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ..functional._hopfield_ops import packed_op, retrieve_op
from ..functional.hopfield import MODES, HopfieldRetrieval, key_of_orders, retrieved
from ..reference.hopfield import pack_signs, unpack_signs
from ._arrays import as_tensor, like_input
from ._hopfield_rules import CAPACITY, WEIGHTS, hebbian_sums, storkey_steps

__all__ = ["Hopfield"]


class Hopfield(nn.Module):
    r"""A Hopfield network of N units: patterns are stored by a rule, and a state near one of them is led to it.

    .. math::
        v_j = \sum_i w_{ji} y_i, \qquad y_j \leftarrow \operatorname{sign}(v_j), \text{ unchanged where } v_j = 0

    No unit feeds itself, and the weight is symmetric, so that the energy :math:`-\frac12 \sum_{ij} w_{ij} y_i y_j`
    never rises while units are updated one by one, and retrieval ends in a local minimum of it. The negative of a
    stable state is stable.

    Args:
        n_units: N.
        rule: how patterns f of M are stored.

            - "hebbian": :math:`w_{ij} = \frac1M \sum_k f_k(i) f_k(j)`.
            - "storkey": pattern by pattern :math:`\Delta w_{ij} = \frac1N (f(i) f(j) - f(i) h_{ji} - h_{ij} f(j))` with
              :math:`h_{ij} = \sum_{k \ne i, j} w_{ik} f(k)`.
            - "pseudo_inverse": the projection onto the patterns (without its diagonal); each of linearly independent
              patterns is stable.
        mode: "async": units one after the other in random order; "sync": all at once.
        max_sweeps: a retrieval makes at most so many.
        packed: of "hebbian": keep only the patterns' bits, N M / 8 bytes instead of 4 N², and compute with them in
            whole numbers. Results are those of the weight wherever its sums are exact.
        random_state: None: orders are drawn from torch's generator; a whole number: the same orders with every call; or
            a `torch.Generator`.
        device, dtype: of the weight; its dtype is also the one in which states are kept.

    Attributes:
        weight: w, [N, N]; None if packed.
        patterns: the bits of what is stored, [M, ceil(N / 64)] of int64. (Both are buffers.)

    Patterns and states are tensors or numpy arrays, and results are what was given. There are no derivatives: results
    never require a gradient.

    Source: Hopfield 1982 (https://doi.org/10.1073/pnas.79.8.2554); Storkey 1997 (https://doi.org/10.1007/BFb0020196);
    Personnaz, Guyon and Dreyfus 1986 (https://doi.org/10.1103/PhysRevA.34.4217).

    Example::

        >>> net = pykernels.Hopfield(784).store(digits)
        >>> net(noisy_digit)
    """

    weight: Tensor | None
    patterns: Tensor

    def __init__(
        self,
        n_units: int,
        *,
        rule: str = "hebbian",
        mode: str = "async",
        max_sweeps: int = 100,
        packed: bool = False,
        random_state: int | torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if n_units < 1:
            raise ValueError(f"[Hopfield] expected n_units of 1 at least, got {n_units}")
        if rule not in WEIGHTS:
            raise ValueError(f"[Hopfield] expected a rule of {', '.join(WEIGHTS)}, got {rule!r}")
        if mode not in MODES:
            raise ValueError(f"[Hopfield] expected mode 'async' or 'sync', got {mode!r}")
        if packed and rule != "hebbian":
            raise ValueError(f"[Hopfield] expected the rule 'hebbian' for a packed network, got {rule!r}")
        self.n_units, self.rule, self.mode, self.packed = n_units, rule, mode, packed
        self.max_sweeps, self.random_state = max_sweeps, random_state
        dtype = dtype or torch.get_default_dtype()
        if not dtype.is_floating_point:
            raise ValueError(f"[Hopfield] expected a dtype of floating point, got {dtype}")
        weight = None if packed else torch.zeros(n_units, n_units, device=device, dtype=dtype)
        self.register_buffer("weight", weight)
        self.register_buffer("patterns", torch.empty(0, -(-n_units // 64), device=device, dtype=torch.int64))

    # -- storing ----------------------------------------------------------------------------------------------------
    @property
    def n_patterns(self) -> int:
        """M: how many patterns are stored."""
        return len(self.patterns)

    @property
    def capacity(self) -> float:
        r"""How many random patterns the network holds: 0.138 N of "hebbian" (with 1.6 % of their units wrong: Amit,
        Gutfreund and Sompolinsky 1985, https://doi.org/10.1103/PhysRevLett.55.1530), :math:`N / \sqrt{2 \ln N}` of
        "storkey" (Storkey 1997), N of "pseudo_inverse" (if they are linearly independent; how far from a pattern a
        state may be falls to nothing on the way there: Kanter and Sompolinsky 1987,
        https://doi.org/10.1103/PhysRevA.35.380)."""
        return CAPACITY[self.rule](self.n_units)

    @torch.no_grad()
    def store(self, patterns: Any) -> Hopfield:
        """Store patterns, [M, N] or [N], beside those that are there: the same as all of them in one call.

        Warns where there are more than :attr:`capacity`.

        Raises:
            ValueError: not of +1 and -1, or not of N units.
        """
        f = self._checked(patterns)
        before = self.n_patterns
        self.patterns = torch.cat([self.patterns, pack_signs(f)])
        with torch.autocast(f.device.type, enabled=False):
            self._learn(f, before, 1)
        if self.n_patterns > self.capacity:
            warnings.warn(
                f"[Hopfield] {self.n_patterns} patterns are stored, more than the {self.capacity:.1f} that "
                f"{self.n_units} units hold by the rule {self.rule!r}: some will not be found",
                stacklevel=3,
            )
        return self

    @torch.no_grad()
    def forget(self, patterns: Any) -> Hopfield:
        """Forget patterns, [M, N] or [N]: the same as if they had never been stored. One that was stored more than once
        is forgotten once.

        Raises:
            ValueError: one of them is not stored (then nothing is forgotten), or they are no patterns.
        """
        f = self._checked(patterns)
        keep = torch.ones(self.n_patterns, dtype=torch.bool, device=self.patterns.device)
        for number, bits in enumerate(pack_signs(f)):
            found = ((self.patterns == bits).all(1) & keep).nonzero()
            if len(found) == 0:
                raise ValueError(f"[Hopfield] expected patterns that are stored, got another one (number {number})")
            keep[found[-1]] = False
        before = self.n_patterns
        self.patterns = self.patterns[keep]
        with torch.autocast(f.device.type, enabled=False):
            self._learn(f, before, -1)
        return self

    def _learn(self, f: Tensor, before: int, sign: int) -> None:
        """The weight of what is stored now; `f` came (or went, for sign -1) when there were `before` patterns."""
        if self.weight is None:
            return
        wide = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        if self.rule == "hebbian" and self.weight.dtype == wide:
            # whole numbers again, so that any way of storing the same gives the same
            sums = (self.weight * before).round_().add_(hebbian_sums(f.to(wide)), alpha=sign)
            self.weight = sums.div_(max(self.n_patterns, 1))
        elif self.rule == "storkey" and sign > 0 and self.weight.dtype == wide:
            self.weight = storkey_steps(self.weight, f.to(wide))
        else:
            stored = unpack_signs(self.patterns, self.n_units, wide)
            self.weight = WEIGHTS[self.rule](stored).to(self.weight.dtype)

    def _checked(self, patterns: Any) -> Tensor:
        f = as_tensor(patterns, self.patterns.device)
        f = f.unsqueeze(0) if f.dim() == 1 else f
        if f.dim() != 2 or f.shape[1] != self.n_units:
            raise ValueError(
                f"[Hopfield] expected patterns of shape [patterns, {self.n_units}] or [{self.n_units}], got "
                f"{list(f.shape)}"
            )
        f = f.to(torch.int8) if f.dtype == torch.bool else f
        if not bool(((f == 1) | (f == -1)).all()):
            if bool(((f == 1) | (f == 0)).all()):
                raise ValueError(
                    "[Hopfield] expected patterns of -1 and 1, got 0 and 1, which 2 * patterns - 1 converts"
                )
            raise ValueError("[Hopfield] expected patterns of -1 and 1, got other values")
        return f.to(torch.float32)

    # -- retrieving -------------------------------------------------------------------------------------------------
    def forward(self, state: Any) -> Any:
        """The stable state that a state, [B, N] or [N], is led to. (Where none is reached: :meth:`retrieve` tells.)

        Units that are not known may be 0.
        """
        return self.retrieve(state).state

    def retrieve(self, state: Any) -> HopfieldRetrieval:
        """As a call of the network, with the number of sweeps and the period of each row:
        :class:`pykernels.functional.hopfield.HopfieldRetrieval`. A network in "sync" mode may alternate between two
        states, of period 2.

        Raises:
            ValueError: not of N units.
        """
        rows = self._state(state)
        if self.weight is None:
            found = retrieved(packed_op, self.patterns, rows, self.mode, None, self.max_sweeps, self._key())
        else:
            found = retrieved(retrieve_op, self.weight, rows, self.mode, None, self.max_sweeps, self._key(), True)
        return HopfieldRetrieval(*(like_input(t, state, keep_dtype=i == 0) for i, t in enumerate(found)))

    def energy(self, state: Any) -> Any:
        r"""The energy :math:`E = -\frac12 \sum_{ij} w_{ij} y_i y_j` of each row of a state, [B] or a single one."""
        y = self._state(state)
        wide = torch.float64 if y.dtype == torch.float64 else torch.float32
        y = y.to(wide)
        with torch.autocast(y.device.type, enabled=False):
            if self.weight is None:
                overlaps = y @ unpack_signs(self.patterns, self.n_units, wide).T
                energy = (y.square().sum(-1) - overlaps.square().sum(-1) / max(self.n_patterns, 1)) / 2
                energy = energy if self.n_patterns else torch.zeros_like(energy)
            else:
                energy = (y @ self.weight.to(wide) * y).sum(-1) / -2
        return like_input(energy, state, keep_dtype=False)

    def _state(self, state: Any) -> Tensor:
        y = as_tensor(state, self.patterns.device)
        if y.dim() not in (1, 2) or y.shape[-1] != self.n_units:
            raise ValueError(
                f"[Hopfield] expected a state of shape [batch, {self.n_units}] or [{self.n_units}], got {list(y.shape)}"
            )
        if self.weight is not None:
            return y.detach().to(self.weight.dtype)
        return y.detach() if y.is_floating_point() else y.to(torch.get_default_dtype())

    def _key(self) -> Tensor | None:
        if isinstance(self.random_state, int):
            return torch.tensor([self.random_state]) if self.mode == "async" else None
        return key_of_orders(self.mode, None, self.random_state)

    # -- the module -------------------------------------------------------------------------------------------------
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """As many patterns as come."""
        given = state_dict.get(f"{prefix}patterns")
        if given is not None and given.shape[1:] == self.patterns.shape[1:]:
            self.patterns = self.patterns.new_empty(given.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{self.n_units}, rule={self.rule!r}, mode={self.mode!r}" + (", packed=True" if self.packed else "")
