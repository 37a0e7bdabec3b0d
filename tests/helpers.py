"""What the tests share: drawn cases, runs that return every gradient, judgement of errors, child processes."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pykernels import functional, reference

try:
    import hypothesis
    from hypothesis import strategies
except ImportError:  # the suite also runs where only pytest is installed
    hypothesis = None

ROOT = Path(__file__).resolve().parent.parent
LOW = (torch.bfloat16, torch.float16)


# -- kinds ------------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Kind:
    """What sets one recurrent operator apart from the others, by the names that its layers have for it."""

    gates: int  # rows of weight_ih for each hidden unit
    states: tuple[str, ...]
    saved: tuple[str, ...]
    own: tuple[str, ...]  # the flags of its operators between `bias` and `bidirectional`

    @property
    def results(self) -> tuple[str, ...]:
        return "output", *(state.replace("0", "_n") for state in self.states)

    @property
    def flags(self) -> tuple[str, ...]:
        return "bias", *self.own, "bidirectional"


KINDS = {
    "lstm": Kind(4, ("h0", "c0"), ("gates", "cells"), ("projection", "peephole")),
    "gru": Kind(3, ("h0",), ("gates",), ("reset_after",)),
    "rnn": Kind(1, ("h0",), ("hidden",), ("projection", "relu")),
}
OWN = {"projection": False, "peephole": False, "reset_after": True, "relu": False}
"""The flags that not every kind has, and what they are by default."""
VARIANTS = ("layer_norm", "zoneout", "recurrent_dropout", "weight_dropout")


# -- drawn cases ------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Case:
    """One recurrent problem: every tensor of it follows from these fields."""

    steps: int = 4
    batch: int = 3
    inputs: int = 5
    hidden: int = 6
    layers: int = 1
    bias: bool = True
    bidirectional: bool = False
    projection: bool = False
    peephole: bool = False
    packed: bool = False
    states: bool = True
    seed: int = 0
    kind: str = "lstm"
    reset_after: bool = True
    relu: bool = False
    layer_norm: bool = False
    zoneout: float | tuple[float, float] = 0.0
    recurrent_dropout: float = 0.0
    weight_dropout: float = 0.0
    training: bool = False

    def of(self, kind: str) -> Case:
        """The same problem for another kind, without the flags that it does not have or that its variants exclude."""
        other = {name: default for name, default in OWN.items() if name not in KINDS[kind].own}
        if self.variants and kind == "rnn":
            other["projection"] = False
        if self.layer_norm:
            other["reset_after"] = True
        if kind != "lstm" and isinstance(self.zoneout, tuple):
            other["zoneout"] = self.zoneout[0]
        return dataclasses.replace(self, kind=kind, **other)

    def __str__(self) -> str:
        pairs = ((f, getattr(self, f.name)) for f in dataclasses.fields(self)[4:])
        others = [f"{f.name}={value}" for f, value in pairs if value != f.default]
        return " ".join([f"T{self.steps}-B{self.batch}-I{self.inputs}-H{self.hidden}", *others])

    @property
    def about(self) -> Kind:
        return KINDS[self.kind]

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def proj(self) -> int:
        return max(1, 2 * self.hidden // 3) if self.projection else 0

    @property
    def out(self) -> int:
        return self.proj or self.hidden

    @property
    def rows(self) -> int:
        """Rows of the input's matrix."""
        return sum(self.lengths()) if self.packed else self.steps * self.batch

    @property
    def own_options(self) -> dict[str, Any]:
        """The keyword arguments that only this kind's functions have."""
        if self.kind == "rnn":
            return {"projection": self.projection, "nonlinearity": "relu" if self.relu else "tanh"}
        return {name: getattr(self, name) for name in self.about.own}

    @property
    def variants(self) -> dict[str, Any]:
        """The keyword arguments that say what the layers vary, and whether in training; none for a plain layer."""
        found = {name: getattr(self, name) for name in VARIANTS}
        return found | {"training": self.training} if any(found.values()) else {}

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the functional and of its twin."""
        common = {"num_layers": self.layers, "bias": self.bias, "bidirectional": self.bidirectional}
        return common | self.own_options | self.variants

    @property
    def flags(self) -> list[bool]:
        """The flags of the operators, in their order."""
        return [getattr(self, name) for name in self.about.flags]

    def lengths(self) -> list[int]:
        """Sequence lengths for packing: the longest has `steps`, the rest are drawn."""
        draw = random.Random(self.seed)
        return sorted([self.steps] + [draw.randint(1, self.steps) for _ in range(self.batch - 1)], reverse=True)

    def batch_sizes(self) -> Tensor:
        lengths = self.lengths()
        return torch.tensor([sum(length > step for length in lengths) for step in range(self.steps)])

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """The widths are those of the fed-back state and, of an LSTM, of its cells."""
        lead = (self.layers * self.directions, self.batch)
        return {name: (*lead, self.hidden if name == "c0" else self.out) for name in self.about.states}

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        gates, named = self.about.gates * self.hidden, "weight_hr" if self.kind == "lstm" else "weight_ho"
        for layer in range(self.layers):
            width = self.inputs if layer == 0 else self.out * self.directions
            for suffix in ("", "_reverse")[: self.directions]:
                end = f"_l{layer}{suffix}"
                shapes["weight_ih" + end] = (gates, width)
                shapes["weight_hh" + end] = (gates, self.out)
                if self.bias:
                    shapes["bias_ih" + end] = shapes["bias_hh" + end] = (gates,)
                if self.projection:
                    shapes[named + end] = (self.proj, self.hidden)
                if self.projection and self.bias and self.kind == "rnn":
                    shapes["bias_ho" + end] = (self.proj,)
                if self.peephole:
                    shapes["weight_peephole" + end] = (3, self.hidden)
                if self.layer_norm:
                    shapes["weight_ln_ih" + end] = shapes["weight_ln_hh" + end] = (gates,)
                if self.layer_norm and self.kind == "lstm":
                    shapes["weight_ln_c" + end] = shapes["bias_ln_c" + end] = (self.hidden,)
        return shapes

    def tensors(
        self, dtype: torch.dtype = torch.float64, device: Any = "cpu", requires_grad: bool = True
    ) -> dict[str, Tensor]:
        """`input`, the initial states if `states`, then the weights in the order of `RNNBase._flat_weights`."""
        draw = torch.Generator().manual_seed(self.seed)
        sizes = (self.rows,) if self.packed else (self.steps, self.batch)
        shapes: dict[str, tuple[int, ...]] = {"input": (*sizes, self.inputs)}
        if self.states:
            shapes |= self.state_shapes()
        made = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
        scale = 1 / math.sqrt(self.hidden)
        for name, shape in self.weight_shapes().items():
            made[name] = (torch.rand(shape, generator=draw, dtype=torch.float64) * 2 - 1) * scale
            made[name] += name.startswith("weight_ln")  # gains around one
        return {name: t.to(device, dtype).requires_grad_(requires_grad) for name, t in made.items()}


def drawn(examples: int = 25, *, of: Callable[..., Any] = Case, **space: Any) -> Callable:
    """Run the test with `case=of(...)` for drawn arguments; where it takes `kind` too, with cases of that kind.

    A pair (low, high) draws an integer, a list one of its entries. hypothesis draws and shrinks where it is
    installed; elsewhere the same space is drawn from with a fixed seed.
    """

    def decorate(test: Callable) -> Callable:
        if "kind" in inspect.signature(test).parameters:
            test = _of_its_kind(test)
        if hypothesis is not None:
            choose = {
                name: strategies.integers(*domain) if isinstance(domain, tuple) else strategies.sampled_from(domain)
                for name, domain in space.items()
            }
            settings = hypothesis.settings(
                max_examples=examples,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            return settings(hypothesis.given(case=strategies.builds(of, **choose))(test))

        @functools.wraps(test)
        def run(*args: Any, **kwargs: Any) -> None:
            draw = random.Random(test.__name__)
            for _ in range(examples):
                values = {n: draw.randint(*d) if isinstance(d, tuple) else draw.choice(d) for n, d in space.items()}
                case = of(**values)
                try:
                    test(*args, case=case, **kwargs)
                except Exception as error:
                    error.args = (f"{error}\nwith {case}",)
                    raise

        signature = inspect.signature(test)
        run.__signature__ = signature.replace(parameters=[p for n, p in signature.parameters.items() if n != "case"])
        return run

    return decorate


def _of_its_kind(test: Callable) -> Callable:
    @functools.wraps(test)
    def run(*args: Any, kind: str, case: Any, **kwargs: Any) -> None:
        test(*args, kind=kind, case=case.of(kind), **kwargs)

    return run


every_kind = pytest.mark.parametrize("kind", KINDS)
SEED = (0, 2**16)
FLAG = [False, True]
FLAGS = dict.fromkeys(("bias", "bidirectional", *OWN, "packed", "states"), FLAG)
VARIED: dict[str, Any] = {
    "layer_norm": FLAG,
    "zoneout": [0.0, 0.3, (0.2, 0.6), (0.0, 0.5), (0.4, 0.0)],
    "recurrent_dropout": [0.0, 0.25],
    "weight_dropout": [0.0, 0.4],
    "training": FLAG,
}
"""What a layer may vary. (A layer that varies nothing is among them.)"""


# -- runs -------------------------------------------------------------------------------------------------------------
def split(tensors: dict[str, Tensor]) -> tuple[Tensor, Any, list[Tensor]]:
    """The (input, hx, weights) of a functional out of `Case.tensors()`; hx is a pair for the LSTM."""
    hx = (tensors["h0"], tensors["c0"]) if "c0" in tensors else tensors.get("h0")
    return tensors["input"], hx, [t for name, t in tensors.items() if name not in ("input", "h0", "c0")]


def call(where: Any, case: Case, tensors: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Results by name of the function of the case's kind in `where`: `functional`, `reference`, or a function.

    A case of variants in training has the same masks at each call.
    """
    if case.variants and case.training:
        torch.manual_seed(case.seed)
    sizes = {"batch_sizes": case.batch_sizes()} if case.packed else {}
    results = getattr(where, case.kind, where)(*split(tensors), **sizes, **case.options, **options)
    return dict(zip(case.about.results, results, strict=True))


def call_cell(where: Any, case: Case, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state after one step, and an LSTM's cell, by the function of the cell in `where`."""
    weights = {name.removesuffix("_l0"): tensors[name] for name in case.weight_shapes()}
    states = tuple(tensors[name][0] for name in case.about.states if case.states)
    hx = (states if len(states) == 2 else states[0]) if states else None
    flags = {k: v for k, v in case.own_options.items() if k in ("reset_after", "nonlinearity")}
    found = getattr(where, f"{case.kind}_cell")(tensors["input"][0], hx, **weights, **flags)
    return {"h": found[0], "c": found[1]} if isinstance(found, tuple) else {"h": found}


def with_gradients(results: dict[str, Tensor], leaves: dict[str, Tensor], seed: int = 1) -> dict[str, Tensor]:
    """The results, and `grad <leaf>` for a drawn weighting of all results."""
    draw = torch.Generator().manual_seed(seed)
    weighting = [
        torch.randn(result.shape, generator=draw, dtype=torch.float64).to(result.device, result.dtype)
        for result in results.values()
    ]
    gradients = torch.autograd.grad(list(results.values()), list(leaves.values()), weighting)
    detached = {name: result.detach() for name, result in results.items()}
    return detached | {f"grad {name}": g for name, g in zip(leaves, gradients, strict=True)}


def run(where: Any, case: Case, dtype: torch.dtype, device: Any = "cpu", draw_as: Any = None, **options: Any):
    """Results and all gradients of a functional (see `call`).

    draw_as: the dtype to round the operands to first, so that a float64 run gives the truth about a lower one.
    """
    tensors = case.tensors(draw_as or dtype, device, requires_grad=False)
    tensors = {name: t.to(dtype).requires_grad_() for name, t in tensors.items()}
    return with_gradients(call(where, case, tensors, **options), tensors)


# -- judgement --------------------------------------------------------------------------------------------------------
def distance(actual: Tensor, truth: Tensor, least: float = 1e-300) -> float:
    """Largest difference, relative to the largest entry of the truth (or to `least`, where that is more)."""
    if truth.numel() == 0:
        return 0.0
    truth = truth.double()
    difference = (actual.double() - truth).abs().max()
    return float(difference / truth.abs().max().clamp_min(least))


def check_form(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(actual) == list(expected)
    for name, tensor in actual.items():
        assert tensor.shape == expected[name].shape, f"{name}: {tuple(tensor.shape)}, not {expected[name].shape}"
        assert tensor.device == expected[name].device, f"{name} on {tensor.device}, not {expected[name].device}"


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    """Equality up to `tolerance` of the largest entry, by name (for float64)."""
    check_form(actual, expected)
    for name, tensor in actual.items():
        assert tensor.dtype == expected[name].dtype, f"{name} is {tensor.dtype}, not {expected[name].dtype}"
        assert distance(tensor, expected[name]) <= tolerance, f"{name} is off by {distance(tensor, expected[name])}"


def assert_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    check_form(actual, expected)
    for name, tensor in actual.items():
        assert torch.equal(tensor, expected[name]), f"{name} differs by {distance(tensor, expected[name])}"


def assert_no_worse(
    ours: dict[str, Tensor], peer: dict[str, Tensor], truth: dict[str, Tensor], factor: float = 2, floor: float = 2
) -> None:
    """Our error against the float64 truth is at most `factor` times the peer's (half more for gradients).

    Errors count relative to a tensor's largest entry, or to a tenth of the largest among all results (all gradients),
    so that a tensor of one or two entries that happen to cancel does not decide. The peer's is its largest of them.
    floor: error, in units in the last place, that is never held against us.
    """
    check_form(ours, peer)
    results = [name for name in ours if not name.startswith("grad") and ours[name].numel()]
    gradients = [name for name in ours if name.startswith("grad") and ours[name].numel()]
    for names, share in ((results, factor), (gradients, 1.5 * factor)):
        least = max((float(truth[name].abs().max()) for name in names), default=0.0) / 10 + 1e-300
        theirs = max((distance(peer[name], truth[name], least) for name in names), default=0.0)
        for name in names:
            assert ours[name].dtype == peer[name].dtype, f"{name} is {ours[name].dtype}, not {peer[name].dtype}"
            allowed = share * theirs + floor * torch.finfo(ours[name].dtype).eps
            error = distance(ours[name], truth[name], least)
            assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def check_values(
    case: Case, dtype: torch.dtype, device: Any = "cpu", floor: float = 8, ours: dict[str, Tensor] | None = None
) -> None:
    """Results and gradients of our function, or those given, against the twin: in float64 equal, else no less exact.

    Of ReLU in lower precision only the results: its derivative jumps where rounding moves a sum across zero.
    """
    found = {"ours": run(functional, case, dtype, device) if ours is None else ours}
    found["peer"] = run(reference, case, dtype, device)
    if dtype == torch.float64:
        assert_equal(found["ours"], found["peer"])
        return
    found["truth"] = run(reference, case, torch.float64, device, draw_as=dtype)
    if case.relu:
        found = {who: {n: t for n, t in each.items() if n in case.about.results} for who, each in found.items()}
    assert_no_worse(found["ours"], found["peer"], found["truth"], floor=floor)


def outcome(attempt: Callable[[], Any]) -> tuple[type, str] | None:
    """Type and text of the error of a call, None where it returns."""
    try:
        attempt()
    except Exception as error:
        return type(error), str(error)
    return None


# -- child processes --------------------------------------------------------------------------------------------------
def python(code: str | Iterable[str], timeout: float = 60, check: bool = True, **environment: str):
    """Run Python code (or arguments) in a fresh process at the root of the repository; a hang is a failure."""
    arguments = ["-c", code] if isinstance(code, str) else list(code)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment},
        timeout=timeout,
        capture_output=True,
        text=True,
    )
    if check:
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done
