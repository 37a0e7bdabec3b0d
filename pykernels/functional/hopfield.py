"""Hopfield networks: sweeps over states of +1 and -1. There are no derivatives: a sign has none."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference.random import draw_seed
from . import _dispatch
from ._dispatch import is_eager, raw_kernels
from ._hopfield_ops import packed_op, retrieve_op

__all__ = ["HopfieldRetrieval", "hopfield_packed_retrieve", "hopfield_retrieve", "hopfield_update"]

MODES = ("async", "sync")


class HopfieldRetrieval(NamedTuple):
    """What a retrieval found.

    Attributes:
        state: where it ended, like the state that was given.
        sweeps: of each row, how many were made.
        period: of each row, 1 where the last sweep changed nothing, 2 where it gave the state of two sweeps before (at
            once, states may alternate), 0 where neither was so within `max_sweeps`.
    """

    state: Tensor
    sweeps: Tensor
    period: Tensor


def hopfield_update(
    weight: Tensor,
    state: Tensor,
    mode: str = "async",
    order: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""One sweep over the units of a Hopfield network.

    .. math::
        v_j = \sum_i w_{ji} y_i, \qquad
        y_j \leftarrow \begin{cases} \operatorname{sign}(v_j) & v_j \ne 0 \\ y_j & v_j = 0 \end{cases}

    A field that is not a number leaves its unit as it is, as zero does. The state is mostly of +1 and -1; other
    numbers (0 for a unit that is not known, say) are used as they are until they change.

    Args:
        weight: w, [N, N], of floating point.
        state: y, [B, N] or [N], of the weight's dtype.
        mode: "async": one unit after the other, each with the fields that the changes before it left; "sync": all at
            once, with the fields of the state that is given.
        order: of "async": the units in the order in which they are updated, int64, [N] for all rows or [B, N] of each
            row its own. A unit may be there twice, and another not at all. None: a permutation for all rows, drawn with
            a key from torch's generator on the CPU, the same on every device.
        generator: to draw the key with.

    Returns:
        The new state, like `state`. It never requires a gradient.

    Raises:
        RuntimeError: dtypes, devices or shapes do not fit, or `order` names no units.
        ValueError: `mode` is neither of the two.

    Fields are summed in float32 (float64 for float64). One by one, they are computed once and follow the flips. The
    results have the same bits for any number of threads.

    Source: Hopfield 1982 (https://doi.org/10.1073/pnas.79.8.2554).

    Example::

        >>> f = torch.tensor([1.0, -1.0, 1.0, -1.0])
        >>> w = torch.outer(f, f).fill_diagonal_(0)
        >>> pykernels.functional.hopfield_update(w, torch.tensor([1.0, -1.0, 1.0, 1.0]))
        tensor([ 1., -1.,  1., -1.])
    """
    return retrieved(retrieve_op, weight, state, mode, order, 1, key_of_orders(mode, order, generator), False).state


def hopfield_retrieve(
    weight: Tensor,
    state: Tensor,
    mode: str = "async",
    order: Tensor | None = None,
    *,
    max_sweeps: int = 100,
    symmetric: bool = False,
    generator: torch.Generator | None = None,
) -> HopfieldRetrieval:
    r"""Sweeps over the units of a Hopfield network until nothing changes; see :func:`hopfield_update`.

    With a symmetric weight of no negative diagonal the energy :math:`-\frac12 \sum_{ij} w_{ij} y_i y_j` never rises in
    "async" mode, so that it ends; in "sync" mode a symmetric weight ends in a stable state or alternates between two.

    Args:
        weight: w, [N, N].
        state: y, [B, N] or [N].
        mode: "async" or "sync".
        order: of every sweep; None: each sweep's is drawn.
        max_sweeps: at most so many.
        symmetric: the weight is known to be symmetric: it is not compared with its transpose, which "async" needs.
        generator: to draw the key of the orders with.

    Returns:
        state, sweeps and period: :class:`HopfieldRetrieval`.

    Raises:
        RuntimeError: dtypes, devices or shapes do not fit, or `order` names no units.
        ValueError: `mode` is neither of the two.

    Source: Hopfield 1982 (https://doi.org/10.1073/pnas.79.8.2554); two-cycles: Goles, Fogelman and Pellegrin 1985
    (https://doi.org/10.1016/0166-218X(85)90029-0).

    Example::

        >>> state, sweeps, period = pykernels.functional.hopfield_retrieve(w, noisy)
    """
    key = key_of_orders(mode, order, generator)
    return retrieved(retrieve_op, weight, state, mode, order, max_sweeps, key, symmetric)


def hopfield_packed_retrieve(
    patterns: Tensor,
    state: Tensor,
    mode: str = "async",
    order: Tensor | None = None,
    *,
    max_sweeps: int = 100,
    generator: torch.Generator | None = None,
) -> HopfieldRetrieval:
    r""":func:`hopfield_retrieve` with the weight of Hebb's rule, from the bits of M patterns and without the weight.

    .. math::
        M v_j = \sum_k f_k(j)\, m_k - M y_j, \qquad m_k = \sum_i f_k(i)\, y_i

    in whole numbers: the overlaps m are counted bit by bit, and a flip changes them by two. Results are those of the
    dense form wherever its sums are exact.

    Args:
        patterns: f, [M, ceil(N / 64)] of int64, of :func:`pykernels.reference.pack_signs`: unit i is bit i % 64 of word
            i / 64, set for +1.
        state: y, [B, N] or [N], of floating point, which counts by its signs.
        mode, order, max_sweeps, generator: as there.

    Returns:
        state, sweeps and period: :class:`HopfieldRetrieval`.

    Raises:
        RuntimeError: dtypes, devices or shapes do not fit, M N is 2^30 or more, or `order` names no units.
        ValueError: `mode` is neither of the two.
    """
    return retrieved(packed_op, patterns, state, mode, order, max_sweeps, key_of_orders(mode, order, generator))


def key_of_orders(mode: str, order: Tensor | None, generator: torch.Generator | None) -> Tensor | None:
    """One int64 on the CPU; None where no orders are drawn."""
    if mode != "async" or order is not None:
        return None
    if generator is None:
        return draw_seed()
    drawn = torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=generator.device, generator=generator)
    return drawn.cpu()


def retrieved(
    op: Any, weight: Tensor, state: Tensor, mode: str, order: Tensor | None, most: int, key: Tensor | None, *flags: bool
) -> HopfieldRetrieval:
    """By the raw kernel or the operator. `key` is None where no orders are drawn."""
    if mode not in MODES:
        raise ValueError(f"[hopfield] expected mode 'async' or 'sync', got {mode!r}")
    if state.dim() not in (1, 2):
        raise RuntimeError(f"[hopfield] expected a state of 1 or 2 dimensions, got {state.dim()}")
    rows = state if state.dim() == 2 else state.unsqueeze(0)
    arguments = (weight.detach(), rows.detach(), order, key, most, mode == "sync", *flags)
    kernels = raw_kernels(weight, state)
    if kernels is None or not (order is None or is_eager(order)):
        _dispatch.check_devices("hopfield", state, weight, order)
        found = op(*arguments)
    else:
        found = getattr(kernels, "hopfield_retrieve" if op is retrieve_op else "hopfield_packed_retrieve")(*arguments)
    return HopfieldRetrieval(*(found if state.dim() == 2 else (t.squeeze(0) for t in found)))
