"""torch.func over functional.lstm and the modules: vmap, grad, jvp, Jacobians, Hessian; forward mode; autocast."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

import pykernels
from pykernels import functional, reference
from tests.helpers import FLAG, SEED, Case, assert_equal, call, drawn

KINDS = {"bidirectional": FLAG, "projection": FLAG, "peephole": FLAG, "packed": FLAG, "states": FLAG, "seed": SEED}
SMALL = {"steps": (1, 4), "batch": (1, 3), "inputs": (1, 4), "hidden": (2, 5)}
COPIES = 3


def tuple_of(case: Case, names, function=functional.lstm):
    return lambda *values: tuple(call(function, case, dict(zip(names, values, strict=True))).values())


def loss_of(case: Case, names, function=functional.lstm):
    results = tuple_of(case, names, function)
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


@pytest.mark.parametrize("batched", BATCHED)
@drawn(8, **SMALL, **{**KINDS, "states": [True]})
def test_vmap_is_a_loop(device, batched, case):
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    names = BATCHED[batched] or list(tensors)
    values, dims = many(tensors, names), tuple(0 if name in names else None for name in tensors)
    function = tuple_of(case, tensors)
    together = vmap(function, in_dims=dims)(*values)
    single = [[v[i] if d == 0 else v for v, d in zip(values, dims, strict=True)] for i in range(COPIES)]
    expected = [torch.stack(r) for r in zip(*(function(*s) for s in single), strict=True)]
    labels = ("output", "h_n", "c_n")
    assert_equal(by_name(together, labels), by_name(expected, labels))


@pytest.mark.parametrize("batched", ["input", "input_and_states", "all"])
@drawn(6, **SMALL, **{**KINDS, "states": [True]})
def test_vmap_of_grad_is_a_loop(device, batched, case):
    """Gradients of each sample apart: of the operands and of every weight."""
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    names = BATCHED[batched] or list(tensors)
    values, dims = many(tensors, names), tuple(0 if name in names else None for name in tensors)
    gradient = grad(loss_of(case, tensors), argnums=tuple(range(len(tensors))))
    together = vmap(gradient, in_dims=dims)(*values)
    twin = grad(loss_of(case, tensors, reference.lstm), argnums=tuple(range(len(tensors))))
    single = [[v[i] if d == 0 else v for v, d in zip(values, dims, strict=True)] for i in range(COPIES)]
    expected = [torch.stack(r) for r in zip(*(twin(*s) for s in single), strict=True)]
    assert_equal(by_name(together, tensors), by_name(expected, tensors))


def test_vmap_over_other_dimensions_and_twice(device):
    case = Case(bidirectional=True)
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    names, function = list(tensors), tuple_of(case, tensors)
    rest = [tensors[name] for name in names[1:]]
    x = torch.randn(case.steps, 2, case.batch, 3, case.inputs, dtype=torch.float64).to(device)
    mapped = vmap(lambda inner: vmap(lambda one: function(one, *rest)[0], 1)(inner), 3)(x)
    expected = torch.stack([torch.stack([function(x[:, i, :, j], *rest)[0] for i in range(2)]) for j in range(3)])
    torch.testing.assert_close(mapped, expected, rtol=1e-12, atol=1e-12)


def test_ensemble_of_modules(device):
    """The recipe of torch.func: many models as one, by stacked parameters."""
    modules = [pykernels.LSTM(4, 5, peephole=True, dtype=torch.float64, device=device) for _ in range(3)]
    parameters, buffers = stack_module_state(modules)
    x = torch.randn(6, 2, 4, dtype=torch.float64).to(device)
    template = pykernels.LSTM(4, 5, peephole=True, dtype=torch.float64, device="meta")
    found = vmap(lambda p, b: functional_call(template, (p, b), (x,))[0], randomness="error")(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([m(x)[0] for m in modules]), rtol=1e-12, atol=1e-12)


# -- grad and Jacobians -----------------------------------------------------------------------------------------------
@drawn(10, **SMALL, **KINDS, layers=(1, 2))
def test_grad_and_vjp(device, case):
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    found = []
    for function in (functional.lstm, reference.lstm):
        gradients = grad(loss_of(case, tensors, function), argnums=tuple(range(len(tensors))))(*tensors.values())
        results, pull = vjp(tuple_of(case, tensors, function), *tensors.values())
        pulled = pull(tuple(torch.ones_like(r) for r in results))
        found.append(by_name(gradients, tensors) | {f"pulled {n}": g for n, g in by_name(pulled, tensors).items()})
    assert_equal(*found)


def grad_of_grad(function):
    return grad(lambda x: grad(function)(x).square().sum())


@pytest.mark.parametrize("transform", [jacrev, jacfwd, hessian, grad_of_grad])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("place", ["input", "weight_hh_l0", "c0"])
def test_jacobians(device, transform, packed, place):
    case = Case(3, 2, 2, 3, peephole=True, bidirectional=True, packed=packed)
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    scalar = transform not in (jacrev, jacfwd)
    found = []
    for function in (functional.lstm, reference.lstm):

        def of_one(value, function=function):
            results = call(function, case, {**tensors, place: value})
            return results["output"].square().sum() + results["c_n"].sum() if scalar else tuple(results.values())

        made = transform(of_one)(tensors[place])
        found.append({str(i): t for i, t in enumerate(torch.utils._pytree.tree_leaves(made))})
    assert_equal(*found, tolerance=1e-11)


@drawn(10, **SMALL, **KINDS)
def test_jvp(device, case):
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


def test_forward_ad_of_the_modules(device):
    """Dual inputs and dual weights through LSTM, packed LSTM and LSTMCell, as through torch's float64 modules."""
    for ours, theirs in ((pykernels.LSTM, nn.LSTM), (pykernels.LSTMCell, nn.LSTMCell)):
        mine, its = ours(4, 5, dtype=torch.float64).to(device), theirs(4, 5, dtype=torch.float64).to(device)
        mine.load_state_dict(its.state_dict())
        x = torch.randn((3, 4) if ours is pykernels.LSTMCell else (6, 3, 4), dtype=torch.float64).to(device)
        tangent = torch.randn_like(x)
        found = []
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, tangent)
            for result in torch.utils._pytree.tree_leaves(mine(dual)):
                found.append(forward_ad.unpack_dual(result).tangent)
        # torch's has no forward mode everywhere: Jacobian times tangent, by two reverse passes
        _, pull = vjp(lambda v, m=its: tuple(torch.utils._pytree.tree_leaves(m(v))), x)
        weights = [torch.randn_like(t) for t in found]
        (pulled,) = pull(tuple(weights))
        left = sum((w * f).sum() for w, f in zip(weights, found, strict=True))
        torch.testing.assert_close(left, (pulled * tangent).sum(), rtol=1e-10, atol=1e-10)


def test_jvp_of_a_gradient(device):
    """Forward over reverse: a Hessian-vector product, against reverse over reverse of the twin."""
    case = Case(3, 2, 3, 4, peephole=True)
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    direction = torch.randn_like(tensors["input"])

    def loss(value, function=functional.lstm):
        return call(function, case, {**tensors, "input": value})["output"].square().sum()

    _, product = jvp(grad(loss), (tensors["input"],), (direction,))
    twin = grad(lambda v: (grad(lambda u: loss(u, reference.lstm))(v) * direction).sum())(tensors["input"])
    torch.testing.assert_close(product, twin, rtol=1e-10, atol=1e-10)


# -- functional_call and autocast -------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [pykernels.LSTM, pykernels.LSTMCell])
def test_functional_call(device, kind):
    module, other = (kind(4, 5, dtype=torch.float64).to(device) for _ in range(2))
    x = torch.randn((3, 4) if kind is pykernels.LSTMCell else (6, 3, 4), dtype=torch.float64).to(device)
    before = module(x)[0].detach()
    parameters = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    found = functional_call(module, parameters, (x,))
    assert torch.equal(found[0], other(x)[0])
    found[0].sum().backward()
    assert all(p.grad is not None for p in parameters.values())
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(module(x)[0], before)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("grad_mode", [True, False], ids=["grad", "no_grad"])
def test_autocast(device, grad_mode, packed):
    """Under autocast float32 operands are computed in bfloat16; gradients come back in float32."""
    module = pykernels.LSTM(8, 16, 2, bidirectional=True, peephole=True).to(device)
    x = torch.randn(5, 3, 8).to(device)
    given = nn.utils.rnn.pack_padded_sequence(x, [5, 4, 2]) if packed else x
    with torch.set_grad_enabled(grad_mode), torch.autocast(device.type, torch.bfloat16):
        output, (h_n, c_n) = module(given)
    output = output.data if packed else output
    assert output.dtype == h_n.dtype == c_n.dtype == torch.bfloat16
    exact = module(given)[0]
    torch.testing.assert_close(output.float(), exact.data if packed else exact, rtol=0.05, atol=0.02)
    if grad_mode:
        output.float().sum().backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in module.parameters())


def test_autocast_gives_torchs_dtypes(device):
    """The dtypes of outputs and gradients are those of torch's modules, with input in float32 and in the low dtype."""
    dtype = torch.bfloat16
    for ours, theirs in ((pykernels.LSTM, nn.LSTM), (pykernels.LSTMCell, nn.LSTMCell)):
        for given in (torch.float32, dtype):
            found = []
            for kind in (ours, theirs):
                module = kind(8, 16).to(device)
                x = torch.randn(3, 8, device=device)[None] if kind in (pykernels.LSTM, nn.LSTM) else torch.randn(3, 8)
                x = x.to(device, given).requires_grad_()
                with torch.autocast(device.type, dtype):
                    results = torch.utils._pytree.tree_leaves(module(x))
                results[0].float().sum().backward()
                found.append([t.dtype for t in [*results, x.grad, *(p.grad for p in module.parameters())]])
            assert found[0] == found[1], (ours, given)


def test_autocast_off_inside(device):
    module = pykernels.LSTM(8, 16).to(device)
    x = torch.randn(5, 3, 8).to(device)
    with torch.autocast(device.type, torch.bfloat16), torch.autocast(device.type, enabled=False):
        assert module(x)[0].dtype == torch.float32
