"""The restricted Boltzmann machine: one side given the other, free energy, contrastive divergence."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference.rbm import is_gaussian, seed_of
from . import _dispatch, _rbm_ops
from ._dispatch import any_autocast, is_eager, raw_kernels, wants_grad

__all__ = ["rbm_contrastive_divergence", "rbm_free_energy", "rbm_mean", "rbm_sample", "rbm_train_"]


class _Sample(torch.autograd.Function):
    """The raw kernel. The old style, with `ctx` in forward, is the one that costs least."""

    @staticmethod
    def forward(ctx: Any, kernels: Any, numbers: tuple[Any, ...], *tensors: Any) -> tuple[Tensor, Tensor]:
        input, weight, bias, seed = tensors
        mean, sample = kernels.rbm_sample(input, weight, bias, seed, *numbers)
        ctx.numbers = numbers[1:]
        ctx.save_for_backward(input, weight, mean)
        ctx.mark_non_differentiable(sample)
        return mean, sample

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
        input, weight, mean = ctx.saved_tensors
        found = _rbm_ops.mean_gradients(grad, mean, input, weight, ctx.numbers, ctx.needs_input_grad[2:5])
        return None, None, *found, None


_apply = _dispatch.direct_apply(_Sample)


def _sampled(tensors: tuple[Any, ...], numbers: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    input, weight, bias, seed = tensors
    if any_autocast() and (dtype := _dispatch.autocast_dtype(input)) is not None:
        input, weight, bias = (t if t is None else _dispatch.cast(t, dtype) for t in (input, weight, bias))
    kernels = raw_kernels(input, weight)
    if kernels is None or (bias is not None and not is_eager(bias)):
        _dispatch.check_devices("rbm_sample", input, weight, bias)
        return _rbm_ops.sample_op(input, weight, bias, seed, *numbers)
    if wants_grad(input, weight, bias):
        return _apply(kernels, numbers, input, weight, bias, seed)
    return kernels.rbm_sample(input, weight, bias, seed, *numbers)


def rbm_mean(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    units: str = "bernoulli",
    transposed: bool = False,
    temperature: float = 1.0,
) -> Tensor:
    r"""The means of one side of a restricted Boltzmann machine given the other.

    .. math::
        p = \sigma\big((x W^\top + b) / T\big)

    or, of Gaussian units, :math:`x W^\top + b`. As :func:`rbm_sample`, which draws too.

    Args:
        input: x, the states of one side, [*, inputs].
        weight: W, [outputs, inputs]; or [inputs, outputs] where `transposed`, so that one matrix [hidden, visible]
            serves both directions.
        bias: b of the other side, [outputs].
        units: of the other side, "bernoulli" or "gaussian".
        transposed: see `weight`.
        temperature: T.

    Returns:
        p, [*, outputs]. It has derivatives of every order.

    Raises:
        RuntimeError: dtypes, devices or shapes do not fit.
        ValueError: unknown `units`.

    Example::

        >>> p = pykernels.functional.rbm_mean(v, weight, hidden_bias)
    """
    gaussian = is_gaussian("rbm_mean", units)
    return _sampled((input, weight, bias, None), (0, transposed, gaussian, temperature))[0]


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
    r"""The means of one side of a restricted Boltzmann machine given the other, and a draw.

    .. math::
        p = \sigma\big((x W^\top + b) / T\big), \qquad s \sim \mathrm{Bernoulli}(p)

    or, of Gaussian units, :math:`p = x W^\top + b` and :math:`s \sim \mathcal{N}(p, T)`. Product, bias, logistic
    function and draw are one kernel. The random numbers are counted (Philox) by the seed, the stream, and the row and
    column of the unit: the same on every device and for any number of threads.

    Args:
        input: x, the states of one side, [*, inputs].
        weight: W, [outputs, inputs]; or [inputs, outputs] where `transposed`, so that one matrix [hidden, visible]
            serves both directions.
        bias: b of the other side, [outputs].
        units: of the other side, "bernoulli" or "gaussian".
        transposed: see `weight`.
        temperature: T.
        seed: a number, or one int64 on the CPU; drawn from torch's generator where there is none.
        stream: with the same seed, different streams are independent; 0 ... 2^32 - 1.

    Returns:
        (p, s), each [*, outputs]. The mean has derivatives of every order; the draw has none.

    Raises:
        RuntimeError: dtypes, devices or shapes do not fit.
        ValueError: unknown `units`.

    Sources: Hinton 2002 (https://doi.org/10.1162/089976602760128018), Salmon et al. 2011
    (https://doi.org/10.1145/2063384.2063405).

    Example::

        >>> p, h = pykernels.functional.rbm_sample(v, weight, hidden_bias, seed=1)
        >>> _, v = pykernels.functional.rbm_sample(h, weight, visible_bias, transposed=True, seed=1, stream=1)
    """
    gaussian = is_gaussian("rbm_sample", units)
    return _sampled((input, weight, bias, seed_of(seed)), (stream, transposed, gaussian, temperature))


def rbm_free_energy(
    visible: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    units: str = "bernoulli",
    temperature: float = 1.0,
) -> Tensor:
    r"""The free energy F of visible states: :math:`p(v) \propto e^{-F(v) / T}` once the hidden units are summed out.

    .. math::
        F(v) = -b^\top v - T \sum_j \log\big(1 + e^{(W v + c)_j / T}\big)

    with :math:`\tfrac12 |v - b|^2` in the place of :math:`-b^\top v` for Gaussian visible units.

    Args:
        visible: v, [*, visible].
        weight: W, [hidden, visible].
        visible_bias, hidden_bias: b and c.
        units: the visible ones, "bernoulli" or "gaussian".
        temperature: T.

    Returns:
        F, [*], in torch's own operators, with all their derivatives.

    Raises:
        ValueError: unknown `units`.

    Example::

        >>> energy = pykernels.functional.rbm_free_energy(v, weight, visible_bias, hidden_bias)
    """
    gaussian = is_gaussian("rbm_free_energy", units)
    hidden = F.softplus(F.linear(visible, weight, hidden_bias) / temperature).sum(-1) * temperature
    if gaussian:
        return (visible - visible_bias).square().sum(-1) / 2 - hidden
    return -(visible @ visible_bias) - hidden


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
    r"""Contrastive divergence: the statistics by which a restricted Boltzmann machine learns a mini-batch.

    .. math::
        \langle h v^\top \rangle^0 - \langle h v^\top \rangle^k, \qquad
        \langle v \rangle^0 - \langle v \rangle^k, \qquad \langle h \rangle^0 - \langle h \rangle^k

    means over the data and over states after k steps of Gibbs sampling from there (CD-k), or from where the last call
    left its chains (persistent). Hidden units count by their probabilities. 1/T of it is an estimate of the gradient of
    the mean log likelihood: parameters go along it, or an optimizer is given its negative.

    Args:
        data: v of the mini-batch, [N, visible]; float32 or float64.
        weight: W, [hidden, visible].
        visible_bias, hidden_bias: b and c.
        chain: hidden states of persistent chains, [chains, hidden].
        k: steps of Gibbs sampling.
        visible: the visible units, "bernoulli" or "gaussian" (of variance T; scale the data to unit variance).
        temperature: T.
        seed: a number, or one int64 on the CPU; drawn from torch's generator where there is none.
        first_row: what the rows' random numbers are counted from.

    Returns:
        Of weight, visible_bias and hidden_bias, each in its shape, and the chains' new states (or None). The same bits
        for any number of threads.

    Raises:
        RuntimeError: dtypes, devices or shapes do not fit.
        ValueError: unknown `visible`.

    Sources: Hinton 2002 (https://doi.org/10.1162/089976602760128018), Tieleman 2008
    (https://doi.org/10.1145/1390156.1390290).

    Example::

        >>> of_weight, of_b, of_c, _ = pykernels.functional.rbm_contrastive_divergence(v, weight, b, c)
        >>> weight += 0.1 * of_weight
    """
    gaussian = is_gaussian("rbm_contrastive_divergence", visible)
    tensors = [t.detach() for t in (data, weight, visible_bias, hidden_bias)]
    held = None if chain is None else chain.detach()
    given = *tensors, held, seed_of(seed), k, gaussian, temperature, first_row
    kernels = raw_kernels(tensors[0], tensors[1])
    if kernels is None or not is_eager(*tensors[2:], *(() if held is None else (held,))):
        _dispatch.check_devices("rbm_contrastive_divergence", *tensors, held)
        *found, states = _rbm_ops.statistics_op(*given)
    else:
        *found, states = kernels.rbm_contrastive_divergence(*given)
    return *found, None if chain is None else states


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
    r"""Learns by contrastive divergence from mini-batch after mini-batch, in one call.

    With the statistics :math:`g` of :func:`rbm_contrastive_divergence`, and :math:`\lambda` for the weight only,

    .. math::
        u \leftarrow \mu u + \eta (g - \lambda \theta), \qquad \theta \leftarrow \theta + u.

    The weights stay packed for both directions between mini-batches, so that small ones cost little more than their
    arithmetic.

    Args:
        data: [M, visible]; float32 or float64.
        weight, visible_bias, hidden_bias: :math:`\theta`, as there; written to.
        learning_rate: :math:`\eta`.
        batch_size: rows of a mini-batch; the last one may have fewer.
        order: [N] int64, which rows are visited; all of them as they come where there is none.
        velocity: u of each parameter, written to; needed with momentum.
        chain: hidden states of persistent chains, [chains, hidden]; written to.
        k, visible, temperature, seed, first_row: as there; row b of mini-batch m has row
            first_row + m max(batch_size, chains) + b of the random numbers.
        momentum: :math:`\mu`.
        weight_decay: :math:`\lambda`.

    Raises:
        RuntimeError: dtypes, devices, shapes or numbers do not fit.
        ValueError: unknown `visible`.

    Source: Hinton 2012 (https://doi.org/10.1007/978-3-642-35289-8_32).

    Example::

        >>> for epoch in range(10):
        ...     order = torch.randperm(len(x))
        ...     pykernels.functional.rbm_train_(x, weight, b, c, learning_rate=0.1, batch_size=10, order=order)
    """
    gaussian = is_gaussian("rbm_train_", visible)
    if batch_size < 1:
        raise RuntimeError(f"[rbm_train_] expected a batch of at least one row, got {batch_size}")
    parameters = [t.detach() for t in (weight, visible_bias, hidden_bias)]
    velocities = [None] * 3 if velocity is None else [t.detach() for t in velocity]
    held = None if chain is None else chain.detach()
    _dispatch.check_devices("rbm_train_", data, *parameters, *velocities, held, order)
    _rbm_ops.train_op(
        data.detach(), order, *parameters, *velocities, held, seed_of(seed), batch_size, k, gaussian, temperature,
        learning_rate, momentum, weight_decay, first_row,
    )  # fmt: skip
