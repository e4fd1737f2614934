"""How a file becomes an 8-bit picture: the one class of settings, and what is noted of each colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cellkit.channels import colour_map
from cellkit.errors import UserError, readable


@dataclass(frozen=True)
class Recipe:
    """How files become pictures; fields as the arguments of `cellkit.convert.convert_file`.

    `percentiles_of` is what the percentiles are taken of: each "image", or all pixels of the "batch", colour by colour.
    """

    channels: Mapping[str, str | int | None]
    projection: str | int = "max"
    percentiles: tuple[float, float] = (0.3, 99.8)
    scale: float = 1.0
    axes: str | None = None
    percentiles_of: str = "image"

    def __post_init__(self) -> None:
        if not colour_map(self.channels):
            raise UserError("neither nuclei nor cytoplasm is named", "name the channel of one of them, e.g. nuclei: 0")
        if self.percentiles_of not in ("image", "batch"):
            raise UserError(f"percentiles_of is '{self.percentiles_of}'", "choose image or batch")

    def to_json(self) -> dict:
        """Plain values, what the journal knows a recipe by."""
        return {**vars(self), "channels": dict(self.channels), "percentiles": list(self.percentiles)}


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
