"""Attention of cuda/, glue and kernels unchanged, executed on the processor: values and gradients against the twin."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import FLAG, SEED, assert_same_bits, drawn

from .attentions import GRADIENTS, MASKS, Call, assert_right, run, truth, weights_and_truth

FEATURES = {
    "batch": (1, 2),
    "groups": (1, 2),
    "heads_of_group": (1, 3),
    "mask": ["", *MASKS],
    "lengths": FLAG,
    "left": [-1, -1, 0, 3, 70],
    "right": [-1, -1, 0, 2, 40],
    "bottom_right": FLAG,
    "softcap": [0.0, 0.0, 2.5],
    "dropout": [0.0, 0.0, 0.3],
    "scale": [None, 0.5, -0.25],
    "rows_first": FLAG,
    "seed": SEED,
}
SMALL = {"rows": (0, 20), "keys": (0, 20), "depth": (1, 40), "value_depth": (1, 40)}
LARGE = {"rows": (50, 150), "keys": (50, 150), "depth": (1, 70), "value_depth": (1, 70)}
LOW = [torch.bfloat16, torch.float16]


def check(device, call: Call, dtype: torch.dtype) -> None:
    device.configure(call.seed)
    assert_right(run(device, call, dtype), truth(call, dtype), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *LOW], ids=str)
@drawn(24, of=Call, **(FEATURES | SMALL))
def test_equals_the_twin(device, dtype, case):
    check(device, case, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, *LOW], ids=str)
@drawn(6, of=Call, **(FEATURES | LARGE | {"groups": (1, 1), "heads_of_group": (1, 2)}))
def test_equals_the_twin_over_several_tiles(device, dtype, case):
    check(device, case, dtype)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize(
    "call",
    [
        Call(1, 1, 2, 70, 140, 24, 32, right=0, bottom_right=True),
        Call(1, 1, 1, 140, 70, 40, 64, mask="float", dropout=0.2),
        Call(1, 1, 1, 70, 70, 70, 128, left=20, right=3),
        Call(1, 1, 1, 70, 70, 128, 70, mask="bool", softcap=3.0, dropout=0.2),
        Call(1, 1, 1, 40, 100, 256, 130, right=0, dropout=0.2),
        Call(1, 1, 1, 70, 40, 130, 256, mask="one float for all rows"),
        Call(1, 2, 1, 20, 70, 264, 8, right=0, dropout=0.2),
    ],
    ids=lambda call: f"{call.depth}-{call.value_depth}",
)
def test_every_head_size(device, dtype, call):
    """Of each size of tile; the bits are the same for every order of threads."""
    expected, first = truth(call, dtype), None
    for seed in range(2):
        device.configure(seed)
        results = run(device, call, dtype)
        first = first or results
        assert_same_bits(results, first)
    assert_right(first, expected, dtype)


def test_too_little_shared_memory(device):
    """On a device whose blocks have less, the kernels that need no tiles run."""
    call = Call(1, 1, 2, 20, 30, 100, 100, mask="float", right=0)
    device.configure(0, shared_limit=32 * 1024)
    assert_right(run(device, call, torch.bfloat16), truth(call, torch.bfloat16), torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_not_a_number_in_a_query_stays_in_its_row(device, dtype):
    call = Call(1, 1, 2, 70, 70, 24, 24)
    device.configure(0)
    tensors = call.tensors(dtype)
    clean = run(device, call, dtype, tensors)
    tensors["query"][0, 0, 3, 5] = torch.nan
    found = run(device, call, dtype, tensors)
    for name in ("out", "lse", "grad query"):
        there = found[name].isnan()
        assert there[0, 0, 3].all() and int(there.sum()) == there[0, 0, 3].numel(), name
        assert torch.equal(torch.where(there, 0, found[name]), torch.where(there, 0, clean[name])), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_nobody_sees_is_not_read(device, dtype):
    """Beyond the lengths, and blocks of keys outside every window."""
    call = Call(1, 1, 1, 140, 200, 24, 24, lengths=True, left=10, right=0)
    tensors = call.tensors(dtype)
    tensors["row_lengths"][:], tensors["key_lengths"][:] = 100, 160
    device.configure(0)
    clean = run(device, call, dtype, tensors)
    tensors["query"][:, :, 100:] = torch.nan
    for name in ("key", "value"):
        tensors[name][:, :, 160:] = torch.nan
        tensors[name][:, :, 128:] = torch.nan  # the last row sees key 99
    assert_same_bits(run(device, call, dtype, tensors), clean)
    assert not clean["out"][:, :, 100:].any() and (clean["lse"][:, :, 100:] == -torch.inf).all()
    for name, seen in (("grad query", 100), ("grad key", 100), ("grad value", 100)):
        assert not clean[name][:, :, seen:].any(), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_row_that_sees_nothing(device, dtype):
    call = Call(1, 1, 1, 6, 70, 8, 8, mask="bool")
    tensors = call.tensors(dtype)
    tensors["mask"][0, 0, 2] = False
    tensors["value"][0, 0, 5] = torch.inf  # zero times infinity is not a number
    device.configure(0)
    out, lse = device.kernels.attention_forward(*tensors.values(), *call.numbers())
    assert not out[0, 0, 2].any() and lse[0, 0, 2] == -torch.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mask", ["", "one float for all rows"])
def test_what_is_not_needed_is_empty(device, dtype, mask):
    call = Call(rows=9, keys=70, mask=mask, right=0)
    given = call.tensors(dtype).values()
    device.configure(0)
    whole = run(device, call, dtype)
    results = [whole["out"], whole["lse"]]
    for wanted, name in enumerate(GRADIENTS):
        need = [i == wanted for i in range(4)]
        grads = device.kernels.attention_backward(*call.weightings(dtype), *given, *results, *call.numbers(), *need)
        for i, grad in enumerate(grads):
            assert grad.dtype == dtype
            assert torch.equal(grad, whole[name] if i == wanted and name in whole else torch.empty(0, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_strides_are_free_and_absent_gradients_are_zeros(device, dtype):
    call = Call(rows=9, keys=70, depth=24, value_depth=16, mask="float", heads_of_group=2)
    tensors = call.tensors(dtype)
    device.configure(0)
    dense = run(device, call, dtype, tensors)

    def spread(tensor, last):
        """With not-a-numbers between the values, or, of the rows, one in front: nothing is aligned."""
        if last:
            return torch.stack([tensor, tensor * torch.nan], -1)[..., 0]
        return torch.cat([tensor[..., :1] * torch.nan, tensor], -1)[..., 1:]

    for last in FLAG:
        changed = {n: t if t is None or n == "seed" else spread(t, last) for n, t in tensors.items()}
        assert_same_bits(run(device, call, dtype, changed), dense)

    ones, zeros = torch.ones((), dtype=dtype).expand(dense["out"].shape), torch.zeros_like(dense["out"])
    some, none = torch.ones_like(dense["lse"]), torch.zeros_like(dense["lse"])
    saved = [*tensors.values(), dense["out"], dense["lse"], *call.numbers(), True, True, True, True]
    for absent, present in (((ones, None), (ones.contiguous(), none)), ((None, some), (zeros, some))):
        pairs = zip(*(device.kernels.attention_backward(*g, *saved) for g in (absent, present)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_a_mask_of_fewer_dimensions(device, dimensions):
    call = Call(1, 2, 1, 9, 70, mask="float")
    tensors = call.tensors(torch.bfloat16)
    tensors["mask"] = tensors["mask"][(0,) * (4 - dimensions)]
    device.configure(0)
    assert_right(run(device, call, torch.bfloat16, tensors), truth(call, torch.bfloat16, tensors), torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("empty", ["batch", "groups", "rows", "keys", "depth", "value_depth"])
def test_empty(device, dtype, empty):
    call = Call(**{"mask": "one float for all rows", empty: 0})
    device.configure(0)
    assert_right(run(device, call, dtype), truth(call, dtype), dtype)


def check_weights(device, call: Call, dtype: torch.dtype, average: bool, seed: int = 0) -> dict[str, torch.Tensor]:
    device.configure(seed)
    found, right = weights_and_truth(device, call, dtype, average)
    assert_right(found, right, dtype)
    return found


@pytest.mark.parametrize("average", FLAG, ids=["heads", "average"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *LOW], ids=str)
@drawn(12, of=Call, **(FEATURES | SMALL))
def test_weights_equal_their_equations(device, dtype, average, case):
    check_weights(device, case, dtype, average, case.seed)


@pytest.mark.parametrize("average", FLAG, ids=["heads", "average"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@drawn(3, of=Call, **(FEATURES | LARGE | {"groups": (1, 1), "heads_of_group": (1, 2)}))
def test_weights_over_several_tiles(device, dtype, average, case):
    """The bits are the same for every order of threads."""
    assert_same_bits(*(check_weights(device, case, dtype, average, seed) for seed in range(2)))


@pytest.mark.parametrize("average", FLAG, ids=["heads", "average"])
@pytest.mark.parametrize("empty", ["batch", "groups", "rows", "keys", "depth"])
def test_weights_of_nothing(device, average, empty):
    found = check_weights(device, Call(**{"mask": "one float for all rows", empty: 0}), torch.bfloat16, average)
    assert empty == "depth" or not found["weights"].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_of_what_is_not_seen_are_zeros(device, dtype):
    """Whatever lies there: beyond the lengths, and in a row that sees nothing."""
    call = Call(1, 1, 2, 70, 140, 24, 24, mask="bool", lengths=True, right=0)
    tensors = call.tensors(dtype)
    tensors["row_lengths"][:], tensors["key_lengths"][:], tensors["mask"][0, :, 3] = 40, 50, False
    tensors["query"][:, :, 40:], tensors["key"][:, :, 50:], tensors["value"][:, :, 50:] = [torch.nan] * 3
    device.configure(0)
    found, _ = weights_and_truth(device, call, dtype, False, tensors)
    seen = torch.ones(70, 140, dtype=torch.bool).tril() & tensors["mask"][0]
    seen[:, 40:], seen[:, :, 50:] = False, False
    assert torch.equal(found["weights"][0] != 0, seen)
