"""Stacked restricted Boltzmann machines: a deep belief network."""

from __future__ import annotations

import numbers
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from ..functional import rbm_mean, rbm_sample
from ._base import Estimator, Rows, generator_of
from .rbm import _BLOCK, RBM, Counted

__all__ = ["DeepBeliefNetwork"]

Layer = tuple[Tensor, Tensor]
"""Weight [upper, lower] and the bias of the side that it leads to."""


class DeepBeliefNetwork(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Estimator):
    r"""Deep belief network: restricted Boltzmann machines one on the other, and weights both ways.

    Greedy learning, layer by layer: the first machine learns the data, each other one the probabilities of the hidden
    units of the one below. The two topmost layers stay a machine, an associative memory with

    .. math::
        p(h_{L-1}, h_L) \propto e^{-E(h_{L-1}, h_L) / T},

    and below it the layers generate each other downwards, :math:`p(h_{l} \mid h_{l+1}) = \sigma((W_l^\top h_{l+1} +
    b_l) / T)`. Fine-tuning by wake and sleep (the up-down algorithm) unties the weights that recognise, R, from those
    that generate, W: awake, states are recognised bottom-up, and the generating weights learn to predict the lower
    layer, :math:`\Delta W_l = \eta\, h_{l+1} (h_l - p_l)^\top`; the memory makes k steps of Gibbs sampling from there
    and learns by contrastive divergence; asleep, states are generated from where it ended, and the recognising weights
    learn to predict the upper layer, :math:`\Delta R_l = \eta\, (h_{l+1} - q_{l+1}) h_l^\top`.

    Args:
        n_hidden: the hidden units of each layer, from below.
        visible: "bernoulli" (data from 0 to 1) or "gaussian", of the data.
        k: steps of Gibbs sampling for an update.
        persistent: whether the machines' chains go on from update to update.
        temperature: T.
        learning_rate: of the machines; one for all or one for each.
        momentum, weight_decay, batch_size: as in :class:`RBM`.
        n_epochs: passes over the data for a machine; one number for all or one for each.
        n_fine_tuning_epochs: passes of wake and sleep after that.
        fine_tuning_rate: :math:`\eta` of these.
        random_state: None, a number, a `torch.Generator` or what scikit-learn takes.
        device: where to compute; None: where a tensor lies, and on the processor for arrays.
        verbose: whether to print a line after each epoch.

    Attributes:
        rbms_: the machines, from below, as greedy learning left them; the last one is the memory, and goes on learning.
        recognition_: (R, bias of the upper layer) of each layer below the memory, tensors.
        generation_: (W, bias of the lower layer) of each, in the shape of R.
        n_features_in_: number of features.

    Sources: Hinton, Osindero and Teh 2006 (https://doi.org/10.1162/neco.2006.18.7.1527), Hinton and Salakhutdinov 2006
    (https://doi.org/10.1126/science.1127647).

    Example::

        >>> network = pykernels.DeepBeliefNetwork((256, 64), learning_rate=0.06, random_state=0).fit(x)
        >>> classifier = network.to_sequential(n_classes=10)  # to be trained with labels
        >>> dreams = network.sample(16)
    """

    def __init__(
        self,
        n_hidden: Sequence[int] = (256, 64),
        *,
        visible: str = "bernoulli",
        k: int = 1,
        persistent: bool = False,
        temperature: float = 1.0,
        learning_rate: float | Sequence[float] = 0.1,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        batch_size: int = 10,
        n_epochs: int | Sequence[int] = 10,
        n_fine_tuning_epochs: int = 0,
        fine_tuning_rate: float = 0.01,
        random_state: Any = None,
        device: Any = None,
        verbose: bool = False,
    ) -> None:
        self.n_hidden = n_hidden
        self.visible = visible
        self.k = k
        self.persistent = persistent
        self.temperature = temperature
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.n_fine_tuning_epochs = n_fine_tuning_epochs
        self.fine_tuning_rate = fine_tuning_rate
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    # --- learning

    def fit(self, X: Any, y: Any = None) -> DeepBeliefNetwork:
        """Learn from X [n_samples, n_features], layer by layer, then by wake and sleep. y is not looked at."""
        rows = self._rows(X, reset=True)
        sizes = self._sizes()
        self._random = Counted(int(torch.randint(2**62, (), generator=generator_of(self.random_state))))
        self.rbms_: list[RBM] = []
        states: Any = X
        for number, size in enumerate(sizes):
            machine = self._machine(number, size)
            self.rbms_.append(machine.fit(states))
            if number + 1 < len(sizes):  # on the device, as the machine above wants them
                parts = [machine.transform(part) for _, part in _blocks(rows if number == 0 else states)]
                states = torch.cat(parts)
        below = self.rbms_[:-1]
        self.recognition_: list[Layer] = [(m.components_.clone(), m.intercept_hidden_.clone()) for m in below]
        self.generation_: list[Layer] = [(m.components_.clone(), m.intercept_visible_.clone()) for m in below]
        self._n_features_out = sizes[-1]
        if self.n_fine_tuning_epochs:
            self._fine_tune(rows, self.n_fine_tuning_epochs)
        return self

    def fine_tune(self, X: Any, n_epochs: int = 1) -> DeepBeliefNetwork:
        """Passes of wake and sleep over X [n_samples, n_features]."""
        self._fine_tune(self._fitted_rows(X), n_epochs)
        return self

    def _sizes(self) -> list[int]:
        name = type(self).__name__
        sizes = list(self.n_hidden) if isinstance(self.n_hidden, Sequence) else [self.n_hidden]
        if not sizes or not all(isinstance(n, numbers.Integral) and n > 0 for n in sizes):
            raise ValueError(f"[{name}] expected n_hidden to be a number of units for each layer, got {self.n_hidden}")
        for what in ("learning_rate", "n_epochs"):
            value = getattr(self, what)
            if isinstance(value, Sequence) and len(value) != len(sizes):
                raise ValueError(f"[{name}] expected one {what} or {len(sizes)}, got {value!r}")
        if not isinstance(self.n_fine_tuning_epochs, numbers.Integral) or self.n_fine_tuning_epochs < 0:
            raise ValueError(f"[{name}] expected n_fine_tuning_epochs from 0, got {self.n_fine_tuning_epochs!r}")
        if not self.fine_tuning_rate >= 0:
            raise ValueError(f"[{name}] expected fine_tuning_rate of at least 0, got {self.fine_tuning_rate!r}")
        return sizes

    def _machine(self, number: int, size: int) -> RBM:
        def own(value: Any) -> Any:
            return value[number] if isinstance(value, Sequence) else value

        return RBM(
            n_hidden=size, visible=self.visible if number == 0 else "bernoulli", k=self.k, persistent=self.persistent,
            temperature=self.temperature, learning_rate=own(self.learning_rate), momentum=self.momentum,
            weight_decay=self.weight_decay, batch_size=self.batch_size, n_epochs=own(self.n_epochs),
            random_state=self._random.next_seed(), device=self.device, verbose=self.verbose,
        )  # fmt: skip

    @torch.no_grad()
    def _fine_tune(self, rows: Rows, n_epochs: int) -> None:
        for epoch in range(n_epochs):
            order = torch.randperm(len(rows), generator=self._random.generator())
            seeds = torch.randint(2**62, (-(-len(rows) // self.batch_size),), generator=self._random.generator())
            error = 0.0
            for seed, batch in zip(seeds.tolist(), order.split(self.batch_size), strict=True):
                error += self._wake_and_sleep(rows.dense(batch).to(self._top.components_), Draws(seed, self))
            if self.verbose:
                print(f"[{type(self).__name__}] fine-tuning {epoch + 1}: error {error / len(rows):.4f}", flush=True)

    def _wake_and_sleep(self, data: Tensor, draws: Draws) -> float:
        """One mini-batch; the squared error of what the first layer generates, summed."""
        rate, count, top = self.fine_tuning_rate, len(data), self._top
        # awake: states from below, which the generating weights are to predict
        states = [data]
        for weight, bias in self.recognition_:
            states.append(draws.up(states[-1], weight, bias)[1])
        error = 0.0
        for lower, upper, (weight, bias), units in zip(
            states, states[1:], self.generation_, self._units(), strict=False
        ):
            difference = lower - rbm_mean(upper, weight, bias, units=units, transposed=True, temperature=draws.heat)
            weight.addmm_(upper.t(), difference, alpha=rate / count)
            bias.add_(difference.mean(0), alpha=rate)
            if lower is data:
                error = float(difference.square().sum())
        # the memory
        weight, b, c = top.components_, top.intercept_visible_, top.intercept_hidden_
        mean, upper = draws.up(states[-1], weight, c)
        first, lower = mean, states[-1]
        for _ in range(self.k):
            lower = draws.down(upper, weight, b, top.visible)[1]
            mean, upper = draws.up(lower, weight, c)
        dreamt = lower
        weight.add_(first.t() @ states[-1] - mean.t() @ lower, alpha=rate / count)
        b.add_((states[-1] - lower).mean(0), alpha=rate)
        c.add_((first - mean).mean(0), alpha=rate)
        # asleep: states from above, which the recognising weights are to predict
        pairs = list(zip(self.recognition_, self.generation_, self._units(), strict=False))
        for (of_upper, upper_bias), (of_lower, lower_bias), units in reversed(pairs):
            lower = draws.down(dreamt, of_lower, lower_bias, units)[1]
            difference = dreamt - rbm_mean(lower, of_upper, upper_bias, temperature=draws.heat)
            of_upper.addmm_(difference.t(), lower, alpha=rate / count)
            upper_bias.add_(difference.mean(0), alpha=rate)
            dreamt = lower
        return error

    # --- what it has learned

    @property
    def _top(self) -> RBM:
        return self.rbms_[-1]

    def _units(self) -> list[str]:
        """Of each layer, from below, but the highest."""
        return [self.visible] + ["bernoulli"] * (len(self.rbms_) - 1)

    def _up(self) -> list[Layer]:
        return [*self.recognition_, (self._top.components_, self._top.intercept_hidden_)]

    def _down(self) -> list[Layer]:
        return [*self.generation_, (self._top.components_, self._top.intercept_visible_)]

    def transform(self, X: Any) -> Any:
        """The highest layer's probabilities given X, [n_samples, n_hidden[-1]], upwards by probabilities."""
        return self._each(self._fitted_rows(X), self._recognise)

    def reconstruct(self, X: Any) -> Any:
        """The data's means, downwards by means from the highest layer's probabilities given X."""
        return self._each(self._fitted_rows(X), lambda v: self._generate(self._recognise(v)))

    def inverse_transform(self, X: Any) -> Any:
        """The data's means, downwards by means from the highest layer's states X [n_samples, n_hidden[-1]]."""
        check_is_fitted(self)
        given = X if isinstance(X, Tensor) else torch.as_tensor(X)
        means = self._generate(given.to(self._top.components_))
        return means if isinstance(X, Tensor) else means.numpy(force=True)

    @torch.no_grad()
    def sample(self, n_samples: int = 1, k: int = 1000) -> Tensor:
        """What the network dreams: the data's means, a tensor [n_samples, n_features], after k steps of Gibbs sampling
        in the memory from random states and a draw of each layer below."""
        check_is_fitted(self)
        top, generator = self._top, self._random.generator()
        weight, b, c = top.components_, top.intercept_visible_, top.intercept_hidden_
        hidden = torch.randint(2, (n_samples, len(weight)), generator=generator).to(weight)
        draws = Draws(int(torch.randint(2**62, (), generator=generator)), self)
        for _ in range(k):
            mean, lower = draws.down(hidden, weight, b, top.visible)
            hidden = draws.up(lower, weight, c)[1]
        mean, lower = draws.down(hidden, weight, b, top.visible)
        for (weight, bias), units in list(zip(self.generation_, self._units(), strict=False))[::-1]:
            mean, lower = draws.down(lower, weight, bias, units)
        return mean

    def _recognise(self, states: Tensor) -> Tensor:
        for weight, bias in self._up():
            states = rbm_mean(states, weight, bias, temperature=self.temperature)
        return states

    def _generate(self, states: Tensor) -> Tensor:
        for (weight, bias), units in list(zip(self._down(), self._units(), strict=True))[::-1]:
            states = rbm_mean(states, weight, bias, units=units, transposed=True, temperature=self.temperature)
        return states

    def _each(self, rows: Rows, function: Any) -> Any:
        with torch.no_grad():
            like = self._top.components_
            found = [function(block.to(like)).to(rows.dtype) for _, block in rows.blocks(_BLOCK)]
        return rows.result(torch.cat(found))

    # --- networks for supervised learning

    def to_sequential(self, n_classes: int | None = None) -> nn.Sequential:
        """The recognising weights as `torch.nn` layers, Linear and Sigmoid in turn, copied, to be trained with labels.

        Args:
            n_classes: outputs of one more Linear on top, which begins small (None: there is none).
        """
        check_is_fitted(self)
        modules: list[nn.Module] = []
        for weight, bias in self._up():
            modules += [self._linear(weight, bias, self.temperature), nn.Sigmoid()]
        if n_classes is not None:
            like = self._top.components_
            head = nn.Linear(len(like), n_classes, device=like.device, dtype=like.dtype)
            drawn = torch.randn(head.weight.shape, generator=self._random.generator(), dtype=torch.float64)
            with torch.no_grad():
                head.weight.copy_(0.01 * drawn)
                head.bias.zero_()
            modules.append(head)
        return nn.Sequential(*modules)

    def to_autoencoder(self, *, linear_code: bool = False) -> nn.Sequential:
        r"""The network unrolled: an encoder of the recognising and a decoder of the generating weights, copied, to be
        trained to give back what it is given.

        Args:
            linear_code: the code is what the highest Sigmoid would have been given, so that it is not bounded; the
                decoder begins with :math:`\sigma(x) \approx 1/2 + x/4` in the place of the Sigmoid.

        Returns:
            `Sequential(encoder=Sequential(...), decoder=Sequential(...))`; Bernoulli data come out of a Sigmoid.
        """
        encoder = list(self.to_sequential())
        if linear_code:
            encoder.pop()
        decoder: list[nn.Module] = []
        for (weight, bias), units in list(zip(self._down(), self._units(), strict=True))[::-1]:
            heat = 1.0 if units == "gaussian" else self.temperature
            if linear_code and not decoder:
                weight, bias = weight / 4, bias + weight.sum(0) / 2
            decoder.append(self._linear(weight.t(), bias, heat))
            decoder += [nn.Sigmoid()] if units == "bernoulli" else []
        parts = {"encoder": nn.Sequential(*encoder), "decoder": nn.Sequential(*decoder)}
        return nn.Sequential(OrderedDict(parts))

    def _linear(self, weight: Tensor, bias: Tensor, heat: float) -> nn.Linear:
        layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            layer.weight.copy_(weight / heat)
            layer.bias.copy_(bias / heat)
        return layer

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class Draws:
    """Draws of one mini-batch, each from a stream of its own."""

    def __init__(self, seed: int, network: DeepBeliefNetwork) -> None:
        self.seed, self.heat, self.stream = seed, network.temperature, 0

    def up(self, states: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return self._draw(states, weight, bias)

    def down(self, states: Tensor, weight: Tensor, bias: Tensor, units: str) -> tuple[Tensor, Tensor]:
        return self._draw(states, weight, bias, units=units, transposed=True)

    def _draw(self, *given: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        self.stream += 1
        return rbm_sample(*given, temperature=self.heat, seed=self.seed, stream=self.stream, **options)


def _blocks(states: Any) -> Any:
    if isinstance(states, Rows):
        yield from states.blocks(_BLOCK)
    else:
        yield from enumerate(states.split(_BLOCK))
