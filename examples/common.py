"""What the examples share: texts and pictures that are already on the machine, and the choice of a small budget."""

from __future__ import annotations

import argparse
import importlib.util
import re
from pathlib import Path

import torch


def _parser(about: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds: does it run, not what it learns")
    return parser


def quick_wanted(about: str | None) -> bool:
    """Reads the command line: `--quick` makes an example a check of a few seconds."""
    return _parser(about).parse_args().quick


def quick_and_folder(about: str | None) -> tuple[bool, Path | None]:
    """The same for an example that draws, and the folder of `--pictures`, which is made."""
    parser = _parser(about)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw into this folder")
    options = parser.parse_args()
    if options.pictures is not None:
        options.pictures.mkdir(parents=True, exist_ok=True)
    return options.quick, options.pictures


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's handwritten digits: [1797, 8 rows, 8 pixels] in 0..1, shuffled, and what they show."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pictures = torch.tensor(data.images, dtype=torch.float32) / 16
    labels = torch.tensor(data.target)
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    return pictures[shuffled], labels[shuffled]


def faces() -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-image's pieces of photographs: [200, 25 rows, 25 pixels] in 0..1, shuffled, and 1 for faces, else 0."""
    from skimage.data import lfw_subset

    pictures = torch.tensor(lfw_subset(), dtype=torch.float32)  # a hundred faces, then a hundred pieces of background
    labels = (torch.arange(len(pictures)) < len(pictures) // 2).long()
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    return pictures[shuffled], labels[shuffled]


def help_texts() -> str:
    """What `help()` knows about the language: some hundred pages of English that ship with every Python."""
    from pydoc_data import topics

    pages = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    return re.sub(r"(.)\1{3,}", r"\1\1\1", pages)  # shortens rules and indentation


def source_of(module: str) -> str:
    """The text of a module of Python's standard library."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"this Python has no source of the module {module}")
    return Path(spec.origin).read_text(encoding="utf-8")


def encoded(text: str) -> tuple[torch.Tensor, list[str]]:
    """The text as numbers, and the character behind each number."""
    alphabet = sorted(set(text))
    index = {character: number for number, character in enumerate(alphabet)}
    return torch.tensor([index[character] for character in text]), alphabet


def end_of(losses: list[float], count: int = 20) -> float:
    """The mean of the last few losses."""
    return sum(losses[-count:]) / len(losses[-count:])
