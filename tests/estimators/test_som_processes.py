"""A map of samples that are spread over processes: each has half of them, and all get the map of one."""

from __future__ import annotations

import pytest

from tests.helpers import python
from tests.nn.test_recurrent_processes import needs_gloo

pytest.importorskip("sklearn")
pytestmark = pytest.mark.usefixtures("cpu_only")

# Two ranks, spawned by one script. What one process learns from all samples is computed before the group is there.
RANKS = """
import itertools, os, tempfile
import numpy as np
import torch, torch.distributed as dist, torch.multiprocessing as mp
from pykernels import SOM

draw = np.random.default_rng(0)
X = (draw.normal(size=(5, 6)) * 3)[draw.integers(0, 5, 300)] + draw.normal(size=(300, 6))
PARTS = [slice(0, 110), slice(110, 300)]
CASES = [dict(topology=t, toroidal=o, neighbourhood=n, metric=m, init=i, random_state=0)
         for (t, o), n, m, i in zip(
             itertools.cycle([("rectangular", False), ("hexagonal", True), ("linear", False)]),
             ["gaussian", "bubble", "mexican_hat", "gaussian", "gaussian", "mexican_hat"],
             ["euclidean", "manhattan", "euclidean", "cosine", "euclidean", "manhattan"],
             ["pca", "pca", "pca", "random", "random", "pca"])]
START = draw.normal(size=(20, 6))

def maps(x):
    made = [SOM(4, 5, n_epochs=6, **case).fit(x) for case in CASES]
    made.append(SOM(4, 5, n_epochs=6, init=START).fit(x))
    made.append(SOM(4, 5, n_epochs=6, init=START, training="minibatch").partial_fit(x).partial_fit(x))
    return made

def gathered(array):
    found = [torch.zeros(array.shape, dtype=torch.float64) for _ in range(2)]
    dist.all_gather(found, torch.from_numpy(array.astype(np.float64)))
    return found

def rank(index, place):
    torch.set_num_threads(1)
    alone = maps(X)
    dist.init_process_group("gloo", init_method="file://" + place, rank=index, world_size=2)
    mine = X[PARTS[index]]
    for one, som in zip(alone, maps(mine)):
        assert torch.equal(*gathered(som.codebook_)), one
        np.testing.assert_allclose(som.codebook_, one.codebook_, rtol=1e-10, atol=1e-10)
        assert np.array_equal(som.predict(mine), one.predict(X)[PARTS[index]])
        if hasattr(one, "labels_"):
            assert np.array_equal(som.labels_, one.labels_[PARTS[index]])
            np.testing.assert_allclose(som.history_, one.history_, rtol=1e-10)
            assert abs(som.quantization_error_ - one.quantization_error_) < 1e-10
            assert abs(som.topographic_error_ - one.topographic_error_) < 1e-12
    print("batches", flush=True)
    for init in ("pca", "random", "sample"):  # each process draws its own numbers
        som = SOM(4, 5, n_epochs=4, training="minibatch", batch_size=64, init=init).fit(mine)
        assert torch.equal(*gathered(som.codebook_)) and np.isfinite(som.codebook_).all()
        assert som.quantization_error_ < 0.7 * np.linalg.norm(X - X.mean(0), axis=1).mean()
    print("small batches", flush=True)
    try:
        SOM(4, 5, training="online").fit(mine)
    except ValueError as error:
        assert 'expected "batch" or "minibatch" where processes share the samples' in str(error)
        print("refused", flush=True)
    # Together and at once: gloo's threads may end the process when a rank takes its groups down before the other.
    dist.barrier()
    os._exit(0)

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank, (os.path.join(folder, "store"),), nprocs=2)
"""


@needs_gloo
def test_two_processes_learn_the_map_of_one(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    said = python([str(script)], timeout=180).stdout
    assert said.count("batches") == 4 and said.count("small batches") == said.count("refused") == 2, said


ALONE = """
import os, sys
import torch, torch.distributed as dist
import numpy as np
from pykernels import SOM
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
x = np.random.default_rng(0).normal(size=(100, 3))
som = SOM(3, 3, n_epochs=2, training="online").fit(x)
assert som.codebook_.shape == (3, 3, 3)
print("fine", flush=True)
os._exit(0)
"""


@needs_gloo
def test_a_group_of_one_process_shares_nothing(tmp_path):
    script = tmp_path / "alone.py"
    script.write_text(ALONE)
    assert python([str(script), str(tmp_path / "store")]).stdout.strip() == "fine"
