"""The floor row of every table: Otsu's threshold and a watershed of the distance to the background. Nothing is learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from cellkit.cells.instances import Instances
from cellkit.cells.leftout import too_small
from cellkit.finding import opens_again
from cellkit.models.shared.contract import SMALLEST, Area, Diameter, Segmenter, merged
from cellkit.models.shared.cost import Cost, seconds_of
from cellkit.models.shared.diameter import diameter_of
from cellkit.models.shared.fine_tuning import refuse_untrainable
from cellkit.models.shared.live import AREA, Live, Range, Read, Reading
from cellkit.models.threshold_steps import brighter, depth_of, parted, pieces_of, smoothed, typical_diameter
from cellkit.models.threshold_windows import ThresholdInWindows
from cellkit.settings import Frozen

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset

NAME = "threshold"
TITLE = "Threshold"
REQUIRES = ("skimage",)
BYTES_PER_PX = 50  # of memory; measured, 1024 and 2048 px: 42 bytes more a pixel
NEEDS_CHECKPOINT = False  # nothing has to be learned
DEFAULTS = {"diameter_px": None, "min_area_px": 15}
MOVED = {"diameter_px": Range(4, 200, 1), "min_area_px": AREA}


class Settings(Frozen):
    """What may change from prediction to prediction; null = as the checkpoint's card says."""

    diameter_px: Diameter | None = Field(
        None, description="typical cell diameter (px); null = of each image's own objects"
    )
    min_area_px: Area | None = Field(None, description=SMALLEST)


class TrainSettings(Frozen):
    """Settings of a training."""

    diameter_px: Diameter | None = Field(None, description="typical cell diameter (px); null = from the labels")
    min_area_px: Area = Field(15, description=SMALLEST)


def train(train: CellDataset, val: CellDataset, config: TrainSettings, out: Path) -> Path:
    """Measure the cell diameter of the training images: all there is to adapt.

    Returns
    -------
    Path
        ``threshold.safetensors`` with its card: the diameter in px.

    Raises
    ------
    UserError
        No diameter is set, and there is no cell to measure one of.
    """
    import torch

    from cellkit.models import weights

    if config.diameter_px is None:
        refuse_untrainable(train, "min_area_px")

    diameter_px = config.diameter_px or diameter_of(train.instances)
    settings = {"diameter_px": diameter_px, "min_area_px": config.min_area_px}
    tensors = {"diameter_px": torch.tensor([diameter_px])}
    return weights.save_checkpoint(Path(out) / "threshold.safetensors", tensors, NAME, config=settings)


@opens_again
def load(checkpoint: Path | None = None, settings: Settings | None = None) -> Segmenter:
    """Return a function from a stream of (H, W, 3) uint8 images to their cells, in order.

    Parameters
    ----------
    checkpoint : Path, optional
        What `train` wrote; None = nothing adapted.
    settings : Settings, optional
        What is None comes from the card; without either the diameter is that of each image's own objects.
    """
    from cellkit.models import weights

    used = merged(settings, {} if checkpoint is None else weights.card_for(checkpoint, NAME).config, DEFAULTS)

    def find(image: np.ndarray, left_out: Counter[str]) -> Instances:
        return segment_image(image, used["diameter_px"], used["min_area_px"], left_out)

    return Segmenter(
        find,
        used,
        lambda shape: BYTES_PER_PX * shape[0] * shape[1],
        lambda whole: ThresholdInWindows(whole, used["diameter_px"], used["min_area_px"]),
    )


def live(checkpoint: Path | None = None, settings: Settings | None = None) -> Live:
    """Return the same, whose diameter and least area can be moved when it has seen an image; otherwise as `load`."""
    segmenter = load(checkpoint, settings)

    def look(image: np.ndarray) -> Read:
        seen = SeenByThreshold(image)

        def read(changed: Mapping[str, Any], left_out: Counter[str], quick: bool) -> Reading:
            return Reading(seen.cells(**(segmenter.settings | dict(changed)), left_out=left_out))

        return read

    return Live(look, segmenter.settings, MOVED, segmenter.bytes_for)


def cost(config: TrainSettings, image: np.ndarray, truth: Instances) -> Cost:
    """Return what finding the cells of an image costs here; a training costs next to nothing."""
    find = lambda: segment_image(image, diameter_of([truth]), config.min_area_px)  # noqa: E731
    find_s = min(seconds_of(find) for _ in range(2))  # the first time imports what it needs
    return Cost(find_s=1e6 * find_s / image[..., 0].size)


def segment_image(
    image: np.ndarray, diameter_px: float | None, min_area_px: int, left_out: Counter[str] | None = None
) -> Instances:
    """Cut the brighter part of an image into cells.

    Parameters
    ----------
    image : (H, W, 3) uint8
        The brightest of its channels counts at each pixel.
    diameter_px : float or None
        Two peaks of the distance map nearer than half of it are one cell; None = the objects' own median diameter.
    left_out : Counter, optional
        Takes the number of objects below `min_area_px`.

    Returns
    -------
    Instances
        Score = contrast of the object to the threshold, in [0, 1]; class unknown.

    Raises
    ------
    ValueError
        The image is not (H, W, 3) uint8.
    """
    return SeenByThreshold(image).cells(diameter_px, min_area_px, left_out)


class SeenByThreshold:
    """What is bright in an image, (H, W, 3) uint8, to be cut into cells of one size after another."""

    def __init__(self, image: np.ndarray):
        from skimage.filters import threshold_otsu

        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"an image is (H, W, 3) uint8, this is {image.shape} {image.dtype}")
        self.grey = smoothed(image)
        self.empty = bool(self.grey.max() - self.grey.min() < 1)
        self.cut: tuple[float, Instances] = (
            0.0,
            Instances.empty(image.shape[:2]),
        )  # the diameter last asked for, its objects
        if self.empty:
            return
        self.limit = float(threshold_otsu(self.grey))
        bright = brighter(self.grey, self.limit)
        self.pieces, self.depth = pieces_of(bright), depth_of(bright)

    def cells(self, diameter_px: float | None, min_area_px: int, left_out: Counter[str] | None = None) -> Instances:
        """Return what `segment_image` finds."""
        if self.empty:
            return Instances.empty(self.grey.shape)
        if diameter_px is None:
            diameter_px = typical_diameter(np.bincount(self.pieces.ravel())[1:], min_area_px)
        cut = self.cut  # another thread may replace it meanwhile
        if diameter_px != cut[0]:
            self.cut = cut = diameter_px, parted(self.grey, self.pieces, self.depth, self.limit, diameter_px)
        found = cut[1]
        small = found.areas_px < min_area_px
        if left_out is not None and small.any():
            left_out[too_small(min_area_px)] += int(small.sum())
        return found[~small]
