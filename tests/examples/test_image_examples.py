"""The examples of images and of the classical rules against what their texts say."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pykernels

pytestmark = pytest.mark.usefixtures("cpu_only")


@pytest.fixture(autouse=True)
def _needs_scikit_learn() -> None:
    pytest.importorskip("sklearn")


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.rand(5, 1, 32, 32, dtype=torch.double)


def gradients(model: nn.Module, pictures: torch.Tensor) -> list[torch.Tensor]:
    loss = F.cross_entropy(model(pictures), torch.arange(len(pictures)))
    return list(torch.autograd.grad(loss, list(model.parameters())))


@torch.no_grad()
def loss_of(model: nn.Module, pictures: torch.Tensor, labels: torch.Tensor) -> float:
    """In training mode, in which batch norm takes the statistics of the batch."""
    return F.cross_entropy(copy.deepcopy(model).train()(pictures), labels).item()


# --- image_classifiers


def test_faces_are_a_hundred_and_so_are_the_others():
    pytest.importorskip("skimage")
    from skimage.data import lfw_subset

    from examples.common import faces

    found, labels = faces()
    assert found.shape == (200, 25, 25) and labels.sum() == 100
    assert 0 <= found.min() < 0.1 and 0.9 < found.max() <= 1
    wanted = torch.tensor(lfw_subset()[:100], dtype=torch.float32)
    same = (found[labels == 1][:, None] == wanted).flatten(2).all(2)
    assert torch.equal(same.sum(0), torch.ones(100, dtype=torch.long))  # each is there once
    assert 20 < labels[:60].sum() < 40  # shuffled


def test_tasks_keep_pictures_for_the_test():
    from examples.common import digits
    from examples.image_classifiers import task

    pictures, labels = digits()
    found = task("digits", digits, 10, 360)
    assert len(found.test[1]) == 360 and torch.equal(torch.cat((found.test[1], found.learn[1])), labels)
    enlarged = torch.cat((found.test[0], found.learn[0]))
    assert enlarged.shape == (1797, 1, 32, 32)
    # the mean of the 4 x 4 pixels in the place of one: of each direction 3/4 itself, 1/8 each neighbour
    across = torch.tensor([1 / 8, 3 / 4, 1 / 8])
    wanted = F.conv2d(pictures[:, None], (across[:, None] * across)[None, None])
    torch.testing.assert_close(F.avg_pool2d(enlarged, 4)[:, :, 1:-1, 1:-1], wanted)


def test_lenet_is_lecuns():
    """The sizes of the original: convolutions 6 @ 28 x 28 and 16 @ 10 x 10, layers of 120, 84 and 10."""
    from examples.image_classifiers import LeNet, torch_stage

    model = LeNet(10, torch_stage)
    sizes = []
    for stage in model.stages:
        stage[0].register_forward_hook(lambda module, args, output: sizes.append(tuple(output.shape[1:])))
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    assert sizes == [(6, 28, 28), (16, 10, 10)]
    counts = [sum(p.numel() for p in part.parameters()) for part in (*model.stages, *model.head[1::2])]
    assert counts == [6 * 26, 16 * 151, 120 * 401, 84 * 121, 10 * 85]


def test_lenets_are_torchs_and_ours_with_the_same_weights(pictures):
    from examples.image_classifiers import lenets

    theirs, ours = lenets(10)
    assert [type(m) for s in theirs.stages for m in s] == [nn.Conv2d, nn.ReLU, nn.MaxPool2d] * 2
    assert [type(m) for s in ours.stages for m in s] == [pykernels.Conv2d, nn.Identity, pykernels.MaxPool2d] * 2
    state = ours.state_dict()
    assert all(torch.equal(state.pop(name), tensor) for name, tensor in theirs.state_dict().items()) and not state
    theirs, ours = theirs.double(), ours.double()
    torch.testing.assert_close(ours(pictures), theirs(pictures), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(gradients(ours, pictures), gradients(theirs, pictures), atol=1e-12, rtol=1e-9)


def test_one_kernel_for_a_stage_gives_the_bits_of_the_modules(pictures):
    from examples.image_classifiers import infer, lenets

    theirs, ours = lenets(10)
    with torch.inference_mode():
        found = infer(ours, pictures.float())
        assert torch.equal(found, ours(pictures.float()))
        torch.testing.assert_close(found, theirs(pictures.float()))


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 6, 1), (4, 8, 2)])
def test_a_block_is_its_formula(inputs, outputs, stride):
    from examples.image_classifiers import Block

    block, x = Block(inputs, outputs, stride), torch.randn(3, inputs, 8, 8)
    y = block(x)
    assert y.shape == (3, outputs, 8 // stride, 8 // stride)
    assert isinstance(block.skip, nn.Identity) == (stride == 1 and inputs == outputs)
    torch.testing.assert_close(y, torch.relu(block.skip(x) + block.residual(x)))
    nn.init.zeros_(block.residual[-1].weight)  # F is silent, and what is left is the skip
    assert torch.equal(block(x), torch.relu(block.skip(x)))
    if stride == 2:
        convolved = F.conv2d(x, block.skip[0].weight, stride=2)
        mean, variance = convolved.mean((0, 2, 3), keepdim=True), convolved.var((0, 2, 3), correction=0, keepdim=True)
        torch.testing.assert_close(block.skip(x), (convolved - mean) / (variance + 1e-5).sqrt(), atol=1e-5, rtol=1e-5)


def test_the_residual_network_is_replaced_and_restored(pictures):
    from examples.image_classifiers import residual_networks

    theirs, ours = (model.double() for model in residual_networks(10))
    kinds = {kind: [type(m) for m in theirs.modules()].count(kind) for kind in (nn.Conv2d, nn.AdaptiveAvgPool2d)}
    assert kinds == {nn.Conv2d: 9, nn.AdaptiveAvgPool2d: 1}
    replaced = [type(module) for module in ours.modules()]
    assert replaced.count(pykernels.Conv2d) == 9 and replaced.count(pykernels.AdaptiveAvgPool2d) == 1
    assert nn.Conv2d not in replaced and nn.BatchNorm2d in replaced
    torch.testing.assert_close(ours(pictures), theirs(pictures), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(gradients(ours, pictures), gradients(theirs, pictures), atol=1e-9, rtol=1e-7)
    restored = pykernels.restore(ours)
    assert restored is ours and [type(m) for m in ours.modules()] == [type(m) for m in theirs.modules()]


@pytest.mark.parametrize("name", ["lenets", "residual_networks"])
def test_trainings_of_a_pair_are_the_same_up_to_rounding(name):
    """In float64 next to nothing is left of it, and both have learned."""
    from examples import image_classifiers
    from examples.common import digits

    given = image_classifiers.task("digits", digits, 10, 360)
    learn = given.learn[0][:64].double(), given.learn[1][:64]
    models = tuple(model.double() for model in getattr(image_classifiers, name)(10))
    before = copy.deepcopy(models[1].state_dict())
    runs = image_classifiers.train(models, learn, 3, 0.05, silent=True)
    assert len(runs[0].losses) == len(runs[1].losses) == len(runs[1].seconds) == 6
    assert image_classifiers.apart(runs) < 1e-10
    for key, tensor in models[1].state_dict().items():
        torch.testing.assert_close(tensor, models[0].state_dict()[key], atol=1e-9, rtol=1e-7)
    learned = [loss_of(model, *learn) for model in models]
    models[1].load_state_dict(before)
    assert max(learned) < loss_of(models[1], *learn)


def test_apart_is_the_largest_difference():
    from examples.image_classifiers import apart, begin

    run = begin(nn.Linear(1, 1), 0.1, 10)
    pair = tuple(dataclasses.replace(run, losses=losses) for losses in ([1.0, 2.0, 3.0], [1.5, 1.0, 3.0]))
    assert apart(pair) == 1.0


# --- perceptrons


@pytest.fixture
def parted():
    """Points on both sides of a plane, and 0.1 or more from it; and that plane."""
    plane = torch.tensor([1.0, -2.0, 0.5], dtype=torch.double), torch.tensor(0.3, dtype=torch.double)
    points = torch.randn(200, 3, dtype=torch.double)
    side = points @ plane[0] + plane[1]
    far = side.abs() / plane[0].norm() > 0.1
    return points[far], side[far].sign(), plane


def test_a_perceptron_corrects_as_its_rule_says():
    from examples.perceptrons import perceptron

    inputs = torch.tensor([[1.0, 0.0], [1.0, 2.0], [0.0, 1.0]])
    targets = torch.tensor([1.0, -1.0, 1.0])
    # w, b: 0 -> (1, 0), 1 -> (0, -2), 0 -> (0, -1), 1;  (0, -1), 1: right, right, 0 is wrong -> (0, 0), 2; ...
    (weight, bias), corrections = perceptron(inputs, targets, 1)
    assert weight.tolist() == [0, -1] and bias == 1 and corrections == [3]
    (weight, bias), corrections = perceptron(inputs, targets, 2)
    assert weight.tolist() == [0, 0] and bias == 2 and corrections == [3, 1]


def test_a_perceptron_converges_within_novikoffs_bound(parted):
    from examples.perceptrons import accuracy, most_corrections, perceptron

    inputs, targets, known = parted
    plane, corrections = perceptron(inputs, targets, 10000)
    assert corrections[-1] == 0 and all(corrections[:-1])
    assert accuracy(plane, inputs, targets) == 1
    assert 0 < sum(corrections) <= most_corrections(inputs, targets, known)
    reach = max((x @ x).item() + 1 for x in inputs)
    margin = min((t * (x @ known[0] + known[1])).item() for x, t in zip(inputs, targets, strict=True))
    length = (known[0] @ known[0] + known[1] ** 2).item()
    assert most_corrections(inputs, targets, known) == pytest.approx(reach * length / margin**2)
    with pytest.raises(ValueError, match="does not part"):
        most_corrections(inputs, -targets, known)


@pytest.mark.parametrize("epochs", [1, 3, 20])
def test_a_perceptron_has_scikit_learns_weights(epochs):
    """On classes that no plane parts: there is something to correct in every epoch."""
    from examples.perceptrons import perceptron, scikit_learns

    inputs, targets = torch.randn(60, 5, dtype=torch.double), torch.randint(2, (60,)).double() * 2 - 1
    (weight, bias), corrections = perceptron(inputs, targets, epochs)
    theirs = scikit_learns(inputs, targets, epochs)
    assert len(corrections) == epochs and corrections[-1] > 0
    torch.testing.assert_close(weight, theirs[0], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(bias, theirs[1], atol=1e-9, rtol=1e-9)


def test_no_plane_parts_even_digits_from_odd_ones():
    """A linear program that seeks any t (w·x + b) >= 1 has no solution; for two digits it has."""
    optimize = pytest.importorskip("scipy.optimize")
    from examples.common import digits
    from examples.perceptrons import HELD_BACK, evenness, pair_of

    pictures, labels = (part[HELD_BACK:] for part in digits())
    learn = pictures.flatten(1).double(), labels
    for (inputs, targets), status in (((learn[0], evenness(labels)), 2), (pair_of(1, 8, *learn), 0)):
        rows = -(F.pad(inputs, (0, 1), value=1.0) * targets[:, None]).numpy()
        found = optimize.linprog([0.0] * 65, A_ub=rows, b_ub=[-1.0] * len(rows), bounds=(None, None))
        assert found.status == status


def test_adaline_steps_down_the_gradient():
    from examples.perceptrons import adaline

    inputs, targets = torch.randn(1, 4, dtype=torch.double), torch.tensor([-1.0], dtype=torch.double)
    weight, bias = (torch.zeros(size, dtype=torch.double, requires_grad=True) for size in ((4,), ()))
    for _ in range(3):
        error = (targets[0] - weight @ inputs[0] - bias).square() / 2
        steps = torch.autograd.grad(error, (weight, bias))
        weight = (weight - 0.1 * steps[0]).detach().requires_grad_()
        bias = (bias - 0.1 * steps[1]).detach().requires_grad_()
    found = adaline(inputs, targets, 3, 0.1)
    torch.testing.assert_close(found, (weight.detach(), bias.detach()))


def test_adaline_ends_at_least_squares(parted):
    from examples.perceptrons import adaline, distance, least_squares, mean_square

    inputs, targets, _ = parted
    solution = least_squares(inputs, targets)
    error = targets - inputs @ solution[0] - solution[1]  # orthogonal to the inputs and to one
    torch.testing.assert_close(error @ inputs, inputs.new_zeros(3), atol=1e-9, rtol=0)
    assert abs(error.sum().item()) < 1e-9
    near, nearer = (adaline(inputs, targets, count, 0.02, 0.95) for count in (3, 150))
    assert distance(nearer, solution) < 5e-3 < distance(near, solution)
    least = mean_square(solution, inputs, targets)
    assert 0 < mean_square(nearer, inputs, targets) - least < 1e-4 * least


def test_principal_components_have_covariance_one():
    from examples.perceptrons import principal_components

    inputs = torch.randn(100, 6, dtype=torch.double) @ torch.randn(6, 6, dtype=torch.double) + 3
    mean, matrix = principal_components(inputs, 4)
    found = (inputs - mean) @ matrix
    torch.testing.assert_close(found.t() @ found / 100, torch.eye(4, dtype=torch.double))
    share = (inputs - mean).t() @ (inputs - mean) / 100
    first = matrix[:, 0] / matrix[:, 0].norm()
    assert (first @ share @ first).item() == pytest.approx(torch.linalg.eigvalsh(share)[-1].item())


def test_backpropagation_by_its_equations_is_autograds():
    from examples.perceptrons import MultilayerPerceptron, backpropagation

    model = MultilayerPerceptron(5, 7, 3).double()
    x, labels = torch.randn(11, 5, dtype=torch.double), torch.randint(3, (11,))
    F.cross_entropy(model(x), labels).backward()
    found = backpropagation(model, x, labels)
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-12, rtol=1e-10)


def test_the_multilayer_perceptron_names_97_percent_of_new_digits(capsys):
    from examples.common import digits
    from examples.perceptrons import HELD_BACK, show_multilayer

    pictures, labels = digits()
    pictures = pictures.flatten(1).double()
    learn, test = (pictures[HELD_BACK:], labels[HELD_BACK:]), (pictures[:HELD_BACK], labels[:HELD_BACK])
    found = show_multilayer(learn, test, 40, 2)
    assert found["multilayer"] >= 0.97
    assert found["even by layers"] > found["even by a plane"] + 0.05
    assert f"{100 * found['multilayer']:.1f} %" in capsys.readouterr().out


# --- maps


def test_maps_of_digits_and_colours(tmp_path):
    pytest.importorskip("skimage")
    pytest.importorskip("matplotlib").use("Agg")
    from examples import maps

    found = maps.main(quick=True, folder=tmp_path)
    assert found["quantization"] < 1.4 and found["topographic"] < 0.25 and found["named"] > 0.85
    assert found["colours"] < 0.8 * found["colours by chance"] and found["colours topographic"] < 0.3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["colours_of_a_photograph.png", "digits_on_a_map.png"]


def test_units_without_samples_are_named_after_the_nearest():
    from examples.maps import names_of_units

    som = pykernels.SOM(1, 3, n_epochs=1, random_state=0).fit(torch.rand(9, 2))
    som.cluster_centers_ = torch.tensor([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]])
    samples = torch.tensor([[0.1, 0.0], [0.0, 0.1], [0.9, 1.0], [1.0, 0.9], [1.1, 1.0]])
    assert names_of_units(som, samples, torch.tensor([3, 3, 7, 7, 2])).tolist() == [3, 7, 7]


# --- memories


def test_memories_of_letters_and_faces(tmp_path):
    pytest.importorskip("skimage")
    pytest.importorskip("matplotlib").use("Agg")
    from examples import memories

    found = memories.main(quick=True, folder=tmp_path)
    assert found["4 letters, hebbian"] >= 0.5 and found["26 letters, hebbian"] < 0.1
    assert found["4 letters, pseudo_inverse"] == found["26 letters, pseudo_inverse"] == 1
    assert found["load 0.05"] > 0.99 and found["load 0.30"] < 0.8
    assert found["faces"] > 0.9 and found["faces apart"] < 0.1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces.png", "letters.png"]
