"""Restricted Boltzmann machines: an epoch of contrastive divergence against the same in torch, a fit against
scikit-learn's, and one side drawn given the other against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import ours
from bench.limits import Work
from bench.pairs import Plan, fastest

EPOCHS = [(1797, 64, 256, 10), (1797, 64, 256, 100), (5000, 784, 500, 100)]
FITS = [(256, 10), (256, 100), (64, 10)]
LAYERS = [(10, 64, 256), (100, 64, 256), (1000, 784, 500), (10000, 64, 256)]
WHY = {
    "rbm": "products are two thirds of an epoch in small batches; the rest draws, logistic functions, turning weights",
    "rbm-fit": "as rbm; scikit-learn's chains are persistent, and so are ours here",
    "rbm-sample": "product and draws: the random numbers of 64 inputs cost half as much as their product",
}


def digits() -> Tensor:
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().data / 16, dtype=torch.float32)


def epoch_work(rows: int, visible: int, hidden: int) -> Work:
    """Three products of states and two of statistics; everything once through memory."""
    return Work(10.0 * rows * visible * hidden, 4.0 * (rows * visible + 2 * visible * hidden))


Step = Callable[[Tensor, Tensor, Tensor, Tensor], None]
RATE = 0.01


def torch_step(draw: Callable[[Tensor], Tensor]) -> Step:
    """CD-1 of a mini-batch, in as few operators as there are."""

    def step(v0: Tensor, weight: Tensor, b: Tensor, c: Tensor) -> None:
        h0 = torch.addmm(c, v0, weight.t()).sigmoid_()
        v1 = draw(torch.addmm(b, draw(h0), weight).sigmoid_())
        h1 = torch.addmm(c, v1, weight.t()).sigmoid_()
        rate = RATE / len(v0)
        weight.addmm_(h0.t(), v0, alpha=rate).addmm_(h1.t(), v1, alpha=-rate)
        b.add_((v0 - v1).sum(0), alpha=rate)
        c.add_((h0 - h1).sum(0), alpha=rate)

    return step


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "bernoulli": torch.bernoulli,
    "rand": lambda p: (torch.rand_like(p) < p).to(p.dtype),
}


@pytest.mark.parametrize("shape", EPOCHS, ids=lambda shape: "N{}-V{}-H{}-B{}".format(*shape))
def test_rbm(shape, compare):
    rows, visible, hidden, batch = shape
    torch.manual_seed(0)
    data = digits() if (rows, visible) == (1797, 64) else (torch.rand(rows, visible) < 0.2).float()

    def machine() -> list[Tensor]:
        return [0.01 * torch.randn(hidden, visible), torch.zeros(visible), torch.zeros(hidden)]

    train, mine = ours.library().functional.rbm_train_, machine()

    def epoch(step: Step) -> Callable[[], object]:
        parameters = machine()

        def run() -> None:
            for part in torch.randperm(rows).split(batch):
                step(data[part], *parameters)

        return run

    steps = {name: torch_step(draw) for name, draw in DRAWS.items()}
    ways = {name: epoch(step) for name, step in steps.items()}
    with torch.inference_mode():
        best = fastest(ways, Plan().quick())
    works: dict[str, Callable[[], object]] = {
        "ours": lambda: train(data, *mine, learning_rate=RATE, batch_size=batch, order=torch.randperm(rows)),
        "torch": ways[best],
    }
    label = "N{} V{} H{} B{}".format(*shape)
    target = 1.5 if visible == 64 else 1.0  # in large ones there is little but products
    compare("rbm", label, works, grad=False, work=epoch_work(rows, visible, hidden), target=target, why=WHY)


@pytest.mark.parametrize(("hidden", "batch"), FITS)
def test_rbm_fit(hidden, batch, compare):
    neural_network = pytest.importorskip("sklearn.neural_network")
    x = digits().numpy()
    options: dict[str, Any] = {"learning_rate": RATE, "batch_size": batch, "random_state": 0}
    mine = ours.library().RBM(n_hidden=hidden, n_epochs=5, persistent=True, **options)
    theirs = neural_network.BernoulliRBM(hidden, n_iter=5, **options)
    works = {"ours": lambda: mine.fit(x), "scikit-learn": lambda: theirs.fit(x)}
    epochs = epoch_work(len(x), x.shape[1], hidden)
    work = Work(5 * epochs.flop, epochs.memory_bytes)
    compare("rbm-fit", f"digits H{hidden} B{batch}", works, grad=False, work=work, target=3.0, why=WHY)


@pytest.mark.parametrize("shape", LAYERS, ids=lambda shape: "N{}-V{}-H{}".format(*shape))
def test_rbm_sample(shape, compare):
    rows, visible, hidden = shape
    torch.manual_seed(0)
    v, weight, c = (torch.rand(rows, visible) < 0.5).float(), torch.randn(hidden, visible) / 8, torch.randn(hidden)
    sample = ours.library().functional.rbm_sample

    def by(draw: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        def run() -> tuple[Tensor, Tensor]:
            p = torch.addmm(c, v, weight.t()).sigmoid_()
            return p, draw(p)

        return run

    ways = {name: by(draw) for name, draw in DRAWS.items()}
    with torch.inference_mode():
        best = fastest(ways, Plan().quick())
    works = {"ours": lambda: sample(v, weight, c), "torch": ways[best]}
    work = Work(2.0 * rows * visible * hidden, 4.0 * (rows * (visible + 2 * hidden) + visible * hidden))
    compare("rbm-sample", "N{} V{} H{}".format(*shape), works, grad=False, work=work, target=1.0, why=WHY)
