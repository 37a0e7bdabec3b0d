"""functional.random_mask is its twin bit for bit; statistics, errors, transforms and tracing."""

from __future__ import annotations

import concurrent.futures
import dataclasses

import pytest
import torch
from torch.func import vmap

from pykernels import functional, reference
from tests.helpers import FLAG, LOW, SEED, drawn

DTYPES = [torch.float64, torch.float32, *LOW]
TINY = 2.0**-31  # two of 2^32 numbers
SIZES = [(), (0,), (1,), (2,), (3,), (4,), (5,), (7, 9), (3, 0, 2), (2, 3, 5, 7), (1, 1, 129), (4097,)]


@dataclasses.dataclass(frozen=True)
class Mask:
    """The arguments of one mask."""

    size: tuple[int, ...] = (7,)
    p: float = 0.5
    value: float = 1.0
    dtype: torch.dtype = torch.float32
    as_bytes: bool = False
    stream: int = 0
    seed: int = 0

    def of(self, where, device="cpu") -> torch.Tensor:
        like = torch.empty(1, dtype=self.dtype, device=device)
        number = torch.tensor([self.seed * 0x9E3779B97F4A7C15 % 2**63])
        return where.random_mask(like, number, self.stream, self.size, self.p, self.value, self.as_bytes)


# -- the bits of the twin ---------------------------------------------------------------------------------------------
@pytest.mark.isa
@drawn(80, of=Mask, size=SIZES, p=[0.0, TINY, 0.3, 0.5, 1 - 2**-33, 1.0], value=[1.0, 1 / 0.7, 0.0, -2.5],
       dtype=DTYPES, as_bytes=FLAG, stream=[0, 1, 3, 2**32 - 1], seed=SEED)  # fmt: skip
def test_equals_the_twin(device, case):
    if case.as_bytes:
        case = dataclasses.replace(case, value=1.0)
    found, expected = case.of(functional, device), case.of(reference, device)
    assert found.shape == expected.shape and found.dtype == expected.dtype and found.is_contiguous()
    assert torch.equal(found, expected)


@pytest.mark.isa
@pytest.mark.parametrize("size", [*range(1, 70), 8191, 8192, 8193, 100_003], ids=str)
def test_every_tail_of_a_vector(device, size):
    case = Mask((size,), dtype=torch.float64, seed=size)
    assert torch.equal(case.of(functional, device), case.of(reference, device))


@pytest.mark.parametrize("p", [0.0, TINY, 0.5, 1 - 1 / 2**32, 1.0])
def test_large_masks_and_their_threads(threads, p):
    """The same bits for any number of threads; and the rare of a tiny probability are found."""
    case, found = Mask((3, 700_001), p, seed=11), []
    for count in (1, 2, 3, 7):
        threads(count)
        found.append(case.of(functional))
    assert all(torch.equal(mask, found[0]) for mask in found[1:])
    assert torch.equal(found[0], case.of(reference))


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 2**32, 0x0123456789ABCDEF])
def test_any_seed(device, seed):
    """All 64 bits of it count, negative ones too; it may be one number in any shape."""
    like, number = torch.empty(0, device=device), torch.tensor(seed)
    found = functional.random_mask(like, number, 0, (50,), 0.5)
    assert torch.equal(found, reference.random_mask(like, number, 0, (50,), 0.5))
    assert torch.equal(found, functional.random_mask(like, number.reshape(1, 1), 0, (50,), 0.5))
    for bit in (0, 31, 32, 63):
        other = number ^ torch.tensor(1 << bit if bit < 63 else -(2**63))
        assert not torch.equal(found, functional.random_mask(like, other, 0, (50,), 0.5))


def test_the_known_answer(device):
    """Key 0 and counter 0 of Random123: the numbers are where an element begins to be chosen."""
    like, seed = torch.empty(0, device=device), torch.tensor([0])
    for place, number in enumerate((0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)):
        for p, chosen in (
            (number / 2**32, 0),
            ((number + 0.25) / 2**32, 0),
            ((number + 0.5) / 2**32, 1),
            ((number + 1) / 2**32, 1),
        ):
            assert functional.random_mask(like, seed, 0, (4,), p)[place] == chosen


def test_the_example_of_the_docstring(device):
    found = functional.random_mask(torch.empty(0, device=device), torch.tensor([7]), 0, (2, 4), 0.5)
    assert found.tolist() == [[0, 1, 0, 0], [1, 1, 1, 0]]


# -- statistics -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("p", [0.01, 0.25, 0.5, 0.9])
def test_as_many_as_the_probability_says(device, p):
    count = 1_000_000
    for seed in range(3):
        found = Mask((count,), p, stream=seed, seed=seed).of(functional, device).double().sum().item()
        assert abs(found - p * count) < 5 * (p * (1 - p) * count) ** 0.5


def test_streams_seeds_and_places_are_independent(device):
    """Masks of neighbouring seeds and streams, and a mask and itself moved, agree as often as coins do."""
    count = 100_000
    masks = [Mask((count,), stream=stream, seed=seed).of(functional, device) for seed in (1, 2) for stream in (0, 1, 2)]
    masks += [masks[0].roll(shift) for shift in (1, 2, 4, 64, count // 4, count // 2)]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert abs((one == other).double().mean().item() - 0.5) < 5 * 0.5 / count**0.5


def test_it_uses_no_other_generator(device):
    before = torch.get_rng_state()
    Mask((100,)).of(functional, device)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_larger_probability_only_adds(device):
    masks = [Mask((1001,), p, seed=5).of(functional, device) for p in (0.1, 0.4, 0.8)]
    assert (masks[0] <= masks[1]).all() and (masks[1] <= masks[2]).all()


def test_of_like_only_dtype_and_device_count(device):
    like = torch.full((3, 4), float("nan"), device=device).t()[::2].requires_grad_()
    seed = torch.tensor([9])
    found = functional.random_mask(like, seed, 0, (5, 3), 0.5)
    assert torch.equal(found, functional.random_mask(torch.empty(0, device=device), seed, 0, (5, 3), 0.5))
    assert not found.requires_grad and found.is_contiguous()


def test_from_many_python_threads(cpu_only):
    cases = [Mask((30_001,), seed=seed) for seed in range(8)]
    expected = [case.of(reference) for case in cases]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for found, its in zip(pool.map(lambda case: case.of(functional), cases * 4), expected * 4, strict=True):
            assert torch.equal(found, its)


# -- errors -----------------------------------------------------------------------------------------------------------
GOOD = {"like": torch.empty(0), "seed": torch.tensor([1]), "stream": 0, "size": (4,), "p": 0.5}
BAD = {
    "seed_of_int32": ({"seed": torch.tensor([1], dtype=torch.int32)}, "seed as one int64 on the CPU, got 1 of Int"),
    "seed_of_float": ({"seed": torch.tensor([1.0])}, "seed as one int64 on the CPU"),
    "two_seeds": ({"seed": torch.tensor([1, 2])}, "seed as one int64 on the CPU, got 2"),
    "no_seed": ({"seed": torch.empty(0, dtype=torch.int64)}, "seed as one int64 on the CPU, got 0"),
    "p_negative": ({"p": -0.1}, "a probability p, got -0.1"),
    "p_above_one": ({"p": 1.0001}, "a probability p, got 1.0001"),
    "p_nan": ({"p": float("nan")}, "a probability p, got nan"),
    "stream_negative": ({"stream": -1}, "stream to fit 32 bits, got -1"),
    "stream_too_large": ({"stream": 2**32}, "stream to fit 32 bits, got 4294967296"),
    "like_of_integers": ({"like": torch.empty(0, dtype=torch.int64)}, "like"),
    "like_of_bools": ({"like": torch.empty(0, dtype=torch.bool)}, "like"),
    "like_of_complex": ({"like": torch.empty(0, dtype=torch.complex64)}, "like"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(cpu_only, name):
    change, text = BAD[name]
    with pytest.raises(RuntimeError, match=rf"^\[random_mask\] expected .*{text}"):
        functional.random_mask(**{**GOOD, **change})


def test_a_negative_size(cpu_only):
    with pytest.raises(RuntimeError, match="negative dimension"):
        functional.random_mask(**{**GOOD, "size": (2, -1)})


# -- transforms and tracing -------------------------------------------------------------------------------------------
def test_vmap_gives_every_example_one_mask_or_its_own(device):
    """One for all where only `like` is batched; where each has a seed, those of a loop."""
    likes = torch.empty(3, 4, 2, dtype=torch.float64, device=device)
    seeds = torch.tensor([[3], [4], [5]])
    alone = [functional.random_mask(likes[0], seed, 2, (5,), 0.5, 2.0) for seed in seeds]

    def masked(like, seed):
        return functional.random_mask(like, seed, 2, (5,), 0.5, 2.0)

    shared = vmap(masked, in_dims=(0, None))(likes, seeds[0])
    assert torch.equal(shared, alone[0].expand(3, 5))
    assert torch.equal(vmap(masked, in_dims=(2, None))(likes, seeds[0]), alone[0].expand(2, 5))
    assert torch.equal(vmap(masked, in_dims=(None, 0))(likes, seeds), torch.stack(alone))
    assert torch.equal(vmap(masked, in_dims=(0, 1))(likes, seeds.t()), torch.stack(alone))
    twice = vmap(vmap(masked, in_dims=(0, None)), in_dims=(None, 0))(likes, seeds)
    assert torch.equal(twice, torch.stack(alone)[:, None].expand(3, 3, 5))


@pytest.mark.parametrize("as_bytes", FLAG)
def test_opcheck(device, as_bytes):
    like = torch.empty(2, device=device, requires_grad=True)
    arguments = (like.detach(), torch.tensor([3]), 1, (3, 5), 0.5, 2.0, as_bytes)
    torch.library.opcheck(torch.ops.pykernels.random_mask.default, arguments)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(cpu_only, backend):
    torch._dynamo.reset()

    def masked(x, seed):
        return x * functional.random_mask(x, seed, 1, x.shape, 0.5, 2.0)

    fast = torch.compile(masked, backend=backend, fullgraph=True, dynamic=True)
    for shape in ((3, 4), (5, 7)):
        x = torch.randn(shape, requires_grad=True)
        seed = torch.tensor([shape[0]])
        assert torch.equal(fast(x, seed), masked(x, seed))
        (gradient,) = torch.autograd.grad(fast(x, seed).sum(), x)
        assert torch.equal(gradient, functional.random_mask(x, seed, 1, shape, 0.5, 2.0))
    torch._dynamo.reset()


def test_fake_and_meta_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        for as_bytes in FLAG:
            like = torch.empty(2, dtype=torch.bfloat16)
            found = functional.random_mask(like, torch.empty(1, dtype=torch.int64), 0, (3, 4), 0.5, as_bytes=as_bytes)
            assert found.shape == (3, 4) and found.dtype == (torch.uint8 if as_bytes else torch.bfloat16)
    found = functional.random_mask(torch.empty(2, device="meta"), torch.tensor([1]), 0, (3, 4), 0.5)
    assert found.device.type == "meta" and found.shape == (3, 4)
