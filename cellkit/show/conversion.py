"""From a microscope file to its picture: channels, planes, grey levels."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord, channel_names
from cellkit.errors import UserError
from cellkit.files import from_cell
from cellkit.log import LOG
from cellkit.microscope.open import READ_SUFFIXES, open_file
from cellkit.show.overlays import checked_image, draw_picture
from cellkit.show.style import INK, QUIET, draw_bar, dress, figure_or_new, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


CHANNEL_INK = {"red": "#C92A2A", "green": "#2B8A3E", "blue": "#1C5FD4"}


@styled
def show_channels(
    image: np.ndarray, channels: str = "", figure: Figure | None = None, title: str = "", um_per_px: float = math.nan
) -> np.ndarray:
    """Show a picture beside each of its colours in grey, under the name of the channel that is in it.

    Parameters
    ----------
    image : (H, W, 3) uint8
    channels : str
        A record's: "red=;green=GFP;blue=DAPI". Without it every colour that is not empty is shown.
    """
    checked_image(image)
    colours = list(CHANNEL_INK)
    names = channel_names(channels) or {c: c for k, c in enumerate(colours) if image.ndim == 3 and image[..., k].any()}
    figure = figure_or_new(figure, (3.0 * (1 + len(names)), 3.3))
    axes = np.atleast_1d(figure.subplots(1, 1 + len(names)))
    for ax, (colour, name) in zip(axes, names.items(), strict=False):
        plane = image if image.ndim == 2 else image[..., colours.index(colour)]
        draw_picture(ax, plane)
        ax.set_title(f"{name}: in {colour}" if name != colour else colour, color=CHANNEL_INK[colour])
    draw_bar(draw_picture(axes[-1], image, title or "the picture"), um_per_px)
    return axes


def show_conversion(
    run_dir: str | Path, source: str | Path, record: ImageRecord, config: Any = None, figure: Figure | None = None
) -> np.ndarray:
    """Show a picture of a run beside the microscope file it was made from, with the channel map.

    Parameters
    ----------
    run_dir : path
        The run folder (or ``stage.root``): has the record's picture, and ``conversion.csv`` with what became 0 and 255.
    source : path
        The folder that was converted; ``record.file`` is a path below it.
    record : ImageRecord
    config : ConvertConfig, optional
        Its ``axes``, where a file does not say what its axes are, and ``max_plane_px``.

    Returns
    -------
    array of Axes
        As `show_planes`; as `show_channels` where no file of channels is behind the picture (labelme, composed images), or one
        of which a channel that is not used cannot be read.
    """
    empty = Instances.empty((record.height_px, record.width_px))
    image = CellDataset([record], [empty], (), Path(run_dir), [1]).image(0)
    path, scene, time = Path(source) / record.file, record.scene, record.time
    made = f"{record.image_id}, from {record.source}"
    if not record.file or path.suffix.lower() not in READ_SUFFIXES or not path.exists():
        return show_channels(image, record.channels, figure, made, record.um_per_px)
    limits = {} if config is None else {"axes": config.axes, "most_px": config.max_plane_px}
    try:
        with open_file(path, **limits) as opened:
            series = opened.info.series[scene]
            names = [channel.name or f"channel {k}" for k, channel in enumerate(series.channels)][:4]
            z = series.size("Z") // 2
            planes = np.stack([opened.plane(scene, time, z, k) for k in range(len(names))])
            where = f", plane {z + 1} of {series.size('Z')}" if series.size("Z") > 1 else ""
    except UserError as error:  # of a channel or a plane that the picture is not made of
        LOG.warning(f"{record.image_id} is shown without its file: {error.problem}")
        return show_channels(image, record.channels, figure, made, record.um_per_px)
    levels = _levels_of(Path(run_dir) / "conversion.csv", record.image_id)
    frame = f"scene {scene} " * (len(opened.info.series) > 1) + f"t {time} " * (series.size("T") > 1) + record.planes
    made = f"{record.image_id}: 8-bit RGB{f', {frame.rstrip()}' if frame else ''}"
    named = [f"{name}{where}" for name in names]
    return show_planes(planes, named, image, levels, made, figure, record.um_per_px)


class _Level(NamedTuple):
    """A row of conversion.csv."""

    colour: str
    channel: str
    low: float
    high: float


def _levels_of(path: Path, image_id: str) -> list[_Level]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if from_cell(row["image_id"]) == image_id]
    return [_Level(row["colour"], from_cell(row["channel"]), float(row["low"]), float(row["high"])) for row in rows]


@styled
def show_planes(
    planes: np.ndarray,
    names: Sequence[str],
    image: np.ndarray,
    levels: Sequence[Any] = (),
    text: str = "",
    figure: Figure | None = None,
    um_per_px: float = math.nan,
) -> np.ndarray:
    """Show raw planes, how many pixels hold which value and what became black and white, and the picture made of them.

    Parameters
    ----------
    planes : (C, H, W) any number
        As read from the file.
    names : sequence of str
        Of the C channels; what follows a comma is kept out of the comparison with `levels`.
    image : (H, W, 3) uint8
        What was made of them.
    levels : sequence of `cellkit.microscope.convert.Level`
        Colour, channel, low and high of each channel that was used.
    text : str
        Above the picture.
    um_per_px : float
        Of the picture, which shows the same field as the planes: all get a scale bar where it is known.

    Returns
    -------
    (2 C + 1,) Axes
        Plane and values of each channel, then the picture.

    Raises
    ------
    ValueError
        Not one name for each plane.
    """
    checked_image(image)
    planes = np.asarray(planes)
    if planes.ndim != 3 or len(planes) != len(names):
        raise ValueError(f"planes are (C, H, W) with C names, these are {planes.shape} with {len(names)} names")
    by_channel = {level.channel: level for level in levels}
    figure = figure_or_new(figure, (2.8 * (len(planes) + 1.4), 4.5))
    grid = figure.add_gridspec(2, len(planes) + 1, height_ratios=[3, 1], width_ratios=[1] * len(planes) + [1.4])
    pairs = [[figure.add_subplot(grid[row, k]) for row in (0, 1)] for k in range(len(planes))]
    last = draw_bar(draw_picture(figure.add_subplot(grid[:, -1]), image, text or "8-bit RGB picture"), um_per_px)
    for (ax, below), plane, name in zip(pairs, planes, names, strict=True):
        level = by_channel.get(name) or by_channel.get(name.partition(", plane")[0])
        colour = CHANNEL_INK[level.colour] if level else QUIET
        known = plane[np.isfinite(plane)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
        draw_picture(ax, plane, vmin=low, vmax=max(high, low + 1))
        draw_bar(ax, um_per_px * math.sqrt(image.shape[0] * image.shape[1] / plane.size))  # the picture may be scaled
        use = f"goes to {level.colour}" if level else "not used" if levels else ""
        ax.set_title(f"{name}\n{use or plane.dtype}", color=colour)
        _values(below, plane, level, colour)
    return np.array([*(ax for pair in pairs for ax in pair), last], object)


def _values(ax: Axes, plane: np.ndarray, level: Any, colour: str) -> None:
    """Draw how many pixels hold which value, and the values that became 0 and 255."""
    from matplotlib.ticker import LogLocator

    counts, edges = np.histogram(plane[np.isfinite(plane)], bins=80)
    ax.stairs(np.maximum(counts, 0.5), edges, fill=True, color=colour, alpha=0.35, baseline=0.5)
    ax.set_yscale("log")
    ax.minorticks_off()
    ax.yaxis.set_major_locator(LogLocator(numticks=4))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set(xlabel=f"value in the file ({plane.dtype})", ylabel="pixels (log)")
    ax.locator_params(axis="x", nbins=4)
    dress(ax).tick_params(axis="y", labelsize=8)
    for value, to in ((level.low, "0"), (level.high, "255")) if level else ():
        ax.axvline(value, color=INK, lw=1.1)
        ax.annotate(f"→ {to}", (value, 1), (3, -2), ("data", "axes fraction"), "offset points", va="top", fontsize=8)
