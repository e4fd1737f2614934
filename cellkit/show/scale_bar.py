"""Scale bars: a round length in um, drawn inside every picture of an image whose pixel size is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHARE = 0.2  # of the width, about
NAME = "scale bar"  # the gid of its line and its text


def bar_um(width_px: float, um_per_px: float) -> float:
    """Return a length of 1, 2 or 5 x 10^n um that is about a fifth of `width_px`; 0 where the pixel size is not known.

    Examples
    --------
    >>> bar_um(512, 0.5), bar_um(100, 0.65), bar_um(2048, 3.2), bar_um(512, math.nan), bar_um(512, 0.0)
    (50.0, 10.0, 1000.0, 0.0, 0.0)
    """
    wanted = SHARE * width_px * um_per_px
    if not 1e-9 < wanted < 1e12:  # not known, or no length of a microscope
        return 0.0
    power = math.floor(math.log10(wanted))
    lengths = [digit * 10.0**n for n in (power, power + 1) for digit in (1, 2, 5)]
    return min(lengths, key=lambda um: abs(math.log(um / wanted)))


def length_in_words(um: float) -> str:
    """Return a length as it is written beside its bar.

    Examples
    --------
    >>> length_in_words(50.0), length_in_words(0.5), length_in_words(2000.0)
    ('50 µm', '0.5 µm', '2 mm')
    """
    return f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"


def draw_bar(ax: Axes, um_per_px: float, size_pt: float = 9.0) -> Axes:
    """Draw a white bar with a dark edge, readable on any ground, in the lower right of what Axes show of an image.

    Parameters
    ----------
    ax : Axes
        An image lies on it; its x axis counts pixels.
    um_per_px : float
        nan where it is not known: nothing is drawn.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke

    left, right = ax.get_xlim()
    width_px = abs(right - left)
    length = bar_um(width_px, um_per_px)
    if not length:
        return ax
    begin, end, low = 0.965 - length / um_per_px / width_px, 0.965, 0.045
    look = {"color": "white", "zorder": 20, "gid": NAME}
    edge = [withStroke(linewidth=5.0, foreground="black")]
    bar = Line2D([begin, end], [low, low], lw=2.6, transform=ax.transAxes, path_effects=edge, **look)
    bar.set_solid_capstyle("butt")
    ax.add_artist(bar)
    ax.annotate(
        length_in_words(length), (end, low), (0, 6), "axes fraction", "offset points", ha="right", va="bottom",
        fontsize=size_pt, path_effects=[withStroke(linewidth=2.4, foreground="black")], **look,
    )  # fmt: skip
    return ax


def draw_bars(axes: Sequence[Axes], scales: Sequence[tuple[tuple[int, ...], float]], size_pt: float = 9.0) -> None:
    """Draw one bar on the first of several images where all are at one scale, else one on each whose scale is known.

    Parameters
    ----------
    axes : sequence of Axes
        Of one size.
    scales : sequence of (shape, um_per_px)
        Of the image on each.
    """
    one = len({(tuple(shape), um) for shape, um in scales}) == 1
    for ax, (_, um_per_px) in list(zip(axes, scales, strict=True))[: 1 if one else None]:
        draw_bar(ax, um_per_px, size_pt)
