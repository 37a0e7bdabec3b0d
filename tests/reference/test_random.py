"""The reference twin of random_mask against Philox4x32-10 in whole numbers, and both against known answers."""

from __future__ import annotations

import math

import pytest
import torch

from pykernels import reference
from pykernels.reference.random import philox as twin_philox

ONES = 0xFFFFFFFF
KNOWN = {  # counter, key: four numbers (Random123 1.14, tests/kat_vectors)
    ((0,) * 4, (0,) * 2): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ((ONES,) * 4, (ONES,) * 2): (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)): (
        0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1,
    ),
}  # fmt: skip
LIKE = torch.empty(0)


def philox(counter, key):
    """Salmon et al. 2011, section 3.3, in Python's whole numbers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & ONES, (a >> 32) ^ c3 ^ k1, a & ONES
        k0, k1 = (k0 + 0x9E3779B9) & ONES, (k1 + 0xBB67AE85) & ONES
    return c0, c1, c2, c3


def numbers_of(count: int, seed: int, stream: int) -> list[int]:
    """The random number of each element."""
    quarter = math.ceil(count / 4)
    key = seed & ONES, seed >> 32 & ONES
    fours = [philox((i & ONES, i >> 32, stream, 0), key) for i in range(quarter)]
    return [four[place] for place in range(4) for four in fours][:count]


@pytest.mark.parametrize("counter, key", KNOWN)
def test_known_answers(counter, key):
    assert philox(counter, key) == KNOWN[counter, key]
    found = twin_philox(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(number) for number in found) == KNOWN[counter, key]


@pytest.mark.parametrize("place", range(4))
def test_a_known_answer_through_the_mask(place):
    """The number of an element is found by the probability from which on it is chosen."""
    number = KNOWN[(0,) * 4, (0,) * 2][place]
    for p, chosen in (
        (number / 2**32, 0),
        ((number + 0.25) / 2**32, 0),
        ((number + 0.5) / 2**32, 1),
        ((number + 1) / 2**32, 1),
    ):
        mask = reference.random_mask(LIKE, torch.tensor([0]), 0, (4,), p)
        assert mask[place] == chosen


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**63 - 2, -1, -(2**63), 0x0123456789ABCDEF])
@pytest.mark.parametrize("stream", [0, 3, ONES])
@pytest.mark.parametrize("count", [1, 4, 7, 33])
def test_equals_the_whole_numbers(count, stream, seed):
    expected = [float(number < 0.37 * 2**32) for number in numbers_of(count, seed, stream)]
    assert reference.random_mask(LIKE, torch.tensor([seed]), stream, (count,), 0.37).tolist() == expected


@pytest.mark.parametrize("size", [(), (0,), (3, 0, 2), (5,), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_form(dtype, size):
    """Shape and dtype are those asked for, rows count one after another, and the chosen have the value."""
    seed, like = torch.tensor(7), torch.empty(2, dtype=dtype)
    mask = reference.random_mask(like, seed, 1, size, 0.5, 1.5)
    assert mask.shape == size and mask.dtype == dtype
    assert set(mask.flatten().tolist()) <= {0.0, 1.5}
    assert torch.equal(mask.flatten(), reference.random_mask(like, seed, 1, (math.prod(size),), 0.5, 1.5))
    as_bytes = reference.random_mask(like, seed, 1, size, 0.5, as_bytes=True)
    assert as_bytes.dtype == torch.uint8 and torch.equal(as_bytes != 0, mask != 0)


def test_the_ends_of_the_probability():
    seed = torch.tensor(3)
    assert not reference.random_mask(LIKE, seed, 0, (1000,), 0.0).any()
    assert reference.random_mask(LIKE, seed, 0, (1000,), 1.0).all()
