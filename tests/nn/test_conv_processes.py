"""The convolutions in several processes: DistributedDataParallel and FSDP."""

from __future__ import annotations

import pytest

from tests.helpers import python

from .test_recurrent_processes import needs_gloo

pytestmark = pytest.mark.usefixtures("cpu_only")

# Two ranks; each asserts by itself that the gradients over its half of the batch, averaged, are those of one process
# over the whole batch.
RANKS = """
import os, tempfile
import torch, torch.distributed as dist, torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import pykernels

def made():
    torch.manual_seed(3)
    model = nn.Sequential(pykernels.Conv2d(3, 8, 3, stride=2, padding=1, activation="relu"),
                          pykernels.Conv2d(8, 8, 3, padding=1, groups=8), pykernels.Conv2d(8, 4, 1, bias=False))
    return model.double(), torch.randn(8, 3, 9, 9, dtype=torch.float64)

def close(gradient, expected):
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)

def rank(index, place):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://" + place, rank=index, world_size=2)
    model, x = made()
    part = x.chunk(2)[index]
    names = [name for name, _ in model.named_parameters()]
    alone = dict(zip(names, torch.autograd.grad(model(x).square().mean(), list(model.parameters()))))
    wrapped = nn.parallel.DistributedDataParallel(model)
    for _ in range(2):
        wrapped.zero_grad()
        wrapped(part).square().mean().backward()
    for name, parameter in model.named_parameters():
        close(parameter.grad, alone[name])
    print("replicated", flush=True)
    model, _ = made()
    mesh = init_device_mesh("cpu", (2,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model(part).square().mean().backward()
    for name, parameter in model.named_parameters():
        close(parameter.grad.full_tensor(), alone[name])
    print("sharded", flush=True)
    # Together and at once: gloo's threads may end the process when a rank takes its groups down before the other.
    dist.barrier()
    os._exit(0)

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank, (os.path.join(folder, "store"),), nprocs=2)
"""


@needs_gloo
def test_distributed_gradients_are_those_of_the_whole_batch(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    said = python([str(script)], timeout=180).stdout
    assert said.count("replicated") == said.count("sharded") == 2, said
