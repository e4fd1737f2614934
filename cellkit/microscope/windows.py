"""Planes and pictures larger than the memory: Dask arrays of which only the window that is looked at is read.

What a whole picture is scaled by (percentiles of its channels) is counted once over all windows, exactly for values of up to 16
bits, so that a window of it is the window of the picture that `convert_frame` makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.windows import BLOCK_PX, blocks, dask_array
from cellkit.errors import UserError
from cellkit.log import LOG
from cellkit.microscope.channels import channels_text
from cellkit.microscope.convert import Conversion, Level, check_projection, chosen_channels
from cellkit.microscope.file_info import COLOURS, Opened
from cellkit.microscope.large_pictures import resized_array, sharpest
from cellkit.microscope.light import Light, to_8bit

if TYPE_CHECKING:
    import dask.array as da


def refuse_without_windows(opened: Opened) -> None:
    """Refuse a file that can only be decoded as a whole.

    Raises
    ------
    UserError
        Naming the file.
    """
    if opened.window is None:
        raise UserError(
            f"{opened.info.path.name} is a {opened.info.reader.upper()}, which is decoded as a whole, and is not read in windows",
            "store it as OME-Zarr or tiled TIFF, or cut it into tiles",
        )


@dataclass(frozen=True, eq=False)
class PlaneOnDisk:
    """A plane of an open file, (H, W); what is taken of it is read then. `dask.array.from_array` takes it as it is."""

    opened: Opened
    scene: int
    time: int
    z: int
    channel: int

    ndim = 2

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width (px)."""
        series = self.opened.info.series[self.scene]
        return series.size("Y"), series.size("X")

    @property
    def dtype(self) -> np.dtype:
        """Of its values."""
        return np.dtype(self.opened.info.series[self.scene].dtype)

    def __getitem__(self, key: Any) -> np.ndarray:
        """Return the pixels in slices of rows and columns, (h, w)."""
        key = key if isinstance(key, tuple) else (key, slice(None))
        rows, columns = (slice(*one.indices(side)[:2]) for one, side in zip(key, self.shape, strict=True))
        steps = tuple(slice(None, None, one.step) for one in key)
        return self.opened.window(self.scene, self.time, self.z, self.channel, rows, columns)[steps]


def plane_array(opened: Opened, scene: int, time: int, channel: int, projection: str | int = "max") -> da.Array:
    """Return one channel of a frame, its z planes projected, as a Dask array (H, W) in the file's own type.

    Parameters
    ----------
    projection : {"max", "mean"} or int
        The mean is float64, as `cellkit.microscope.convert.project` has it.

    Raises
    ------
    UserError
        A file that is decoded as a whole; a projection that is none, or looks for the sharpest plane.
    """
    array = dask_array()
    refuse_without_windows(opened)
    series = opened.info.series[scene]
    check_projection(projection, series, opened.info.path.name)
    count = series.size("Z")
    if projection == "focus" and count > 1:
        raise UserError(
            f"{opened.info.path.name} is read window by window, and the sharpest of {count} planes is one of the whole image",
            "take the brightest, the mean or a plane: projection max, mean or a number",
        )
    chosen = [projection] if isinstance(projection, int) else range(count)
    planes = [
        array.from_array(
            PlaneOnDisk(opened, scene, time, z, channel), chunks=BLOCK_PX, name=False, meta=np.empty((0, 0))
        )
        for z in chosen
    ]
    if len(planes) == 1:
        return planes[0]
    stacked = array.stack(planes)
    return stacked.max(axis=0) if projection == "max" else stacked.astype(np.float64).sum(axis=0) / count


# ---- pictures ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class LargePicture:
    """What `convert_frame` would make of a frame, window by window.

    Attributes
    ----------
    image : dask.array.Array, (H, W, 3) uint8
        Red, green, blue.
    light : mapping of colour -> Light
        How often each value of `image` occurs in a colour that is not empty.
    levels : tuple of Level
    channels : str
    um_per_px : float
        Of the file.
    projection : {"max", "mean"} or int
        What became of z planes.
    """

    image: da.Array
    light: Mapping[str, Light]
    levels: tuple[Level, ...]
    channels: str
    um_per_px: float
    projection: str | int


def large_picture(opened: Opened, scene: int, time: int, conversion: Conversion) -> LargePicture:
    """Return the picture of a frame as an array that is read window by window.

    Parameters
    ----------
    Raises
    ------
    UserError
        As `convert_frame` and `plane_array`.
    """
    array = dask_array()
    info, series = opened.info, opened.info.series[scene]
    chosen = chosen_channels(info, scene, conversion, whole=False)
    projection = _projection(opened, scene, time, sorted(set(chosen.values())), conversion.projection)
    planes, lights, told = {}, {}, []
    for colour, index in chosen.items():
        name = series.channels[index].name or f"channel {index}"
        plane = plane_array(opened, scene, time, index, projection)
        light = light_of(plane, f"{info.path.name}, {name}")
        level = _level(light, plane.dtype, colour, name, conversion)
        level = replace(level, note="; ".join([*info.notes_of(scene), *filter(None, [level.note])]))
        told.append(level)
        planes[colour] = plane.map_blocks(_scaled, conversion.percentiles, (level.low, level.high), dtype=np.uint8)
        values = _scaled(light.values.astype(plane.dtype)[None], conversion.percentiles, (level.low, level.high))[0]
        lights[colour] = Light(*_summed(values, light.counts))
    empty = array.zeros(next(iter(planes.values())).shape, dtype=np.uint8, chunks=BLOCK_PX)
    image = array.stack([planes.get(colour, empty) for colour in COLOURS], axis=2)
    names = dict.fromkeys(COLOURS, "") | {level.colour: level.channel for level in told}
    if conversion.scale != 1:
        image = resized_array(image, conversion.scale)
        lights = _light_of_picture(image, list(lights))
    return LargePicture(image, lights, tuple(told), channels_text(names), series.um_per_px, projection)


def _projection(opened: Opened, scene: int, time: int, channels: Sequence[int], projection: str | int) -> str | int:
    """Return what becomes of z planes; of the sharpest its number, as `cellkit.microscope.convert.project` finds it."""
    count = opened.info.series[scene].size("Z")
    if projection != "focus" or count == 1:
        return projection
    planes = [[plane_array(opened, scene, time, index, z) for index in channels] for z in range(count)]
    best = sharpest(planes)
    LOG.info(f"{opened.info.path.name}: z plane {best} is the sharpest of {count}")
    return best


def _light_of_picture(image: da.Array, colours: Sequence[str]) -> dict[str, Light]:
    """Count the values of a picture (H, W, 3) uint8 in some colours, window by window."""
    counts = {colour: np.zeros(256, np.int64) for colour in colours}
    for _, values in blocks(image):
        for colour in colours:
            counts[colour] += np.bincount(values[..., COLOURS.index(colour)].ravel(), minlength=256)
    return {
        colour: Light(np.flatnonzero(total).astype(np.float64), total[total > 0]) for colour, total in counts.items()
    }


def light_of(plane: da.Array, where: str = "the plane") -> Light:
    """Count the values of a plane, window by window; exact for values of up to 16 bits."""
    total: Light | None = None
    for _, values in blocks(plane):
        own = Light.of(values, where)
        total = own if total is None else Light.sum([total, own])
    return total


def _level(light: Light, dtype: Any, colour: str, name: str, conversion: Conversion) -> Level:
    """Return how a channel becomes a colour, as `to_8bit` does of the whole plane."""
    limits = (conversion.limits or {}).get(colour)
    if limits is None:
        limits = (0.0, 255.0) if conversion.percentiles is None else tuple(light.percentiles(conversion.percentiles))
    share = float(light.counts[-1] / light.counts.sum()) if len(light.values) > 1 else 0.0
    notes = [f"channel {name} is {light.values[0]:g} in every pixel, its colour is empty"] * (len(light.values) == 1)
    if np.dtype(dtype).kind == "f" or np.dtype(dtype).itemsize > 2:
        notes.append(f"the percentiles of {name}, of more than 16 bits, are taken of at most 65,536 steps")
    return Level(colour, name, float(limits[0]), float(limits[1]), share, "; ".join(notes))


def _scaled(values: np.ndarray, percentiles: tuple[float, float] | None, limits: tuple[float, float]) -> np.ndarray:
    """Return values as 8 bits."""
    return to_8bit(values, percentiles, limits=limits)[0] if values.size else values.astype(np.uint8)


def _summed(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rising values that occur, and how often each does."""
    total = np.bincount(values, counts).astype(np.int64)
    return np.flatnonzero(total).astype(np.float64), total[total > 0]
