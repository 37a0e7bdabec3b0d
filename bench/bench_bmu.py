"""Rows of best matching units against faiss, torch and scikit-learn, and of whole maps against what else fits one."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench import ours
from bench.limits import Work

EPOCHS = 4
SEARCHES = {
    # samples, units, features: how many times faiss's speed is wanted
    (10000, 400, 64): 1.5,
    (10000, 1024, 784): 1.5,
    (2000, 144, 3): 1.5,
    (60000, 400, 10): 1.5,
    (100000, 2500, 32): 1.1,
}
WHY = {
    "bmu": "the product's rate; for few features what keeps the best of the scores, three operations for each of them",
    "som-epochs": "the search; sums by unit read the samples once more, in the order of their units",
}


def peer(name: str) -> Any:
    """A package, or None where it is not installed or does not load."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def searches(x: Tensor, w: Tensor, k: int) -> dict[str, Callable[[], Any]]:
    bmu = ours.library().functional.bmu
    works: dict[str, Callable[[], Any]] = {"ours": lambda: bmu(x, w, k)}
    if faiss := peer("faiss"):
        faiss.omp_set_num_threads(torch.get_num_threads())
        index, samples = faiss.IndexFlatL2(w.shape[1]), x.numpy()
        index.add(w.numpy())
        works["faiss"] = lambda: index.search(samples, k)
    works["torch"] = lambda: torch.cdist(x, w).topk(k, largest=False)
    if k == 1:
        works["torch"] = lambda: torch.cdist(x, w).min(1)
        if (metrics := peer("sklearn.metrics")) is not None:
            a, b = x.numpy(), w.numpy()
            works["scikit-learn"] = lambda: metrics.pairwise_distances_argmin_min(a, b)
    return works


def run(shape: tuple[int, int, int], k: int, target: float, compare: Any) -> None:
    samples, units, features = shape
    torch.manual_seed(sum(shape))
    x = torch.randn(samples, features)
    w = x[torch.randperm(samples)[:units]] + 0.3 * torch.randn(units, features)  # as a map that has learned
    works = searches(x, w, k)
    right = torch.cdist(x[:500].double(), w.double()).topk(k, largest=False).indices.squeeze(1)
    assert torch.equal(works["ours"]()[1][:500], right)
    work = Work(2.0 * samples * units * features, 4.0 * (x.numel() + w.numel()) + 12.0 * k * samples)
    label = "N{} K{} D{}".format(*shape) + (f" k{k}" if k > 1 else "")
    compare("bmu", label, works, grad=False, work=work, target=target, why=WHY)


ROWS = [*((shape, 1) for shape in SEARCHES), ((10000, 400, 64), 2), ((10000, 400, 64), 8)]


@pytest.mark.parametrize(("shape", "k"), ROWS, ids=str)
def test_bmu(shape, k, compare):
    run(shape, k, SEARCHES[shape] if k == 1 else 1.0, compare)


@pytest.mark.parametrize(
    "shape", [(480000, 30, 34), (20000, 12, 64)], ids=lambda shape: "N{}-{}x{}-D{}".format(*shape[:2], *shape[1:])
)
def test_som_epochs(shape, compare):
    """Four epochs and the samples' units at the end, by each package's own `fit` from the same codebook."""
    samples, side, features = shape
    torch.manual_seed(sum(shape))
    x = torch.randn(samples, 6) @ torch.randn(6, features) + 0.1 * torch.randn(samples, features)
    codebook = x[torch.randperm(samples)[: side * side]].clone()
    given, start, sigma = x.numpy(), codebook.numpy(), side / 4
    own = ours.library().SOM(side, side, n_epochs=EPOCHS, sigma=sigma, sigma_end=1.0, init=start)
    works: dict[str, Callable[[], Any]] = {"ours": lambda: own.fit(given)}
    if fastersom := peer("fastersom"):
        other = fastersom.SOM(
            side, side, n_epochs=EPOCHS, sigma_initial=sigma, sigma_final=1.0, init=start, device="cpu"
        )
        works["fastersom"] = lambda: other.fit(given)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that there is no GPU
        xpysom = peer("xpysom")
    if xpysom:

        def train() -> Any:
            with contextlib.redirect_stdout(io.StringIO()):
                som = xpysom.XPySom(side, side, features, sigma=sigma, sigmaN=1.0, xp=np, n_parallel=8192)
                som._weights = start.reshape(side, side, features).copy()
                som.train(given, EPOCHS)
            return som

        works["xpysom"] = train
    work = Work(2.0 * samples * side * side * features * (EPOCHS + 1), 8.0 * x.numel() * EPOCHS)
    label = f"N{samples} {side}x{side} D{features}"
    compare("som-epochs", label, works, grad=False, work=work, target=2.0, why=WHY)
