"""What a page of a report is made of: tables, pictures, paragraphs, and numbers in words."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """A table of texts; `mark` = the rows to set in bold."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    mark: frozenset[int] = frozenset()
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Picture:
    """A picture inside the page."""

    png: bytes
    caption: str
    width_px: int
    kind: str = field(default="picture", init=False)

    @property
    def data(self) -> str:
        """The picture as base64 text."""
        return base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str
    kind: str = field(default="words", init=False)


def drawn(draw: Callable[[Any], Any], width_in: float, height_in: float, caption: str) -> Picture:
    """Draw into a figure of the given size and take the picture."""
    from cellkit.show.style import new_figure, to_png

    figure = new_figure(width_in, height_in)
    draw(figure)
    return Picture(to_png(figure, dpi=130), caption, round(96 * width_in))


def in_words(value: Any, digits: int = 3) -> str:
    """Return a number for print; an undefined one is a dash.

    Examples
    --------
    >>> in_words(0.71249), in_words(float("nan")), in_words(None), in_words(12)
    ('0.712', '–', '–', '12')
    """
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def with_interval(line: Any, digits: int = 3) -> str:
    """Return "0.712 [0.650, 0.768]" of a row with score, low and high; the score alone where there is no interval."""
    if line is None:
        return "–"
    low, high = in_words(float(line.low), digits), in_words(float(line.high), digits)
    return in_words(float(line.score), digits) + (f" [{low}, {high}]" if "–" not in (low, high) else "")


def percent(share: float) -> str:
    """Return a share as per cent; an undefined one is a dash."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"
