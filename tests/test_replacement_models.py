"""`pykernels.replace` in published architectures, as packages ship them, with drawn weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pykernels
from pykernels.replacement import OURS
from tests.helpers import assert_same_bits, check_form, distance

from .replacements import classes, results

DOUBLE = torch.float64
package = pytest.importorskip  # for machines where nothing but torch and pytest is installed


def lenet() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """LeNet-5 (LeCun et al. 1998), of torch's layers one after the other."""
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10),
    )  # fmt: skip
    images = torch.randn(4, 1, 28, 28, dtype=DOUBLE)
    return model, lambda m: m(images)


def resnet() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """A ResNet of basic blocks (He et al. 2016) of MONAI: convolutions, batch norm, both kinds of pooling."""
    ResNet = package("monai.networks.nets").ResNet

    model = ResNet("basic", [1, 1, 1, 1], [4, 8, 16, 32], spatial_dims=2, n_input_channels=3, conv1_t_stride=2,
                   num_classes=5)  # fmt: skip
    images = torch.randn(4, 3, 48, 40, dtype=DOUBLE)
    return model, lambda m: m(images)


def resnet_3d() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    ResNet = package("monai.networks.nets").ResNet

    model = ResNet("bottleneck", [1, 1, 1, 1], [2, 4, 8, 8], spatial_dims=3, n_input_channels=1, num_classes=2)
    volumes = torch.randn(2, 1, 24, 20, 24, dtype=DOUBLE)
    return model, lambda m: m(volumes)


def vit() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """A vision transformer (Dosovitskiy et al. 2021) of MONAI: layer norm around an attention of its own."""
    ViT = package("monai.networks.nets").ViT

    model = ViT(3, (16, 24), (8, 8), hidden_size=16, mlp_dim=32, num_layers=3, num_heads=2, classification=True,
                num_classes=4, spatial_dims=2, proj_type="perceptron")  # fmt: skip
    images = torch.randn(3, 3, 16, 24, dtype=DOUBLE)
    return model, lambda m: m(images)[0]


def instances() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """Multiple instance learning with a transformer (Myronenko et al. 2021) of MONAI: a `torch.nn.TransformerEncoder`
    over what a convolutional net finds."""
    MILModel = package("monai.networks.nets").MILModel

    backbone = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = MILModel(3, "att_trans", False, backbone, 16, trans_blocks=2)
    bags = torch.randn(2, 6, 3, 12, 12, dtype=DOUBLE)
    return model, lambda m: m(bags)


def _tagger(rec_dropout: float) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    Tagger = package("stanza.models.pos.model").Tagger

    sizes = {
        "word_emb_dim": 6, "char_emb_dim": 5, "char_hidden_dim": 8, "char_num_layers": 1, "transformed_dim": 6,
        "tag_emb_dim": 4, "hidden_dim": 8, "num_layers": 2, "deep_biaff_hidden_dim": 10,
        "composite_deep_biaff_hidden_dim": 10,
    }  # fmt: skip
    # (the probability itself is zero, but where it is not given as 0 cells run step by step)
    drops = {"dropout": 0.0, "word_dropout": 0.0, "rec_dropout": rec_dropout, "char_rec_dropout": 0}
    vocabulary = {"word": range(20), "char": range(12), "upos": range(6), "xpos": range(7), "feats": range(5)}
    model = Tagger({**sizes, **drops, "char": True, "pretrain": False}, vocabulary)

    sentences = [5, 3]  # words in each
    words = torch.zeros(2, 5, dtype=torch.int64)
    tags = torch.zeros(2, 5, dtype=torch.int64)
    for row, length in enumerate(sentences):
        words[row, :length] = torch.randint(1, 20, (length,))
        tags[row, :length] = torch.randint(1, 5, (length,))
    letters = [6, 5, 4, 4, 3, 2, 2, 1]  # of each word, longest first
    chars = torch.zeros(8, 6, dtype=torch.int64)
    for row, length in enumerate(letters):
        chars[row, :length] = torch.randint(1, 12, (length,))
    order = [3, 0, 7, 1, 4, 2, 6, 5]

    def run(m: nn.Module) -> Tensor:
        loss, _ = m(words, words == 0, chars, chars == 0, [tags] * 3, None, order, sentences, letters, None)
        return loss

    return model, run


def tagger() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """The part-of-speech tagger of Stanza (Qi et al. 2020): LSTMs over packed letters and words, and highways."""
    return _tagger(0)


def tagger_by_steps() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """The same with the LSTM of Stanza that takes `torch.nn.LSTMCell` step by step for its recurrent dropout."""
    return _tagger(1e-300)


def translator() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """The lemmatizer of Stanza: an LSTM as encoder, an LSTM cell with attention as decoder."""
    Seq2SeqModel = package("stanza.models.common.seq2seq_model").Seq2SeqModel

    args = {"vocab_size": 15, "emb_dim": 6, "hidden_dim": 8, "num_layers": 2, "dropout": 0.0, "max_dec_len": 6,
            "attn_type": "soft"}  # fmt: skip
    model = Seq2SeqModel(args)
    source, target = (torch.randint(4, 15, (3, 6)) for _ in range(2))

    def run(m: nn.Module) -> Tensor:
        torch.set_default_dtype(next(m.parameters()).dtype)  # that of the states that it makes
        try:
            return m(source, source == 0, target)[0]
        finally:
            torch.set_default_dtype(torch.float32)

    return model, run


MODELS: dict[Callable[..., Any], set[str]] = {
    lenet: {"Conv2d", "AvgPool2d", "MaxPool2d"},
    resnet: {"Conv2d", "MaxPool2d", "AdaptiveAvgPool2d"},
    resnet_3d: {"Conv3d", "MaxPool3d", "AdaptiveAvgPool3d"},
    vit: {"LayerNorm"},
    instances: {"Conv2d", "AdaptiveAvgPool2d", "TransformerEncoderLayer", "MultiheadAttention", "LayerNorm"},
    tagger: {"LSTM"},
    tagger_by_steps: {"LSTM", "LSTMCell"},
    translator: {"LSTM", "LSTMCell"},
}
"""What of torch's modules that have one of ours is in each."""
pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor")
every_model = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
NAMES = {kind.__name__ for kind in OURS}


class Run(nn.Module):
    """A model and how it is called."""

    def __init__(self, model: nn.Module, run: Callable[[nn.Module], Tensor]) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self) -> Tensor:
        return self.run(self.model)


def prepared(make: Callable[..., Any], training: bool) -> Run:
    """The model with nothing left at zero, so that every weight matters; those that do not are frozen."""
    torch.manual_seed(8)
    whole = Run(*make()).double().train(training)
    model = whole.model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    used = torch.autograd.grad(whole().sum(), list(model.parameters()), allow_unused=True)
    for parameter, gradient in zip(model.parameters(), used, strict=True):
        parameter.requires_grad_(gradient is not None)
    assert sum(gradient is not None for gradient in used) > 4
    return whole


@pytest.mark.parametrize("training", [True, False])
@every_model
def test_results_and_gradients(make, training):
    whole = prepared(make, training)
    model, kinds = whole.model, classes(whole)
    state = copy.deepcopy(model.state_dict())
    expected = results(whole)
    trained = copy.deepcopy(model.state_dict())  # with what batch norm has counted

    model.load_state_dict(state)
    assert pykernels.replace(model) is model
    present = {entry.original.__name__ for entry in pykernels.replacements(model) if entry.status == "replaced"}
    assert present == MODELS[make] & NAMES
    assert not [entry for entry in pykernels.replacements(model) if entry.status != "replaced"]
    check_near(results(whole), expected)
    check_near(of_floats(model.state_dict()), of_floats(trained))

    model.load_state_dict(state)
    pykernels.restore(model)
    assert classes(whole) == kinds
    assert_same_bits(results(whole), expected)
    assert_same_bits(dict(model.state_dict()), trained)


def check_near(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Up to rounding. Some gradients are zero but for that, as of a bias in front of a softmax."""
    check_form(found, expected)
    least = 1e-3 * max(float(tensor.abs().max()) for tensor in expected.values())
    for name, tensor in found.items():
        assert distance(tensor, expected[name], least) <= 1e-10, name


def of_floats(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


@every_model
def test_training_goes_on(make):
    """Five steps of Adam, replaced after the second and restored after the fourth, give torch's losses."""

    def losses(changes: dict[int, Callable[[nn.Module], nn.Module]]) -> list[float]:
        whole = prepared(make, True)
        optimizer, found = torch.optim.Adam(whole.parameters(), 1e-3), []
        for step in range(5):
            changes.get(step, lambda m: m)(whole)
            optimizer.zero_grad()
            loss = whole().square().mean()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    found = losses({2: pykernels.replace, 4: pykernels.restore})
    assert found == pytest.approx(losses({}), rel=1e-6) and found[-1] < found[0]
