"""What `bench.gpu` measures: layers, attention, layer norm, pooling, convolution, unfold, maps, memories and Boltzmann
machines, each with its peers and the least it has to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from bench import ours
from bench.gpu_hopfield import HopfieldCase
from bench.gpu_images import ConvCase, ConvPoolCase, PoolCase, UnfoldCase
from bench.gpu_maps import BmuCase, UnitSumsCase
from bench.gpu_questions import AnyCase, Question, check
from bench.gpu_rbm import RbmCase
from bench.layers import KINDS, layer_work, pair_of_modules, training_step
from bench.limits import Work


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
    HopfieldCase(2000, 256),
    BmuCase(480000, 900, 34),
    BmuCase(60000, 1024, 784),
    UnitSumsCase(480000, 900, 34),
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
    RbmCase(10000, 784, 500, 100),
    RbmCase(1797, 64, 256, 10),
    BmuCase(480000, 10000, 34),
    BmuCase(256, 10000, 34),
    UnitSumsCase(60000, 1024, 784),
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
    RbmCase(9, 7, 5, 4),
    HopfieldCase(20, 5),
    BmuCase(50, 30, 5),
    UnitSumsCase(50, 7, 3),
]
