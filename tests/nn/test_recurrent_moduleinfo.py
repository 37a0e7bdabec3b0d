"""torch's own test material for its recurrent modules and cells (ModuleInfo samples), with the name replaced."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

import pykernels

common_modules = pytest.importorskip("torch.testing._internal.common_modules")

OURS = {getattr(nn, n): getattr(pykernels, n) for n in ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")}
INFOS = {info.module_cls: info for info in common_modules.module_db if info.module_cls in OURS}

kind = pytest.mark.parametrize("kind", OURS, ids=lambda cls: cls.__name__)
training = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def samples(kind, device, dtype, *, requires_grad=False, training=False):
    """(our module, torch's module with the same weights, arguments, keyword arguments, the sample) for each sample."""
    info = INFOS[kind]
    made = info.module_inputs_func(info, device=device, dtype=dtype, requires_grad=requires_grad, training=training)
    assert made
    for sample in made:
        given = sample.constructor_input
        modules = [cls(*given.args, **given.kwargs).to(device, dtype).train(training) for cls in (OURS[kind], kind)]
        modules[0].load_state_dict(modules[1].state_dict())
        if sample.forward_input is not None:
            yield (*modules, sample.forward_input.args, sample.forward_input.kwargs, sample)


def test_torch_has_samples():
    assert set(INFOS) == set(OURS)


@kind
@training
@dtypes
def test_forward(kind, training, dtype, device):
    """The samples' own reference functions, and torch's module."""
    for ours, theirs, args, kwargs, sample in samples(kind, device, dtype, training=training):
        repr(ours)
        results = ours(*args, **kwargs)
        torch.testing.assert_close(results, theirs(*args, **kwargs))
        if sample.reference_fn is not None:
            expected = sample.reference_fn(ours, *args, **kwargs)
            torch.testing.assert_close(results, expected)


@kind
@dtypes
def test_factory_arguments(kind, dtype, device):
    info = INFOS[kind]
    for sample in info.module_inputs_func(info, device=device, dtype=dtype, requires_grad=False, training=True):
        given = sample.constructor_input
        module = OURS[kind](*given.args, **given.kwargs, device=device, dtype=dtype)
        for parameter in module.parameters():
            assert parameter.device.type == device.type and parameter.dtype == dtype


@kind
@training
def test_pickle_and_state_dict(kind, training, device):
    for ours, theirs, args, kwargs, _ in samples(kind, device, torch.float32, training=training):
        results = ours(*args, **kwargs)
        for copied in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
            torch.testing.assert_close(copied(*args, **kwargs), results, rtol=0, atol=0)
        assert re.sub(r"\s", "", repr(ours)) == re.sub(r"\s", "", repr(theirs))
        assert list(ours.state_dict()) == list(theirs.state_dict())


def discontiguous(tensor):
    """As torch's own test makes them: every second element of a tensor of twice the size."""
    if tensor.dim() == 0 or tensor.numel() == 0:
        return tensor
    wide = torch.stack([tensor.detach(), torch.full_like(tensor, float("nan"))], -1)[..., 0]
    assert not wide.is_contiguous() or wide.numel() == 1
    return wide.requires_grad_(tensor.requires_grad)


@kind
@training
def test_non_contiguous_operands(kind, training, device):
    for ours, _, args, kwargs, _ in samples(kind, device, torch.float64, requires_grad=True, training=training):
        leaves = [t for t in tree_leaves(args) if t.requires_grad]
        results = tree_leaves(ours(*args, **kwargs))
        weighting = [torch.randn_like(r) for r in results]
        expected = torch.autograd.grad(results, leaves + list(ours.parameters()), weighting)
        spread = tree_map_only(torch.Tensor, discontiguous, args)
        spread_leaves = [t for t in tree_leaves(spread) if t.requires_grad]
        spread_results = tree_leaves(ours(*spread, **kwargs))
        torch.testing.assert_close(spread_results, results)
        found = torch.autograd.grad(
            spread_results, spread_leaves + list(ours.parameters()), [discontiguous(w) for w in weighting]
        )
        torch.testing.assert_close(found, expected)


@kind
def test_gradcheck_and_gradgradcheck(kind, device):
    checked = 0
    for ours, _, args, kwargs, _ in samples(kind, device, torch.float64, requires_grad=True, training=True):
        names = [name for name, _ in ours.named_parameters()]
        inputs, structure = tree_flatten(args)

        def function(*values, ours=ours, names=names, structure=structure, kwargs=kwargs):
            count = structure.num_leaves
            given = tree_unflatten(list(values[:count]), structure)
            parameters = dict(zip(names, values[count:], strict=True))
            return tuple(tree_leaves(torch.func.functional_call(ours, parameters, given, kwargs)))

        operands = (*inputs, *(p.detach().requires_grad_() for p in ours.parameters()))
        assert torch.autograd.gradcheck(function, operands, fast_mode=True)
        if checked % (8 if kind is nn.RNN else 4) == 0:
            assert torch.autograd.gradgradcheck(function, operands, fast_mode=True)
        checked += 1
    assert checked


@kind
@training
def test_same_results_each_time(kind, training, device):
    for ours, _, args, kwargs, _ in samples(kind, device, torch.float32, training=training):
        torch.testing.assert_close(ours(*args, **kwargs), ours(*args, **kwargs), rtol=0, atol=0)


@kind
def test_error_inputs(kind, device):
    """torch's samples of wrong use: the expected type and text."""
    info = INFOS[kind]
    if info.module_error_inputs_func is None:
        pytest.skip("this torch has none")
    seen = 0
    for error in info.module_error_inputs_func(
        info, device=device, dtype=torch.float32, requires_grad=False, training=True
    ):
        given, forward = error.module_error_input.constructor_input, error.module_error_input.forward_input
        if "nonlinearity" in given.kwargs and kind not in (nn.RNN, nn.RNNCell):
            continue
        if error.error_on == common_modules.ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                OURS[kind](*given.args, **given.kwargs)
        elif kind is not nn.LSTM or not _is_for_one_state(forward):
            module = OURS[kind](*given.args, **given.kwargs).to(device)
            with pytest.raises(error.error_type, match=error.error_regex):
                module(*forward.args, **forward.kwargs)
        else:
            continue
        seen += 1
    assert seen


def _is_for_one_state(forward) -> bool:
    """RNN and GRU, with which LSTM shares its samples of errors, take one state where LSTM takes two."""
    return len(forward.args) > 1 and isinstance(forward.args[1], torch.Tensor)
