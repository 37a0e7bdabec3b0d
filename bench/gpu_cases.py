"""What `bench.gpu` measures: layers, attention, layer norm, pooling, convolution, unfold, each with its peers and the
least it has to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from bench import ours
from bench.layers import KINDS, layer_work, pair_of_modules, training_step
from bench.limits import Work


@dataclass(frozen=True)
class Question:
    """One row: the section it belongs to, and what is run: ours, and every peer by name."""

    section: str
    works: Mapping[str, Callable[[], object]]
    work: Work
    grad: bool


class AnyCase(Protocol):
    @property
    def label(self) -> str: ...

    def questions(self, dtype: torch.dtype, device: torch.device) -> Iterator[Question]:
        """The rows of a case. Raises RuntimeError if ours gives something else than the peer."""
        ...


def check(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    difference = (mine - theirs).abs().max().item() / theirs.abs().max().item()
    if not difference < (1e-3 if mine.dtype == torch.float32 else 3e-2):
        raise RuntimeError(f"output differs from torch's by {difference:.1e} of its largest value")


@dataclass(frozen=True)
class Case:
    """One layer stack: steps, batch, inputs, hidden units, kind, layers, both directions, packed lengths."""

    steps: int
    batch: int
    inputs: int
    hidden: int
    kind: str = "LSTM"
    layers: int = 1
    bidirectional: bool = False
    packed: bool = False

    @property
    def label(self) -> str:
        marks = [f"B{self.batch} T{self.steps} I{self.inputs} H{self.hidden}"]
        marks += [f"{self.layers} layers"] if self.layers > 1 else []
        marks += ["both directions"] if self.bidirectional else []
        marks += ["packed"] if self.packed else []
        return ", ".join(marks)

    def questions(self, dtype: torch.dtype, device: torch.device) -> Iterator[Question]:
        options = {"num_layers": self.layers, "bidirectional": self.bidirectional, "device": device, "dtype": dtype}
        mine, theirs = pair_of_modules(self.kind, self.inputs, self.hidden, **options)
        x, rows = self._input(dtype, device)
        with torch.no_grad():
            output = _data(theirs(x)[0])
            check(_data(mine(x)[0]), output)
        grad_output, size, section = torch.randn_like(output), output.element_size(), f"gpu-{KINDS[self.kind].key}"
        works: dict[str, Callable[[], object]] = {"ours": lambda: mine(x), "cuDNN": lambda: theirs(x)}
        yield Question(f"{section}-forward", works, self._work(rows, size, False), False)
        steps = {"ours": training_step(mine, x, grad_output), "cuDNN": training_step(theirs, x, grad_output)}
        yield Question(f"{section}-training", steps, self._work(rows, size, True), True)

    def _input(self, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor | PackedSequence, int]:
        """The input, ready for gradients, and how many rows it has (packed: the sum of drawn lengths)."""
        x = torch.randn(self.steps, self.batch, self.inputs, device=device).to(dtype)
        if not self.packed:
            return x.requires_grad_(), self.steps * self.batch
        lengths = torch.randint(1, self.steps + 1, (self.batch,))
        lengths[0] = self.steps
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return packed._replace(data=packed.data.detach().requires_grad_()), int(lengths.sum())

    def _work(self, rows: int, size: int, training: bool) -> Work:
        """The layers' operations and bytes, added up."""
        directions, kind = 2 if self.bidirectional else 1, KINDS[self.kind]
        widths = [self.inputs] + [directions * self.hidden] * (self.layers - 1)
        sizes = [(rows, self.steps, width, self.hidden) for width in widths]
        layers = [layer_work(kind, *each, training=training, size=size) for each in sizes]
        flop, memory = sum(layer.flop for layer in layers), sum(layer.memory_bytes for layer in layers)
        return Work(directions * flop, directions * memory)


def _data(output: torch.Tensor | PackedSequence) -> torch.Tensor:
    return output.data if isinstance(output, PackedSequence) else output


@dataclass(frozen=True)
class AttentionCase:
    """Attention of all rows over as many keys."""

    batch: int
    heads: int
    length: int
    columns: int
    causal: bool = False

    @property
    def label(self) -> str:
        shape = f"attention B{self.batch} H{self.heads} L{self.length} D{self.columns}"
        return f"{shape} causal" if self.causal else shape

    def questions(self, dtype: torch.dtype, device: torch.device) -> Iterator[Question]:
        shape = (self.batch, self.heads, self.length, self.columns)
        q, k, v = given = [torch.randn(shape, device=device).to(dtype).requires_grad_() for _ in range(3)]
        grad = torch.randn(shape, device=device).to(dtype)

        def mine() -> torch.Tensor:
            return ours.library().functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)

        peers = {name: self._by(backend, q, k, v) for name, backend in BACKENDS.items()}
        peers = {name: peer for name, peer in peers.items() if device.type != "cpu" and _runs(peer)}
        peers = peers or {"torch": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)}
        with torch.no_grad():
            check(mine(), next(iter(peers.values()))())
        calls = {"ours": mine, **peers}
        pairs = self.length * (self.length + 1) // 2 if self.causal else self.length**2
        product = 2.0 * self.batch * self.heads * pairs * self.columns
        size = given[0].nbytes
        yield Question("gpu-attention-forward", {**calls}, Work(2 * product, 4 * size), False)

        def training(call: Callable[[], torch.Tensor]) -> Callable[[], object]:
            return lambda: torch.autograd.grad(call(), given, grad)

        steps = {name: training(call) for name, call in calls.items()}
        yield Question("gpu-attention-training", steps, Work(7 * product, 12 * size), True)

    def _by(self, backend: SDPBackend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)

        return call


BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def _runs(call: Callable[[], object]) -> bool:
    try:
        call()
    except RuntimeError:
        return False
    return True


@dataclass(frozen=True)
class LayerNormCase:
    """Layer norm of the sum of two tensors."""

    rows: int
    columns: int

    @property
    def label(self) -> str:
        return f"layer norm N{self.rows} D{self.columns}"

    def questions(self, dtype: torch.dtype, device: torch.device) -> Iterator[Question]:
        shape = (self.rows, self.columns)
        x, r = (torch.randn(shape, device=device).to(dtype).requires_grad_() for _ in range(2))
        w, b = (torch.randn(self.columns, device=device).to(dtype).requires_grad_() for _ in range(2))
        grad = torch.randn(shape, device=device).to(dtype)

        def mine() -> torch.Tensor:
            return ours.library().functional.layer_norm(x, [self.columns], w, b, residual=r)

        def theirs() -> torch.Tensor:
            return F.layer_norm(x + r, [self.columns], w, b)

        with torch.no_grad():
            check(mine(), theirs())
        yield Question("gpu-layer-norm-forward", {"ours": mine, "torch": theirs}, Work(0.0, 4 * x.nbytes), False)

        def training(call: Callable[[], torch.Tensor]) -> Callable[[], object]:
            return lambda: torch.autograd.grad(call(), (x, r, w, b), grad)

        steps = {"ours": training(mine), "torch": training(theirs)}
        yield Question("gpu-layer-norm-training", steps, Work(0.0, 7 * x.nbytes), True)


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


# The most telling first: what does not fit in the time is left out from the end.
CASES: list[AnyCase] = [
    Case(100, 64, 512, 512),
    AttentionCase(4, 16, 4096, 128),
    AttentionCase(4, 16, 4096, 128, causal=True),
    LayerNormCase(16384, 4096),
    PoolCase((64, 64, 112, 112), 3),
    PoolCase((64, 64, 112, 112), 3, channels_last=True),
    ConvCase(64, 64, 56, 64),
    ConvCase(64, 256, 14, 256),
    ConvPoolCase(1024, 1, 28, 6),
    UnfoldCase((64, 64, 56, 56)),
    Case(100, 64, 512, 512, "GRU"),
    Case(100, 64, 512, 512, "RNN"),
    Case(100, 16, 256, 256),
    Case(100, 64, 1024, 1024),
    Case(100, 1, 512, 512),
    AttentionCase(8, 16, 1024, 64),
    AttentionCase(8, 16, 1024, 64, causal=True),
    AttentionCase(1, 16, 16384, 128, causal=True),
    LayerNormCase(65536, 1024),
    LayerNormCase(4096, 12288),
    PoolCase((64, 64, 112, 112), 2),
    PoolCase((64, 64, 112, 112), 2, channels_last=True),
    ConvCase(64, 128, 28, 128),
    ConvCase(64, 512, 7, 512),
    ConvCase(64, 256, 14, 1024, kernel=1),
    ConvCase(64, 3, 224, 64, kernel=7, stride=2),
    ConvCase(64, 256, 56, 256, groups=256),
    ConvCase(64, 128, 56, 128, stride=2),
    ConvCase(64, 64, 56, 64, planar=True),
    ConvCase(64, 256, 14, 256, planar=True),
    ConvCase(64, 3, 224, 64, kernel=7, stride=2, planar=True),
    ConvPoolCase(1024, 6, 12, 16),
    ConvPoolCase(256, 1, 28, 32, kernel=3),
    ConvPoolCase(1, 1, 28, 6),
    UnfoldCase((64, 64, 112, 112), stride=2),
    UnfoldCase((8, 3, 224, 224), kernel=7, stride=2),
    Case(100, 16, 256, 256, "GRU"),
    Case(100, 16, 256, 256, "RNN"),
    Case(100, 64, 512, 512, packed=True),
    Case(100, 64, 512, 512, "GRU", packed=True),
    Case(100, 64, 512, 512, "RNN", packed=True),
    Case(100, 64, 512, 512, bidirectional=True),
    Case(100, 64, 512, 512, layers=2),
    AttentionCase(16, 12, 512, 64),
    AttentionCase(2, 8, 200, 48),
    LayerNormCase(512, 768),
    ConvCase(64, 64, 56, 256, kernel=1),
    ConvCase(64, 256, 28, 256, groups=256),
    ConvCase(64, 256, 28, 256, groups=256, planar=True),
    ConvCase(1, 256, 14, 256),
    Case(100, 64, 1024, 1024, "GRU"),
    Case(100, 64, 1024, 1024, "RNN"),
    Case(1024, 16, 768, 768),
    Case(1024, 16, 768, 768, "GRU"),
    Case(100, 64, 2048, 2048),
    Case(100, 256, 512, 512),
    Case(100, 32, 128, 128),
    Case(100, 256, 1024, 1024),
    Case(100, 1, 128, 128),
    Case(100, 1, 128, 128, "GRU"),
    Case(100, 1, 128, 128, "RNN"),
    Case(100, 1, 2048, 2048),
    Case(100, 32, 512, 512, layers=2, bidirectional=True, packed=True),
]
DRY_CASES: list[AnyCase] = [
    *(Case(5, 3, 7, 9, kind) for kind in KINDS),
    Case(5, 3, 7, 9, bidirectional=True, packed=True),
    AttentionCase(1, 2, 9, 8),
    AttentionCase(1, 2, 9, 8, causal=True),
    LayerNormCase(5, 17),
    PoolCase((1, 3, 7, 9), 3),
    PoolCase((1, 3, 7, 9), 2, channels_last=True),
    ConvCase(2, 4, 9, 6, stride=2),
    ConvCase(2, 4, 9, 4, groups=4, planar=True),
    ConvPoolCase(2, 1, 12, 3),
    UnfoldCase((2, 3, 7, 8), stride=2),
]
