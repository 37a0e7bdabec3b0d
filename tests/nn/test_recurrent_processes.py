"""The recurrent modules in several processes: DistributedDataParallel, FSDP, DataLoader workers, multiprocessing."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from tests.helpers import python

pytestmark = pytest.mark.usefixtures("cpu_only")
needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo"
)

# Two ranks, spawned by one script; each asserts by itself that the gradients over its half of the batch, averaged,
# are those of one process over the whole batch.
RANKS = """
import os, tempfile
import torch, torch.distributed as dist, torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import pykernels

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = pykernels.LSTM(6, 8, 2, bidirectional=True, peephole=True, dtype=torch.float64)
        self.gru = pykernels.GRU(16, 8, reset_after=False, dtype=torch.float64)
        self.rnn = pykernels.RNN(8, 8, dtype=torch.float64)
        self.jordan = pykernels.JordanRNN(8, 6, 4, dtype=torch.float64)
        self.head = nn.Linear(4, 3, dtype=torch.float64)
    def forward(self, x):
        for layer in (self.lstm, self.gru, self.rnn, self.jordan):
            x = layer(x)[0]
        return self.head(x)

def made():
    torch.manual_seed(3)
    return Model(), torch.randn(5, 8, 6, dtype=torch.float64)

def close(gradient, expected):
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)

def rank(index, place):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://" + place, rank=index, world_size=2)
    model, x = made()
    part = x.chunk(2, 1)[index]
    names = [name for name, _ in model.named_parameters()]
    alone = dict(zip(names, torch.autograd.grad(model(x).square().mean(), list(model.parameters()))))

    wrapped = nn.parallel.DistributedDataParallel(model)
    for _ in range(2):
        wrapped.zero_grad()
        wrapped(part).square().mean().backward()
    for name, parameter in model.named_parameters():
        close(parameter.grad, alone[name])
    torch.optim.SGD(wrapped.parameters(), lr=0.1).step()
    for layer in (model.lstm, model.gru, model.rnn, model.jordan):
        everywhere = [torch.zeros_like(layer.weight_hh_l0) for _ in range(2)]
        dist.all_gather(everywhere, layer.weight_hh_l0.detach())
        assert torch.equal(*everywhere)
    print("replicated", flush=True)

    model, _ = made()
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model.lstm, model.gru, model.rnn, model.jordan):
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
    """DistributedDataParallel, then FSDP (fully_shard), over gloo."""
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    said = python([str(script)], timeout=180).stdout
    assert said.count("replicated") == said.count("sharded") == 2, said


LOADER = """
import torch, pykernels
from torch.utils.data import DataLoader, Dataset

class Features(Dataset):
    # the modules run inside the workers, forward and backward
    def __init__(self):
        self.modules = [kind(16, 64, bidirectional=True) for kind in (pykernels.LSTM, pykernels.GRU, pykernels.RNN)]
        self.data = torch.randn(12, 20, 8, 16)
    def __len__(self):
        return len(self.data)
    def __getitem__(self, index):
        module = self.modules[index % 3]
        module.zero_grad()
        output, _ = module(self.data[index])
        output.square().sum().backward()
        return output.detach(), module.weight_hh_l0.grad.clone()

torch.set_num_threads(2)
features = Features()
expected = [features[i] for i in range(len(features))]       # the parent's threads exist before the fork
if __name__ == "__main__":
    for context in {contexts}:
        loader = DataLoader(features, batch_size=None, num_workers=2, multiprocessing_context=context, timeout=60)
        count = 0
        for (output, gradient), (o, g) in zip(loader, expected):
            assert torch.equal(output, o) and torch.equal(gradient, g)
            count += 1
        assert count == 12
        assert torch.equal(features[0][0], expected[0][0])    # and the parent still works
    print("fine")
"""


def test_dataloader_with_forked_workers():
    assert python(LOADER.format(contexts=("fork",)), timeout=120).stdout.strip() == "fine"


def test_modules_sent_to_a_spawned_process(tmp_path):
    """Through a queue, with their parameters in shared memory: what the child changes is seen here."""
    script = tmp_path / "spawned.py"
    script.write_text(
        """
import torch, pykernels, torch.multiprocessing as mp

def child(modules, x, expected):
    for module, output in zip(modules, expected):
        assert torch.equal(module(x)[0], output)
        with torch.no_grad():
            module.weight_hh_l0.zero_()

if __name__ == "__main__":
    made = [pykernels.LSTM(4, 5, peephole=True), pykernels.GRU(4, 5, reset_after=False),
            pykernels.RNN(4, 5, nonlinearity="relu"), pykernels.JordanRNN(4, 5, 3)]
    modules = [module.share_memory() for module in made]
    x = torch.randn(6, 3, 4)
    expected = [module(x)[0].detach() for module in modules]
    process = mp.get_context("spawn").Process(target=child, args=(modules, x, expected))
    process.start()
    process.join(60)
    assert process.exitcode == 0, process.exitcode
    for module in modules:
        assert not module.weight_hh_l0.any()
        assert not torch.isnan(module(x)[0]).any()
    print("fine")
"""
    )
    assert python([str(script)], timeout=90).stdout.strip() == "fine"


def test_import_in_a_thread_and_twice():
    """The package loads once, also when it is first imported away from the main thread."""
    code = """
import threading
def load():
    import pykernels
    pykernels.LSTM(4, 5)
threads = [threading.Thread(target=load) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
import pykernels, torch
assert pykernels.LSTM(4, 5)(torch.zeros(1, 1, 4))[0].shape == (1, 1, 5)
print("fine")
"""
    assert python(code).stdout.strip() == "fine"
