"""`replace` and `restore`: the modules of torch in a model made ours, in place, and torch's again.

Ours have torch's parameters and attributes, so a module of torch becomes ours by a change of its class (as in
`torch.nn.utils.parametrize`). All that it holds, and everybody who holds it, stays.
"""

from __future__ import annotations

import collections
import inspect
import logging
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from . import _native, nn
from .nn._varied import VARIANTS
from .reference.conv_arguments import is_torchs_padding

__all__ = ["Replacement", "replace", "replacements", "restore"]

Model = TypeVar("Model", bound=Module)
Chosen = type[Module] | str
"""Modules of a class, or the one of a name, each with all that is inside it."""

OURS: dict[type[Module], type[Module]] = {
    getattr(torch.nn, name): getattr(nn, name) for name in nn.__all__ if hasattr(torch.nn, name)
}
"""The class of ours for each class of torch whose place it takes."""
_THEIRS = {ours: theirs for theirs, ours in OURS.items()}
_NAMES = {theirs.__name__: theirs for theirs in OURS}


def _code(theirs: type[Module]) -> dict[str, Any]:
    """What of torch's class computes and ours does otherwise. (Not how it is made, drawn or shown.)"""
    between = [vars(cls) for cls in OURS[theirs].__mro__ if cls.__module__.startswith("pykernels.")]
    names = {"forward", *(name for own in between for name in own if not name.startswith("__"))}
    names -= {"reset_parameters", "extra_repr", "flatten_parameters"}
    return {name: inspect.getattr_static(theirs, name, None) for name in sorted(names)}


_CODE = {theirs: _code(theirs) for theirs in OURS}
"""As it was when this package was imported: who has changed it since wants that run."""

_UNVARIED: dict[str, Any] = {name: False if name == "layer_norm" else 0.0 for name in VARIANTS}
OWN: dict[type[Module], dict[str, Any]] = {
    nn.LSTM: {"peephole": False, **_UNVARIED},
    nn.GRU: {"reset_after": True, **_UNVARIED},
    nn.RNN: _UNVARIED,
    nn.LSTMCell: {"peephole": False},
    nn.GRUCell: {"reset_after": True},
    nn.Conv1d: {"activation": None},
    nn.Conv2d: {"activation": None},
    nn.Conv3d: {"activation": None},
}
"""The attributes that modules of ours have beyond torch's, with the values that make them the same."""

ORIGIN = "_pykernels_origin"
"""The attribute in which a module keeps the class of torch that it had. It goes with copies and pickles of it."""

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_log = logging.getLogger("pykernels")


class Replacement(NamedTuple):
    """What `replacements` tells of one module."""

    name: str
    """Its name in the model; the first of them, if it has several."""
    original: type[Module]
    """The class that it has without `replace`."""
    status: Literal["replaced", "replaceable", "left"]
    reason: str
    """Why it is left as it is; otherwise empty."""


def replace(
    model: Model, *, only: Chosen | Iterable[Chosen] | None = None, exclude: Chosen | Iterable[Chosen] = ()
) -> Model:
    """Make every module of torch in `model` ours for which there is one of ours, in place.

    A module becomes ours by a change of its class; it stays the same object, and so do its parameters. Thus all these
    go on as they were: optimizers made before; modules that are in the model twice, or held elsewhere too; names and
    `state_dict`; hooks of every kind; training mode, dtype, device; parametrizations, weight norm and pruning;
    attributes that somebody set. `model` itself may be such a module. The model may be in DistributedDataParallel or
    compiled.

    These are left as they are:

    - subclasses of torch's modules, which may do something else (`torch.nn.utils.parametrize`'s are no others), and
      objects with a `forward` of their own, or whose class of torch was given another since `pykernels` was imported;
    - quantized and lazy modules, TorchScript, and modules in a `torch.fx.GraphModule`;
    - modules with dtypes, devices or kinds of tensors that there are no kernels for;
    - modules with an attribute by whose name ours has something else.

    What is replaced is logged by `logging.getLogger("pykernels")` as information, and what is left, with the reason, as
    a warning; `replacements` tells both, before and after. Doing it again does nothing more.

    Dropout draws other random numbers than torch's. `isinstance(m, torch.nn.LSTM)` is false afterwards (likewise for
    `GRU`, `RNN` and the cells: ours are `torch.nn.RNNBase` and `RNNCellBase`), so that tools that go by the class, as
    quantization and exports to ONNX do, want the model restored; so does `torch.jit.script`.
    Wrap in FSDP after it, not before.

    Args:
        model: the model, or a single module.
        only: replace but these: a class or a name in the model, or several. They stand for all that is inside as well.
            A class of ours stands for torch's too.
        exclude: do not replace these.

    Returns:
        `model`, the same object.

    Raises:
        TypeError: `model` is no module, or an element of `only` or `exclude` is neither class nor name.
        AttributeError: no module has a name that is given.

    Example::

        >>> model = pykernels.replace(model)
        >>> pykernels.replace(model, only=[torch.nn.LSTM, "encoder"], exclude="encoder.embedding")
    """
    found = list(_survey(model))
    wanted = None if only is None else _choose(model, only)
    unwanted = _choose(model, exclude)
    done: dict[str, list[str]] = collections.defaultdict(list)
    left: dict[str, list[str]] = collections.defaultdict(list)
    for module, (name, original, status, reason) in found:
        if id(module) in unwanted or (wanted is not None and id(module) not in wanted):
            continue
        if status == "replaceable":
            _take_over(module, original)
            done[original.__name__].append(name)
        elif status == "left":
            left[reason].append(name)
    for kind, names in done.items():
        _log.info("replaced torch.nn.%s by pykernels.%s: %s", kind, kind, _listed(names))
    for reason, names in left.items():
        _log.warning("left as it was (%s): %s", reason, _listed(names))
    return model


def restore(model: Model) -> Model:
    """Undo `replace`: give every module that it took over the class of torch back, in place.

    Modules that were made as ours stay ours. It works on trained, converted, copied and unpickled models too. Where a
    replaced module has since been given what torch's module has not (`layer.zoneout = 0.1`), or a class of its own, it
    stays ours, with a warning logged.

    Args:
        model: the model, or a single module.

    Returns:
        `model`, the same object.

    Raises:
        TypeError: `model` is no module.
    """
    done: dict[str, list[str]] = collections.defaultdict(list)
    left: dict[str, list[str]] = collections.defaultdict(list)
    for name, module in _modules(model):
        original = vars(module).get(ORIGIN)
        if original is None:
            continue
        if reason := _why_not_back(module, original):
            left[reason].append(name)
        else:
            _give_back(module, original)
            done[original.__name__].append(name)
    for kind, names in done.items():
        _log.info("restored torch.nn.%s: %s", kind, _listed(names))
    for reason, names in left.items():
        _log.warning("not restored (%s): %s", reason, _listed(names))
    return model


def replacements(model: Module) -> list[Replacement]:
    """What `replace` has done with a model, or would do: an entry for each module of a kind that there is of ours.

    Modules that were made as ours are not among them.

    Args:
        model: the model, or a single module.

    Raises:
        TypeError: `model` is no module.

    Example::

        >>> for entry in pykernels.replacements(model):
        ...     print(entry.name, entry.original.__name__, entry.status, entry.reason)
    """
    return [entry for _, entry in _survey(model)]


def _survey(model: Module) -> Iterator[tuple[Module, Replacement]]:
    named = _modules(model)
    traced = {id(part) for _, m in named if isinstance(m, torch.fx.GraphModule) for part in m.modules()}
    devices = {tensor.device.type for tensor in model.parameters()}
    for name, module in named:
        kind = _kind(module)
        if ORIGIN in vars(module):
            yield module, Replacement(name, vars(module)[ORIGIN], "replaced", "")
        elif kind is not None:
            reason = _why_not(module, kind, devices, id(module) in traced)
            original = kind if not reason else _class(module)
            yield module, Replacement(name, original, "left" if reason else "replaceable", reason)


def _modules(model: Module) -> list[tuple[str, Module]]:
    if not isinstance(model, Module):
        raise TypeError(f"[pykernels] expected a torch.nn.Module, got {type(model).__name__}")
    return list(model.named_modules())


def _choose(model: Module, chosen: Chosen | Iterable[Chosen]) -> set[int]:
    """The identities of the modules that are meant."""
    found: set[int] = set()
    several = isinstance(chosen, Iterable) and not isinstance(chosen, (type, str, Module))
    for one in chosen if several else (chosen,):  # type: ignore[union-attr]
        if isinstance(one, str):
            meant = [model.get_submodule(one)]
        elif isinstance(one, type):
            meant = [module for module in model.modules() if isinstance(module, (one, _THEIRS.get(one, one)))]
        else:
            raise TypeError(f"[pykernels] expected classes and names of modules, got {type(one).__name__}")
        found.update(id(part) for module in meant for part in module.modules())
    return found


def _listed(names: Iterable[str]) -> str:
    return ", ".join(name or "the model itself" for name in names)


# --- what may be replaced


def _class(module: Module) -> type[Module]:
    """The class of the module; if parametrized, the one that it had before."""
    kind = type(module)
    return kind.__bases__[0] if is_parametrized(module) and len(kind.__bases__) == 1 else kind


def _kind(module: Module) -> type[Module] | None:
    """The class of torch that is replaced and that the module has, or is a variety of; None for others and ours."""
    if isinstance(module, tuple(_THEIRS)):
        return None
    for kind in OURS:
        if isinstance(module, kind):
            return kind
    # quantized modules and TorchScript's have the names only
    name = module.original_name if isinstance(module, torch.jit.ScriptModule) else type(module).__name__
    return _NAMES.get(name) if type(module).__module__.startswith("torch.") else None


def _why_not(module: Module, kind: type[Module], devices: set[str], traced: bool) -> str:
    """What speaks against replacing the module; an empty text if nothing does."""
    found = _class(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript"
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return f"lazy: the first call makes it a {kind.__name__}"
    if found is not kind:
        return f"a class of its own, {found.__module__}.{found.__qualname__}"
    if traced:
        return "in a torch.fx.GraphModule"
    if "forward" in vars(module):
        return "its forward is not that of its class"
    if names := [name for name, was in _CODE[kind].items() if inspect.getattr_static(kind, name, None) is not was]:
        return f"torch.nn.{kind.__name__} was changed: {', '.join(names)}"
    if names := _in_the_way(module, kind):
        return f"it has attributes that pykernels.{kind.__name__} has for something else: {', '.join(names)}"
    return _without_kernels(module, devices)


def _in_the_way(module: Module, kind: type[Module]) -> list[str]:
    """The attributes of the object that would hide some of our class's, or be taken for them."""
    ours = OURS[kind]
    held = (vars(module), module._parameters, module._buffers, module._modules)
    names = (name for names in held for name in names)
    return [n for n in names if n in OWN.get(ours, ()) or (hasattr(ours, n) and not hasattr(kind, n))]


def _without_kernels(module: Module, devices: set[str]) -> str:
    """What of the module's tensors (its own, or else its parts') we have no kernels for."""
    tensors = list(module.parameters(recurse=False)) or list(module.parameters())
    for tensor in tensors:
        if type(tensor) not in (Tensor, Parameter):
            return f"its parameters are of type {type(tensor).__name__}"
        if tensor.dtype not in _DTYPES:
            return f"no kernels for {tensor.dtype}"
    for device in sorted({tensor.device.type for tensor in tensors} or devices):
        if device not in ("cpu", "meta") and (device != "cuda" or _native.cuda_kernels is None):
            return f"no kernels for {device}"
    return ""


# --- there and back


def _take_over(module: Module, original: type[Module]) -> None:
    ours = OURS[original]
    _change_class(module, ours)
    vars(module).update(OWN.get(ours, {}))
    vars(module)[ORIGIN] = original


def _why_not_back(module: Module, original: type[Module]) -> str:
    ours, found = OURS[original], _class(module)
    if found is not ours:
        return f"it has become a {found.__name__}"
    for name, value in OWN.get(ours, {}).items():
        now = getattr(module, name, value)
        if now is not value and now != value:
            return f"torch.nn.{original.__name__} has no {name}"
    # (in other modes torch's module goes by the numbers that its constructor made of the padding)
    pads = isinstance(module, torch.nn.modules.conv._ConvNd) and module.padding_mode == "zeros"
    if pads and not is_torchs_padding(module.padding):
        return f"torch.nn.{original.__name__} has no padding of {module.padding!r}"
    return ""


def _give_back(module: Module, original: type[Module]) -> None:
    for name in (ORIGIN, *OWN.get(OURS[original], ())):
        vars(module).pop(name, None)
    _change_class(module, original)
    if isinstance(module, torch.nn.RNNBase):
        module.flatten_parameters()  # which ours does not need, and cuDNN does


def _change_class(module: Module, to: type[Module]) -> None:
    """Put the class, under that of parametrize if there is one, in the place of the module's."""
    kind: Any = type(module)
    if _class(module) is not kind:
        # It was made for this module (and is shared by copies of it), with a property for each parametrized tensor.
        own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
        to = type(kind)(f"Parametrized{to.__name__}", (to,), own)
    object.__setattr__(module, "__class__", to)
