"""Native CPU and CUDA kernels behind the names that PyTorch users already know."""

import importlib

import torch  # noqa: F401  (first: it loads what the compiled modules are linked to)

from . import _native, functional, nn, reference  # noqa: F401  (_native registers torch.ops.pykernels.*)
from ._version import __version__
from .nn import (
    GRU,
    LSTM,
    RNN,
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    Conv1d,
    Conv2d,
    Conv3d,
    DotAttention,
    Fold,
    GRUCell,
    Hopfield,
    JordanRNN,
    LayerNorm,
    LSTMCell,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    MaxUnpool1d,
    MaxUnpool2d,
    MaxUnpool3d,
    ModernHopfield,
    MultiheadAttention,
    RNNCell,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
    Unfold,
)  # fmt: skip
from .replacement import replace, replacements, restore

_ESTIMATORS: frozenset[str] = frozenset((
    "SOM", "RBM", "DeepBeliefNetwork",
    "RadialBasisRegressor", "RadialBasisClassifier", "ExtremeLearningRegressor", "ExtremeLearningClassifier",
))  # fmt: skip
"""The names of pykernels.estimators, which is imported at the first use of one: it imports scikit-learn."""


def __getattr__(name: str) -> object:
    if name == "estimators" or name in _ESTIMATORS:
        estimators = importlib.import_module(".estimators", __name__)
        return estimators if name == "estimators" else getattr(estimators, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ESTIMATORS, "estimators"})


__all__ = [
    "LSTM", "LSTMCell", "GRU", "GRUCell", "RNN", "RNNCell", "JordanRNN",
    "MultiheadAttention", "DotAttention", "TransformerEncoderLayer", "TransformerDecoderLayer", "LayerNorm",
    "replace", "restore", "replacements",
    "MaxPool1d", "MaxPool2d", "MaxPool3d", "AdaptiveMaxPool1d", "AdaptiveMaxPool2d", "AdaptiveMaxPool3d",
    "AvgPool1d", "AvgPool2d", "AvgPool3d", "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d",
    "MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d",
    "Conv1d", "Conv2d", "Conv3d", "Unfold", "Fold",
    "Hopfield", "ModernHopfield",
    "functional", "nn", "reference", "__version__",
]  # fmt: skip
