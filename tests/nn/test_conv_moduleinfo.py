"""torch's own test material for its convolutions (ModuleInfo samples), with the name replaced."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

import pykernels

from .test_recurrent_moduleinfo import discontiguous

common_modules = pytest.importorskip("torch.testing._internal.common_modules")

OURS = {getattr(nn, n): getattr(pykernels, n) for n in ("Conv1d", "Conv2d", "Conv3d")}
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
        yield (*modules, sample.forward_input.args, sample.forward_input.kwargs, sample)


def test_torch_has_samples():
    assert set(INFOS) == set(OURS)


@kind
@training
@dtypes
def test_forward(kind, training, dtype, device):
    """The samples' own reference functions, and torch's module."""
    for ours, theirs, args, kwargs, sample in samples(kind, device, dtype, training=training):
        results = ours(*args, **kwargs)
        torch.testing.assert_close(results, theirs(*args, **kwargs))
        if sample.reference_fn is not None:
            torch.testing.assert_close(results, sample.reference_fn(ours, *args, **kwargs))


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
def test_pickle_and_state_dict(kind, device):
    for ours, theirs, args, kwargs, _ in samples(kind, device, torch.float32):
        results = ours(*args, **kwargs)
        for copied in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
            torch.testing.assert_close(copied(*args, **kwargs), results, rtol=0, atol=0)
        assert repr(ours) == repr(theirs)
        assert list(ours.state_dict()) == list(theirs.state_dict())


@kind
def test_non_contiguous_operands(kind, device):
    for ours, _, args, kwargs, _ in samples(kind, device, torch.float64, requires_grad=True, training=True):
        found = []
        for spread in (lambda t: t, discontiguous):
            given = tree_map_only(torch.Tensor, spread, args)
            leaves = [t for t in tree_leaves(given) if t.requires_grad]
            y = ours(*given, **kwargs)
            weighting = spread(torch.linspace(-1, 1, y.numel(), device=device, dtype=y.dtype).reshape(y.shape))
            found.append([y, *torch.autograd.grad(y, leaves + list(ours.parameters()), weighting)])
        torch.testing.assert_close(*found)


@kind
def test_memory_formats(kind, device):
    """Whatever the format of input and weight, values and format of the result are torch's."""
    if kind is nn.Conv1d:
        return
    last = torch.channels_last if kind is nn.Conv2d else torch.channels_last_3d
    for ours, theirs, args, kwargs, _ in samples(kind, device, torch.float32):
        for of_input in (torch.contiguous_format, last):
            for of_weight in (torch.contiguous_format, last):
                x = args[0] if args[0].dim() == len(ours.weight.shape) else args[0][None]
                found = []
                for module in (ours, theirs):
                    y = module.to(memory_format=of_weight)(x.contiguous(memory_format=of_input), **kwargs)
                    found.append((y, torch._prims_common.suggest_memory_format(y)))
                torch.testing.assert_close(found[0][0], found[1][0])
                if kind is nn.Conv2d:  # (torch's Conv3d computes some of the samples in the other format)
                    assert found[0][1] == found[1][1]


@kind
def test_gradcheck_and_gradgradcheck(kind, device):
    for ours, _, args, kwargs, _ in samples(kind, device, torch.float64, requires_grad=True, training=True):
        names = [name for name, _ in ours.named_parameters()]

        def function(x, *values, ours=ours, names=names, kwargs=kwargs):
            return torch.func.functional_call(ours, dict(zip(names, values, strict=True)), (x,), kwargs)

        operands = (*args, *(p.detach().requires_grad_() for p in ours.parameters()))
        assert torch.autograd.gradcheck(function, operands, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, operands, fast_mode=True)
