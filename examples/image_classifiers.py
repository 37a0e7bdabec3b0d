"""Two convolutional classifiers of pictures, each with torch's modules and with this library's, on the same batches.

* LeNet: twice a convolution 5 x 5, ReLU and max-pooling, then three linear layers. One of the pair is made of
  `torch.nn.Conv2d` and `MaxPool2d`, the other of `pykernels.Conv2d` (which has the ReLU in it) and `MaxPool2d`.
* A residual network: blocks y = relu(s(x) + F(x)) with F = convolution 3 x 3, batch norm, ReLU, convolution 3 x 3,
  batch norm, and s(x) = x, or a convolution 1 x 1 and a batch norm where the shape changes. It is made of torch's
  modules; the other of the pair is a copy of it after `pykernels.replace`, and in the end `restore` undoes that.

Each names handwritten digits, and tells faces from pieces of background. Both of a pair begin with the same weights
and take every batch in turn, so the two clocks meet the same machine. What to look for: the losses are the same up to
rounding, which training magnifies (in float64 there is next to nothing of it); the accuracies are alike; and the clocks
differ. The trained LeNet then infers with convolution, ReLU and pooling in one kernel. `--quick` makes it a check of a
few seconds.

Sources: LeCun, Bottou, Bengio and Haffner 1998 (https://doi.org/10.1109/5.726791), He, Zhang, Ren and Sun 2015
(https://arxiv.org/abs/1512.03385).
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pykernels
from examples.common import digits, faces, quick_wanted
from pykernels.functional import conv2d_relu_max_pool2d

SIZE, BATCH = 32, 32


@dataclass(frozen=True)
class Task:
    """Pictures [N, 1, SIZE, SIZE] and what they show, to learn from and to test on."""

    name: str
    classes: int
    learn: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def task(name: str, data: Callable[[], tuple[Tensor, Tensor]], classes: int, held_back: int) -> Task:
    """Every picture is enlarged, and the first `held_back` ones are kept for the test."""
    pictures, labels = data()
    pictures = F.interpolate(pictures[:, None], size=(SIZE, SIZE), mode="bilinear")
    return Task(
        name, classes, (pictures[held_back:], labels[held_back:]), (pictures[:held_back], labels[:held_back])
    )  # fmt: skip


# --- the networks


def torch_stage(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 5), nn.ReLU(), nn.MaxPool2d(2))


def our_stage(inputs: int, outputs: int) -> nn.Sequential:
    """The ReLU is in the convolution's kernel; its place stays, so that a state dict fits both."""
    convolution = pykernels.Conv2d(inputs, outputs, 5, activation="relu")
    return nn.Sequential(convolution, nn.Identity(), pykernels.MaxPool2d(2))


class LeNet(nn.Module):
    """[B, 1, 32, 32] -> [B, 6, 14, 14] -> [B, 16, 5, 5] -> 120 -> 84 -> scores of the classes."""

    def __init__(self, classes: int, stage: Callable[[int, int], nn.Sequential]) -> None:
        super().__init__()
        self.stages = nn.Sequential(stage(1, 6), stage(6, 16))
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)
        )

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.stages(pictures))


@torch.inference_mode()
def infer(model: LeNet, pictures: Tensor) -> Tensor:
    """The scores, with each stage in one kernel: what its convolution gives is never stored."""
    y = pictures
    for convolution, _, pool in model.stages:
        y = conv2d_relu_max_pool2d(y, convolution.weight, convolution.bias, pool_kernel_size=pool.kernel_size)
    return model.head(y)


class Block(nn.Module):
    """y = relu(s(x) + F(x)); with `stride` 2, half as many rows and columns."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.residual(x))


def residual_network(classes: int, width: int = 16) -> nn.Sequential:
    """[B, 1, 32, 32] -> width x 32 x 32 -> width x 32 x 32 -> 2 width x 16 x 16 -> 4 width x 8 x 8 -> scores."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Block(width, width, 1),
        Block(width, 2 * width, 2),
        Block(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


# --- trained in pairs


@dataclass
class Run:
    """One model of a pair, with the loss and the time of every batch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def step(self, pictures: Tensor, labels: Tensor) -> None:
        begin = time.perf_counter()
        loss = F.cross_entropy(self.model(pictures), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - begin)
        self.losses.append(loss.item())
        self.schedule.step()

    def progress(self, count: int) -> str:
        """Of the last `count` batches."""
        return f"loss {statistics.mean(self.losses[-count:]):.5f} in {sum(self.seconds[-count:]):5.2f} s"


def lenets(classes: int) -> tuple[LeNet, LeNet]:
    """Torch's and ours, with the same weights."""
    torch.manual_seed(0)
    theirs, ours = LeNet(classes, torch_stage), LeNet(classes, our_stage)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def residual_networks(classes: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Torch's, and a copy whose convolutions and pooling are ours."""
    torch.manual_seed(0)
    theirs = residual_network(classes)
    return theirs, pykernels.replace(copy.deepcopy(theirs))


def train(
    models: tuple[nn.Module, nn.Module], given: tuple[Tensor, Tensor], epochs: int, rate: float, silent: bool = False
) -> tuple[Run, Run]:
    """Every batch goes to each of the two in turn; prints a line for each epoch."""
    pictures, labels = given
    count = len(labels) // BATCH
    theirs, ours = runs = tuple(begin(model, rate, epochs * count) for model in models)
    for run in runs:  # warm before the clocks count
        F.cross_entropy(copy.deepcopy(run.model)(pictures[:BATCH]), labels[:BATCH]).backward()
    generator = torch.Generator().manual_seed(1)
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(labels), generator=generator)[: count * BATCH]
        for number, part in enumerate(order.split(BATCH)):
            for run in runs if number % 2 else runs[::-1]:
                run.step(pictures[part], labels[part])
        if not silent:
            print(
                f"    epoch {epoch:2d}   torch {theirs.progress(count)}   pykernels {ours.progress(count)}", flush=True
            )
    return theirs, ours


def begin(model: nn.Module, rate: float, steps: int) -> Run:
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4)
    return Run(model, optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps))


def apart(runs: tuple[Run, Run]) -> float:
    """The largest difference of the two losses of a batch."""
    return max(abs(a - b) for a, b in zip(runs[0].losses, runs[1].losses, strict=True))


def apart_in_float64(models: tuple[nn.Module, nn.Module], given: tuple[Tensor, Tensor], rate: float) -> float:
    """Of the first batches, by copies of the models."""
    pictures, labels = (part[: 8 * BATCH] for part in given)
    theirs, ours = (copy.deepcopy(model).double() for model in models)
    return apart(train((theirs, ours), (pictures.double(), labels), 1, rate, silent=True))


@torch.inference_mode()
def accuracy(model: nn.Module, pictures: Tensor, labels: Tensor) -> float:
    return (model.eval()(pictures).argmax(1) == labels).float().mean().item()


def compare(
    models: tuple[nn.Module, nn.Module], name: str, given: Task, learn: tuple[Tensor, Tensor], epochs: int, rate: float
) -> dict[str, float]:
    """Trains a pair: accuracies, the distance of the two loss curves, the ratio of the times."""
    print(f"  {name}")
    precise = apart_in_float64(models, learn, rate)
    theirs, ours = runs = train(models, learn, epochs, rate)
    right = [accuracy(run.model, *given.test) for run in runs]
    times = [sum(run.seconds) for run in runs]
    middle = statistics.median(a / b for a, b in zip(theirs.seconds, ours.seconds, strict=True))
    print(
        f"    test pictures named correctly: torch {100 * right[0]:.1f} %, pykernels {100 * right[1]:.1f} %\n"
        f"    the losses of a batch differ by {apart(runs):.1e} at most (the first batches in float64: {precise:.1e})\n"
        f"    training: torch {times[0]:.2f} s, pykernels {times[1]:.2f} s: {times[0] / times[1]:.2f} times as fast "
        f"(median of the batches: {middle:.2f})"
    )
    key = f"{name}, {given.name}"
    return {
        f"{key}: torch": right[0], f"{key}: pykernels": right[1],
        f"{key}: apart": apart(runs), f"{key}: apart in float64": precise, f"{key}: times": middle,
    }  # fmt: skip


# --- what else the trained models show


def medians(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median of each one's seconds, taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def show_inference(trained: LeNet, given: Task, rounds: int) -> dict[str, float]:
    """The trained weights in torch's modules, in ours, and with a kernel for each stage."""
    pictures = given.test[0]
    in_torch = LeNet(trained.head[-1].out_features, torch_stage).eval()
    in_torch.load_state_dict(trained.state_dict())
    with torch.inference_mode():
        theirs, ours, fused = in_torch(pictures), trained.eval()(pictures), infer(trained, pictures)
        seconds = medians(
            {"torch's modules": lambda: in_torch(pictures), "pykernels' modules": lambda: trained(pictures),
             "one kernel": lambda: infer(trained, pictures)}, rounds
        )  # fmt: skip
    same, count = (fused.argmax(1) == theirs.argmax(1)).sum().item(), len(pictures)
    off, bits = (fused - theirs).abs().max().item(), torch.equal(fused, ours)
    times = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in seconds.items())
    print(
        f"    convolution, ReLU and pooling in one kernel: {same} of {count} named as by torch's modules, scores "
        f"differ by {off:.1e};\n    the same bits as by pykernels' modules: {bits}; {times}"
    )
    key = f"inference, {given.name}"
    return {
        f"{key}: same names": same / len(pictures), f"{key}: same bits": float(bits),
        f"{key}: apart": off,
    }  # fmt: skip


@torch.inference_mode()
def show_restore(trained: nn.Module, given: Task) -> dict[str, float]:
    """`trained` has been through `replace`; it becomes torch's model again, with what it has learned."""
    pictures = given.test[0]
    ours = trained.eval()(pictures)
    replaced = [entry for entry in pykernels.replacements(trained) if entry.status == "replaced"]
    restored = pykernels.restore(trained)
    kinds = sorted({type(restored.get_submodule(entry.name)).__name__ for entry in replaced})
    left = sum(type(module).__module__.startswith("pykernels") for module in restored.modules())
    theirs = restored(pictures)
    same, count, off = (ours.argmax(1) == theirs.argmax(1)).sum().item(), len(pictures), (ours - theirs).abs().max()
    print(
        f"    restored: {len(replaced)} modules ({', '.join(kinds)}) are torch's again, {left} of pykernels are left;\n"
        f"    {same} of {count} named as before, scores differ by {off:.1e}"
    )
    key = f"restored, {given.name}"
    return {f"{key}: modules": len(replaced), f"{key}: left": left, f"{key}: same names": same / len(pictures)}


def main(quick: bool = False) -> dict[str, float]:
    found: dict[str, float] = {}
    plans = (
        (task("digits", digits, 10, 360), {"LeNet": (12, 0.02), "residual network": (4, 0.05)}),
        (task("faces", faces, 2, 60), {"LeNet": (24, 0.05), "residual network": (16, 0.03)}),
    )
    for given, plan in plans:
        learn = (given.learn[0][:BATCH], given.learn[1][:BATCH]) if quick else given.learn
        if quick:
            plan = {name: (2, rate) for name, (_, rate) in plan.items()}
        print(f"{given.name}: {len(learn[0])} pictures to learn from, {len(given.test[0])} to test on")
        models = lenets(given.classes)
        found |= compare(models, "LeNet", given, learn, *plan["LeNet"])
        found |= show_inference(models[1], given, 3 if quick else 30)
        models = residual_networks(given.classes)
        found |= compare(models, "residual network", given, learn, *plan["residual network"])
        found |= show_restore(models[1], given)
    return found


if __name__ == "__main__":
    main(quick_wanted(__doc__))
