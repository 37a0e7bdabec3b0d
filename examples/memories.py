"""Associative memories: letters and faces completed, and a memory that holds too much.

* Letters of 20 x 20 points are stored in a Hopfield network, and found again from letters a fifth of whose points were
  turned over. Letters are alike, which Hebb's rule minds most; the projection rule holds all of them.
* Random patterns: by Hebb's rule N units hold about 0.14 N of them. Below that a pattern with some points wrong comes
  back, above it nothing does: the share of points that are right after retrieval says where it ends.
* Faces, whose lower half is hidden, by the modern form: one step of attention over the stored faces.

`--quick` makes it a check of a few seconds, `--pictures FOLDER` draws letters and faces there (with matplotlib).

Sources: Hopfield 1982 (https://doi.org/10.1073/pnas.79.8.2554), Amit, Gutfreund and Sompolinsky 1985
(https://doi.org/10.1103/PhysRevLett.55.1530), Ramsauer et al. 2020 (https://arxiv.org/abs/2008.02217).
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

import pykernels
from examples.common import faces, quick_and_folder

SIDE, RULES = 20, ("hebbian", "storkey", "pseudo_inverse")


def letters(alphabet: str) -> Tensor:
    """Letters as patterns of 1 (ink) and -1, [letters, SIDE * SIDE], by Pillow's own font; each fills its square."""
    from PIL import Image, ImageDraw, ImageFont

    font, drawn = ImageFont.load_default(48), []
    for letter in alphabet:
        box = font.getbbox(letter, stroke_width=2)
        image = Image.new("L", (box[2] - box[0], box[3] - box[1]))
        ImageDraw.Draw(image).text((-box[0], -box[1]), letter, fill=255, font=font, stroke_width=2)
        drawn.append(torch.frombuffer(bytearray(image.resize((SIDE, SIDE)).tobytes()), dtype=torch.uint8))
    return torch.where(torch.stack(drawn) > 96, 1.0, -1.0)


def turned(patterns: Tensor, share: float, seed: int = 0) -> Tensor:
    """Patterns with a share of their points turned over."""
    draw = torch.rand(patterns.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(draw < share, -patterns, patterns)


def network(rule: str, patterns: Tensor) -> pykernels.Hopfield:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says so where these are too many
        return pykernels.Hopfield(patterns.shape[1], rule=rule, random_state=0).store(patterns)


def show_letters(folder: Path | None) -> dict[str, float]:
    found, results = {}, {}
    for alphabet in ("AHJX", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"):
        stored = letters(alphabet)
        start = turned(stored, 0.2)
        print(f"{len(alphabet)} letters, a fifth of the points turned over; found again, point for point:")
        for rule in RULES:
            memory = network(rule, stored)
            result = memory(start)
            right = (result == stored).all(1).double().mean().item()
            lower = bool((memory.energy(result) <= memory.energy(start)).all())
            print(f"  {rule:<15} {100 * right:5.1f} %   energy {'fell' if lower else 'ROSE'}")
            found[f"{len(alphabet)} letters, {rule}"] = right
            results[rule] = result
    if folder is not None:
        rows = [stored[::3], start[::3], *(results[rule][::3] for rule in RULES)]
        draw(folder / "letters.png", rows, ["stored", "turned over", *RULES], SIDE)
    return found


def show_capacity(quick: bool) -> dict[str, float]:
    units = 200 if quick else 1000
    found = {}
    print(f"Random patterns in {units} units, begun with 5 % of the points turned over; right afterwards:")
    for load in (0.05, 0.10, 0.13, 0.16, 0.20, 0.30):
        drawn = torch.rand(round(load * units), units, generator=torch.Generator().manual_seed(1))
        stored = torch.where(drawn < 0.5, -1.0, 1.0)
        right = (network("hebbian", stored)(turned(stored, 0.05)) == stored).double().mean().item()
        print(f"  {load:.2f} N patterns  {100 * right:5.1f} %")
        found[f"load {load:.2f}"] = right
    return found


def show_faces(folder: Path | None) -> dict[str, float]:
    pictures, labels = faces()
    stored = pictures[labels == 1].flatten(1)
    centre = stored.mean()
    patterns = stored - centre
    patterns = patterns / patterns.norm(dim=1, keepdim=True)
    cue = patterns.clone()
    cue[:, patterns.shape[1] // 2 :] = 0  # the lower half hidden
    memory = pykernels.ModernHopfield(patterns, beta=40.0, max_steps=10, tolerance=1e-6)
    result = memory(cue)
    right = (torch.cdist(result, patterns).argmin(1) == torch.arange(len(patterns))).double().mean().item()
    apart = (result - patterns).norm(dim=1).mean().item()
    print(
        f"{len(patterns)} faces from their upper half, by the modern form: {100 * right:.0f} % found, mean distance "
        f"{apart:.3f} (from the half {(cue - patterns).norm(dim=1).mean():.3f})"
    )
    if folder is not None:
        draw(folder / "faces.png", [patterns[:10], cue[:10], result[:10]], ["stored", "seen", "found"], 25)
    return {"faces": right, "faces apart": apart}


def draw(path: Path, rows: list[Tensor], names: list[str], side: int) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(rows), len(rows[0]), figsize=(len(rows[0]), 1.1 * len(rows)), squeeze=False)
    for line, row, name in zip(axes, rows, names, strict=True):
        for ax, pattern in zip(line, row, strict=True):
            ax.imshow(pattern.reshape(side, side), cmap="gray")
            ax.set_axis_off()
        line[0].set_title(name, fontsize=8, loc="left")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(quick: bool = False, folder: Path | None = None) -> dict[str, float]:
    return {**show_letters(folder), **show_capacity(quick), **show_faces(folder)}


if __name__ == "__main__":
    main(*quick_and_folder(__doc__))
