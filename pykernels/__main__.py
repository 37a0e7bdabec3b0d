"""`python -m pykernels`: what was built, what was loaded and why, and a self-check of a few seconds.

The self-check compares each room's kernels with its reference twin in float64, results and gradients, in every dtype.
The exit code is 1 if one of them is off, and 0 otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pykernels import _native, functional, reference
from pykernels._version import __version__

ALLOWED_ERROR = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 4e-2, torch.float16: 5e-3}
"""By dtype: the largest difference from the twin, relative to the largest entry, that passes."""

Check = tuple[str, torch.dtype, float, float]  # what, dtype, error of the results, error of the gradients


def check_lstm(device: str) -> Iterator[Check]:
    """Plain, and with a projection and peepholes."""
    hidden, projected = HIDDEN, 21
    for extras in (False, True):
        out = projected if extras else hidden
        optional: list[Shape] = [(projected, hidden), (3, hidden)] if extras else []
        weights = [(4 * hidden, None), (4 * hidden, out), (4 * hidden,), (4 * hidden,), *optional]
        options = {"projection": extras, "peephole": extras}
        what = f"lstm%s{', projection, peephole' if extras else ''}"
        yield from check_recurrent(what, device, "lstm", [out, hidden], weights, options)


def check_gru(device: str) -> Iterator[Check]:
    """With the reset after the product and before it."""
    weights = [(3 * HIDDEN, None), (3 * HIDDEN, HIDDEN), (3 * HIDDEN,), (3 * HIDDEN,)]
    for after in (True, False):
        what = f"gru%s, reset {'after' if after else 'before'} the product"
        yield from check_recurrent(what, device, "gru", [HIDDEN], weights, {"reset_after": after})


def check_rnn(device: str) -> Iterator[Check]:
    """Elman's form with either nonlinearity, and Jordan's."""
    outputs = 21
    for nonlinearity, projection in (("tanh", False), ("relu", False), ("tanh", True)):
        state = outputs if projection else HIDDEN
        optional: list[Shape] = [(outputs, HIDDEN), (outputs,)] if projection else []
        weights = [(HIDDEN, None), (HIDDEN, state), (HIDDEN,), (HIDDEN,), *optional]
        options = {"nonlinearity": nonlinearity, "projection": projection}
        what = f"rnn%s, {nonlinearity}{', projection' if projection else ''}"
        # rounding errors are to fade, and no unit to come near the place where the slope of relu jumps
        scale, bias = (0.02, 1.0) if nonlinearity == "relu" else (0.1, 0.0)
        yield from check_recurrent(what, device, "rnn", [state], weights, options, scale, bias)


def check_variants(device: str) -> Iterator[Check]:
    """Every kind with all its variants, in training."""
    variants = {"layer_norm": True, "zoneout": 0.2, "recurrent_dropout": 0.2, "weight_dropout": 0.2, "training": True}
    for name, gates, states in (("lstm", 4, [HIDDEN, HIDDEN]), ("gru", 3, [HIDDEN]), ("rnn", 1, [HIDDEN])):
        rows = gates * HIDDEN
        weights: list[Shape] = [(rows, None), (rows, HIDDEN), *[(rows,)] * 4, *[(HIDDEN,)] * (2 if gates == 4 else 0)]
        yield from check_recurrent(f"{name}%s, all variants", device, name, states, weights, variants)


def check_attention(device: str) -> Iterator[Check]:
    """Causal, and with everything that changes scores and weights."""
    lengths = torch.tensor([70, 41], device=device)
    everything = {
        "causal": "bottom-right", "window": (40, None), "softcap": 2.0, "lengths": lengths, "dropout_p": 0.2,
        "enable_gqa": True,
    }  # fmt: skip
    causal = {"is_causal": True, "enable_gqa": True}
    for what, options in (("causal", causal), ("all options", everything)):
        drawn = draw(
            [(2, 4, 70, 23), (2, 2, 70, 23), (2, 2, 70, 19), *([(2, 1, 70, 70)] if options != causal else [])], 1
        )

        def run(op: Callable[..., Any], tensors: list[Tensor], options: dict[str, Any] = options) -> Any:
            torch.manual_seed(0)  # of dropout
            return (op(*tensors, **options),)

        name = "scaled_dot_product_attention"
        yield from compare(
            f"attention, {what}", device, run, getattr(functional, name), getattr(reference, name), drawn
        )


def check_dot_attention(device: str) -> Iterator[Check]:
    """With its weights, for few rows and for more rows than keys."""
    lengths = torch.tensor([30, 17], device=device)
    for rows in (1, 41):
        drawn = draw([(2, rows, 19), (2, 30, 23), (37, 19), (37, 23)], 0.3)

        def run(op: Callable[..., Any], tensors: list[Tensor]) -> Any:
            return op(*tensors, lengths=lengths, return_weights=True)

        kernel, twin = functional.dot_attention, reference.dot_attention
        yield from compare(f"dot attention, {rows} rows", device, run, kernel, twin, drawn)


def check_layer_norm(device: str) -> Iterator[Check]:
    """Of a sum with dropout, and alone."""
    for what, options in (("a sum", {"dropout_p": 0.2, "return_total": True}), ("one tensor", {})):
        drawn = draw([(41, 70), (70,), (70,), *([(41, 70)] if options else [])], 1)

        def run(op: Callable[..., Any], tensors: list[Tensor], options: dict[str, Any] = options) -> Any:
            torch.manual_seed(0)  # of dropout
            input, weight, bias, *residual = tensors
            result = op(input, [70], weight, bias, residual=residual[0] if residual else None, **options)
            return result if isinstance(result, tuple) else (result,)

        yield from compare(f"layer norm of {what}", device, run, functional.layer_norm, reference.layer_norm, drawn)


def check_pool(device: str) -> Iterator[Check]:
    """Maxima and means of overlapping windows, contiguous and channels last, and adaptive ones."""
    options = {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}
    for name, keywords in (
        ("max_pool2d", options),
        ("avg_pool2d", options),
        ("adaptive_avg_pool2d", {"output_size": 7}),
    ):
        for form in (torch.contiguous_format, torch.channels_last):
            # no two alike in any dtype, so that rounding does not move a maximum
            values = torch.randperm(2 * 5 * 12 * 10, generator=torch.Generator().manual_seed(0)).double()
            drawn = [(values % 251 + values.div(251, rounding_mode="floor") / 2).reshape(2, 5, 12, 10) / 64]

            def run(op: Callable[..., Any], tensors: list[Tensor], form: Any = form, keywords: Any = keywords) -> Any:
                return (op(tensors[0].contiguous(memory_format=form), **keywords),)

            what = f"{name}{', channels last' if form == torch.channels_last else ''}"
            yield from compare(what, device, run, getattr(functional, name), getattr(reference, name), drawn)


def check_conv(device: str) -> Iterator[Check]:
    """Of one to three dimensions; grouped, depthwise, padded and strided in every way; with ReLU."""
    everything = {
        "stride": 2, "padding": ((0, 2), (1, 1)), "dilation": (1, 2), "groups": 2, "padding_mode": "reflect",
        "activation": "relu",
    }  # fmt: skip
    forms: list[tuple[str, str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
        ("conv1d, full", "conv1d", (3, 5, 41), (23, 5, 4), {"padding": "full"}),
        ("conv2d", "conv2d", (3, 19, 9, 11), (37, 19, 3, 3), {"padding": 1}),
        ("conv2d, all options", "conv2d", (3, 10, 9, 11), (34, 5, 3, 2), everything),
        ("conv2d, depthwise", "conv2d", (3, 21, 9, 11), (21, 1, 3, 3), {"padding": "same", "groups": 21}),
        ("conv3d, circular", "conv3d", (2, 3, 5, 6, 7), (17, 3, 3, 3, 3), {"padding": 1, "padding_mode": "circular"}),
    ]
    for what, name, image, kernel, options in forms:
        drawn = draw([image, kernel, kernel[:1]], 0.1)
        drawn[2] += 1 - 2 * (torch.arange(kernel[0]) % 2)  # no sum comes near the place where the slope of relu jumps

        def run(op: Callable[..., Any], tensors: list[Tensor], options: dict[str, Any] = options) -> Any:
            return (op(*tensors, **options),)

        yield from compare(what, device, run, getattr(functional, name), getattr(reference, name), drawn)


def check_bmu(device: str) -> Iterator[Check]:
    """One unit and several, by every metric."""
    for metric, k in (("euclidean", 1), ("cosine", 2), ("manhattan", 5)):
        drawn = draw([(83, 23), (41, 23)], 1)

        def run(op: Callable[..., Any], tensors: list[Tensor], k: int = k, metric: str = metric) -> Any:
            return (op(*tensors, k, metric)[0],)

        yield from compare(f"bmu, {metric}", device, run, functional.bmu, reference.bmu, drawn)


def check_radial_basis(device: str) -> Iterator[Check]:
    drawn = draw([(83, 23), (41, 23)], 0.5)

    def run(op: Callable[..., Any], tensors: list[Tensor]) -> Any:
        return (op(*tensors, 0.1),)

    yield from compare("radial basis", device, run, functional.radial_basis, reference.radial_basis, drawn)


def check_rbm(device: str) -> Iterator[Check]:
    """One side given the other; and what an epoch of contrastive divergence leaves behind."""
    for what, options in (("up", {}), ("down, Gaussian", {"transposed": True, "units": "gaussian"})):
        drawn = draw([(41, 23), (23, 70) if options else (70, 23), (70,)], 0.5)

        def run(op: Callable[..., Any], tensors: list[Tensor], options: dict[str, Any] = options) -> Any:
            return (op(*tensors, **options),)

        yield from compare(f"rbm, {what}", device, run, functional.rbm_mean, reference.rbm_mean, drawn)
    for dtype in (torch.float64, torch.float32):
        found = []
        for where in (functional, reference):
            tensors = [t.to(device, dtype) for t in draw([(41, 23), (70, 23), (23,), (70,)], 0.5)]
            tensors[0] = (tensors[0] > 0).to(dtype)
            if where is reference:
                tensors = [t.double() for t in tensors]
            where.rbm_train_(*tensors, learning_rate=0.1, batch_size=10, seed=1)
            found.append(tuple(tensors[1:]))
        yield "rbm, contrastive divergence", dtype, _error(*found), 0.0


def check_hopfield(device: str) -> Iterator[Check]:
    """Dense and packed, in order and at once. (Signs have no gradients.)"""
    f = (draw([(5, 90)], 1)[0] > 0).double() * 2 - 1
    state = (draw([(23, 90)], 1)[0] > 0).double() * 2 - 1
    weight, bits = (f.T @ f).fill_diagonal_(0), reference.pack_signs(f).to(device)
    order = torch.arange(90).flip(0)
    for mode in ("async", "sync"):
        turn = order if mode == "async" else None
        expected = reference.hopfield_retrieve(weight, state, mode, turn)[0]
        turn = None if turn is None else turn.to(device)
        for dtype in ALLOWED_ERROR:
            w, y = weight.to(device, dtype), state.to(device, dtype)
            for what, found in (
                ("hopfield", functional.hopfield_retrieve(w, y, mode, turn)),
                ("hopfield, packed", functional.hopfield_packed_retrieve(bits, y, mode, turn)),
            ):
                yield f"{what}, {mode}", dtype, _error((found.state.cpu(),), (expected,)), 0.0


HIDDEN = 37
Shape = tuple[int | None, ...]
"""Of a weight; None is the width of what the layer reads."""


def check_recurrent(
    what: str,
    device: str,
    name: str,
    states: list[int],
    weights: Sequence[Shape],
    options: dict[str, Any],
    scale: float = 0.2,
    bias: float = 0.0,
) -> Iterator[Check]:
    """Two layers in both directions, padded and packed.

    Args:
        what: of each line, with %s for the form of the input.
        name: of the function and of its twin.
        states: the width of each; the first is put out.
        weights: of one direction.
        scale: of all numbers that are drawn.
        bias: added to the biases of every second unit and taken from those of the others.
    """
    steps, batch, inputs = 19, 5, 23
    lengths = torch.tensor([19, 12, 12, 3, 1])
    batch_sizes = (lengths[None] > torch.arange(steps)[:, None]).sum(1)
    shapes: list[tuple[int, ...]] = [(4, batch, width) for width in states]
    for read in (inputs, 2 * states[0]):
        shapes += 2 * [tuple(read if n is None else n for n in shape) for shape in weights]

    for packed in (False, True):
        sizes = (int(lengths.sum()),) if packed else (steps, batch)
        keywords = {**options, "num_layers": 2, "bidirectional": True, "batch_sizes": batch_sizes if packed else None}

        def run(op: Callable[..., Any], tensors: list[Tensor], keywords: dict[str, Any] = keywords) -> Any:
            input, *rest = tensors
            hx = tuple(rest[: len(states)]) if len(states) > 1 else rest[0]
            torch.manual_seed(0)  # of the masks, where there are any
            return op(input, hx, rest[len(states) :], **keywords)

        kernel, twin = getattr(functional, name), getattr(reference, name)
        form = " packed" if packed else " padded"
        drawn = draw([(*sizes, inputs), *shapes], scale)
        for tensor in drawn:
            if tensor.dim() == 1:
                tensor += bias * (1 - 2 * (torch.arange(len(tensor)) % 2))
        yield from compare(what % form, device, run, kernel, twin, drawn)


CHECKS: dict[str, Callable[[str], Iterator[Check]]] = {
    "lstm": check_lstm,
    "gru": check_gru,
    "rnn": check_rnn,
    "variants": check_variants,
    "attention": check_attention,
    "dot attention": check_dot_attention,
    "layer norm": check_layer_norm,
    "pooling": check_pool,
    "conv": check_conv,
    "bmu": check_bmu,
    "radial basis": check_radial_basis,
    "rbm": check_rbm,
    "hopfield": check_hopfield,
}
"""One entry per room: device -> what was compared and how far off it is."""


def draw(shapes: list[tuple[int, ...]], scale: float) -> list[Tensor]:
    """Normally distributed float64 tensors."""
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def compare(
    what: str,
    device: str,
    run: Callable[..., Any],
    kernel: Callable[..., Any],
    twin: Callable[..., Any],
    drawn: list[Tensor],
) -> Iterator[Check]:
    """`run(kernel, tensors)` in every dtype against `run(twin, tensors)` in float64, on the same drawn tensors."""
    for dtype in ALLOWED_ERROR:
        rounded = [tensor.to(device, dtype) for tensor in drawn]
        results, gradients = _results_and_gradients(run, kernel, rounded)
        true_results, true_gradients = _results_and_gradients(run, twin, [tensor.double() for tensor in rounded])
        yield what, dtype, _error(results, true_results), _error(gradients, true_gradients)


def _results_and_gradients(run: Callable[..., Any], op: Callable[..., Any], tensors: list[Tensor]) -> tuple[Any, Any]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    results = run(op, leaves)
    total = sum((result.float() if result.dtype.itemsize < 4 else result).square().sum() for result in results)
    return results, torch.autograd.grad(total, leaves)


def _error(actual: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
    """The largest difference, relative to the largest entry of the same tensor; NaN where a NaN is."""
    pairs = zip(actual, truth, strict=True)
    errors = [(a.double() - t).abs().max() / t.abs().max().clamp_min(1e-300) for a, t in pairs]
    return float(torch.stack(errors).detach().max())


def describe() -> Iterator[tuple[str, str]]:
    """What is here: one (subject, text) a line."""
    yield "pykernels", __version__
    yield "torch", f"{torch.__version__}, {torch.get_num_threads()} threads"
    for subject, text in _native.kernels.build_info().items():
        yield f"built: {subject}", str(text)
    for isa in _native.ISAS:
        states = [("built", isa in _native.built()), ("runs on this processor", isa in _native.supported())]
        text = ", ".join(name if true else f"not {name}" for name, true in states).replace("not runs", "does not run")
        yield isa, text + (f"  <- loaded: {_native.reason}" if isa == _native.isa else "")
    yield "cuda", ("loaded: " if _native.cuda_kernels else "not loaded: ") + _native.cuda_reason
    if torch.cuda.is_available():
        yield "gpu", ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def self_check(devices: list[str]) -> int:
    """Run every check, print a line for each and return how many are off."""
    failed = 0
    print(f"\n{'self-check against the float64 twin':<48}{'dtype':<10}{'results':>9}{'gradients':>11}{'allowed':>9}")
    for device in devices:
        for check in CHECKS.values():
            for what, dtype, error, gradient_error in check(device):
                allowed = ALLOWED_ERROR[dtype]
                passed = error <= allowed and gradient_error <= allowed  # False for NaN
                failed += not passed
                name = str(dtype).removeprefix("torch.")
                numbers = f"{error:>9.1e}{gradient_error:>11.1e}{allowed:>9.0e}"
                print(f"{f'{what} ({device})':<48}{name:<10}{numbers}  {'ok' if passed else 'FAILED'}", flush=True)
    return failed


def main() -> int:
    lines = list(describe())
    width = max(len(subject) for subject, _ in lines) + 2
    for subject, text in lines:
        print(f"{subject:<{width}}{text}")
    on_gpu = _native.cuda_kernels is not None and torch.cuda.is_available()
    failed = self_check(["cpu", "cuda"] if on_gpu else ["cpu"])
    print(f"\n{f'{failed} checks FAILED' if failed else 'all checks passed'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
