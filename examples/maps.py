"""Self-organising maps: digits laid out on a grid, and the colours of a photograph.

* Of the digits, a map of 12 x 12 units learns where samples are, without names: neighbours on the grid look alike.
  The quantisation error is the mean distance of a sample from its unit, the topographic error the share of samples
  whose two nearest units are no neighbours. Named by the digit that most of its samples show, a unit names the test
  pictures; and clusters are valleys of the U-matrix, the mean distance of a unit from its neighbours.
* Of the photograph's pixels, a hexagonal map of 16 x 16 units learns the colours; each pixel then gets its unit's, and
  the picture has 256 colours beside each other. Chosen at random from the pixels, 256 colours are farther off.

`--quick` makes it a check of a few seconds, `--pictures FOLDER` draws maps and photograph there (with matplotlib).

Sources: Kohonen 1982 (https://doi.org/10.1007/BF00337288); Ultsch and Siemon 1990 (Kohonen's self-organizing feature
maps for exploratory data analysis) for the U-matrix; Kiviluoto 1996 (https://doi.org/10.1109/ICNN.1996.548907) for the
topographic error.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import pykernels
from examples.common import digits, quick_and_folder

HELD_BACK = 360


def names_of_units(som: pykernels.SOM, samples: Tensor, labels: Tensor) -> Tensor:
    """The digit that most samples of each unit show; of a unit without samples the nearest named unit's."""
    votes = torch.zeros(len(som.cluster_centers_), 10)
    votes.index_put_((som.predict(samples), labels), torch.ones(()), accumulate=True)
    named = votes.sum(1) > 0
    _, nearest = pykernels.functional.bmu(som.cluster_centers_, som.cluster_centers_[named])
    return votes[named].argmax(1)[nearest]


def show_digits(quick: bool, folder: Path | None) -> dict[str, float]:
    pictures, labels = digits()
    pictures = pictures.flatten(1)
    learn, test = pictures[HELD_BACK:], pictures[:HELD_BACK]
    som = pykernels.SOM(12, 12, random_state=0, n_epochs=10 if quick else 30).fit(learn)
    names = names_of_units(som, learn, labels[HELD_BACK:])
    right = (names[som.predict(test)] == labels[:HELD_BACK]).double().mean().item()
    found = {
        "quantization": som.quantization_error(test),
        "topographic": som.topographic_error(test),
        "named": right,
        "units hit": float((som.hit_map(learn) > 0).double().mean()),
    }
    print(
        f"Digits on a map of 12 x 12: quantisation error {found['quantization']:.3f}, topographic error "
        f"{found['topographic']:.3f}\n  named by their units, {100 * right:.1f} % of the test pictures are right; "
        f"{100 * found['units hit']:.0f} % of the units have samples"
    )
    rows = [" ".join(str(int(n)) for n in row) for row in names.reshape(12, 12)]
    print("  " + "\n  ".join(rows))
    if folder is not None:
        draw_digits(som, learn, names, folder)
    return found


def draw_digits(som: pykernels.SOM, samples: Tensor, names: Tensor, folder: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(9, 9))
    units = som.codebook_.reshape(12, 12, 8, 8).transpose(1, 2).reshape(96, 96)
    axes[0, 0].imshow(1 - units, cmap="gray")
    axes[0, 0].set_title("codebook")
    axes[0, 0].set_axis_off()
    som.plot_u_matrix(axes[0, 1], cmap="bone_r")
    som.plot_hit_map(samples, axes[1, 0], cmap="viridis")
    som.plot_values(names.reshape(12, 12), axes[1, 1], title="digits", cmap="tab10")
    figure.savefig(folder / "digits_on_a_map.png", dpi=120)
    pyplot.close(figure)


def photograph(quick: bool) -> Tensor:
    """A picture that scikit-image ships, [rows, columns, 3] in 0..1."""
    from skimage.data import astronaut

    return torch.tensor(astronaut()[:: 8 if quick else 2, :: 8 if quick else 2], dtype=torch.float32) / 255


def show_colours(quick: bool, folder: Path | None) -> dict[str, float]:
    picture = photograph(quick)
    pixels = picture.reshape(-1, 3)
    som = pykernels.SOM(16, 16, topology="hexagonal", n_epochs=10 if quick else 30, random_state=0).fit(pixels)
    distance, unit = pykernels.functional.bmu(pixels, som.cluster_centers_)
    chosen = pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:256]]
    by_chance, _ = pykernels.functional.bmu(pixels, chosen)
    found = {
        "colours": distance.square().mean().item(),
        "colours by chance": by_chance.square().mean().item(),
        "colours topographic": som.topographic_error(pixels),
    }
    print(
        f"Colours of a photograph, 256 on a hexagonal map: mean square error {found['colours']:.2e} (chosen at random "
        f"from the pixels {found['colours by chance']:.2e}), topographic error {found['colours topographic']:.3f}"
    )
    if folder is not None:
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.5))
        for ax, image, title in (
            (axes[0], picture, "photograph"),
            (axes[1], som.cluster_centers_[unit], "256 colours"),
        ):
            ax.imshow(image.reshape(picture.shape).clamp(0, 1))
            ax.set_title(title)
            ax.set_axis_off()
        som.plot_values(som.codebook_, axes[2], title="map")
        figure.savefig(folder / "colours_of_a_photograph.png", dpi=120)
        pyplot.close(figure)
    return found


def main(quick: bool = False, folder: Path | None = None) -> dict[str, float]:
    return {**show_digits(quick, folder), **show_colours(quick, folder)}


if __name__ == "__main__":
    main(*quick_and_folder(__doc__))
