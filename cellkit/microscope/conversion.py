"""How a file becomes an 8-bit picture: the one class of settings, and what is noted of each colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellkit.errors import UserError, readable
from cellkit.microscope.file_info import MAX_PLANE_PX
from cellkit.microscope.light import Limits

PERCENTILES = (0.3, 99.8)  # of a channel's pixels: become 0 and 255 unless others are asked for


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
        Most pixels of a plane, asked of the header.
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
