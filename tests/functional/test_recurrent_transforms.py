"""torch.func over the recurrent functions and modules: vmap, grad, jvp, Jacobians, Hessian; forward mode; autocast."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

import pykernels
from pykernels import functional, reference
from tests.helpers import FLAGS, SEED, Case, assert_equal, call, drawn, every_kind

SMALL = {"steps": (1, 4), "batch": (1, 3), "inputs": (1, 4), "hidden": (2, 5), "seed": SEED}
KINDS = {**FLAGS, "bias": [True]}
COPIES = 3


def tuple_of(case: Case, names, where=functional):
    return lambda *values: tuple(call(where, case, dict(zip(names, values, strict=True))).values())


def loss_of(case: Case, names, where=functional):
    results = tuple_of(case, names, where)
    return lambda *values: sum(
        (r * torch.linspace(-1, 1, r.numel()).to(r).view(r.shape)).sum() for r in results(*values)
    )


def many(tensors: dict[str, torch.Tensor], names) -> list[torch.Tensor]:
    """The operands with those in `names` given COPIES times, each time otherwise."""
    factors = torch.linspace(0.5, 1.5, COPIES)
    return [
        torch.stack([t * factor.to(t) for factor in factors]) if name in names else t for name, t in tensors.items()
    ]


def by_name(values, names) -> dict[str, torch.Tensor]:
    return dict(zip(names, values, strict=True))


# -- vmap -------------------------------------------------------------------------------------------------------------
BATCHED = {
    "input": ["input"],
    "states": ["h0", "c0"],
    "input_and_states": ["input", "h0", "c0"],
    "one_weight": ["weight_hh_l0"],
    "weights": ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"],
    "all": None,
}


def batched_operands(tensors, batched: str):
    """The operands with those of BATCHED given COPIES times, their dimensions for vmap, and each copy's operands."""
    names = BATCHED[batched] or list(tensors)
    values, dims = many(tensors, names), tuple(0 if name in names else None for name in tensors)
    single = [[v[i] if d == 0 else v for v, d in zip(values, dims, strict=True)] for i in range(COPIES)]
    return values, dims, single


@every_kind
@pytest.mark.parametrize("batched", BATCHED)
@drawn(8, **SMALL, **{**KINDS, "states": [True]})
def test_vmap_is_a_loop(device, batched, kind, case):
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    values, dims, single = batched_operands(tensors, batched)
    function = tuple_of(case, tensors)
    together = vmap(function, in_dims=dims)(*values)
    expected = [torch.stack(r) for r in zip(*(function(*s) for s in single), strict=True)]
    assert_equal(by_name(together, case.about.results), by_name(expected, case.about.results))


@every_kind
@pytest.mark.parametrize("batched", ["input", "input_and_states", "all"])
@drawn(6, **SMALL, **{**KINDS, "states": [True]})
def test_vmap_of_grad_is_a_loop(device, batched, kind, case):
    """Gradients of each sample apart: of the operands and of every weight."""
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    values, dims, single = batched_operands(tensors, batched)
    gradient = grad(loss_of(case, tensors), argnums=tuple(range(len(tensors))))
    together = vmap(gradient, in_dims=dims)(*values)
    twin = grad(loss_of(case, tensors, reference), argnums=tuple(range(len(tensors))))
    expected = [torch.stack(r) for r in zip(*(twin(*s) for s in single), strict=True)]
    assert_equal(by_name(together, tensors), by_name(expected, tensors))


@every_kind
@drawn(6, **SMALL, **{**KINDS, "states": [True], "packed": [False]})
def test_vmap_of_grad_of_the_data_only(device, kind, case):
    """Gradients of input and states with the same weights for all: one call over a larger batch."""
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    values, dims, single = batched_operands(tensors, "input_and_states")
    data = tuple(range(1 + len(case.about.states)))
    together = vmap(grad(loss_of(case, tensors), argnums=data), in_dims=dims)(*values)
    twin = grad(loss_of(case, tensors, reference), argnums=data)
    expected = [torch.stack(r) for r in zip(*(twin(*s) for s in single), strict=True)]
    names = ("input", *case.about.states)
    assert_equal(by_name(together, names), by_name(expected, names))


@every_kind
def test_vmap_over_other_dimensions_and_twice(device, kind):
    case = Case(bidirectional=True, kind=kind)
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    names, function = list(tensors), tuple_of(case, tensors)
    rest = [tensors[name] for name in names[1:]]
    x = torch.randn(case.steps, 2, case.batch, 3, case.inputs, dtype=torch.float64).to(device)
    mapped = vmap(lambda inner: vmap(lambda one: function(one, *rest)[0], 1)(inner), 3)(x)
    expected = torch.stack([torch.stack([function(x[:, i, :, j], *rest)[0] for i in range(2)]) for j in range(3)])
    torch.testing.assert_close(mapped, expected, rtol=1e-12, atol=1e-12)


MODULES = {
    "LSTM": {"peephole": True},
    "GRU": {"reset_after": False},
    "RNN": {"nonlinearity": "relu"},
    "JordanRNN": {"output_size": 3},
}
CELLS = {"LSTMCell": {"peephole": True}, "GRUCell": {}, "RNNCell": {}}


@pytest.mark.parametrize("name", MODULES)
def test_ensemble_of_modules(device, name):
    """The recipe of torch.func: many models as one, by stacked parameters."""

    def make(device):
        return getattr(pykernels, name)(4, 5, **MODULES[name], dtype=torch.float64, device=device)

    modules, template = [make(device) for _ in range(3)], make("meta")
    parameters, buffers = stack_module_state(modules)
    x = torch.randn(6, 2, 4, dtype=torch.float64).to(device)
    found = vmap(lambda p, b: functional_call(template, (p, b), (x,))[0], randomness="error")(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([m(x)[0] for m in modules]), rtol=1e-12, atol=1e-12)


# -- grad and Jacobians -----------------------------------------------------------------------------------------------
@every_kind
@drawn(10, **SMALL, **KINDS, layers=(1, 2))
def test_grad_and_vjp(device, kind, case):
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    found = []
    for where in (functional, reference):
        gradients = grad(loss_of(case, tensors, where), argnums=tuple(range(len(tensors))))(*tensors.values())
        results, pull = vjp(tuple_of(case, tensors, where), *tensors.values())
        pulled = pull(tuple(torch.ones_like(r) for r in results))
        found.append(by_name(gradients, tensors) | {f"pulled {n}": g for n, g in by_name(pulled, tensors).items()})
    assert_equal(*found)


def grad_of_grad(function):
    return grad(lambda x: grad(function)(x).square().sum())


FULL = Case(3, 2, 2, 3, peephole=True, bidirectional=True, projection=True, reset_after=False)


@every_kind
@pytest.mark.parametrize("transform", [jacrev, jacfwd, hessian, grad_of_grad])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("place", ["input", "weight_hh_l0", "state"])
def test_jacobians(device, transform, packed, place, kind):
    case = dataclasses.replace(FULL.of(kind), packed=packed)
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    place = case.about.states[-1] if place == "state" else place
    scalar = transform not in (jacrev, jacfwd)
    found = []
    for where in (functional, reference):

        def of_one(value, where=where):
            output, *states = results = tuple(call(where, case, {**tensors, place: value}).values())
            return output.square().sum() + states[-1].sum() if scalar else results

        made = transform(of_one)(tensors[place])
        found.append({str(i): t for i, t in enumerate(torch.utils._pytree.tree_leaves(made))})
    assert_equal(*found, tolerance=1e-11)


@every_kind
@drawn(10, **SMALL, **KINDS)
def test_jvp(device, kind, case):
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    tangents = tuple(torch.linspace(-1, 1, t.numel()).to(t).view(t.shape) for t in tensors.values())
    results, moved = jvp(tuple_of(case, tensors), tuple(tensors.values()), tangents)
    step = 1e-6
    ahead, behind = (
        tuple_of(case, tensors)(*(t + sign * step * d for t, d in zip(tensors.values(), tangents, strict=True)))
        for sign in (1, -1)
    )
    for result, tangent, plus, minus in zip(results, moved, ahead, behind, strict=True):
        torch.testing.assert_close(tangent, (plus - minus) / (2 * step), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(result, (plus + minus) / 2, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_forward_ad_of_the_modules(device, name):
    """A dual input through modules and cells, against two reverse passes through torch's float64 modules."""
    mine, its = (getattr(where, name)(4, 5, dtype=torch.float64).to(device) for where in (pykernels, nn))
    mine.load_state_dict(its.state_dict())
    x = torch.randn((3, 4) if name.endswith("Cell") else (6, 3, 4), dtype=torch.float64).to(device)
    tangent = torch.randn_like(x)
    found = []
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, tangent)
        for result in torch.utils._pytree.tree_leaves(mine(dual)):
            found.append(forward_ad.unpack_dual(result).tangent)
    # torch's has no forward mode everywhere: Jacobian times tangent, by the other side of the product
    _, pull = vjp(lambda v: tuple(torch.utils._pytree.tree_leaves(its(v))), x)
    weights = [torch.randn_like(t) for t in found]
    (pulled,) = pull(tuple(weights))
    left = sum((w * f).sum() for w, f in zip(weights, found, strict=True))
    torch.testing.assert_close(left, (pulled * tangent).sum(), rtol=1e-10, atol=1e-10)


@every_kind
def test_jvp_of_a_gradient(device, kind):
    """Forward over reverse: a Hessian-vector product, against reverse over reverse of the twin."""
    case = FULL.of(kind)
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    direction = torch.randn_like(tensors["input"])

    def loss(value, where=functional):
        return call(where, case, {**tensors, "input": value})["output"].square().sum()

    _, product = jvp(grad(loss), (tensors["input"],), (direction,))
    twin = grad(lambda v: (grad(lambda u: loss(u, reference))(v) * direction).sum())(tensors["input"])
    torch.testing.assert_close(product, twin, rtol=1e-10, atol=1e-10)


# -- functional_call and autocast -------------------------------------------------------------------------------------
def first(results):
    """The first of the results, of a module that may have one."""
    return results if isinstance(results, torch.Tensor) else results[0]


@pytest.mark.parametrize("name", [*MODULES, *CELLS])
def test_functional_call(device, name):
    options = {**MODULES, **CELLS}[name]
    module, other = (getattr(pykernels, name)(4, 5, **options, dtype=torch.float64).to(device) for _ in range(2))
    x = torch.randn((3, 4) if name in CELLS else (6, 3, 4), dtype=torch.float64).to(device)
    before = first(module(x)).detach()
    parameters = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    found = first(functional_call(module, parameters, (x,)))
    assert torch.equal(found, first(other(x)))
    found.sum().backward()
    assert all(p.grad is not None for p in parameters.values())
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(first(module(x)), before)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("grad_mode", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("name", MODULES)
def test_autocast(device, name, grad_mode, packed):
    """Under autocast float32 operands are computed in bfloat16; gradients come back in float32.

    The GRU's results, on processors, are put out in the dtype of its state, as torch's are.
    """
    module = getattr(pykernels, name)(8, 16, num_layers=2, bidirectional=True, **MODULES[name]).to(device)
    x = torch.randn(5, 3, 8).to(device)
    given = nn.utils.rnn.pack_padded_sequence(x, [5, 4, 2]) if packed else x
    with torch.set_grad_enabled(grad_mode), torch.autocast(device.type, torch.bfloat16):
        output, state = module(given)
    output = output.data if packed else output
    expected = torch.float32 if name == "GRU" and device.type == "cpu" else torch.bfloat16
    assert all(t.dtype == expected for t in [output, *torch.utils._pytree.tree_leaves(state)])
    exact = module(given)[0]
    torch.testing.assert_close(output.float(), exact.data if packed else exact, rtol=0.05, atol=0.02)
    if grad_mode:
        output.float().sum().backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("states", [False, True], ids=["no_states", "states"])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", *CELLS])
def test_autocast_gives_torchs_dtypes(device, name, states, given):
    """The dtypes of outputs and gradients are those of torch's modules, with input in float32 and in the low dtype."""
    found = []
    for where in (pykernels, nn):
        module = getattr(where, name)(8, 16).to(device)
        x = torch.randn((3, 8) if name in CELLS else (1, 3, 8)).to(device, given).requires_grad_()
        h = torch.randn((3, 16) if name in CELLS else (1, 3, 16)).to(device)
        hx = ((h, h) if name.startswith("LSTM") else h) if states else None
        with torch.autocast(device.type, torch.bfloat16):
            results = torch.utils._pytree.tree_leaves(module(x, hx))
        results[0].float().sum().backward()
        found.append([t.dtype for t in [*results, x.grad, *(p.grad for p in module.parameters())]])
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_autocast_off_inside(device, name):
    module = getattr(pykernels, name)(8, 16).to(device)
    x = torch.randn(5, 3, 8).to(device)
    with torch.autocast(device.type, torch.bfloat16), torch.autocast(device.type, enabled=False):
        assert module(x)[0].dtype == torch.float32
