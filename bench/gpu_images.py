"""What `bench.gpu` measures of pooling, convolution, both at once, and unfold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bench import ours
from bench.gpu_questions import Question, check
from bench.limits import Work


@dataclass(frozen=True)
class PoolCase:
    """Maxima of windows of `kernel` at every second place."""

    shape: tuple[int, int, int, int]
    kernel: int
    channels_last: bool = False

    @property
    def label(self) -> str:
        form = ", channels last" if self.channels_last else ""
        return f"max pooling {self.kernel} of {'x'.join(map(str, self.shape))}{form}"

    def questions(self, dtype: torch.dtype, device: torch.device) -> Iterator[Question]:
        form = torch.channels_last if self.channels_last else torch.contiguous_format
        x = torch.randn(self.shape, device=device).to(dtype).contiguous(memory_format=form).requires_grad_()
        padding = self.kernel // 2 if self.kernel % 2 else 0

        def mine() -> torch.Tensor:
            return ours.library().functional.max_pool2d(x, self.kernel, 2, padding)

        def theirs() -> torch.Tensor:
            return F.max_pool2d(x, self.kernel, 2, padding)

        with torch.no_grad():
            y = mine()
            check(y, theirs())
        grad, moved = torch.randn_like(y), x.nbytes + y.nbytes
        yield Question("gpu-pool-forward", {"ours": mine, "torch": theirs}, Work(0.0, moved), False)

        def training(call: Callable[[], torch.Tensor]) -> Callable[[], object]:
            return lambda: torch.autograd.grad(call(), x, grad)

        steps = {"ours": training(mine), "torch": training(theirs)}
        yield Question("gpu-pool-training", steps, Work(0.0, 2 * moved + 2 * y.numel()), True)


@dataclass(frozen=True)
class ConvCase:
    """Convolution of square images with half the kernel around them, channels last where they have a layout."""

    batch: int
    channels: int
    size: int
    filters: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    planar: bool = False

    @property
    def label(self) -> str:
        shape = f"conv N{self.batch} C{self.channels} {self.size}² K{self.filters} {self.kernel}×{self.kernel}"
        marks = [f"stride {self.stride}"] if self.stride > 1 else []
        marks += [f"{self.groups} groups"] if self.groups > 1 else []
        marks += ["planar"] if self.planar else []
        return ", ".join([shape, *marks])

    def questions(self, dtype: torch.dtype, device: torch.device) -> Iterator[Question]:
        layout = torch.contiguous_format if self.planar else torch.channels_last
        options = (self.stride, self.kernel // 2, 1, self.groups)

        def some(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=layout).requires_grad_()

        x, w = (
            some(self.batch, self.channels, self.size, self.size),
            some(self.filters, self.channels // self.groups, self.kernel, self.kernel),
        )
        b = torch.randn(self.filters, device=device).to(dtype).requires_grad_()

        def mine() -> torch.Tensor:
            return ours.library().functional.conv2d(x, w, b, *options)

        def theirs() -> torch.Tensor:
            return F.conv2d(x, w, b, *options)

        with torch.no_grad():
            out = theirs()
            check(mine(), out)
        grad = torch.randn_like(out)
        flop = 2.0 * out.numel() * w[0].numel()
        given, made = x.nbytes + w.nbytes, out.nbytes
        calls = {"ours": mine, "cuDNN": theirs}
        yield Question("gpu-conv-forward", {**calls}, Work(flop, given + made), False)

        def training(call: Callable[[], torch.Tensor]) -> Callable[[], object]:
            return lambda: torch.autograd.grad(call(), (x, w, b), grad)

        steps = {name: training(call) for name, call in calls.items()}
        yield Question("gpu-conv-training", steps, Work(3 * flop, 3 * given + 2 * made), True)


@dataclass(frozen=True)
class ConvPoolCase:
    """The first half of a LeNet's layers: convolution, ReLU and the largest of two by two, to infer."""

    batch: int
    channels: int
    size: int
    filters: int
    kernel: int = 5

    @property
    def label(self) -> str:
        shape = f"N{self.batch} C{self.channels} {self.size}² K{self.filters} {self.kernel}×{self.kernel}"
        return f"conv, ReLU and max pooling {shape}"

    def questions(self, dtype: torch.dtype, device: torch.device) -> Iterator[Question]:
        x = torch.randn(self.batch, self.channels, self.size, self.size, device=device).to(dtype)
        w = torch.randn(self.filters, self.channels, self.kernel, self.kernel, device=device).to(dtype)
        b = torch.randn(self.filters, device=device).to(dtype)
        functional = ours.library().functional

        def mine() -> torch.Tensor:
            return functional.conv2d_relu_max_pool2d(x, w, b, pool_kernel_size=2)

        def theirs() -> torch.Tensor:
            return F.max_pool2d(F.conv2d(x, w, b).relu_(), 2)

        with torch.no_grad():
            out = theirs()
            check(mine(), out)
        places = self.batch * self.filters * (self.size - self.kernel + 1) ** 2
        work = Work(2.0 * places * w[0].numel(), x.nbytes + w.nbytes + out.nbytes)
        yield Question("gpu-conv-pool", {"ours": mine, "cuDNN": theirs}, work, False)


@dataclass(frozen=True)
class UnfoldCase:
    """Patches of images as columns, and back."""

    shape: tuple[int, int, int, int]
    kernel: int = 3
    stride: int = 1

    @property
    def label(self) -> str:
        marks = f", stride {self.stride}" if self.stride > 1 else ""
        return f"unfold {self.kernel}×{self.kernel} of {'x'.join(map(str, self.shape))}{marks}"

    def questions(self, dtype: torch.dtype, device: torch.device) -> Iterator[Question]:
        x = torch.randn(self.shape, device=device).to(dtype)
        functional, size = ours.library().functional, self.shape[2:]
        options = {"kernel_size": self.kernel, "padding": self.kernel // 2, "stride": self.stride}
        columns = F.unfold(x, **options)
        check(functional.unfold(x, **options), columns)
        check(functional.fold(columns, size, **options), F.fold(columns, size, **options))
        work = Work(0.0, x.nbytes + columns.nbytes)
        there: dict[str, Callable[[], object]] = {
            "ours": lambda: functional.unfold(x, **options),
            "torch": lambda: F.unfold(x, **options),
        }
        yield Question("gpu-unfold", there, work, False)
        back: dict[str, Callable[[], object]] = {
            "ours": lambda: functional.fold(columns, size, **options),
            "torch": lambda: F.fold(columns, size, **options),
        }
        yield Question("gpu-fold", back, work, False)
