"""The classical learning rules on handwritten digits, in plain PyTorch, each beside what it has to come to.

* The perceptron answers y = sign(w·x + b), and learns from what it names wrongly: for each x, t with t (w·x + b) <= 0,
      w <- w + t x,   b <- b + t,          t = -1 or 1.
  If a plane (w', b') parts the classes, there are at most (R/g)^2 corrections, where R is the largest |(x, 1)| and
  g the least t (w'·x + b') / |(w', b')|. It does so here for each pair of digits, with the weights that scikit-learn's
  `Perceptron` gets. Even digits and odd ones are parted by no plane, and it goes on correcting for ever.
* Adaline compares before the sign, and learns from all (least mean squares):
      y = w·x + b,   w <- w + r (t - y) x,   b <- b + r (t - y),
  a step down the gradient of (t - y)^2 / 2. With a rate r that falls it ends where `torch.linalg.lstsq` is at once, the
  sooner the more alike the eigenvalues of the correlations of x; so x are principal components of the pictures, scaled
  to variance one.
* The multilayer perceptron has a layer between, and learns by backpropagation:
      a = W x + b,   h = max(a, 0),   p = softmax(V h + c),   L = -log p_t,
      d = p - e_t,   dL/dV = d h',   dL/dc = d,   D = (V' d) * [a > 0],   dL/dW = D x',   dL/db = D,
  with e_t the unit vector of the class t, ' the transpose and * the elementwise product: the gradients that autograd
  finds. It names the ten digits, and by that the even ones too. Each picture comes with new noise every time, which
  keeps it from learning the few there are by heart.

`--quick` makes it a check of a few seconds.

Sources: Rosenblatt 1958 (https://doi.org/10.1037/h0042519), Novikoff 1962 (On convergence proofs on perceptrons),
Widrow and Hoff 1960 (Adaptive switching circuits), Rumelhart, Hinton and Williams 1986
(https://doi.org/10.1038/323533a0).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.common import digits, quick_wanted

HELD_BACK, NOISE = 360, 0.2
Data = tuple[Tensor, Tensor]
"""Pictures [N, 64] and the digits that they show."""
Plane = tuple[Tensor, Tensor]
"""w [inputs] and b [], of which sign(w·x + b) is the answer."""


def accuracy(plane: Plane, inputs: Tensor, targets: Tensor) -> float:
    """Where w·x + b is 0 there is no answer, and it is wrong."""
    weight, bias = plane
    return (targets * (inputs @ weight + bias) > 0).double().mean().item()


def pair_of(first: int, second: int, pictures: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures [N, 64] of two digits, and 1 for the first, -1 for the second."""
    chosen = (labels == first) | (labels == second)
    return pictures[chosen], torch.where(labels[chosen] == first, 1.0, -1.0).to(pictures.dtype)


# --- perceptron


def perceptron(inputs: Tensor, targets: Tensor, epochs: int) -> tuple[Plane, list[int]]:
    """The plane, and the corrections of each epoch: the last is 0 if it has converged."""
    weight, bias, corrections = inputs.new_zeros(inputs.shape[1]), inputs.new_zeros(()), []
    for _ in range(epochs):
        corrections.append(0)
        for x, t in zip(inputs, targets, strict=True):
            if t * (weight @ x + bias) <= 0:
                weight += t * x
                bias += t
                corrections[-1] += 1
        if corrections[-1] == 0:
            break
    return (weight, bias), corrections


def most_corrections(inputs: Tensor, targets: Tensor, plane: Plane) -> float:
    """Novikoff's (R/g)^2, for a plane that parts the classes; the less, the wider it parts them."""
    weight, bias = plane
    margin = (targets * (inputs @ weight + bias)).min() / (weight @ weight + bias * bias).sqrt()
    if margin <= 0:
        raise ValueError("the plane does not part the classes")
    return (((inputs * inputs).sum(1).max() + 1) / margin**2).item()


def scikit_learns(inputs: Tensor, targets: Tensor, epochs: int) -> Plane:
    """The same rule on the same pictures in the same order."""
    from sklearn.linear_model import Perceptron

    model = Perceptron(max_iter=epochs, tol=None, shuffle=False).fit(inputs.numpy(), targets.numpy())
    return torch.tensor(model.coef_[0]), torch.tensor(model.intercept_[0])


def widest(inputs: Tensor, targets: Tensor) -> Plane:
    """A plane with all but the widest margin, by a support vector machine."""
    from sklearn.svm import SVC

    model = SVC(kernel="linear", C=1e6).fit(inputs.numpy(), targets.numpy())
    return torch.tensor(model.coef_[0]), torch.tensor(model.intercept_[0])


def show_perceptron(learn: Data, test: Data, pairs: list[tuple[int, int]]) -> dict[str, float]:
    print("Perceptron, each pair of digits:")
    rows = []
    for pair in pairs:
        inputs, targets = pair_of(*pair, *learn)
        plane, corrections = perceptron(inputs, targets, 1000)
        theirs = scikit_learns(inputs, targets, len(corrections))
        rows.append(
            {
                "epochs": len(corrections), "left": corrections[-1], "corrections": sum(corrections),
                "bound": most_corrections(inputs, targets, widest(inputs, targets)),
                "apart": max((plane[0] - theirs[0]).abs().max().item(), (plane[1] - theirs[1]).abs().item()),
                "right": accuracy(plane, *pair_of(*pair, *test)), "theirs": accuracy(theirs, *pair_of(*pair, *test)),
            }
        )  # fmt: skip
    hardest = max(range(len(rows)), key=lambda row: rows[row]["corrections"])
    row = rows[hardest]
    converged, within = sum(r["left"] == 0 for r in rows), sum(r["corrections"] <= r["bound"] for r in rows)
    right, theirs = (sum(r[name] for r in rows) / len(rows) for name in ("right", "theirs"))
    off = max(r["apart"] for r in rows)
    print(
        f"  {converged} of {len(rows)} end with an epoch without a correction, {within} within Novikoff's bound\n"
        f"  the hardest is {pairs[hardest][0]} or {pairs[hardest][1]}: {row['epochs']} epochs, {row['corrections']} "
        f"corrections, of {row['bound']:.0f} at most\n"
        f"  test pictures named correctly: {100 * right:.2f} %, by scikit-learn's {100 * theirs:.2f} %; "
        f"weights differ by {off:.1e} at most"
    )
    return {
        "pairs": len(rows), "converged": converged, "within": within, "perceptron": right, "scikit-learn": theirs,
        "perceptrons apart": off,
    }  # fmt: skip


# --- Adaline


def adaline(inputs: Tensor, targets: Tensor, epochs: int, rate: float, fall: float = 1.0) -> Plane:
    """Picture by picture, in a new order each epoch, after which the rate is `fall` times as high."""
    weight, bias = inputs.new_zeros(inputs.shape[1]), inputs.new_zeros(())
    generator = torch.Generator().manual_seed(1)
    for epoch in range(epochs):
        for number in torch.randperm(len(targets), generator=generator):
            x, t = inputs[number], targets[number]
            step = rate * fall**epoch * (t - (weight @ x + bias))
            weight += step * x
            bias += step
    return weight, bias


def least_squares(inputs: Tensor, targets: Tensor) -> Plane:
    with_one = F.pad(inputs, (0, 1), value=1.0)
    solution = torch.linalg.lstsq(with_one, targets[:, None]).solution[:, 0]
    return solution[:-1], solution[-1]


def principal_components(inputs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean [D] and matrix [D, count]: (x - mean) @ matrix has covariance one on `inputs`."""
    mean = inputs.mean(0)
    _, lengths, directions = torch.linalg.svd(inputs - mean, full_matrices=False)
    return mean, directions[:count].t() / lengths[:count] * len(inputs) ** 0.5


def mean_square(plane: Plane, inputs: Tensor, targets: Tensor) -> float:
    """Of t - y."""
    return (targets - inputs @ plane[0] - plane[1]).square().mean().item()


def distance(plane: Plane, other: Plane) -> float:
    """|(w, b) - (w', b')|, as a part of |(w', b')|."""
    given, wanted = (torch.cat((weight, bias[None])) for weight, bias in (plane, other))
    return ((given - wanted).norm() / wanted.norm()).item()


def show_adaline(learn: Data, test: Data, epochs: tuple[int, ...]) -> dict[str, float]:
    inputs, targets = pair_of(3, 8, *learn)
    others, wanted = pair_of(3, 8, *test)
    mean, matrix = principal_components(inputs, 32)
    inputs, others = (inputs - mean) @ matrix, (others - mean) @ matrix
    solution, found = least_squares(inputs, targets), {}
    print("Adaline, 3 or 8 from 32 principal components:")
    for count in epochs:
        plane = adaline(inputs, targets, count, 0.01, 0.95)
        found[f"from least squares after {count}"] = off = distance(plane, solution)
        error, least = (mean_square(p, inputs, targets) for p in (plane, solution))
        print(
            f"  {count:3d} epochs: weights {off:.1e} of their length from the least-squares solution, "
            f"mean (t - y)^2 {error:.6f}, {error - least:.1e} above the least"
        )
    right, theirs = (accuracy(p, others, wanted) for p in (plane, solution))
    print(f"  test pictures named correctly: {100 * right:.2f} %, by the least-squares solution {100 * theirs:.2f} %")
    return {**found, "Adaline": right, "least squares": theirs}


# --- multilayer perceptron


class MultilayerPerceptron(nn.Module):
    """V max(W x + b, 0) + c: the scores, of which the softmax is p."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(inputs, hidden), nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(F.relu(self.inner(x)))


@torch.no_grad()
def backpropagation(model: MultilayerPerceptron, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The gradients of the mean loss by their equations, under the names of the parameters; x is [N, inputs]."""
    a = model.inner(x)
    h = a.clamp(min=0)
    p = F.softmax(model.outer(h), 1)
    d = (p - F.one_hot(labels, p.shape[1])) / len(x)
    inner = (d @ model.outer.weight) * (a > 0)
    return {
        "inner.weight": inner.t() @ x, "inner.bias": inner.sum(0), "outer.weight": d.t() @ h, "outer.bias": d.sum(0),
    }  # fmt: skip


def train(model: MultilayerPerceptron, pictures: Tensor, labels: Tensor, epochs: int) -> list[float]:
    """Gradients by autograd, descent with momentum; gives the mean loss of each epoch."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(epochs):
        total = 0.0
        for part in torch.randperm(len(labels), generator=generator).split(32):
            noise = NOISE * torch.randn(len(part), pictures.shape[1], generator=generator, dtype=pictures.dtype)
            loss = F.cross_entropy(model(pictures[part] + noise), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(part)
        schedule.step()
        losses.append(total / len(labels))
    return losses


def show_multilayer(learn: Data, test: Data, epochs: int, plane_epochs: int) -> dict[str, float]:
    torch.manual_seed(0)
    model = MultilayerPerceptron(64, 256, 10).double()
    by_equations = backpropagation(model, *learn)
    F.cross_entropy(model(learn[0]), learn[1]).backward()
    off = max((by_equations[name] - p.grad).abs().max().item() for name, p in model.named_parameters())
    losses = train(model, *learn, epochs)
    with torch.no_grad():
        p = F.softmax(model(test[0]), 1)
    right = (p.argmax(1) == test[1]).double().mean().item()
    print(
        f"Multilayer perceptron, ten digits: loss {losses[0]:.3f} -> {losses[-1]:.3f}, {100 * right:.1f} % of the test "
        f"pictures named correctly\n  backpropagation by the equations and by autograd: gradients differ by {off:.1e}"
    )

    plane, corrections = perceptron(learn[0], evenness(learn[1]), plane_epochs)
    by_plane = accuracy(plane, test[0], evenness(test[1]))
    by_layers = (((p[:, ::2].sum(1) > 0.5) * 2 - 1) == evenness(test[1])).double().mean().item()
    print(
        f"  even or odd: {100 * by_layers:.1f} % correct, a perceptron {100 * by_plane:.1f} %, which after "
        f"{len(corrections)} epochs still makes {corrections[-1]} corrections"
    )
    return {
        "multilayer": right, "gradients apart": off, "even by layers": by_layers, "even by a plane": by_plane,
        "corrections to the end": corrections[-1],
    }  # fmt: skip


def evenness(labels: Tensor) -> Tensor:
    """1 for even digits, -1 for odd ones."""
    return (1 - 2 * (labels % 2)).double()


def main(quick: bool = False) -> dict[str, float]:
    pictures, labels = digits()
    pictures = pictures.flatten(1).double()
    learn, test = (pictures[HELD_BACK:], labels[HELD_BACK:]), (pictures[:HELD_BACK], labels[:HELD_BACK])
    pairs = [(3, 8), (1, 8)] if quick else list(itertools.combinations(range(10), 2))
    return {
        **show_perceptron(learn, test, pairs),
        **show_adaline(learn, test, (1, 2) if quick else (1, 10, 100)),
        **show_multilayer(learn, test, 2 if quick else 40, 2 if quick else 30),
    }


if __name__ == "__main__":
    main(quick_wanted(__doc__))
