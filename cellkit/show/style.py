"""The style of every picture: figures, fonts, colours, names of models and classes.

Colours: classes are warm (gold, pink, ...) because the images are green and blue; verdicts and models use Okabe and
Ito's colour-blind safe set, and never colour alone (dashes, stripes, markers, numbers). An image is (H, W) or (H, W, 3)
uint8. `ax` or `figure` is where to draw; without it a new figure is made. Every function draws and returns the Axes.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.files import atomic_path
from cellkit.log import LOG
from cellkit.models import order_models

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

INK, QUIET, FAINT = "#1F2329", "#666C75", "#E4E6EA"
OTHER_FONTS = (  # for signs that DejaVu Sans lacks, where they are installed
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "Droid Sans Fallback", "Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic", "PingFang SC",
    "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS", "Noto Sans", "Noto Emoji", "Segoe UI Symbol", "Segoe UI Emoji",
)  # fmt: skip
CLASS_COLOURS = ("#FFC20A", "#FF5FA2", "#8FD3FF", "#FF7F2A", "#C9A6FF", "#F5F1C3", "#B8E986", "#FFB3A7")
UNKNOWN_COLOUR = "#FF6E40"
MODEL_LOOKS = {
    "threshold": ("#8A8F98", "s", ":"),
    "teacher": ("#882255", "h", "--"),
    "cellpose_base": ("#56B4E9", "o", "--"),
    "cellpose_tuned": ("#0072B2", "D", "-"),
    "maskrcnn": ("#D55E00", "^", "-."),
}
OTHER_LOOKS = (("#009E73", "v", "-"), ("#CC79A7", "P", "--"), ("#E69F00", "X", "-."), ("#000000", "*", ":"))
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": "#A8ADB5",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "hatch.linewidth": 0.8,
}
SHARE = 0.2  # of the width, about
NAME = "scale bar"  # the gid of its line and its text


def styled(draw: Callable) -> Callable:
    """Draw in the house's style alone, whatever the user's matplotlibrc says, and leave matplotlib's own as it was.

    Jupyter's backend is loaded by the first figure and turns on interactive drawing, which later figures are shown by.
    """

    @functools.wraps(draw)
    def wrapped(*args, **kwargs):
        import matplotlib

        if _DRAWING:
            return draw(*args, **kwargs)
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            _DRAWING.append(draw)
            try:
                drawn, interactive = draw(*args, **kwargs), matplotlib.is_interactive()
            finally:
                _DRAWING.pop()
            if not isinstance(drawn, bytes):
                _make_legible(figure_of(drawn))
        matplotlib.interactive(interactive)
        return drawn

    return wrapped


_DRAWING: list[Callable] = []  # what is being drawn in the house's style
_TOLD: set[str] = set()  # signs already said to be in no font


@functools.cache
def _signs_of(family: str) -> frozenset[int]:
    """Return the signs (code points) that a font has; none where it is not installed."""
    from matplotlib.font_manager import findfont, get_font

    try:
        return frozenset(get_font(findfont(family, fallback_to_default=False)).get_charmap())
    except (ValueError, OSError, RuntimeError):
        return frozenset()


def _legible(text: str) -> tuple[str, str]:
    """Return a text as it can be drawn, and the font it needs besides the house's; signs of no font are escaped."""
    lacking = {c for c in text if not c.isspace() and ord(c) not in _signs_of(STYLE["font.sans-serif"][0])}
    for family in OTHER_FONTS if lacking else ():
        if lacking <= {c for c in lacking if ord(c) in _signs_of(family)}:
            return text, family
    if lacking - _TOLD:
        signs = ", ".join(sorted(lacking - _TOLD))
        LOG.warning(f"note: no font here has {signs}: pictures show escapes in place of them")
        _TOLD.update(lacking)
    return "".join(ascii(c)[1:-1] if c in lacking else c for c in text), ""


def _make_legible(figure: Figure) -> None:
    """Give each text of a figure a font that has its signs; escape those that no font has."""
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter, FuncFormatter

    house = STYLE["font.sans-serif"]
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        formatter = axis.get_major_formatter()
        if isinstance(formatter, FixedFormatter | FuncFormatter):
            places = axis.get_majorticklocs()
            labels = formatter.format_ticks(places)
            legible = [_legible(label) for label in labels]
            if legible != [(label, "") for label in labels]:
                axis.set_ticks(places, [text for text, _ in legible])
                axis.set_tick_params(labelfontfamily=[*house, *sorted({family for _, family in legible if family})])
    for drawn in figure.findobj(Text):
        if not drawn.get_text().isascii():
            text, family = _legible(drawn.get_text())
            if family:
                drawn.set_fontfamily([*house, family])
            drawn.set_text(text)


# ---- where to draw -------------------------------------------------------------------------------------------------
@styled
def new_figure(width_in: float, height_in: float) -> Figure:
    """Return a figure in the house's layout that is not registered with pyplot: for reports and slides."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), layout="constrained")


@styled
def bare_axes(width_in: float, height_in: float) -> Axes:
    """Return Axes that fill a figure to its edges: for a picture of its own, pixel by pixel."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in)).add_axes((0, 0, 1, 1))


def axes_or_new(ax: Axes | None, size_in: tuple[float, float] = (5.2, 5.2), shape: tuple[int, ...] = ()) -> Axes:
    """Return `ax`, or the Axes of a new figure; for an image of `shape` (H, W) as high as it needs."""
    if ax is not None:
        return ax
    if shape:
        size_in = (size_in[0], size_in[0] * aspect_of(shape) + 0.5)
    import matplotlib.pyplot as plt

    return plt.figure(figsize=size_in, layout="constrained").subplots()


def aspect_of(shape: Sequence[int]) -> float:
    """Return how high an image of shape (H, W) is shown over its width, within reason: 0.3 to 2."""
    return float(np.clip(shape[0] / max(shape[1], 1), 0.3, 2.0))


def words_only(text: str, ax: Axes | None = None, figure: Figure | None = None) -> Axes:
    """Return Axes that hold a sentence, where there is nothing to draw."""
    ax = ax if ax is not None else figure_or_new(figure, (5.6, 0.6)).subplots()
    ax.set_axis_off()
    ax.text(0, 0.5, text)
    return ax


def figure_or_new(figure: Figure | None, size_in: tuple[float, float]) -> Figure:
    """Return `figure`, or a new one."""
    if figure is not None:
        return figure
    import matplotlib.pyplot as plt

    return plt.figure(figsize=size_in, layout="constrained")


def dress(ax: Axes, grid: str = "") -> Axes:
    """Give a chart the house's frame, whoever made its Axes."""
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#A8ADB5")
    ax.tick_params(colors=QUIET, labelsize=9)
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set(color=QUIET, size=9.5)
    ax.set_axisbelow(True)
    if grid:
        ax.grid(True, axis=grid, color=FAINT)
    return ax


def figure_of(drawn: Axes | np.ndarray | Figure) -> Figure:
    """Return the figure that Axes, an array of Axes or the figure itself belong to."""
    first = np.ravel(drawn)[0] if isinstance(drawn, (np.ndarray, list, tuple)) else drawn
    return first.get_figure(root=True) if hasattr(first, "get_figure") else first


@styled
def to_png(drawn: Axes | np.ndarray | Figure, dpi: int = 144) -> bytes:
    """Return a drawing as PNG: the same bytes for the same drawing."""
    target = io.BytesIO()
    _make_legible(figure_of(drawn))
    figure_of(drawn).savefig(target, format="png", dpi=dpi, metadata={"Software": None})
    return target.getvalue()


@styled
def to_svg(drawn: Axes | np.ndarray | Figure, dpi: int = 144) -> bytes:
    """Return a drawing as SVG with text as outlines and pixels at `dpi`: the same bytes for the same drawing."""
    import matplotlib

    target = io.BytesIO()
    _make_legible(figure_of(drawn))
    with matplotlib.rc_context({"svg.hashsalt": "cellkit", "svg.fonttype": "path"}):
        figure_of(drawn).savefig(target, format="svg", dpi=dpi, metadata={"Date": None, "Creator": None})
    return target.getvalue()


def save_figure(drawn: Axes | np.ndarray | Figure, path: str | Path, dpi: int = 144) -> Path:
    """Write a drawing as PNG, atomically; return the path."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(to_png(drawn, dpi))
    return Path(path)


# ---- names and colours ---------------------------------------------------------------------------------------------
def class_colour(class_id: int) -> str:
    """Return the colour of a class: 0 = unknown, from 1 on the classes in order.

    Colours come again after eight classes, with other dashes and stripes: `class_dashes`, `class_stripes`.
    """
    return UNKNOWN_COLOUR if class_id <= 0 else CLASS_COLOURS[(class_id - 1) % len(CLASS_COLOURS)]


def class_dashes(class_id: int) -> tuple[float, ...]:
    """Return what is drawn and what is left out in turn along the outline of a class (in line widths); () = all drawn.

    Examples
    --------
    >>> class_dashes(8), class_dashes(9), class_dashes(17)
    ((), (2.5, 1.0), (2.5, 1.0, 0.7, 1.0))
    """
    turn = max(class_id - 1, 0) // len(CLASS_COLOURS)
    return (2.5, 1.0, *(0.7, 1.0) * (turn - 1)) if turn else ()


def class_stripes(class_id: int) -> dict[str, Any]:
    """Return how an area in the colour of a class is striped, for Patch and bar: not at all for the first eight."""
    turn = max(class_id - 1, 0) // len(CLASS_COLOURS)
    kind = ("/", "x", ".", "-", "+", "o")[(turn - 1) % 6]
    return {"hatch": kind * (2 + (turn - 1) // 6), "edgecolor": INK} if turn else {}


def class_line(class_id: int, label: str) -> Line2D:
    """Return the entry of a legend for outlines of a class."""
    from matplotlib.lines import Line2D

    style = (0, class_dashes(class_id)) if class_dashes(class_id) else "-"
    return Line2D([], [], color=class_colour(class_id), lw=3, ls=style, label=label)


def class_patch(class_id: int, label: str) -> Patch:
    """Return the entry of a legend for areas of a class."""
    from matplotlib.patches import Patch

    colour = class_colour(class_id)
    return Patch(**{"facecolor": colour, "edgecolor": colour} | class_stripes(class_id), label=label)


def class_name(class_id: int, classes: Sequence[str]) -> str:
    """Return the name of a class: "" for 0, "class 3" where the name is not known."""
    if class_id <= 0:
        return ""
    return classes[class_id - 1] if class_id <= len(classes) else f"class {class_id}"


def model_looks(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return colour, marker and linestyle of each model: three ways to tell them apart."""
    ordered = order_models(names)
    others = [name for name in ordered if name not in MODEL_LOOKS]
    colours, markers, lines = zip(*OTHER_LOOKS, strict=True)
    n = len(OTHER_LOOKS)
    looks = MODEL_LOOKS | {
        name: (colours[k % n], markers[(k + k // n) % n], lines[(k + k // n**2) % n]) for k, name in enumerate(others)
    }
    return {name: dict(zip(("color", "marker", "linestyle"), looks[name], strict=True)) for name in ordered}


def shortened(name: str, letters: int = 24) -> str:
    """Return a name cut in its middle to at most so many letters.

    Examples
    --------
    >>> shortened("plate_07_well_B03_field_002_channel_1", 15)
    'plate_0…annel_1'
    """
    half = (letters - 1) // 2
    return name if len(name) <= letters else f"{name[:half]}…{name[-half:]}"


def rows_only(ax: Axes) -> Axes:
    """Dress a chart whose rows are names."""
    dress(ax, "x").spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0, labelcolor=INK)
    return ax


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


def legend_below(ax: Axes, handles: list, pad: float = 0.2) -> None:
    """Put a legend below the Axes, in as many rows as its width wants: a wider one would make pictures small.

    Parameters
    ----------
    pad : float
        How far below, in font sizes: what stands there has its place.
    """
    how = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.005), "borderaxespad": pad, "columnspacing": 1.1}
    layout = ax.get_figure(root=True).get_layout_engine()
    if layout is not None and pad > 0.2:  # names beside the Axes take of their width
        layout.execute(ax.get_figure(root=True))
    for columns in range(len(handles), 0, -1):
        legend = ax.legend(handles=handles, ncols=columns, handlelength=1.2, **how)
        _make_legible(ax.figure)  # before its width is asked for
        if legend.get_window_extent().width <= ax.get_window_extent().width:
            break
