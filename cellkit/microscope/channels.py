"""Which channel is which: by name, index or wavelength, as the config says; nothing about its meaning is guessed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cellkit.errors import UserError, counted, nearest
from cellkit.microscope.file_info import COLOURS, Channel

NEAR_NM = 20  # how far a wavelength that is wanted may lie from the channel's own
MEANING = {"nuclei": "blue", "cytoplasm": "green", "red": "red", "green": "green", "blue": "blue"}


def channels_text(names: Mapping[str, str]) -> str:
    """Say what is in each colour.

    Examples
    --------
    >>> channels_text({"green": "GFP", "blue": "DAPI"})
    'red=;green=GFP;blue=DAPI'
    """
    return ";".join(f"{colour}={re.sub('[;=]', ',', names.get(colour, ''))}" for colour in COLOURS)


def colour_map(channels: Mapping[str, Any] | Any) -> dict[str, str | int | Sequence[str | int]]:
    """Return which channel is wanted in which colour, from a mapping or an object with attributes; None is left out.

    Raises
    ------
    UserError
        An unknown name, or two channels for one colour.

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
        listing = ", ".join(f"'{one}'" for one in spec)
        problem = f"none of {listing} is a channel of {where}, which has {listed(channels)}"
        raise UserError(problem, _how_to_name(spec, channels))
    readings = _readings(spec, channels)
    found = {i for indices in readings.values() for i in indices}
    if len(found) == 1:
        return found.pop()
    number = _as_wavelength(spec)
    near = f" within {NEAR_NM} nm" if number and (number[2] or float(number[1]) >= FIRST_NM) else ""
    known = [channel.name for channel in channels if channel.name and channel.name != str(spec)]
    meant = ", ".join(f"{i} as {how}" for how, indices in readings.items() for i in indices)
    problem = f"fits {len(found)} channels ({meant})" if found else f"is no channel{near}{nearest(spec, known)}"
    raise UserError(f"'{spec}' {problem} of {where}, which has {listed(channels)}", _how_to_name([spec], channels))


HOW_TO_NAME = "give the exact name, an index from 0 ('channel 0' is nothing else) or a wavelength ('488 nm')"


def _how_to_name(specs: Sequence[str | int], channels: tuple[Channel, ...]) -> str:
    """Return what to write; of a file without names, that a list holds for files with and without.

    Examples
    --------
    >>> _how_to_name(["DAPI"], (Channel(), Channel())).split("; ")[1]
    'for files that lack the names that others have, both: [DAPI, 0] or [DAPI, 1]'
    """
    unnamed = [str(k) for k, channel in enumerate(channels) if not channel.name]
    if not unnamed or any(str(spec).isdecimal() for spec in specs):
        return HOW_TO_NAME
    both = " or ".join(f"[{', '.join(map(str, specs))}, {k}]" for k in unnamed[:2])
    return f"{HOW_TO_NAME}; for files that lack the names that others have, both: {both}"


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


def listed(channels: tuple[Channel, ...]) -> str:
    """Say which channels there are: '2 channels (0 DAPI 461 nm, 1 unnamed)'."""
    names = ", ".join(f"{i} {channel.text}" for i, channel in enumerate(channels))
    return f"{counted(len(channels), 'channel')} ({names})"
