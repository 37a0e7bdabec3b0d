"""What the tests of torch.compile share."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend


@pytest.fixture(autouse=True)
def forget_what_was_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function, backend: str = "aot_eager", dynamic: bool | None = None):
    """The function compiled in one graph, and the counter of its compilations."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(function, backend=counter, fullgraph=True, dynamic=dynamic), counter


def flat(results) -> dict[str, torch.Tensor]:
    return {str(i): t for i, t in enumerate(torch.utils._pytree.tree_leaves(results)) if t.is_floating_point()}
