"""One microscope file -> 8-bit RGB pictures: nuclei in blue, cytoplasm in green, and what was done to the light.

`inspect_file` says what a file holds without reading pixels; `convert_frame` makes one picture of a scene and time. Which
channel is which comes from the config; nothing about a channel's meaning is guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.cells.resize import resize_image, resized_shape
from cellkit.errors import UserError, readable
from cellkit.machine import check_memory
from cellkit.microscope.channels import channels_text, colour_map, find_channel, listed
from cellkit.microscope.file_info import COLOURS, MAX_PLANE_PX, FileInfo, Opened, Series, only_headers
from cellkit.microscope.light import Light, Limits, to_8bit

PERCENTILES = (0.3, 99.8)  # of a channel's pixels: become 0 and 255 unless others are given


@dataclass(frozen=True)
class Conversion:
    """How a microscope file becomes 8-bit pictures; the same for a run, a batch, a command and a prediction.

    Attributes
    ----------
    channels : mapping
        Which channel is "nuclei" (blue) and "cytoplasm" (green); also "red", "green", "blue" as they are. Each is what
        `cellkit.microscope.channels.find_channel` takes, or None for an empty colour.
    projection : {"max", "mean", "focus"} or int
        What becomes of the z planes: brightest, mean, the sharpest plane (one for all channels), or plane N from 0.
    percentiles : (low, high) or None
        Of each channel's pixels: what becomes 0 and 255. None keeps 8-bit values as they are.
    scale : float
        Resize factor of the picture, anti-aliased.
    axes : str, optional
        What the axes are, where the file does not say, e.g. "TYX".
    percentiles_of : {"image", "batch"}
        What the percentiles are taken of: each image, or all pixels of the batch, colour by colour.
    limits : mapping of colour -> (low, high), optional
        The values that became 0 and 255 in a batch: they take the place of each image's own percentiles.
    most_px : int
        Most pixels of a plane, checked in the header.
    always : bool
        Whether a prediction converts RGB pictures too; otherwise they are used as they are (nuclei blue, cytoplasm green).
    made : Path, optional
        The folder of a run's own converted images, which are never converted a second time.
    """

    channels: Mapping[str, Any] = field(default_factory=dict)
    projection: str | int = "max"
    percentiles: tuple[float, float] | None = PERCENTILES
    scale: float = 1.0
    axes: str | None = None
    percentiles_of: str = "image"
    limits: Limits | None = None
    most_px: int = MAX_PLANE_PX
    always: bool = False
    made: Path | None = None

    def __post_init__(self) -> None:
        if self.percentiles_of not in ("image", "batch"):
            raise UserError(f"percentiles_of is '{self.percentiles_of}'", "choose image or batch")

    @property
    def names_channels(self) -> bool:
        """Whether any channel is named."""
        return any(value is not None for value in self.channels.values())

    def made_already(self, path: Path) -> bool:
        """Whether a file is one of the run's own converted images."""
        return self.made is not None and Path(path).resolve().is_relative_to(self.made.resolve())

    def to_json(self) -> dict[str, Any]:
        """Return what the pixels depend on as plain values; axes and limits only where they are given."""
        shared = {
            "axes": self.axes,
            "limits": self.limits and {colour: list(pair) for colour, pair in self.limits.items()},
        }
        return {"channels": dict(self.channels), "projection": self.projection,
                "percentiles": self.percentiles and list(self.percentiles), "scale": self.scale, "always": self.always,
                **{k: v for k, v in shared.items() if v}}  # fmt: skip

    @classmethod
    def from_json(cls, told: Any) -> Conversion:
        """Return the conversion that `to_json` gave, each field checked: it may come with a model of others.

        Raises
        ------
        UserError
            Naming the field.
        """
        fields = told if isinstance(told, dict) else {"conversion": told}
        for key, value in fields.items():
            if key not in _MAY_BE or not _MAY_BE[key](value):
                raise UserError(f"the conversion of files that comes with a model has {str(key)[:40]} of another kind",
                                "get the model again, or export it again")  # fmt: skip
        limits = fields.get("limits") and {colour: tuple(ends) for colour, ends in fields["limits"].items()}
        pair = fields.get("percentiles", PERCENTILES)
        return cls(**{**fields, "limits": limits, "percentiles": pair and tuple(pair)})

    @property
    def text(self) -> str:
        """Which channel is which, in words."""
        return ", ".join(f"{what} = {spec}" for what, spec in self.channels.items() if spec is not None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))


def _is_channel(value: Any) -> bool:
    one = value if isinstance(value, list | tuple) else [value]
    return len(one) <= 64 and all(x is None or _is_number(x) or (isinstance(x, str) and len(x) <= 200) for x in one)


_MAY_BE: dict[str, Callable[[Any], bool]] = {
    "channels": lambda x: isinstance(x, dict) and {*x} <= {"nuclei", "cytoplasm", *COLOURS} and all(map(_is_channel, x.values())),
    "projection": lambda x: x in ("max", "mean", "focus") if isinstance(x, str) else type(x) is int,
    "percentiles": lambda x: x is None or _is_pair(x),
    "scale": lambda x: _is_number(x) and 0 < x <= 8,
    "always": lambda x: isinstance(x, bool),
    "axes": lambda x: x is None or (isinstance(x, str) and len(x) <= 16),
    "limits": lambda x: x is None or (isinstance(x, dict) and {*x} <= {*COLOURS} and all(map(_is_pair, x.values()))),
}  # fmt: skip


def scaled_by(percentiles: Sequence[float], of: str) -> str:
    """Say where `low` and `high` come from.

    Examples
    --------
    >>> scaled_by((0.3, 99.8), "batch")
    'percentiles 0.3 and 99.8 of the batch'
    """
    return f"percentiles {percentiles[0]:g} and {percentiles[1]:g} of the {of}"


def level_row(image_id: str, source: str, level: Level, of: str) -> dict:
    """Return the row of conversion.csv that says how one colour of a picture was made."""
    return {
        "image_id": image_id, "source": source, "colour": level.colour, "channel": readable(level.channel),
        "low": level.low, "high": level.high, "clipped_fraction": level.clipped_fraction, "scaled_by": of,
        "note": readable(level.note),
    }  # fmt: skip


@dataclass(frozen=True)
class Level:
    """How one channel became one colour: values at or below `low` are 0, at or above `high` 255.

    `clipped_fraction` is the share of pixels that hold the channel's largest value: a camera at its limit. `note` is what a
    user has to know of it: a channel that is constant, pixels that are not stored.
    """

    colour: str
    channel: str
    low: float
    high: float
    clipped_fraction: float
    note: str = ""


# ---- one picture out of a file -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Converted:
    """One picture.

    Attributes
    ----------
    image : (H, W, 3) uint8
        Red, green, blue.
    suffix : str
        What to add to the file's id, "" when the file is one picture.
    channels : str
        What is in each colour: "red=;green=GFP;blue=DAPI".
    um_per_px : float
        Of `image`, after resizing; nan when unknown.
    source : str
        File name, scene, time and planes.
    planes : str
        What became of the z planes, "" when there was one: "z max of 5".
    levels : tuple of Level
    left_out : tuple of str
        What lies in the file and becomes no picture.
    turned : int
        EXIF orientation by which the stored pixels were turned, 1 where they were not.
    """

    image: np.ndarray
    suffix: str
    channels: str
    um_per_px: float
    source: str
    planes: str
    levels: tuple[Level, ...]
    left_out: tuple[str, ...] = ()
    turned: int = 1

    @property
    def height_px(self) -> int:
        """Rows."""
        return self.image.shape[0]

    @property
    def width_px(self) -> int:
        """Columns."""
        return self.image.shape[1]


def convert_frame(opened: Opened, scene: int, time: int, conversion: Conversion, suffix: str = "") -> Converted:
    """Turn one scene and time of an opened file into an 8-bit picture; a constant channel becomes 0.

    Raises
    ------
    UserError
        No channel named, a channel the file lacks, unknown axes, NaN, transparency, a damaged or oversized file.
    """
    info, series = opened.info, opened.info.series[scene]
    chosen = chosen_channels(info, scene, conversion)
    blank = blank_frame(info, scene, conversion, chosen, suffix)
    if only_headers():
        return blank
    where, names = info.path.name, _names(series, chosen)
    planes, planes_text = project(opened, scene, time, sorted(set(chosen.values())), conversion.projection)
    limits, scaled, levels = conversion.limits or {}, {}, []
    for colour, index in chosen.items():
        what = f"{where}, {names[colour]}"
        scaled[colour], *level = to_8bit(planes[index], conversion.percentiles, what, limits.get(colour))
        notes = [*info.notes_of(scene), *_constant(planes[index], f"channel {index} {series.channels[index].name}")]
        levels.append(Level(colour, names[colour], *level, "; ".join(notes)))
    image = _interleaved(scaled, (series.size("Y"), series.size("X")))
    scene_text = f" scene {scene}" if len(info.series) > 1 else ""
    time_text = f" t {time}" if series.size("T") > 1 else ""
    return replace(
        blank,
        image=resize_image(image, conversion.scale),
        source=f"{where}{scene_text}{time_text}{' ' * bool(planes_text)}{planes_text}",
        planes=planes_text,
        levels=tuple(levels),
    )


def blank_frame(
    info: FileInfo, scene: int, conversion: Conversion, chosen: Mapping[str, int], suffix: str = ""
) -> Converted:
    """Return what the header says of a picture to be, with all pixels 0."""
    series = info.series[scene]
    shape = resized_shape((series.size("Y"), series.size("X")), conversion.scale)
    return Converted(
        image=np.broadcast_to(np.uint8(0), (*shape, 3)),
        suffix=suffix,
        channels=channels_text(_names(series, chosen)),
        um_per_px=series.um_per_px / conversion.scale,
        source=info.path.name,
        planes="",
        levels=(),
        left_out=info.left_out,
        turned=series.turned,
    )


def light_of_frame(opened: Opened, scene: int, time: int, conversion: Conversion) -> dict[str, Light]:
    """Return how often each value occurs in the pixels that become each colour; nothing is converted."""
    chosen = chosen_channels(opened.info, scene, conversion)
    planes, _ = project(opened, scene, time, sorted(set(chosen.values())), conversion.projection)
    return {colour: Light.of(planes[index], opened.info.path.name) for colour, index in chosen.items()}


def chosen_channels(info: FileInfo, scene: int, conversion: Conversion, whole: bool = True) -> dict[str, int]:
    """Return which channel becomes which colour, once it is known that the scene can be converted.

    Parameters
    ----------
    whole : bool
        Whether the whole picture has to fit into the memory.

    Raises
    ------
    UserError
        A scene with a problem, no channel named, a channel it lacks, a plane it lacks, too little memory.
    """
    where, series = info.path.name, info.series[scene]
    if series.problem:
        raise UserError(series.problem, series.remedy)
    wanted = colour_map(conversion.channels)
    chosen = {colour: find_channel(spec, series.channels, where) for colour, spec in wanted.items()}
    if not chosen:
        raise UserError(
            f"{where} has {listed(series.channels)}, and the config names neither nuclei nor cytoplasm",
            "set convert.channels.nuclei (or cytoplasm) to a name, an index or a wavelength, e.g. in the YAML "
            "convert: {channels: {nuclei: 0}}",
        )
    if any(isinstance(spec, list | tuple) for spec in wanted.values()) and len(set(chosen.values())) < len(chosen):
        raise UserError(
            f"of {where}, which has {listed(series.channels)}, one channel is the first that fits for two colours",
            "let the lists of convert.channels (or the repeated options) lead to two channels",
        )
    if whole:
        needed = _bytes_to_convert(series, len(set(chosen.values())), conversion.projection)
        check_memory(info.path, needed, "converting")
    check_projection(conversion.projection, series, where)
    return chosen


def _names(series: Series, chosen: Mapping[str, int]) -> dict[str, str]:
    """Return the name of the channel in each colour, "" in an empty one."""
    return dict.fromkeys(COLOURS, "") | {
        colour: series.channels[index].name or f"channel {index}" for colour, index in chosen.items()
    }


def _constant(plane: np.ndarray, what: str) -> list[str]:
    """Say that a plane holds one value only: a shutter that stayed shut, an empty table of colours, pixels not stored."""
    value = plane.flat[0]
    return [] if (plane != value).any() else [f"{what.rstrip()} is {value:g} in every pixel, its colour is empty"]


def _bytes_to_convert(series: Series, channels: int, projection: str | int) -> int:
    """Return about how much memory a picture takes: planes of every channel, one more, work on floats, and the picture."""
    size = np.dtype(series.dtype).itemsize
    if projection == "mean" or series.dtype not in ("uint8", "uint16"):
        size = max(size, 8)
    work = 2 * 8 if projection == "focus" or size >= 8 else 0
    return series.size("Y") * series.size("X") * ((channels + 1) * size + work + 2 * len(COLOURS))


def _interleaved(planes: Mapping[str, np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Return (H, W, 3) of the (H, W) uint8 planes by colour; a colour that is not there is 0."""
    import cv2

    empty = None if len(planes) == len(COLOURS) else np.zeros(shape, np.uint8)
    return cv2.merge([planes.get(colour, empty) for colour in COLOURS])


def check_projection(projection: str | int, series: Series, where: str) -> None:
    """Refuse a projection that is none, or a plane that the series does not have.

    Raises
    ------
    UserError
        With what it may be, or how many planes there are.
    """
    if isinstance(projection, bool) or not (isinstance(projection, int) or projection in ("max", "mean", "focus")):
        raise UserError(f"projection is {projection!r}", "choose max, mean, focus or the number of a plane, from 0")
    count = series.size("Z")
    if isinstance(projection, int) and not 0 <= projection < count:
        raise UserError(f"plane {projection} is wanted of {where}, which has {count}", "planes count from 0")


def project(
    opened: Opened, scene: int, time: int, indices: Sequence[int], projection: str | int
) -> tuple[dict[int, np.ndarray], str]:
    """Return {channel index: (H, W) plane}, and what was done to the z planes, in words; `projection` as in `Conversion`."""
    count = opened.info.series[scene].size("Z")
    read = lambda index, z: opened.plane(scene, time, z, index)  # noqa: E731
    if isinstance(projection, int):
        return {index: read(index, projection) for index in indices}, f"z {projection}" if count > 1 else ""
    if count == 1:
        return {index: read(index, 0) for index in indices}, ""
    if projection == "focus":
        best = best_focus([read(index, z) for index in indices] for z in range(count))
        return {index: read(index, best) for index in indices}, f"z {best} (sharpest of {count})"
    planes = {index: _collapse((read(index, z) for z in range(count)), count, projection) for index in indices}
    return planes, f"z {projection} of {count}"


def _collapse(planes: Iterable[np.ndarray], count: int, projection: str) -> np.ndarray:
    """Return the brightest (same type) or mean (float64) of (H, W) planes, read one at a time."""
    planes = iter(planes)
    first = next(planes)
    total = first.astype(np.float64) if projection == "mean" else np.maximum(first, next(planes))
    for plane in planes:
        (np.add if projection == "mean" else np.maximum)(total, plane, out=total)
    return total / count if projection == "mean" else total


def best_focus(planes: Iterable[list[np.ndarray]]) -> int:
    """Return which z plane is sharpest: the largest share of fine detail, the mean over channels; the first of equals.

    Detail is the mean squared Laplacian; each channel counts relative to its own mean over z.
    """
    from scipy.ndimage import laplace

    detail = np.array([[np.mean(laplace(plane.astype(np.float64)) ** 2) for plane in channels] for channels in planes])
    relative = detail / np.maximum(detail.mean(axis=0), np.finfo(float).tiny)
    return int(np.argmax(relative.mean(axis=1)))
