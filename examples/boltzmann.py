"""Boltzmann machines on handwritten digits: features, a deep belief network that dreams, and a deep autoencoder.

* Features: a restricted Boltzmann machine learns pictures, also moved by a pixel, without their names; logistic
  regression names them by its hidden units. Beside it the same with scikit-learn's `BernoulliRBM`, and with the bare
  pixels, which a line cannot part once they move.
* A deep belief network: machines one on the other, greedily, then wake and sleep (the up-down algorithm). It names
  pictures after supervised training from there, beside the same network from random weights with few names to learn
  from, and it dreams: Gibbs sampling in its memory, then down to the pixels.
* An autoencoder: the network unrolled, and trained to give back what it is given, beside the same from random weights
  and principal components of the same size of code.

What to look for: pre-training is worth most where there are few names and where the network is deep; reconstructions by
a trained code of eight numbers are better than by eight principal components. `--pictures FOLDER` also draws what the
hidden units look for, reconstructions and dreams, with matplotlib; `--quick`
makes it a check of a few seconds.

Sources: Hinton 2002 (https://doi.org/10.1162/089976602760128018), Hinton, Osindero and Teh 2006
(https://doi.org/10.1162/neco.2006.18.7.1527), Hinton and Salakhutdinov 2006 (https://doi.org/10.1126/science.1127647).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pykernels
from examples.common import digits, quick_and_folder

TEST, CODE = 597, 8


@dataclass(frozen=True)
class Budget:
    """Passes over the pictures."""

    machine: int
    layers: int
    wake_and_sleep: int
    names: int
    autoencoder: int
    gibbs: int


FULL, QUICK = Budget(20, 50, 10, 60, 200, 300), Budget(1, 2, 1, 2, 2, 5)


def pictures() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """To learn from and to test on: [N, 64] in 0..1, and what they show."""
    x, y = digits()
    x = x.flatten(1)
    return x[TEST:], y[TEST:], x[:TEST], y[:TEST]


def nudged(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Every picture, and it moved by a pixel to each of four sides."""
    wide = F.pad(x.reshape(-1, 8, 8), (1, 1, 1, 1))
    moves = [wide[:, i : i + 8, j : j + 8].flatten(1) for i, j in ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))]
    return torch.cat(moves), y.repeat(5)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    found = call()
    return found, time.perf_counter() - begin


# --- features


def show_features(budget: Budget, folder: Path | None) -> dict[str, float]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import BernoulliRBM

    x, y, tx, ty = pictures()
    x, y, tx, ty = (t.numpy() for t in (*nudged(x, y), *nudged(tx, ty)))
    if budget is QUICK:
        x, y = x[:1200], y[:1200]
    options = {"learning_rate": 0.06, "batch_size": 10, "random_state": 0}
    ours = pykernels.RBM(n_hidden=256, n_epochs=budget.machine, persistent=True, **options)
    theirs = BernoulliRBM(256, n_iter=budget.machine, **options)
    seconds = [timed(lambda m=machine: m.fit(x))[1] for machine in (ours, theirs)]
    print(
        f"a machine of 64 and 256 units, {budget.machine} epochs: pykernels {seconds[0]:.2f} s, scikit-learn "
        f"{seconds[1]:.2f} s; log pseudo-likelihood of the test {ours.score_samples(tx).mean():.1f} and "
        f"{ours_score(theirs, tx):.1f}"
    )
    found = {"features: times": seconds[1] / seconds[0]}
    head = {"C": 100.0, "max_iter": 300 if budget is FULL else 20, "tol": 1e-3}
    for name, machine in (("pixels", None), ("pykernels' machine", ours), ("scikit-learn's machine", theirs)):
        see = machine.transform if machine else lambda given: given
        right = LogisticRegression(**head).fit(see(x), y).score(see(tx), ty)
        print(f"    logistic regression of {name}: {100 * right:.1f} % of the test pictures named correctly")
        found[f"features: {name}"] = right
    if folder:
        draw(folder / "features.png", ours.components_[:64], "what hidden units look for")
    return found


def ours_score(theirs: Any, x: Any) -> float:
    """scikit-learn's machine, judged as ours is: over all flips."""
    judge = pykernels.RBM(n_hidden=len(theirs.components_), n_epochs=0).fit(x)
    judge.components_ = torch.from_numpy(theirs.components_)
    judge.intercept_hidden_ = torch.from_numpy(theirs.intercept_hidden_)
    judge.intercept_visible_ = torch.from_numpy(theirs.intercept_visible_)
    return float(judge.score_samples(x).mean())


# --- a deep belief network


def learn_names(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(20):
            optimizer.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return (model(x).argmax(1) == y).float().mean().item()


def fresh(model: nn.Sequential) -> nn.Sequential:
    """The same layers with torch's own random weights."""
    torch.manual_seed(0)
    layers = [nn.Linear(m.in_features, m.out_features) if isinstance(m, nn.Linear) else nn.Sigmoid() for m in model]
    return nn.Sequential(*layers)


def show_belief_network(budget: Budget, folder: Path | None) -> dict[str, float]:
    x, y, tx, ty = pictures()
    network = pykernels.DeepBeliefNetwork(
        (256, 128, 64), learning_rate=0.1, momentum=0.5, n_epochs=budget.layers, fine_tuning_rate=0.02, random_state=0
    )
    _, seconds = timed(lambda: network.fit(x))
    before = reconstruction_error(network, tx)
    _, more = timed(lambda: network.fine_tune(x, budget.wake_and_sleep))
    after = reconstruction_error(network, tx)
    print(
        f"a deep belief network 64-256-128-64: layer by layer {seconds:.2f} s, wake and sleep {more:.2f} s; mean "
        f"square error of the test's reconstructions {before:.4f}, after wake and sleep {after:.4f}"
    )
    found = {"belief: error": before, "belief: error after wake and sleep": after}
    for count in (100, len(x)):
        pretrained = network.to_sequential(n_classes=10)
        for name, model in (("random", fresh(pretrained)), ("pre-trained", pretrained)):
            epochs = budget.names * (3 if count == 100 else 1)
            right = accuracy(learn_names(model, x[:count], y[:count], epochs), tx, ty)
            print(f"    {count} names learned from {name} weights: {100 * right:.1f} % of the test correct")
            found[f"belief: {count} names, {name}"] = right
    dreams = network.sample(64, k=budget.gibbs)
    found["belief: dreams"] = nearest(dreams, x)
    print(f"    64 dreams: mean square distance to the nearest picture {found['belief: dreams']:.4f}")
    found["belief: pictures"] = nearest(tx[:64], x)
    print(f"    64 pictures of the test: {found['belief: pictures']:.4f}")
    if folder:
        draw(folder / "dreams.png", dreams, "dreams", 0.0, 1.0)
    return found


def reconstruction_error(network: Any, x: Tensor) -> float:
    return F.mse_loss(network.reconstruct(x), x).item()


def nearest(some: Tensor, x: Tensor) -> float:
    return float((torch.cdist(some, x).min(1).values ** 2).mean()) / x.shape[1]


# --- an autoencoder


def learn_to_repeat(model: nn.Module, x: Tensor, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            F.mse_loss(model(x[part]), x[part]).backward()
            optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def error_of(model: nn.Module, x: Tensor) -> float:
    return F.mse_loss(model(x), x).item()


def show_autoencoder(budget: Budget, folder: Path | None) -> dict[str, float]:
    from sklearn.decomposition import PCA

    x, _, tx, _ = pictures()
    network = pykernels.DeepBeliefNetwork(
        (128, 64, CODE), learning_rate=0.1, momentum=0.5, n_epochs=budget.layers, random_state=0
    ).fit(x)
    pretrained = network.to_autoencoder(linear_code=True)
    random = nn.Sequential(*(fresh(part) for part in pretrained))
    components = PCA(CODE).fit(x.numpy())
    principal = torch.from_numpy(components.inverse_transform(components.transform(tx.numpy())))
    errors = {f"{CODE} principal components": F.mse_loss(principal, tx).item()}
    print(f"an autoencoder 64-128-64-{CODE} and back: mean square error of the test's reconstructions")
    errors["pre-trained, before"] = error_of(pretrained, tx)
    for name, model in (("random weights", random), ("pre-trained", pretrained)):
        errors[name] = error_of(learn_to_repeat(model, x, budget.autoencoder), tx)
    for name, error in errors.items():
        print(f"    {name}: {error:.4f}")
    if folder:
        with torch.no_grad():
            rows = torch.cat([tx[:10], pretrained(tx[:10]), principal[:10]])
        draw(folder / "reconstructions.png", rows, "pictures, by the autoencoder, by components", 0.0, 1.0, 10)
    return {f"autoencoder: {name}": error for name, error in errors.items()}


# --- pictures


def draw(
    path: Path, rows: Tensor, title: str, least: float | None = None, most: float | None = None, columns: int = 8
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = -(-len(rows) // columns)
    figure, axes = pyplot.subplots(count, columns, figsize=(columns * 0.7, count * 0.7 + 0.4))
    figure.suptitle(title)
    for axis, row in zip(axes.flat, rows, strict=True):
        axis.imshow(row.reshape(8, 8).numpy(), cmap="gray", vmin=least, vmax=most)
    for axis in axes.flat:
        axis.axis("off")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    print(f"    drawn: {path}")


def main(quick: bool = False, folder: Path | None = None) -> dict[str, float]:
    budget = QUICK if quick else FULL
    found = show_features(budget, folder)
    found |= show_belief_network(budget, folder)
    found |= show_autoencoder(budget, folder)
    return found


if __name__ == "__main__":
    main(*quick_and_folder(__doc__))
