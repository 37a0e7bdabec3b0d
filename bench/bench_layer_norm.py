"""Rows of layer norm with a residual against torch's sum and layer norm."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import ours
from bench.layers import backward_of, check_same
from bench.limits import Work

ROWS = [(512, 64), (2048, 512), (1000, 768), (8192, 1024)]
WHY = {
    "layer-norm": "a call's own cost where the rows are few; memory where they are many",
    "layer-norm-training": "the same; the gradients of weight and bias are summed in runs of 64 rows",
}

rows = pytest.mark.parametrize("shape", ROWS, ids=lambda shape: "N{}-D{}".format(*shape))


def norms(shape: tuple[int, int], grad: bool) -> tuple[list[Tensor], dict[str, Callable[[], Tensor]]]:
    torch.manual_seed(sum(shape))
    x, r = (torch.randn(shape, requires_grad=grad) for _ in range(2))
    w, b = (torch.randn(shape[1], requires_grad=grad) for _ in range(2))
    norm = ours.library().functional.layer_norm
    works = {
        "ours": lambda: norm(x, shape[1:], w, b, residual=r),
        "torch": lambda: F.layer_norm(x + r, shape[1:], w, b),
    }
    check_same(works["ours"](), works["torch"]())
    return [x, r, w, b], works


@rows
def test_layer_norm(shape, compare):
    given, works = norms(shape, False)
    work = Work(0.0, 4.0 * given[0].nbytes)
    compare("layer-norm", "N{} D{}".format(*shape), works, grad=False, work=work, target=1.0, why=WHY)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@rows
def test_layer_norm_training(shape, dropout, compare):
    (x, r, w, b), works = norms(shape, True)
    if dropout:
        norm = ours.library().functional.layer_norm
        works = {
            "ours": lambda: norm(x, shape[1:], w, b, residual=r, dropout_p=dropout),
            "torch": lambda: F.layer_norm(F.dropout(x, dropout) + r, shape[1:], w, b),
        }
    grad = torch.randn(shape)
    steps = {name: backward_of(call, (x, r, w, b), grad) for name, call in works.items()}
    label = "N{} D{}".format(*shape) + (" dropout" if dropout else "")
    work = Work(0.0, (8.0 if dropout else 7.0) * x.nbytes)
    compare("layer-norm-training", label, steps, grad=True, work=work, target=1.0, why=WHY)
