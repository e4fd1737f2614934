"""An image and its cells as layers of napari, where that is installed: it is no part of cellkit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.show.style import class_colour, class_name

COLOURS = ("blue", "green", "red", "magenta", "cyan", "yellow")  # of channels, in turn


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: what `napari.Viewer.add_image` or `add_labels` is given.

    Attributes
    ----------
    data : (H, W) array
        Values of a channel; or numbers of cells, 0 = background.
    options : dict
        Keyword arguments: name, scale, colormap, features, ...
    colours : dict of number -> colour
        Of a layer of cells; empty for a channel.
    """

    data: np.ndarray
    options: dict[str, Any]
    colours: dict[int | None, str] = field(default_factory=dict)


def channel_layers(planes: Mapping[str, np.ndarray], um_per_px: float) -> list[Layer]:
    """Return a layer for each channel of an image, laid one over the other.

    Parameters
    ----------
    planes : mapping of name -> (H, W)
    um_per_px : float
        Side of a pixel; nan: not known, and the viewer counts pixels.
    """
    layers = []
    for number, (name, plane) in enumerate(planes.items()):
        colour = "gray" if len(planes) == 1 else name if name in COLOURS else COLOURS[number % len(COLOURS)]
        layers.append(Layer(plane, {"name": name, "colormap": colour, "blending": "additive", **_scale(um_per_px)}))
    return layers


def cells_layer(
    name: str, cells: Instances, classes: Sequence[str], um_per_px: float, numbers: Sequence[int] | None = None
) -> Layer:
    """Return a layer of cells by number, with class and score beside each; what is not annotated is -1.

    Of overlapping cells the one of the higher score is seen. `numbers` are those that their file calls them by, default 1 to N.
    """
    import pandas as pd

    numbers = list(range(1, len(cells) + 1)) if numbers is None else list(numbers)
    named = ["", *(class_name(k, classes) for k in cells.class_ids.tolist())]
    rows = {"index": [0, *numbers], "class": named, "score": [np.nan, *cells.scores.tolist()]}
    about = {"name": name, "features": pd.DataFrame(rows), "opacity": 0.5, **_scale(um_per_px)}
    colours: dict[int | None, str] = {}
    if cells.class_ids.any():
        colours = {None: "transparent", 0: "transparent", -1: "gray"}
        colours |= {k: class_colour(class_id) for k, class_id in zip(numbers, cells.class_ids.tolist(), strict=True)}
    labels = cells.paint(unknown=-1)
    return Layer(np.array([0, *numbers, -1], np.int64)[labels], about, colours)


def _scale(um_per_px: float) -> dict[str, Any]:
    return {"scale": (um_per_px, um_per_px), "units": "um"} if um_per_px > 0 else {}


def is_napari_here() -> bool:
    """Tell whether napari is installed."""
    return find_spec("napari") is not None


def add_layers(viewer: Any, layers: Sequence[Layer]) -> None:
    """Add layers to a viewer, `napari.Viewer` or `napari.components.ViewerModel`."""
    for layer in layers:
        if "features" not in layer.options:
            viewer.add_image(layer.data, **layer.options)
            continue
        colours = {}
        if layer.colours:
            from napari.utils import DirectLabelColormap

            colours = {"colormap": DirectLabelColormap(color_dict=layer.colours)}
        viewer.add_labels(layer.data, **layer.options, **colours)


def open_napari(layers: Sequence[Layer], title: str) -> None:
    """Open layers in a window of napari, and wait until it is closed."""
    import napari

    viewer = napari.Viewer(title=title)
    add_layers(viewer, layers)
    napari.run()
