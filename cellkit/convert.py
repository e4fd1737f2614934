"""One microscope file -> 8-bit RGB pictures: nuclei in blue, cytoplasm in green, and what was done to the light.

`inspect_file` says what a file holds without reading pixels; `convert_file` makes one picture per scene and time. Which
channel is which comes from the config; nothing about a channel's meaning is guessed.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cellkit.errors import UserError, nearest
from cellkit.instances import Instances
from cellkit.readers import (
    COLOURS,
    Channel,
    FileInfo,
    Opened,
    Series,
    check_memory,
    inspect_file,
    only_headers,
    open_file,
)

__all__ = ["Converted", "FileInfo", "Level", "convert_file", "convert_frame", "inspect_file"]
NEAR_NM = 20  # how far a wavelength that is asked for may lie from the channel's own
MEANING = {"nuclei": "blue", "cytoplasm": "green", "red": "red", "green": "green", "blue": "blue"}
Limits = Mapping[str, tuple[float, float]]  # colour -> the values that become 0 and 255


# ---- one picture out of a file -------------------------------------------------------------------------------------
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


def convert_file(
    path: str | Path,
    channels,
    projection: str | int = "max",
    percentiles: tuple[float, float] | None = (0.3, 99.8),
    scale: float = 1.0,
    axes: str | None = None,
) -> list[Converted]:
    """Turn every scene and time of a microscope file into an 8-bit picture.

    Parameters
    ----------
    path : path
    channels : mapping, or an object with such attributes
        Which channel is "nuclei" (blue) and "cytoplasm" (green); also "red", "green", "blue" as they are. Each is what
        `find_channel` takes, or None for an empty colour.
    projection : {"max", "mean", "focus"} or int
        What becomes of the z planes: brightest, mean, the sharpest plane (one for all channels), or plane N from 0.
    percentiles : (low, high) or None
        Of each channel's pixels: what becomes 0 and 255. None keeps 8-bit values as they are.
    scale : float
        Resize factor of the picture, anti-aliased.
    axes : str, optional
        What the axes are, where the file does not say, e.g. "TYX".

    Limits shared by a whole batch take the place of the percentiles of each image inside `shared_limits`.

    Returns
    -------
    list of Converted
        A constant channel becomes 0.

    Raises
    ------
    UserError
        No channel named, a channel the file lacks, unknown axes, NaN, transparency, a damaged or oversized file.
    """
    with open_file(path, axes) as opened:
        return [
            convert_frame(opened, scene, time, channels, projection, percentiles, scale, suffix)
            for scene, time, suffix in opened.info.frames()
        ]


def convert_frame(
    opened: Opened, scene: int, time: int, channels, projection="max", percentiles=(0.3, 99.8), scale=1.0, suffix=""
) -> Converted:
    """Turn one scene and time of an opened file into a picture; parameters as in `convert_file`."""
    info, series = opened.info, opened.info.series[scene]
    where = info.path.name
    if series.problem:
        raise UserError(series.problem, series.remedy)
    wanted = colour_map(channels)
    chosen = {colour: find_channel(spec, series.channels, where) for colour, spec in wanted.items()}
    if not chosen:
        raise UserError(
            f"{where} has {_listed(series.channels)}, and the config names neither nuclei nor cytoplasm",
            "set convert.channels.nuclei (or cytoplasm) to a name, an index or a wavelength, e.g. in the YAML "
            "convert: {channels: {nuclei: 0}}",
        )
    if any(isinstance(spec, list | tuple) for spec in wanted.values()) and len(set(chosen.values())) < len(chosen):
        raise UserError(
            f"of {where}, which has {_listed(series.channels)}, one channel is the first that fits for two colours",
            "let the lists of convert.channels (or the repeated options) lead to two channels",
        )
    check_memory(info.path, _bytes_to_convert(series, len(set(chosen.values())), projection), "converting")
    _check_projection(projection, series, where)
    names = dict.fromkeys(COLOURS, "") | {
        colour: series.channels[index].name or f"channel {index}" for colour, index in chosen.items()
    }
    shape = (series.size("Y"), series.size("X"))
    if only_headers():
        blank = np.broadcast_to(np.uint8(0), (*resized_shape(shape, scale), 3))
        told = (channels_text(names), series.um_per_px / scale, where, "", (), info.left_out, series.turned)
        return Converted(blank, suffix, *told)
    planes, planes_text = _project(opened, scene, time, sorted(set(chosen.values())), projection)
    if _MEASURED.get() is not None:
        _MEASURED.get().append({colour: Light.of(planes[index], where) for colour, index in chosen.items()})
    shared, scaled, levels = _SHARED.get() or {}, {}, []
    for colour, index in chosen.items():
        what = f"{where}, {names[colour]}"
        scaled[colour], *level = to_8bit(planes[index], percentiles, what, shared.get(colour))
        notes = [*info.notes_of(scene), *_constant(planes[index], f"channel {index} {series.channels[index].name}")]
        levels.append(Level(colour, names[colour], *level, "; ".join(notes)))
    image = _interleaved(scaled, shape)
    scene_text = f" scene {scene}" if len(info.series) > 1 else ""
    time_text = f" t {time}" if series.size("T") > 1 else ""
    return Converted(
        image=resize_image(image, scale),
        suffix=suffix,
        channels=channels_text(names),
        um_per_px=series.um_per_px / scale,
        source=f"{where}{scene_text}{time_text}{' ' * bool(planes_text)}{planes_text}",
        planes=planes_text,
        levels=tuple(levels),
        left_out=info.left_out,
        turned=series.turned,
    )


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


def channels_text(names: Mapping[str, str]) -> str:
    """Say what is in each colour.

    Examples
    --------
    >>> channels_text({"green": "GFP", "blue": "DAPI"})
    'red=;green=GFP;blue=DAPI'
    """
    return ";".join(f"{colour}={re.sub('[;=]', ',', names.get(colour, ''))}" for colour in COLOURS)


def colour_map(channels) -> dict[str, str | int | Sequence[str | int]]:
    """Return which channel is wanted in which colour, from a mapping or an object with attributes; None is left out.

    Examples
    --------
    >>> colour_map({"nuclei": "DAPI", "cytoplasm": None, "red": 2})
    {'blue': 'DAPI', 'red': 2}
    """
    if not isinstance(channels, Mapping):
        channels = {name: getattr(channels, name, None) for name in MEANING}
    wanted: dict[str, str | int | Sequence[str | int]] = {}
    for name, spec in channels.items():
        if name not in MEANING:
            raise UserError(f"channels has '{name}'{nearest(name, MEANING)}", f"name {', '.join(MEANING)}")
        if spec is None:
            continue
        if MEANING[name] in wanted:
            raise UserError(
                f"two channels are wanted in {MEANING[name]}", "nuclei are blue and cytoplasm is green: name each once"
            )
        wanted[MEANING[name]] = spec
    return wanted


def find_channel(spec: str | int | Sequence[str | int], channels: tuple[Channel, ...], where: str = "the file") -> int:
    """Return the index of the channel that `spec` names; a number and the same number as text mean the same.

    Parameters
    ----------
    spec : str or int, or several of them
        Of several, the first that the file has is taken. A channel's exact name, which comes before all else. Else its
        name in upper or lower case or written as another number ("01" for 1), an index from 0 ("channel 3" is never anything
        else), or a wavelength in nm: from 200 on, or "488 nm"; the nearest channel within 20 nm. A number that stands in the
        name of another channel ("Ch2", "YFP 514") may mean that one.
    channels : tuple of Channel
    where : str
        What the error calls the file.

    Raises
    ------
    UserError
        None or several fit, or it can be read in two ways that lead to different channels; the message lists the channels.

    Examples
    --------
    >>> file = (Channel("actin", 520.0), Channel("DAPI", 461.0), Channel("1", 640.0))
    >>> find_channel("dapi", file), find_channel(0, file), find_channel("460 nm", file)
    (1, 0, 1)
    >>> find_channel(1, file), find_channel("channel 1", file), find_channel(["Hoechst", "DAPI", 0], file)
    (2, 1, 1)
    """
    if isinstance(spec, list | tuple):
        for one in spec:
            if any(_readings(one, channels).values()):
                return find_channel(one, channels, where)
        told = ", ".join(f"'{one}'" for one in spec)
        raise UserError(f"none of {told} is a channel of {where}, which has {_listed(channels)}", HOW_TO_NAME)
    readings = _readings(spec, channels)
    found = {i for indices in readings.values() for i in indices}
    if len(found) == 1:
        return found.pop()
    number = _as_wavelength(spec)
    near = f" within {NEAR_NM} nm" if number and (number[2] or float(number[1]) >= FIRST_NM) else ""
    known = [channel.name for channel in channels if channel.name and channel.name != str(spec)]
    meant = ", ".join(f"{i} as {how}" for how, indices in readings.items() for i in indices)
    problem = f"fits {len(found)} channels ({meant})" if found else f"is no channel{near}{nearest(spec, known)}"
    raise UserError(f"'{spec}' {problem} of {where}, which has {_listed(channels)}", HOW_TO_NAME)


HOW_TO_NAME = "give the exact name, an index from 0 ('channel 0' is nothing else) or a wavelength ('488 nm')"


def _as_wavelength(spec: str | int) -> re.Match | None:
    return None if isinstance(spec, bool) else re.fullmatch(r"(\d+(?:\.\d+)?)\s*(nm)?", _plain_name(spec))


def _readings(spec: str | int, channels: tuple[Channel, ...]) -> dict[str, list[int]]:
    """Return which channels `spec` may mean, by how it is read; an exact name comes before all else."""
    text, names = _plain_name(spec), [_plain_name(channel.name) for channel in channels]
    number = _as_wavelength(spec)
    if exact := [i for i, channel in enumerate(channels) if text and channel.name == str(spec)]:
        return {"name": exact}
    near = _near(number, [channel.wavelength_nm for channel in channels])
    readings = {
        "name": [i for i, name in enumerate(names) if text and (name == text or _same_number(number, name))],
        "index": [i for i in range(len(channels)) if _is_index(text, number, i)],
        "wavelength": near,
        "wavelength of the excitation": _as_near(number, channels, near),
    }
    if number and any(readings.values()):  # alone it is no name, but it may be what was meant
        parts = [i for i, name in enumerate(names) if float(number[1]) in _numbers_in(name)]
        readings["number in the name"] = [i for i in parts if i not in readings["name"]]
    return readings


FIRST_NM = 200  # numbers from here on may be wavelengths
COUNTED = ("c", "ch", "chs", "chan", "channel", "w", "t", "track", "band", "pmt", "hyd", "apd", "cam", "camera", "image",
           "img", "filter", "laser", "line", "layer", "plane", "dye", "no", "nr")  # fmt: skip


def _plain_name(name: object) -> str:
    return unicodedata.normalize("NFKC", str(name)).strip().casefold()


def _same_number(number: re.Match | None, name: str) -> bool:
    """Tell whether a name is the same number written otherwise: "01" and "1.0" for 1, "488nm" for 488."""
    other = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(nm)?", name)
    return bool(number and other) and float(number[1]) == float(other[1])


def _numbers_in(name: str) -> set[float]:
    """Return the numbers that stand in a channel's name as a count or a wavelength; not those of a dye or a protein.

    Examples
    --------
    >>> [_numbers_in(name) for name in ("ch_2", "track 1", "yfp 514", "af488", "cy3", "pol_0")]
    [{2.0}, {1.0}, {514.0}, {488.0}, set(), set()]
    """
    return {
        float(number)
        for before, number in re.findall(r"([^\W\d_]*)_*(?<![\d.])(\d+(?:\.\d+)?)(?![\d.]*\d)", name)
        if not before or before in COUNTED or float(number) >= FIRST_NM
    }


def _is_index(text: str, number: re.Match | None, index: int) -> bool:
    stated = re.fullmatch(r"channel (\d+)", text)
    if stated:
        return int(stated[1]) == index
    return bool(number) and not number[2] and float(number[1]) == index


def _near(number: re.Match | None, wavelengths_nm: list[float]) -> list[int]:
    """Return the channels nearest to a wavelength, within `NEAR_NM`."""
    if not number or not (number[2] or float(number[1]) >= FIRST_NM):
        return []
    away = [abs(nm - float(number[1])) for nm in wavelengths_nm]
    return [i for i, d in enumerate(away) if d <= NEAR_NM and d == np.nanmin(away)]


def _as_near(number: re.Match | None, channels: tuple[Channel, ...], found: list[int]) -> list[int]:
    """Return the channels whose excitation lies as near as the wavelength of those found, where that is another channel."""
    if not found:
        return []
    most = abs(channels[found[0]].wavelength_nm - float(number[1]))
    return [i for i in _near(number, [c.excitation_nm for c in channels])
            if abs(channels[i].excitation_nm - float(number[1])) <= most]  # fmt: skip


def _listed(channels: tuple[Channel, ...]) -> str:
    """Say which channels there are: '2 channels (0 DAPI 461 nm, 1 unnamed)'."""
    names = ", ".join(f"{i} {channel.told}" for i, channel in enumerate(channels))
    return f"{len(channels)} channel{'s' if len(channels) != 1 else ''} ({names})"


def _check_projection(projection: str | int, series: Series, where: str) -> None:
    if isinstance(projection, bool) or not (isinstance(projection, int) or projection in ("max", "mean", "focus")):
        raise UserError(f"projection is {projection!r}", "choose max, mean, focus or the number of a plane, from 0")
    count = series.size("Z")
    if isinstance(projection, int) and not 0 <= projection < count:
        raise UserError(f"plane {projection} is wanted of {where}, which has {count}", "planes count from 0")


def _project(opened: Opened, scene: int, time: int, indices: list[int], projection) -> tuple[dict, str]:
    """Return {channel index: (H, W) plane}, and what was done to the z planes, in words."""
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


# ---- light ---------------------------------------------------------------------------------------------------------
def to_8bit(
    plane: np.ndarray,
    percentiles: tuple[float, float] | None,
    where: str = "the plane",
    limits: tuple[float, float] | None = None,
) -> tuple:
    """Scale one plane to 0..255 between two percentiles of its own pixels, or between given values.

    Parameters
    ----------
    plane : (H, W) integer, float or bool
    percentiles : (low, high) in [0, 100], or None
        None keeps uint8 values as they are.
    where : str
        What the error calls the plane.
    limits : (low, high), optional
        The values that become 0 and 255, in place of the plane's own percentiles.

    Returns
    -------
    image : (H, W) uint8
        A constant plane becomes 0 (by its own percentiles). Where both limits meet in one value, larger values become 255.
    low, high : float
        The values that became 0 and 255.
    clipped_fraction : float
        Share of pixels that hold the largest value; 0 for a constant plane.

    Raises
    ------
    UserError
        NaN or infinite values, complex numbers, or None for a plane that is not uint8.

    Examples
    --------
    >>> to_8bit(np.array([[0, 20_000], [40_000, 65_535]], np.uint16), (0, 100))[0]
    array([[  0,  78],
           [156, 255]], dtype=uint8)
    """
    plane = _measurable(plane, where)
    if percentiles is not None and not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise UserError(
            f"percentiles are {list(percentiles)}", "give two rising numbers from 0 to 100, e.g. [0.3, 99.8]"
        )
    if percentiles is None and plane.dtype != np.uint8:
        raise UserError(
            f"{where} is {plane.dtype} and percentiles is null",
            "only 8-bit values can be kept as they are: give percentiles",
        )
    if plane.dtype in (np.uint8, np.uint16):
        return _to_8bit_by_table(plane, percentiles, limits)
    values = plane.astype(np.float64)
    low, high = limits or (float(value) for value in np.percentile(values, percentiles))
    top = plane.max()
    clipped = float(np.mean(plane == top)) if top > plane.min() else 0.0
    return _ramp(values, low, high), low, high, clipped


def _measurable(plane: np.ndarray, where: str) -> np.ndarray:
    """Return the plane, bool as 0 and 1; refuse what is no number, NaN and infinite values."""
    if plane.dtype == bool:
        plane = plane.astype(np.uint8)
    if plane.dtype.kind not in "iuf" or plane.size == 0:
        raise UserError(
            f"{where} holds {plane.dtype} of shape {plane.shape}", "store the image as integers or real numbers"
        )
    if plane.dtype.kind == "f" and not np.isfinite(plane).all():
        bad = int(np.count_nonzero(~np.isfinite(plane)))
        raise UserError(f"{where} holds {bad} pixels that are NaN or infinite", "replace them by a number first")
    return plane


def _to_8bit_by_table(plane: np.ndarray, percentiles, limits=None) -> tuple[np.ndarray, float, float, float]:
    """As `to_8bit`, for uint8 and uint16: percentiles equal to numpy's, values from a table."""
    top = int(plane.max())
    at_top = np.count_nonzero(plane == top)
    clipped = float(at_top / plane.size) if at_top < plane.size else 0.0
    if percentiles is None:
        return plane.copy(), 0.0, 255.0, clipped
    if limits is None:
        limits = tuple(percentiles_of(plane, percentiles))
    return _looked_up(_table(*limits, plane.dtype), plane), *limits, clipped


def percentiles_of(plane: np.ndarray, percentiles: tuple[float, float]) -> list[float]:
    """Return two percentiles of a plane of uint8 or uint16, linear between ranks as numpy: exact, without sorting it.

    A sample tells between which values both lie for certain enough; only the pixels outside are sorted. Where the sample
    misled, or they are many, all pixels are counted.

    Examples
    --------
    >>> percentiles_of(np.arange(1001, dtype=np.uint16), (0.25, 99.9))
    [2.5, 999.0]
    """
    values = plane.reshape(-1)
    ranks = [(values.size - 1) * q / 100 for q in percentiles]
    sample = np.sort(values[:: max(1, values.size // 4096)])
    first, last = (len(sample) * q / 100 for q in percentiles)
    spread = [4 * math.sqrt(n * (1 - n / len(sample))) + 4 for n in (first, last)]
    first, last = math.ceil(first + spread[0]), math.floor(last - spread[1])
    if not 0 <= first < last < len(sample) or first + len(sample) - last > len(sample) // 4:
        return Light.of(plane).percentiles(percentiles)
    low, high = sample[first], sample[last]
    outer = np.sort(values[(values <= low) | (values >= high)])
    below = int(np.searchsorted(outer, low, side="right"))
    skipped = values.size - len(outer)
    if low >= high or below <= math.ceil(ranks[0]) or math.floor(ranks[1]) < below + skipped:
        return Light.of(plane).percentiles(percentiles)
    pairs = [
        (outer[math.floor(rank) - gone], outer[math.ceil(rank) - gone])
        for rank, gone in zip(ranks, (0, skipped), strict=True)
    ]
    return [
        float(a) + (float(b) - float(a)) * (rank - math.floor(rank)) for (a, b), rank in zip(pairs, ranks, strict=True)
    ]


def _table(low: float, high: float, dtype: np.dtype) -> np.ndarray:
    """Return what each value of uint8 or uint16 becomes: `_ramp` of all of them, computed only where it rises."""
    table = np.zeros(np.iinfo(dtype).max + 1, np.uint8)
    first, last = (min(max(value, -1), len(table)) for value in (math.floor(low), math.ceil(high)))
    last = max(last, first + 1)
    table[last:] = 255
    table[first + 1 : last] = _ramp(np.arange(first + 1, last, dtype=np.float64), low, high)
    return table


def _looked_up(table: np.ndarray, plane: np.ndarray) -> np.ndarray:
    """Return ``table[plane]``; OpenCV reads tables of 8 bits, from version 5 also of 16, twice as fast as numpy."""
    import cv2

    if plane.dtype == np.uint8 or int(cv2.__version__.split(".")[0]) >= 5:
        return cv2.LUT(plane, table)
    return np.take(table, plane)


def _ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return uint8: 0 up to `low`, 255 from `high` on, linear between; a step where both are equal."""
    if high <= low:
        return (values > low).astype(np.uint8) * np.uint8(255)
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)


# ---- light of a whole batch ----------------------------------------------------------------------------------------
_SHARED: ContextVar[Limits | None] = ContextVar("limits shared by a batch", default=None)
_MEASURED: ContextVar[list | None] = ContextVar("where the light of frames is collected", default=None)
MOST_VALUES = 2**16


@contextmanager
def shared_limits(limits: Limits | None) -> Iterator[None]:
    """Let `convert_frame` scale each colour between these values inside the block, instead of by percentiles."""
    token = _SHARED.set(limits)
    try:
        yield
    finally:
        _SHARED.reset(token)


@dataclass(frozen=True, eq=False)
class Light:
    """How often each value occurs in the pixels of one colour: rising `values` (N,) float64, `counts` (N,) int64.

    Exact for integers of up to 16 bits; of others at most `MOST_VALUES` values are kept, each standing for those below it
    back to the one before.
    """

    values: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, plane: np.ndarray, where: str = "the plane") -> Light:
        """Count the values of one plane; errors as in `to_8bit`."""
        plane = _measurable(plane, where)
        if plane.dtype in (np.uint8, np.uint16):
            counts = np.bincount(plane.ravel())
            values = np.flatnonzero(counts)
            return cls(values.astype(np.float64), counts[values])
        values, counts = np.unique(plane.astype(np.float64), return_counts=True)
        return cls(values, counts)._thinned()

    @classmethod
    def sum(cls, parts: Iterable[Light]) -> Light:
        """Put the pixels of several planes together."""
        parts = list(parts)
        values, where = np.unique(np.concatenate([part.values for part in parts]), return_inverse=True)
        counts = np.bincount(where, np.concatenate([part.counts for part in parts])).astype(np.int64)
        return cls(values, counts)._thinned()

    def _thinned(self) -> Light:
        if len(self.values) <= MOST_VALUES:
            return self
        cumulated = np.cumsum(self.counts)
        ends = np.flatnonzero(np.diff(cumulated * (MOST_VALUES - 1) // cumulated[-1], append=MOST_VALUES))
        return Light(self.values[ends], np.diff(cumulated[ends], prepend=0))

    def percentiles(self, wanted: Iterable[float]) -> list[float]:
        """Return percentiles of the pixels, linear between ranks as numpy.

        Examples
        --------
        >>> Light.of(np.array([[1, 2], [3, 10]], np.uint16)).percentiles((0, 50))
        [1.0, 2.5]
        """
        cumulated = np.cumsum(self.counts)
        found = []
        for q in wanted:
            rank = (int(cumulated[-1]) - 1) * q / 100
            below, above = self.values[
                np.searchsorted(cumulated, [math.floor(rank), math.ceil(rank)], side="right")
            ].tolist()
            found.append(below + (above - below) * (rank - math.floor(rank)))
        return found


@contextmanager
def measured_light() -> Iterator[list[dict[str, Light]]]:
    """Yield a list to which `convert_frame` adds {colour: Light} of every frame it converts inside the block."""
    found: list[dict[str, Light]] = []
    token = _MEASURED.set(found)
    try:
        yield found
    finally:
        _MEASURED.reset(token)


def sum_light(frames: Iterable[Mapping[str, Light]]) -> dict[str, Light]:
    """Put the light of many frames together, colour by colour."""
    frames = list(frames)
    colours = sorted({colour for frame in frames for colour in frame})
    return {colour: Light.sum(frame[colour] for frame in frames if colour in frame) for colour in colours}


# ---- size ----------------------------------------------------------------------------------------------------------
def resized_shape(shape: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return (H, W) after resizing by `scale`, at least 1 x 1.

    Examples
    --------
    >>> resized_shape((1030, 1349), 0.5)
    (515, 674)
    """
    if not 0.01 <= scale <= 100:
        raise UserError(f"scale is {scale}", "give a resize factor from 0.01 to 100; 1 keeps the size")
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def resize_image(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize (H, W, 3) uint8: pixel areas are averaged when it shrinks, linear when it grows; 1 returns `image`."""
    height, width = resized_shape(image.shape[:2], scale)
    if (height, width) == image.shape[:2]:
        return image
    import cv2

    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=method)


def _grid(old: int, new: int) -> np.ndarray:
    """Return which old row each of `new` rows takes: the one its centre lies in, on the grid of `resize_image`."""
    return np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)


def resize_labels(labels: np.ndarray, scale: float) -> np.ndarray:
    """Resize a label image (H, W): each new pixel takes the id its centre lies in; no id is ever mixed.

    Examples
    --------
    >>> resize_labels(np.array([[300, 301], [0, 301]]), 2.0)
    array([[300, 300, 301, 301],
           [300, 300, 301, 301],
           [  0,   0, 301, 301],
           [  0,   0, 301, 301]])
    """
    height, width = resized_shape(labels.shape, scale)
    return labels[np.ix_(_grid(labels.shape[0], height), _grid(labels.shape[1], width))]


def resize_instances(instances: Instances, scale: float) -> Instances:
    """Resize as `resize_labels` does, object by object, so that overlaps survive; objects left without a pixel go.

    Works on runs: a run keeps the new columns whose centres lie in it, once for every new row that takes its row.
    """
    height, width = instances.shape
    new_height, new_width = resized_shape(instances.shape, scale)
    if (new_height, new_width) == instances.shape:
        return instances
    rows, columns = _grid(height, new_height), _grid(width, new_width)
    starts, ends, owner = _runs_within_rows(instances)
    row = starts // width
    first, last = np.searchsorted(rows, row, "left"), np.searchsorted(rows, row, "right")
    left, right = np.searchsorted(columns, starts - row * width), np.searchsorted(columns, ends - row * width)
    copies = np.where(right > left, last - first, 0)
    which = np.repeat(np.arange(len(row)), copies)
    new_row = first[which] + np.arange(len(which)) - np.repeat(np.cumsum(copies) - copies, copies)
    begin, length, owner = new_row * new_width + left[which], (right - left)[which], owner[which]
    order = np.lexsort((begin, owner))
    begin, length, owner = begin[order], length[order], owner[order]
    new = np.r_[True, (begin[1:] != begin[:-1] + length[:-1]) | (owner[1:] != owner[:-1])][: len(begin)]
    length = np.add.reduceat(length, np.flatnonzero(new)) if len(begin) else length
    offsets = np.r_[0, np.cumsum(np.bincount(owner[new], minlength=len(instances)))]
    resized = Instances.from_runs(
        (new_height, new_width), begin[new], length, offsets, instances.class_ids, instances.scores
    )
    return replace(resized[np.diff(offsets) > 0], boxes_only=instances.boxes_only)


def _runs_within_rows(instances: Instances) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return start, end and owner of the runs, cut where they go on in the next row."""
    width = instances.shape[1]
    starts, ends = instances.starts, instances.starts + instances.lengths
    parts = (ends - 1) // width - starts // width + 1
    which = np.repeat(np.arange(len(starts)), parts)
    nth = np.arange(len(which)) - np.repeat(np.cumsum(parts) - parts, parts)
    edge = (starts[which] // width + nth) * width
    return np.maximum(starts[which], edge), np.minimum(ends[which], edge + width), instances.owner_of_run[which]
