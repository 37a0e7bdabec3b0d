"""The restricted Boltzmann machine's functions against their twins: means and draws, free energy, derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, vmap

from pykernels import functional, reference
from pykernels.reference.rbm import sample_operator, uniforms
from tests.helpers import FLAG, LOW, assert_no_worse, assert_same_bits, drawn, outcome, with_gradients

from .rbm_cases import LAYERS, UNITS, Layer, Machine, run

sample_op = torch.ops.pykernels.rbm_sample.default
DTYPES = [torch.float64, torch.float32, *LOW]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
wide = pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)


# -- values -----------------------------------------------------------------------------------------------------------
@pytest.mark.isa
@every_dtype
@drawn(120, of=Layer, **LAYERS)
def test_against_the_twin(device, dtype, case):
    """Means and gradients are as exact as the twin's; draws differ only where rounding of the mean decides."""
    found, samples = {}, {}
    for name, where, as_dtype in (("ours", functional, dtype), ("peer", reference, dtype), ("truth", reference, None)):
        tensors = case.tensors(dtype, device)
        if as_dtype is None:
            tensors = {n: t.detach().double().requires_grad_() for n, t in tensors.items()}
        mean, samples[name] = run(where, case, tensors)
        assert not samples[name].requires_grad
        found[name] = with_gradients({"mean": mean}, tensors)
    assert_no_worse(found["ours"], found["peer"], found["truth"], floor=16)
    assert found["ours"]["mean"].dtype == samples["ours"].dtype == dtype
    only_mean = functional.rbm_mean(*(case.tensors(dtype, device).get(n) for n in ("input", "weight", "bias")),
                                    **case.options)  # fmt: skip
    assert torch.equal(only_mean, found["ours"]["mean"])
    ours, truth, mean = samples["ours"].double(), samples["truth"], found["truth"]["mean"].detach()
    if case.units == "bernoulli":
        rows = mean.shape[:-1].numel()
        seed = torch.tensor([case.draws["seed"]])
        u = uniforms(seed, case.stream, rows, case.outputs, device=mean.device).reshape(mean.shape)
        clear = (u - mean).abs() > 1e-5 if dtype != torch.float64 else u != mean
        assert torch.equal(ours[clear], truth[clear]) and ((ours == 0) | (ours == 1)).all()
    elif ours.numel():
        allowed = 64 * torch.finfo(dtype).eps * float(truth.abs().max() + 1)
        assert (ours - truth).abs().max() <= allowed


@pytest.mark.isa
@wide
@pytest.mark.parametrize("size", [*range(1, 35), 47, 48, 49, 95, 96, 97, 127, 129])
def test_every_tail(device, dtype, size):
    """Of rows, inputs and outputs."""
    for sizes in ((size, 3, 5), (3, size, 5), (3, 5, size), (7, size, size)):
        for units in UNITS:
            case = Layer((sizes[0],), *sizes[1:], units=units, seed=size)
            mean, sample = run(functional, case, case.tensors(dtype, device))
            true_mean, true_sample = run(reference, case, case.tensors(torch.float64, device))
            tolerance = 1e-12 if dtype == torch.float64 else 2e-5
            torch.testing.assert_close(mean.double(), true_mean, rtol=tolerance, atol=tolerance)
            if units == "gaussian":
                torch.testing.assert_close(sample.double(), true_sample, rtol=tolerance, atol=tolerance)


@pytest.mark.isa
@every_dtype
@pytest.mark.parametrize("units", UNITS)
def test_same_bits_for_any_number_of_threads(threads, dtype, units):
    for rows, inputs, outputs in ((10, 64, 256), (3, 300, 1000), (500, 70, 190)):
        case = Layer((rows,), inputs, outputs, units=units, seed=rows)
        found = []
        for count in (1, 2, 3):
            threads(count)
            with torch.no_grad():
                mean, sample = run(functional, case, case.tensors(dtype))
            found.append({"mean": mean, "sample": sample})
        assert_same_bits(found[1], found[0])
        assert_same_bits(found[2], found[0])


@every_dtype
def test_rows_do_not_depend_on_each_other(device, dtype):
    """A row's draw is that of its number, however many there are."""
    case = Layer((60,), 20, 70, seed=3)
    tensors = {n: t.detach() for n, t in case.tensors(dtype, device).items()}
    mean, sample = run(functional, case, tensors)
    few_mean, few = run(functional, case, {**tensors, "input": tensors["input"][:7]})
    assert torch.equal(mean[:7], few_mean) and torch.equal(sample[:7], few)


def test_what_is_no_number_stays_in_its_row(device):
    for dtype in DTYPES:
        for units in UNITS:
            case = Layer((4,), units=units)
            tensors = {n: t.detach() for n, t in case.tensors(dtype, device).items()}
            tensors["input"][2, 3] = math.nan
            for found in run(functional, case, tensors):
                assert found[2].isnan().all() and not found[[0, 1, 3]].isnan().any()


def test_certain_units_are_never_wrong(device):
    given = torch.tensor([[1e4, -1e4]], device=device).t()
    mean, sample = functional.rbm_sample(given, torch.ones(1000, 1, device=device), seed=0)
    assert (mean[0] == 1).all() and (sample[0] == 1).all() and (mean[1] == 0).all() and (sample[1] == 0).all()


def test_seeds_are_drawn_from_torchs_generator(device):
    x, w = torch.rand(5, 3, device=device), torch.randn(40, 3, device=device)
    found = []
    for _ in range(2):
        torch.manual_seed(7)
        found.append([functional.rbm_sample(x, w)[1] for _ in range(2)])
    assert torch.equal(found[0][0], found[1][0]) and not torch.equal(found[0][0], found[0][1])
    as_tensor = functional.rbm_sample(x, w, seed=torch.tensor(5))[1]
    assert torch.equal(as_tensor, functional.rbm_sample(x, w, seed=5)[1])


# -- free energy ------------------------------------------------------------------------------------------------------
@wide
@pytest.mark.parametrize("units", UNITS)
def test_free_energy(device, dtype, units):
    case = Machine(hidden=30)
    tensors = list(case.tensors(dtype, device).values())
    found, expected = (w.rbm_free_energy(*tensors, units=units, temperature=0.7) for w in (functional, reference))
    torch.testing.assert_close(found, expected)


def test_statistics_are_the_gradient_of_free_energies(device):
    """<.>0 of the data is the gradient of -F there (at T = 1)."""
    case = Machine(rows=6)
    data, *leaves = (t.requires_grad_() for t in case.tensors(device=device).values())
    found = torch.autograd.grad(-functional.rbm_free_energy(data.detach(), *leaves).mean(), leaves)
    hidden = functional.rbm_mean(data, leaves[0], leaves[2])
    for ours, expected in zip(found, (hidden.t() @ data / 6, data.mean(0), hidden.mean(0)), strict=True):
        torch.testing.assert_close(ours, expected)


# -- derivatives, transforms, tracing ---------------------------------------------------------------------------------
@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("transposed", FLAG)
def test_derivatives(device, units, transposed):
    case = Layer((2, 3), 4, 5, units, transposed, temperature=1.3)
    tensors = tuple(case.tensors(device=device).values())

    def mean(*leaves):
        return functional.rbm_sample(*leaves, **case.options, seed=3)[0]

    options = {"check_forward_ad": True, "check_batched_grad": True}
    assert gradcheck(mean, tensors, check_batched_forward_grad=True, **options)
    assert gradgradcheck(lambda *t: mean(*t).sin(), tensors, check_fwd_over_rev=True, check_batched_grad=True)
    x, *rest = (t.detach() for t in tensors)
    found = []
    for where in (functional, reference):

        def scalar(t, where=where):
            return where.rbm_mean(t, *rest, **case.options).sin().sum()

        found.append([hessian(scalar)(x), vmap(grad(scalar), 1, 1)(torch.stack([x, 2 * x], 1))])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


# -- errors -----------------------------------------------------------------------------------------------------------
X, WEIGHT, BIAS = torch.rand(3, 4), torch.randn(5, 4), torch.randn(5)
LAYER_ERRORS = {
    "inputs": ({"input": X[:, :3]}, "expected input of shape [*, 4] as weight is [5, 4], got [3, 3]"),
    "transposed": ({"transposed": True}, "expected input of shape [*, 5] as weight is [5, 4] (transposed)"),
    "scalar": ({"input": torch.tensor(1.0)}, "expected input of shape [*, inputs], got []"),
    "weight": ({"weight": BIAS}, "expected weight of shape [outputs, inputs], got [5]"),
    "bias": ({"bias": BIAS[:4]}, "expected bias of shape [5], got [4]"),
    "integers": ({"input": X.long()}, "expected input of dtype float32, float64, bfloat16 or float16, got Long"),
    "dtypes": ({"weight": WEIGHT.double()}, "expected weight of dtype Float like the input, got Double"),
    "stream": ({"stream": -1}, "expected stream to fit 32 bits, got -1"),
    "temperature": ({"temperature": 0.0}, "expected a temperature above zero, got 0"),
    "temperature nan": ({"temperature": math.nan}, "expected a temperature above zero, got nan"),
    "seed": ({"seed": torch.tensor([1.0])}, "expected seed as one int64 on the CPU"),
    "units": ({"units": "relu"}, "expected units 'bernoulli' or 'gaussian', got 'relu'"),
}


@pytest.mark.parametrize("name", LAYER_ERRORS)
def test_errors(cpu_only, name):
    change, text = LAYER_ERRORS[name]
    given = {"input": X, "weight": WEIGHT, "bias": BIAS, "seed": 1, **change}
    found = outcome(lambda: functional.rbm_sample(**given))
    assert found is not None and found[1].startswith(f"[rbm_sample] {text}"), found


def test_the_operator_gives_what_the_function_does(device):
    x, w, b = (t.detach() for t in Layer().tensors(device=device).values())
    seed = torch.tensor([9])
    found = sample_op(x, w, b, seed, 2, False, False, 1.0)
    ours = functional.rbm_sample(x, w, b, seed=seed, stream=2)
    twin = sample_operator(x, w, b, seed, 2, False, False, 1.0)
    for a, o, t in zip(found, ours, twin, strict=True):
        assert torch.equal(a, o)
        torch.testing.assert_close(a, t)
