"""Arguments of the operators of the recurrent variants, by name and in the operators' order."""

from __future__ import annotations

from typing import Any

import torch

from pykernels import reference
from tests.helpers import Case

from .operators import Arguments, kernels

FORM = {"lstm": ("projection", "peephole"), "gru": ("reset_after",), "rnn": ("relu",)}
SAVED = {"lstm": ("gates", "cells", "normalized", "stats")} | dict.fromkeys(
    ("gru", "rnn"), ("gates", "normalized", "stats")
)


def operator(case: Case, which: str) -> Any:
    """`torch.ops.pykernels.<kind>_variant_forward` or `_backward`."""
    return getattr(torch.ops.pykernels, f"{case.kind}_variant_{which}")


def raw(case: Case, which: str, device: Any = "cpu") -> Any:
    return getattr(kernels(device), f"{case.kind}_variant_{which}")


def flag_names(case: Case) -> tuple[str, ...]:
    return "bias", *FORM[case.kind], "layer_norm", "bidirectional"


def noise_names(case: Case) -> tuple[str, ...]:
    return ("stay", "stay_cell") if case.kind == "lstm" else ("stay",)


def shares(case: Case) -> tuple[float, ...]:
    """The probability with which each state stays."""
    count = len(case.about.states)
    return case.zoneout if isinstance(case.zoneout, tuple) else (case.zoneout,) * count


def weight_names(case: Case) -> list[str]:
    """Of one layer's weights those that the operator takes: all but the input part's."""
    return [n for n in case.weight_shapes() if not n.startswith(("weight_ih", "bias_ih", "weight_ln_ih"))]


def noise(case: Case, dtype: torch.dtype, device: Any = "cpu") -> Arguments:
    """In training drawn masks, otherwise none: a mask of a state for each share that is not zero."""
    draw = torch.Generator().manual_seed(case.seed + 1)
    made: Arguments = {"state_scale": None}
    if case.training and case.recurrent_dropout:
        kept = torch.rand(case.directions, case.batch, case.out, generator=draw) >= case.recurrent_dropout
        made["state_scale"] = kept.to(device, dtype) / (1 - case.recurrent_dropout)
    for name, share, width in zip(noise_names(case), shares(case), (case.out, case.hidden), strict=False):
        stays = torch.rand(case.directions, case.rows, width, generator=draw) < share
        # any number that is not zero says that a unit stays
        made[name] = (stays * 3).to(device, torch.uint8) if case.training and share else None
    names = ("zoneout", "zoneout_cell")
    return made | dict(zip(names, shares(case), strict=False))


def forward_arguments(case: Case, dtype=torch.float64, device="cpu", save=True, requires_grad=False) -> Arguments:
    draw = torch.Generator().manual_seed(case.seed + 2)
    tensors = case.tensors(dtype, device, requires_grad)
    lead = (case.rows,) if case.packed else (case.steps, case.batch)
    parts = torch.randn(*lead, case.directions * case.about.gates * case.hidden, generator=draw, dtype=torch.float64)
    made: Arguments = {"input": parts.to(device, dtype).requires_grad_(requires_grad)}
    made["batch_sizes"] = case.batch_sizes() if case.packed else None
    made |= {name: tensors.get(name) for name in case.about.states}
    made["weights"] = [tensors[name] for name in weight_names(case)]
    made |= noise(case, dtype, device)
    return made | {name: getattr(case, name) for name in flag_names(case)} | {"save": save}


def results_of(case: Case, found: Any) -> dict[str, torch.Tensor]:
    """What the forward operator returned, by name."""
    return dict(zip((*case.about.results, *SAVED[case.kind]), found, strict=True))


def backward_arguments(case: Case, dtype=torch.float64, device="cpu", need=(True, True, True)) -> Arguments:
    given = forward_arguments(case, dtype, device)
    found = results_of(case, operator(case, "forward")(*given.values()))
    draw = torch.Generator().manual_seed(case.seed + 3)
    made: Arguments = {
        f"grad_{name}": torch.randn(found[name].shape, generator=draw).to(found[name]) for name in case.about.results
    }
    made |= {name: given[name] for name in ("input", "batch_sizes", *case.about.states, "weights")}
    made |= {name: found[name] for name in ("output", *SAVED[case.kind])}
    rest = list(given)[list(given).index("weights") + 1 : -1]
    made |= {name: given[name] for name in rest}
    return made | dict(zip(("need_input", "need_states", "need_weights"), need, strict=True))


def twin(case: Case, arguments: Arguments) -> dict[str, torch.Tensor]:
    """The results of the operator's twin."""
    function = getattr(reference, f"{case.kind}_variant_layer")
    values = [value for name, value in arguments.items() if name != "save"]
    return dict(zip(case.about.results, function(*values), strict=True))
