"""The restricted Boltzmann machine's functions against their twins: means, draws, statistics, updates, derivatives."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, vmap

from pykernels import functional, reference
from pykernels.reference.rbm import sample_operator, uniforms
from tests.helpers import FLAG, LOW, SEED, assert_no_worse, assert_same_bits, drawn, outcome, with_gradients

from .compiling import compiled, forget_what_was_compiled

assert forget_what_was_compiled  # around every test
sample_op = torch.ops.pykernels.rbm_sample.default
statistics_op = torch.ops.pykernels.rbm_contrastive_divergence.default
train_op = torch.ops.pykernels.rbm_train_.default
DTYPES = [torch.float64, torch.float32, *LOW]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
wide = pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
UNITS = ["bernoulli", "gaussian"]


@dataclasses.dataclass(frozen=True)
class Layer:
    """One side given the other."""

    rows: tuple[int, ...] = (5,)
    inputs: int = 9
    outputs: int = 70
    units: str = "bernoulli"
    transposed: bool = False
    bias: bool = True
    temperature: float = 1.0
    stream: int = 0
    layout: str = "dense"
    seed: int = 0

    @property
    def options(self) -> dict[str, Any]:
        return {"units": self.units, "transposed": self.transposed, "temperature": self.temperature}

    @property
    def draws(self) -> dict[str, Any]:
        return {"seed": self.seed * 0x9E3779B97F4A7C15 % 2**63, "stream": self.stream}

    def tensors(self, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(self.seed)
        shape = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)
        made = {"input": torch.rand(*self.rows, self.inputs, generator=draw, dtype=torch.float64)}
        made["weight"] = torch.randn(shape, generator=draw, dtype=torch.float64) / math.sqrt(self.inputs + 1)
        if self.bias:
            made["bias"] = torch.randn(self.outputs, generator=draw, dtype=torch.float64)
        made = {name: t.to(device, dtype) for name, t in made.items()}
        if self.layout == "wide":
            made = {name: torch.stack([t, t * math.nan], -1)[..., 0] for name, t in made.items()}
        if self.layout == "rows apart":
            made["input"] = torch.cat([made["input"], made["input"] * math.nan], -1)[..., : self.inputs]
        if self.layout == "turned":
            made["weight"] = made["weight"].t().contiguous().t()
        return {name: t.requires_grad_() for name, t in made.items()}


LAYERS: dict[str, Any] = {
    "rows": [(), (0,), (1,), (2,), (7,), (49,), (3, 5), (2, 0, 3)], "inputs": [0, 1, 7, 16, 33, 130],
    "outputs": [0, 1, 4, 15, 16, 17, 63, 64, 65, 200], "units": UNITS, "transposed": FLAG, "bias": FLAG,
    "temperature": [1.0, 0.5, 2.5], "stream": [0, 7, 2**32 - 1], "seed": SEED,
    "layout": ["dense", "wide", "rows apart", "turned"],
}  # fmt: skip


def run(where: Any, layer: Layer, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return where.rbm_sample(tensors["input"], tensors["weight"], tensors.get("bias"), **layer.options, **layer.draws)


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


# -- contrastive divergence -------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Machine:
    rows: int = 7
    batch: int = 3
    visible: int = 10
    hidden: int = 20
    chains: int = 0
    k: int = 1
    units: str = "bernoulli"
    temperature: float = 1.0
    momentum: float = 0.0
    weight_decay: float = 0.0
    ordered: bool = False
    layout: str = "dense"
    seed: int = 0

    @property
    def options(self) -> dict[str, Any]:
        seed = self.seed * 0x9E3779B97F4A7C15 % 2**63
        return {"k": self.k, "visible": self.units, "temperature": self.temperature, "seed": seed, "first_row": 5}

    def tensors(self, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(self.seed)
        made = {"data": (torch.rand(self.rows, self.visible, generator=draw) < 0.4).double()}
        made["weight"] = 0.3 * torch.randn(self.hidden, self.visible, generator=draw, dtype=torch.float64)
        made["visible_bias"] = torch.randn(self.visible, generator=draw, dtype=torch.float64)
        made["hidden_bias"] = torch.randn(self.hidden, generator=draw, dtype=torch.float64)
        if self.chains:
            made["chain"] = (torch.rand(self.chains, self.hidden, generator=draw) < 0.5).double()
        made = {name: t.to(device, dtype) for name, t in made.items()}
        if self.layout == "wide":
            made = {name: torch.stack([t, t * math.nan], -1)[..., 0] for name, t in made.items()}
        return made

    def trained(self, where: Any, dtype: torch.dtype, device: Any = "cpu") -> dict[str, Tensor]:
        """What rbm_train_ leaves behind."""
        written = self.tensors(dtype, device)
        data = written.pop("data")
        velocity = None
        if self.momentum:
            velocity = tuple(torch.full_like(written[n], 0.01) for n in ("weight", "visible_bias", "hidden_bias"))
        order = None
        if self.ordered:
            order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.seed)).to(device)
        where.rbm_train_(
            data, **written, velocity=velocity, order=order, learning_rate=0.1, batch_size=self.batch,
            momentum=self.momentum, weight_decay=self.weight_decay, **self.options,
        )  # fmt: skip
        return written | {f"velocity {i}": t for i, t in enumerate(velocity or ())}


MACHINES: dict[str, Any] = {
    "rows": [1, 2, 7, 50], "batch": [1, 3, 10, 60], "visible": [1, 7, 16, 33, 65, 100],
    "hidden": [1, 5, 16, 31, 64, 66, 130], "chains": [0, 0, 1, 4, 60], "k": [1, 2, 3], "units": UNITS,
    "temperature": [1.0, 1.3], "momentum": [0.0, 0.5], "weight_decay": [0.0, 0.01], "ordered": FLAG,
    "layout": ["dense", "dense", "wide"], "seed": SEED,
}  # fmt: skip


def check_near(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, truth in expected.items():
        torch.testing.assert_close(found[name].to(truth.dtype), truth, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.isa
@drawn(120, of=Machine, **MACHINES)
def test_statistics(device, case):
    """In float64, where no draw hangs on rounding."""
    tensors, names = case.tensors(device=device), ("weight", "visible_bias", "hidden_bias", "chain")
    given = {**tensors, **case.options}
    found, expected = (w.rbm_contrastive_divergence(**given) for w in (functional, reference))
    assert (found[3] is None) == (case.chains == 0)
    pairs = [dict(zip(names, each if each[3] is not None else each[:3], strict=False)) for each in (found, expected)]
    check_near(pairs[0], pairs[1], 1e-9)
    for name, tensor in case.tensors(device=device).items():
        assert torch.equal(tensors[name].nan_to_num(), tensor.nan_to_num())  # nothing is written to


@pytest.mark.isa
@drawn(150, of=Machine, **MACHINES)
def test_training(device, case):
    check_near(case.trained(functional, torch.float64, device), case.trained(reference, torch.float64, device), 1e-7)


@drawn(30, of=Machine, **{**MACHINES, "units": ["bernoulli"]})
def test_training_in_float32(device, case):
    """The draws are the same unless a mean is within rounding of one, which none of these is."""
    found = case.trained(functional, torch.float32, device)
    check_near(found, case.trained(reference, torch.float32, device), 3e-5)


@pytest.mark.isa
@wide
@pytest.mark.parametrize("chains", [0, 30])
def test_training_has_the_same_bits_for_any_number_of_threads(threads, dtype, chains):
    for visible, hidden in ((200, 150), (784, 65), (33, 500)):
        case = Machine(90, 40, visible, hidden, chains, k=2, momentum=0.5, weight_decay=0.01, units="gaussian", seed=2)
        found = []
        for count in (1, 2, 3):
            threads(count)
            found.append(case.trained(functional, dtype))
        assert all(t.isfinite().all() for t in found[0].values())
        assert_same_bits(found[1], found[0])
        assert_same_bits(found[2], found[0])


def test_an_epoch_is_its_mini_batches(device):
    """Calls one after the other, with their rows counted on, are one call."""
    case = Machine(20, 4, chains=6, momentum=0.5)
    for chains in (0, 6):
        case = dataclasses.replace(case, chains=chains)
        whole = case.trained(functional, torch.float64, device)
        parts = case.tensors(device=device)
        data, stride = parts.pop("data"), max(4, chains)
        velocity = tuple(torch.full_like(parts[n], 0.01) for n in ("weight", "visible_bias", "hidden_bias"))
        for number, batch in enumerate(data.split(4)):
            options = {**case.options, "first_row": 5 + number * stride}
            functional.rbm_train_(
                batch, **parts, velocity=velocity, learning_rate=0.1, batch_size=4, momentum=0.5, **options
            )
        parts |= {f"velocity {i}": t for i, t in enumerate(velocity)}
        check_near(parts, whole, 1e-12)


@pytest.mark.parametrize("units", UNITS)
def test_statistics_train_as_an_update_does(device, units):
    case = Machine(rows=8, batch=8, units=units)
    tensors = case.tensors(device=device)
    trained = case.trained(functional, torch.float64, device)
    steps = functional.rbm_contrastive_divergence(**tensors, **case.options)
    for name, step in zip(("weight", "visible_bias", "hidden_bias"), steps, strict=False):
        torch.testing.assert_close(tensors[name] + 0.1 * step, trained[name])


def test_likelihood_of_all_states_rises(device):
    """Training learns a distribution over four visible units, whose likelihood is known by enumeration."""
    torch.manual_seed(0)
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4).to(device)
    data = every[torch.tensor([3, 3, 3, 12, 12, 5])].repeat(50, 1)
    parameters = 0.01 * torch.randn(3, 4, dtype=torch.float64, device=device), every.new_zeros(4), every.new_zeros(3)

    def likelihood() -> float:
        energy = functional.rbm_free_energy(data, *parameters)
        return float((-energy - torch.logsumexp(-functional.rbm_free_energy(every, *parameters), 0)).mean())

    found = [likelihood()]
    for epoch in range(60):
        order = torch.randperm(len(data)).to(device)
        functional.rbm_train_(
            data, *parameters, learning_rate=0.2, batch_size=10, order=order, seed=epoch, momentum=0.0
        )
        found.append(likelihood())
    best = -math.log(2) / 2 - math.log(3) / 3 - math.log(6) / 6  # the data's entropy
    assert abs(found[0] + 4 * math.log(2)) < 0.05
    assert found[10] > found[0] + 0.3 and best > found[-1] > best - 0.35


def test_empty_data_and_empty_sides(device):
    weight, b, c = torch.ones(3, 2, device=device), torch.zeros(2, device=device), torch.zeros(3, device=device)
    none = torch.empty(0, 2, device=device)
    functional.rbm_train_(none, weight, b, c, learning_rate=1.0, batch_size=3, seed=1)
    assert (weight == 1).all()
    assert all((t == 0).all() for t in functional.rbm_contrastive_divergence(none, weight, b, c)[:3])
    x = torch.ones(4, 2, device=device)
    found = functional.rbm_contrastive_divergence(x, torch.empty(0, 2, device=device), b, c[:0], seed=1)
    assert found[0].shape == (0, 2) and found[2].shape == (0,) and found[1].isfinite().all()
    found = functional.rbm_contrastive_divergence(x[:, :0], weight[:, :0], b[:0], c, seed=1)
    assert found[0].shape == (3, 0) and (found[2] == 0).all()


def test_writes_are_counted(device):
    """So that autograd notices."""
    case = Machine(chains=2)
    tensors = case.tensors(device=device)
    data = tensors.pop("data")
    before = {n: t._version for n, t in tensors.items()}
    functional.rbm_train_(data, **tensors, learning_rate=0.1, batch_size=3)
    assert all(t._version > before[n] for n, t in tensors.items())


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


def test_vmap_is_a_loop(device):
    case = Layer((3, 4), 6, 20)
    x, w, b = (t.detach() for t in case.tensors(device=device).values())
    for dims, given in (((0, None, None), (x, w, b)), ((1, None, 0), (x, w, torch.stack([b, b, -b, 2 * b])))):
        for function in (
            lambda *t: functional.rbm_mean(*t),
            lambda *t: functional.rbm_sample(*t, seed=4)[1],
        ):
            found = vmap(function, dims)(*given)
            size = given[0].shape[dims[0]]
            each = [[t if d is None else t.select(d, i) for t, d in zip(given, dims, strict=True)] for i in range(size)]
            expected = torch.stack([function(*t) for t in each])
            torch.testing.assert_close(found, expected)
    data, *rest = Machine(rows=6).tensors(device=device).values()

    def statistics(part):
        return functional.rbm_contrastive_divergence(part, *rest, seed=1)[0]

    found = vmap(statistics)(data.reshape(2, 3, -1))
    torch.testing.assert_close(found, torch.stack([statistics(data[:3]), statistics(data[3:])]))


def test_opcheck(device):
    x, w, b = Layer((2, 3), 4, 5).tensors(device=device).values()
    seed = torch.tensor([3])
    for given_seed in (None, seed):
        torch.library.opcheck(sample_op, (x, w, b, given_seed, 0, False, False, 1.0))
    data, w, b, c, chain = Machine(chains=2).tensors(device=device).values()
    torch.library.opcheck(statistics_op, (data, w, b, c, chain, seed, 1, False, 1.0, 0))
    moving = [torch.zeros_like(t) for t in (w, b, c)]
    numbers = (seed, 3, 1, False, 1.0, 0.1)
    torch.library.opcheck(train_op, (data, None, w, b, c, None, None, None, None, *numbers, 0.0, 0.0, 0))
    order = torch.tensor([1, 2, 5], device=device)
    torch.library.opcheck(train_op, (data, order, w, b, c, *moving, chain, *numbers, 0.5, 0.1, 0))


def test_compile_with_shapes_that_change(device):
    _, w, b = Layer((2,), 4, 5).tensors(device=device).values()
    c = torch.randn(4, dtype=torch.float64, device=device)

    def block(x):
        p, h = functional.rbm_sample(x.sin(), w, b, seed=3)
        q, v = functional.rbm_sample(h, w, c, transposed=True, seed=3, stream=1)
        steps = functional.rbm_contrastive_divergence(x, w, c, b, seed=1)
        return p.cos(), q + v, steps[0]

    fast, counter = compiled(block, dynamic=True)
    counts = []
    for rows in (3, 6, 11):
        x = torch.rand(rows, 4, dtype=torch.float64, device=device, requires_grad=True)
        found, expected = (
            with_gradients({str(i): t for i, t in enumerate(f(x)) if t.requires_grad}, {"x": x, "w": w})
            for f in (fast, block)
        )
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor)
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1]  # (the first time torch begins again, as the temperature is a constant)


def test_training_compiles(device):
    def epochs(data, weight, b, c):
        for number in range(2):
            functional.rbm_train_(data, weight, b, c, learning_rate=0.1, batch_size=3, seed=number)
        return weight.sum()

    fast, _ = compiled(epochs)
    found, case = [], Machine()
    for function in (fast, epochs):
        tensors = list(case.tensors(device=device).values())
        found.append([function(*tensors), *tensors])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


def test_export(device):
    class Up(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(5, 4, device=device))

        def forward(self, x):
            return functional.rbm_mean(x, self.weight)

    x = torch.rand(3, 4, device=device)
    program = torch.export.export(Up(), (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2, max=64)},))
    assert sample_op in [node.target for node in program.graph.nodes]
    longer = torch.rand(9, 4, device=device)
    weight = program.state_dict["weight"]
    torch.testing.assert_close(program.module()(longer), torch.sigmoid(longer @ weight.t()))


def test_meta_tensors():
    x, w = torch.empty(3, 4, device="meta"), torch.empty(5, 4, device="meta")
    assert [t.shape for t in functional.rbm_sample(x, w, seed=1)] == [(3, 5), (3, 5)]


def test_autocast(cpu_only):
    x, w = torch.rand(3, 4), torch.randn(5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert functional.rbm_mean(x, w).dtype == torch.bfloat16


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


V = torch.rand(6, 4)
TRAIN_ERRORS = {
    "data": ({"data": V[:, :3]}, "expected data of shape [rows, 4] as weight is [5, 4], got [6, 3]"),
    "low": ({"data": V.bfloat16()}, "expected data of dtype float32 or float64, got BFloat16"),
    "dtypes": ({"hidden_bias": BIAS.double()}, "expected hidden_bias of dtype Float like the input, got Double"),
    "visible_bias": ({"visible_bias": BIAS}, "expected visible_bias of shape [4], got [5]"),
    "momentum": ({"momentum": 0.5}, "expected velocities, as momentum is 0.5"),
    "velocity": ({"velocity": (WEIGHT, BIAS, BIAS)}, "expected visible_velocity of shape [4], got [5]"),
    "order": ({"order": torch.tensor([0, 6])}, "expected order to hold rows 0 to 5, got 0 to 6"),
    "order below": ({"order": torch.tensor([0, -1])}, "expected order to hold rows 0 to 5, got -1 to 0"),
    "order dtype": ({"order": torch.tensor([0.0])}, "expected order as one dimension of int64, got [1] of Float"),
    "chain": ({"chain": torch.ones(2, 4)}, "expected chain of shape [chains, 5], got [2, 4]"),
    "no chain": ({"chain": torch.ones(0, 5)}, "expected chain of shape [chains, 5], got [0, 5]"),
    "k": ({"k": 0}, "expected at least one Gibbs step, got 0"),
    "batch": ({"batch_size": 0}, "expected a batch of at least one row, got 0"),
    "rows": ({"first_row": 2**32 - 3}, "expected rows of draws to fit 32 bits, got 4294967293 to 4294967299"),
    "seed": ({"seed": torch.tensor([1, 2])}, "expected seed as one int64 on the CPU, got 2 of Long"),
    "visible": ({"visible": "binary"}, "expected units 'bernoulli' or 'gaussian', got 'binary'"),
}


@pytest.mark.parametrize("name", TRAIN_ERRORS)
def test_errors_of_training(cpu_only, name):
    change, text = TRAIN_ERRORS[name]
    given = {"data": V, "weight": WEIGHT.clone(), "visible_bias": torch.zeros(4), "hidden_bias": torch.zeros(5)}
    given |= {"learning_rate": 0.1, "batch_size": 3, "seed": 1, **change}
    found = outcome(lambda: functional.rbm_train_(**given))
    assert found is not None and found[1].startswith(f"[rbm_train_] {text}"), found
    assert torch.equal(given["weight"], WEIGHT)  # nothing was lost


def test_the_operator_gives_what_the_function_does(device):
    x, w, b = (t.detach() for t in Layer().tensors(device=device).values())
    seed = torch.tensor([9])
    found = sample_op(x, w, b, seed, 2, False, False, 1.0)
    ours = functional.rbm_sample(x, w, b, seed=seed, stream=2)
    twin = sample_operator(x, w, b, seed, 2, False, False, 1.0)
    for a, o, t in zip(found, ours, twin, strict=True):
        assert torch.equal(a, o)
        torch.testing.assert_close(a, t)
