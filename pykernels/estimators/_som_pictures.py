"""Pictures of a map by matplotlib, hexagons drawn as hexagons."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor


class Pictures:
    """What a map can draw of itself, into `ax` or axes of its own; each gives the axes."""

    n_rows: int
    n_columns: int
    topology: str

    def plot_u_matrix(self, ax: Any = None, **options: Any) -> Any:
        """Mean distances from neighbours. `options` go to matplotlib's `PatchCollection`."""
        return self.plot_values(self.u_matrix(), ax, title="U-matrix", **options)  # type: ignore[attr-defined]

    def plot_hit_map(self, X: Any, ax: Any = None, **options: Any) -> Any:
        """How many of the samples have each unit as their best."""
        return self.plot_values(self.hit_map(X), ax, title="hits", **options)  # type: ignore[attr-defined]

    def plot_component_plane(self, i: int, ax: Any = None, **options: Any) -> Any:
        """One feature of every unit."""
        values = self.component_plane(i)  # type: ignore[attr-defined]
        return self.plot_values(values, ax, title=f"feature {i}", **options)

    def plot_values(
        self, values: Any, ax: Any = None, *, title: str = "", colorbar: bool = True, **options: Any
    ) -> Any:
        """A value [R, C], or a colour [R, C, 3], of each unit, in the shape of the grid; row 0 is at the top."""
        from matplotlib import pyplot
        from matplotlib.collections import PatchCollection
        from matplotlib.patches import Rectangle, RegularPolygon

        values = values.numpy(force=True) if isinstance(values, Tensor) else np.asarray(values)
        ax = pyplot.subplots()[1] if ax is None else ax
        hexagonal = self.topology == "hexagonal"
        height = math.sqrt(3) / 2 if hexagonal else 1.0
        patches: list[Any] = []
        for row in range(self.n_rows):
            for column in range(self.n_columns):
                x, y = column + (0.5 * (row % 2) if hexagonal else 0.0), row * height
                if hexagonal:
                    patches.append(RegularPolygon((x, y), 6, radius=1 / math.sqrt(3)))
                else:
                    patches.append(Rectangle((x - 0.5, y - 0.5), 1, 1))
        shown = PatchCollection(patches, **{"linewidth": 0.2, "edgecolor": "face", **options})
        if values.ndim == 3:
            shown.set_facecolor(values.reshape(-1, values.shape[-1]).clip(0, 1))
        else:
            shown.set_array(values.reshape(-1))
        ax.add_collection(shown)
        ax.set_xlim(-0.6, self.n_columns - 0.4 + (0.5 if hexagonal else 0.0))
        ax.set_ylim((self.n_rows - 1) * height + 0.6, -0.6)
        ax.set_aspect("equal")
        ax.set_axis_off()
        ax.set_title(title)
        if colorbar and values.ndim == 2:
            ax.figure.colorbar(shown, ax=ax, shrink=0.8)
        return ax
