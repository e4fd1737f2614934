"""Cellpose's size model: the diameter of an image's cells, from its style and then from the cells found at that diameter.

Source: Stringer et al., Nature Methods 2021, methods; SizeModel in cellpose/models.py and run_net in cellpose/core.py of the
package 3.1.1.3, with which `tests/models/test_cellpose3.py` compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.formats.plain_pickle import read_plain_npy
from cellkit.log import LOG
from cellkit.models.shared.diameter import ENOUGH, bright_part, diameter_of, doubtful, one_or_first
from cellkit.models.shared.inputs import NORMALISE, two_channels
from cellkit.models.unet_maps import segment_image
from cellkit.under_way import note_reading

TILE_PX, OVERLAP, BATCH = 224, 0.1, 8  # of the tiles whose styles are summed: Cellpose's
LARGEST_PX = 1024  # sides of what is shown to the network, at its scale
LEAST_DIAMETER_PX, LARGEST_DIAMETER_PX = 5.0, 10_000.0


@dataclass(frozen=True)
class SizeModel:
    """A linear regression from the style of an image to the logarithm of its cells' diameter.

    Parameters
    ----------
    weights, mean_style : (C,) float64
    mean_log : float
        Of diameter / `diam_mean_px`, at the mean style.
    diam_mean_px : float
        The diameter to which cells are scaled.
    """

    weights: np.ndarray
    mean_style: np.ndarray
    mean_log: float
    diam_mean_px: float

    def diameter_px(self, style: np.ndarray) -> float:
        """Return the diameter in px of an image with that style (C,): 5 to 10,000.

        Examples
        --------
        >>> doubling = SizeModel(np.array([1.0, 0.0]), np.zeros(2), 0.0, 30.0)
        >>> round(doubling.diameter_px(np.array([np.log(2), 0.5])), 3)
        60.0
        """
        log = self.weights @ (style - self.mean_style) + self.mean_log
        return float(
            np.exp(np.clip(log + np.log(self.diam_mean_px), *np.log((LEAST_DIAMETER_PX, LARGEST_DIAMETER_PX))))
        )


def size_model_beside(checkpoint: str | Path) -> Path | None:
    """Return the size model that lies beside a checkpoint under one of the names Cellpose gives it; None where none does.

    ``NAME_size.npy`` is what a training of Cellpose writes and ``cellkit fetch`` leaves, ``size_NAME.npy`` what Cellpose
    downloads.
    """
    checkpoint = Path(checkpoint)
    for stem in (checkpoint.name, checkpoint.stem):
        for name in (f"{stem}_size.npy", f"size_{stem}.npy"):
            if (path := checkpoint.with_name(name)).is_file():
                return path
    return None


def read_size_model(path: str | Path, styles: int = 256) -> SizeModel:
    """Read a size model as Cellpose writes it: a pickled dictionary in ``.npy``, of which nothing is run.

    Parameters
    ----------
    styles : int
        Numbers in a style of the network that it is for.

    Raises
    ------
    UserError
        The file is none: damaged, more than numbers in it, or for another network.
    """
    note_reading(Path(path))
    fields = read_plain_npy(path)
    remedy = "fetch it again, or delete it: the diameter is then estimated without it"
    try:
        vectors = {key: np.asarray(fields[key], np.float64).ravel() for key in ("A", "smean")}
        numbers = {key: np.asarray(fields[key], np.float64).item() for key in ("ymean", "diam_mean")}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no size model of Cellpose: {error!r}", remedy) from error
    if any(vector.shape != (styles,) for vector in vectors.values()):
        raise UserError(f"{path} is for a network of {vectors['A'].size} styles, this one has {styles}", remedy)
    finite = all(np.isfinite(value).all() for value in (*vectors.values(), *numbers.values()))
    if not finite or numbers["diam_mean"] <= 0:
        raise UserError(f"{path} is no size model of Cellpose: numbers that are none in it", remedy)
    return SizeModel(vectors["A"], vectors["smean"], numbers["ymean"], numbers["diam_mean"])


def by_size_model(network: Any, path: Path, images: Sequence[np.ndarray], read_with: dict[str, Any]) -> float:
    """Return the median of the diameters in px that the size model in a file gives to images; a `First` where they differ.

    Images in which hardly a cell is found (fewer than five) count only where all are such; those without any never do, as they
    are given the mean diameter of the training, which is nobody's. Where no image has a cell it is taken, and this is said.

    Parameters
    ----------
    read_with : dict
        As for `segment_image`, but for the diameter.

    Raises
    ------
    UserError
        As `read_size_model`.
    """
    size_model, counts = read_size_model(path, network.widths[-1]), []

    def find(image: np.ndarray, px: float) -> Instances:
        found = segment_image(network, image, px, **read_with)
        counts.append(len(found))
        return found

    channels, normalise = read_with["channels"], read_with["normalise"]
    each = [estimate_diameter(network, size_model, image, channels, find, normalise)[0] for image in images]
    told, few = ([px for px, count in zip(each, counts, strict=True) if count >= least] for least in (ENOUGH, 1))
    if not few:
        px = size_model.diam_mean_px
        LOG.info(f"the size model leads to no cell; {px:g} px is taken. Set the diameter if cells are of another size")
        return px
    if not told:
        LOG.info(doubtful(np.median(few)))
    return one_or_first(told, float(np.median(told or few)))


def estimate_diameter(
    network: Any,
    size_model: SizeModel,
    image: np.ndarray,
    channels: str,
    find: Callable[[np.ndarray, float], Instances],
    normalise: tuple[float, float] = NORMALISE,
) -> tuple[float, float]:
    """Estimate the diameter of the cells in one image as Cellpose does, on at most 1024 x 1024 px at network scale.

    The style is that of the image at the scale of the training's mean diameter, and gives a first diameter; the cells found
    with it give the second. Of a larger image the brightest part of that size is taken, at either step.

    Parameters
    ----------
    network : CellposeUNet
    image : (H, W, 3) uint8
    find : callable
        (image, diameter in px) -> the cells found when that diameter is assumed.
    normalise : (float, float)
        Percentiles that become 0 and 1 in what the style is taken of.

    Returns
    -------
    diameter_px : float
        Of the cells found; where none is, the mean diameter of the training.
    of_style_px : float
        What the style says.
    """
    cell_px = float(network.diam_mean.item())
    scale = cell_px / float(network.diam_labels.item())
    part = bright_part(image, round(LARGEST_PX / scale))
    of_style_px = size_model.diameter_px(style_of(network, two_channels(part, channels, normalise), scale))
    assumed_px = of_style_px * cell_px / size_model.diam_mean_px
    found = find(bright_part(image, round(LARGEST_PX * assumed_px / cell_px)), assumed_px)
    return (diameter_of([found]) if len(found) else size_model.diam_mean_px), of_style_px


def style_of(network: Any, planes: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Return the style (C,) of planes (2, H, W) float32, resized by `scale`: the sum over Cellpose's tiles, of length 1."""
    import cv2
    import torch

    if scale != 1:
        size = [max(1, int(side * scale)) for side in planes.shape[1:]]
        planes = np.stack([cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR) for plane in planes])
    lacks = [-side % 16 for side in planes.shape[1:]]
    planes = np.pad(planes, ((0, 0), *((8 + lack // 2, 8 + lack - lack // 2) for lack in lacks)))
    rows, columns = (_starts(side) for side in planes.shape[1:])
    tiles = [planes[:, y : y + TILE_PX, x : x + TILE_PX] for y in rows for x in columns]
    total = np.zeros(network.widths[-1], np.float32)
    for first in range(0, len(tiles), BATCH):
        batch = network.arithmetic.placed(torch.from_numpy(np.stack(tiles[first : first + BATCH])))
        with torch.no_grad(), network.arithmetic.autocast():
            total += network.style(batch).float().cpu().numpy().sum(axis=0)
    return total / np.sqrt((total**2).sum())


def _starts(size: int) -> list[int]:
    """Return where Cellpose's tiles begin along a side."""
    count = 1 if size <= TILE_PX else int(np.ceil((1 + 2 * OVERLAP) * size / TILE_PX))
    return np.linspace(0, size - min(TILE_PX, size), count).astype(int).tolist()
