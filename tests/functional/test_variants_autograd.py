"""Derivatives of the variants: by number, of any order, in forward mode, and under the transforms of torch.func."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap

import pykernels
from pykernels import functional, reference
from tests.helpers import FLAGS, KINDS, SEED, VARIED, Case, assert_equal, call, drawn, every_kind, with_gradients

SMALL = {"steps": (1, 4), "batch": (1, 3), "inputs": (1, 3), "hidden": (3, 5), "seed": SEED}
ALL = {"layer_norm": True, "zoneout": (0.3, 0.2), "recurrent_dropout": 0.25, "weight_dropout": 0.3}
FULL = Case(4, 3, 3, 5, bidirectional=True, projection=True, peephole=True, **ALL)
EVERY = {
    "training": dataclasses.replace(FULL, training=True),
    "evaluation": FULL,
    "without_layer_norm": dataclasses.replace(FULL, layer_norm=False, training=True, reset_after=False),
    "weight_dropout": Case(4, 3, 3, 5, weight_dropout=0.3, training=True),
}
every_form = pytest.mark.parametrize("form", EVERY)


def as_function(case: Case, names, where=functional):
    """The results as a function of the tensors by position; the masks are the same at each call."""
    return lambda *values: tuple(call(where, case, dict(zip(names, values, strict=True))).values())


def loss_of(case: Case, names, where=functional):
    results = as_function(case, names, where)
    return lambda *values: sum(
        (r * torch.linspace(-1, 1, r.numel()).to(r).view(r.shape)).sum() for r in results(*values)
    )


# -- by number --------------------------------------------------------------------------------------------------------
@every_kind
@drawn(3, **{**SMALL, "steps": (1, 3), "hidden": (3, 4)}, **FLAGS, **VARIED)
def test_gradcheck(device, kind, case):
    tensors = case.tensors(torch.float64, device)
    assert gradcheck(as_function(case, tensors), tuple(tensors.values()), check_batched_grad=False)


@every_kind
@drawn(12, **SMALL, **FLAGS, **VARIED, layers=(1, 2))
def test_gradcheck_fast(device, kind, case):
    tensors = case.tensors(torch.float64, device)
    assert gradcheck(as_function(case, tensors), tuple(tensors.values()), fast_mode=True)


@every_kind
@drawn(4, **SMALL, **FLAGS, **VARIED, layers=(1, 2))
def test_gradgradcheck(device, kind, case):
    tensors = case.tensors(torch.float64, device)
    assert gradgradcheck(as_function(case, tensors), tuple(tensors.values()), fast_mode=True)


@every_kind
@every_form
def test_gradcheck_of_forward_mode_and_batched(device, form, kind):
    case = EVERY[form].of(kind)
    tensors = case.tensors(torch.float64, device)
    function = as_function(case, tensors)
    assert gradcheck(function, tuple(tensors.values()), fast_mode=True, check_forward_ad=True, check_batched_grad=True)


@every_kind
@every_form
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_third_derivative_and_penalties(device, packed, form, kind):
    """The norm of a gradient, differentiated with respect to everything; and once more."""
    case = dataclasses.replace(EVERY[form].of(kind), packed=packed, steps=3, batch=2)
    found = []
    for where in (functional, reference):
        tensors = case.tensors(torch.float64, device)
        output, *states = call(where, case, tensors).values()
        (first,) = torch.autograd.grad((output**2).sum() + states[-1].sum(), tensors["input"], create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), tensors["h0"], create_graph=True)
        found.append(with_gradients({"first": first.square().sum(), "second": second.square().sum()}, tensors))
    assert_equal(*found, tolerance=1e-8)


# -- what is asked for ------------------------------------------------------------------------------------------------
GROUPS = [
    ["input"], ["h0"], ["c0"], ["weight_hh_l0"], ["weight_ih_l0_reverse"], ["bias_ih_l0"], ["bias_hh_l0_reverse"],
    ["weight_ln_ih_l0"], ["weight_ln_hh_l0_reverse"], ["weight_ln_c_l0", "bias_ln_c_l0_reverse"],
    ["weight_hr_l0", "weight_peephole_l0"],
]  # fmt: skip
OF_ITS_GROUPS = [(kind, group) for kind in KINDS for group in GROUPS if set(group) <= set(FULL.of(kind).tensors())]
OF_ITS_RESULTS = [(kind, used) for kind in KINDS for used in (["output"], ["h_n"], ["c_n"], ["h_n", "c_n"])
                  if set(used) <= set(KINDS[kind].results)]  # fmt: skip


@pytest.mark.parametrize("kind, group", OF_ITS_GROUPS, ids=lambda v: v if isinstance(v, str) else "+".join(v))
def test_only_some_operands_require_a_gradient(device, kind, group):
    case = EVERY["training"].of(kind)
    found = []
    for where in (functional, reference):
        tensors = case.tensors(torch.float64, device, requires_grad=False)
        leaves = {name: tensors[name].requires_grad_() for name in group}
        found.append(with_gradients(call(where, case, tensors), leaves))
    assert_equal(*found, tolerance=1e-10)


@pytest.mark.parametrize("kind, used", OF_ITS_RESULTS, ids=lambda v: v if isinstance(v, str) else "+".join(v))
@every_form
def test_only_some_results_are_used(device, kind, used, form):
    case = dataclasses.replace(EVERY[form].of(kind), layers=2)
    found = []
    for where in (functional, reference):
        tensors = case.tensors(torch.float64, device)
        results = call(where, case, tensors)
        found.append(with_gradients({name: results[name] for name in used}, tensors))
    assert_equal(*found, tolerance=1e-10)


@every_kind
@every_form
def test_a_result_changed_in_place_is_found_or_harmless(device, form, kind):
    """Before backward: an error, or the right gradients of the change; never wrong ones."""
    case = EVERY[form].of(kind)
    for name in case.about.results:
        found = []
        for where in (functional, reference):
            tensors = case.tensors(torch.float64, device)
            results = call(where, case, tensors)
            results[name].mul_(2)
            try:
                found.append(with_gradients(results, tensors))
            except RuntimeError as error:
                assert "modified by an inplace operation" in str(error)
        if len(found) == 2:
            assert_equal(*found, tolerance=1e-10)


@every_kind
def test_backward_twice_is_the_same_masks(device, kind):
    """The backward draws nothing: a retained graph gives the same bits, whatever torch's generator does meanwhile."""
    case = EVERY["training"].of(kind)
    tensors = case.tensors(torch.float32, device)
    loss = sum(result.sum() for result in call(functional, case, tensors).values())
    state = torch.get_rng_state()
    first = torch.autograd.grad(loss, list(tensors.values()), retain_graph=True)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    second = torch.autograd.grad(loss, list(tensors.values()))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@every_kind
def test_checkpointing_draws_the_same_masks_again(device, kind):
    from torch.utils.checkpoint import checkpoint

    case = EVERY["training"].of(kind)
    found = []
    for wrap in (lambda f, *a: f(*a), lambda f, *a: checkpoint(f, *a, use_reentrant=False)):
        tensors = case.tensors(torch.float64, device)

        def function(*values, tensors=tensors):
            input, h0, *rest = values
            states, weights = ((h0, rest[0]), rest[1:]) if kind == "lstm" else (h0, rest)
            return getattr(functional, kind)(input, states, weights, **case.options)

        torch.manual_seed(5)
        results = wrap(function, *tensors.values())
        found.append(with_gradients(dict(zip(case.about.results, results, strict=True)), tensors))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


# -- transforms -------------------------------------------------------------------------------------------------------
def values_and_copies(tensors, names, copies: int = 3):
    """Operands, those in `names` given several times and each time otherwise; dimensions; and each copy's operands."""
    factors = torch.linspace(0.5, 1.5, copies)
    values = [torch.stack([t * f.to(t) for f in factors]) if n in names else t for n, t in tensors.items()]
    dims = tuple(0 if name in names else None for name in tensors)
    single = [[v[i] if d == 0 else v for v, d in zip(values, dims, strict=True)] for i in range(copies)]
    return values, dims, single


BATCHED = {"input": ["input"], "data": ["input", "h0", "c0"], "weight": ["weight_hh_l0"], "all": None}


@every_kind
@pytest.mark.parametrize("form", ["training", "weight_dropout"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("batched", BATCHED)
def test_vmap_is_a_loop(device, batched, packed, form, kind):
    """With the same masks for every example: values, and the gradients of each example alone."""
    case = dataclasses.replace(EVERY[form].of(kind), packed=packed)
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    values, dims, single = values_and_copies(tensors, BATCHED[batched] or list(tensors))
    every = tuple(range(len(tensors)))
    for mine, its in (
        (as_function(case, tensors), as_function(case, tensors, reference)),
        (grad(loss_of(case, tensors), argnums=every), grad(loss_of(case, tensors, reference), argnums=every)),
    ):
        together = vmap(mine, in_dims=dims, randomness="same")(*values)
        expected = [torch.stack(r) for r in zip(*(its(*s) for s in single), strict=True)]
        names = [str(i) for i in range(len(expected))]
        assert_equal(dict(zip(names, together, strict=True)), dict(zip(names, expected, strict=True)), 1e-9)


@every_kind
@pytest.mark.parametrize("variant", ["zoneout", "recurrent_dropout", "weight_dropout"])
def test_vmap_with_other_masks_for_every_example(device, variant, kind):
    """randomness="different": equal examples differ, and gradients are of those masks; "error" is torch's error."""
    case = Case(3, 2, 3, 5, **{variant: 0.4}, training=True, kind=kind)
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    values, dims, _ = values_and_copies(tensors, ["input"])
    values[0] = tensors["input"].expand(3, -1, -1, -1)
    function = as_function(case, tensors)
    found = vmap(function, in_dims=dims, randomness="different")(*values)[0]
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])
    same = vmap(function, in_dims=dims, randomness="same")(*values)[0]
    assert torch.equal(same[0], same[1])
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(function, in_dims=dims)(*values)

    operands = tuple(v.clone().requires_grad_() for v in values)
    assert gradcheck(vmap(function, in_dims=dims, randomness="different"), operands, fast_mode=True)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_ensemble_of_modules(device, name):
    """Many models as one, by stacked parameters."""
    options = {**ALL, "zoneout": 0.3}
    modules = [getattr(pykernels, name)(4, 5, **options, dtype=torch.float64).to(device).eval() for _ in range(3)]
    template = getattr(pykernels, name)(4, 5, **options, dtype=torch.float64, device="meta").eval()
    parameters, buffers = stack_module_state(modules)
    x = torch.randn(6, 2, 4, dtype=torch.float64).to(device)
    found = vmap(lambda p, b: functional_call(template, (p, b), (x,))[0], randomness="error")(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([m(x)[0] for m in modules]), rtol=1e-11, atol=1e-11)


def forward_jacobian(function):
    return jacfwd(function, randomness="same")


def forward_over_reverse(function):
    return jacfwd(jacrev(function), randomness="same")


def grad_of_grad(function):
    return grad(lambda x: grad(function)(x).square().sum())


@every_kind
@pytest.mark.parametrize("form", ["training", "evaluation"])
@pytest.mark.parametrize("transform", [jacrev, forward_jacobian, forward_over_reverse, grad_of_grad])
@pytest.mark.parametrize("place", ["weight_hh_l0", "h0"])
def test_jacobians(device, place, transform, form, kind):
    """jacrev batches the gradients only, which draw nothing; jacfwd the function too, which is to draw once."""
    case = dataclasses.replace(EVERY[form].of(kind), steps=2, batch=2, inputs=2, hidden=4)
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    scalar = transform in (forward_over_reverse, grad_of_grad)
    found = []
    for where in (functional, reference):

        def of_one(value, where=where):
            output, *states = results = tuple(call(where, case, {**tensors, place: value}).values())
            return output.square().sum() + states[-1].sum() if scalar else results

        made = transform(of_one)(tensors[place])
        found.append({str(i): t for i, t in enumerate(torch.utils._pytree.tree_leaves(made))})
    assert_equal(*found, tolerance=1e-8)


@every_kind
@drawn(8, **SMALL, **FLAGS, **VARIED)
def test_jvp(device, kind, case):
    """Forward mode against the twin's, and forward over reverse against reverse over reverse."""
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    tangents = tuple(torch.linspace(-1, 1, t.numel()).to(t).view(t.shape) for t in tensors.values())
    found, product = [], []
    for where in (functional, reference):
        values, moved = jvp(as_function(case, tensors, where), tuple(tensors.values()), tangents)
        found.append({f"{i}": t for i, t in enumerate((*values, *moved))})
        slope = grad(loss_of(case, tensors, where))
        _, turned = jvp(slope, tuple(tensors.values()), tangents)
        product.append({"product": turned})
    assert_equal(*found, tolerance=1e-9)
    assert_equal(*product, tolerance=1e-7)
