"""Pictures of what flows through a run: overlays, error maps, curves. Every function draws and returns the Axes.

Colours: classes are warm (gold, pink, ...) because the images are green and blue; verdicts and models use Okabe and
Ito's colour-blind safe set, and never colour alone (dashes, stripes, markers, numbers). An image is (H, W) or (H, W, 3)
uint8. `ax` or `figure` is where to draw; without it a new figure is made.
"""

from __future__ import annotations

import functools
import io
import math
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cellkit.errors import UserError
from cellkit.instances import Instances
from cellkit.scalebar import draw_bar, draw_bars

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cellkit.dataset import CellDataset
    from cellkit.records import ImageRecord

INK, QUIET, FAINT = "#1F2329", "#666C75", "#E4E6EA"
OTHER_FONTS = (  # for signs that DejaVu Sans lacks, where they are installed
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "Droid Sans Fallback", "Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic", "PingFang SC",
    "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS", "Noto Sans", "Noto Emoji", "Segoe UI Symbol", "Segoe UI Emoji",
)  # fmt: skip
CLASS_COLOURS = ("#FFC20A", "#FF5FA2", "#8FD3FF", "#FF7F2A", "#C9A6FF", "#F5F1C3", "#B8E986", "#FFB3A7")
UNKNOWN_COLOUR = "#FF6E40"
TRUTH_COLOUR = "#FFFFFF"
VERDICTS = {"hit": "#56B4E9", "missed": "#F0E442", "invented": "#E8590C", "wrong class": "#CC79A7"}
MODEL_NAMES = {
    "threshold": "Threshold",
    "cellpose_base": "Cellpose, base",
    "cellpose_tuned": "Cellpose, tuned",
    "maskrcnn": "Mask R-CNN",
}
MODEL_LOOKS = {
    "threshold": ("#8A8F98", "s", ":"),
    "cellpose_base": ("#56B4E9", "o", "--"),
    "cellpose_tuned": ("#0072B2", "D", "-"),
    "maskrcnn": ("#D55E00", "^", "-."),
}
OTHER_LOOKS = (("#009E73", "v", "-"), ("#CC79A7", "P", "--"), ("#E69F00", "X", "-."), ("#000000", "*", ":"))
CONVENTION = "kaggle: IoU > 0.50:0.05:0.95, mean of images"
SPLIT_NAMES = {"train": "training images", "val": "validation images", "test": "test images"}
DRAWN_PX = 900  # outlines are drawn on a picture whose longer side is about this
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


def _styled(draw: Callable) -> Callable:
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
        print(f"note: no font here has {signs}: pictures show escapes in place of them", file=sys.stderr)
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
            told = [_legible(label) for label in labels]
            if told != [(label, "") for label in labels]:
                axis.set_ticks(places, [text for text, _ in told])
                axis.set_tick_params(labelfontfamily=[*house, *sorted({family for _, family in told if family})])
    for drawn in figure.findobj(Text):
        if not drawn.get_text().isascii():
            text, family = _legible(drawn.get_text())
            if family:
                drawn.set_fontfamily([*house, family])
            drawn.set_text(text)


# ---- where to draw -------------------------------------------------------------------------------------------------
@_styled
def new_figure(width_in: float, height_in: float) -> Figure:
    """Return a figure in the house's layout that is not registered with pyplot: for reports and slides."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), layout="constrained")


@_styled
def bare_axes(width_in: float, height_in: float) -> Axes:
    """Return Axes that fill a figure to its edges: for a picture of its own, pixel by pixel."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in)).add_axes((0, 0, 1, 1))


def _axes(ax: Axes | None, size_in: tuple[float, float] = (5.2, 5.2), shape: tuple[int, ...] = ()) -> Axes:
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


def _figure(figure: Figure | None, size_in: tuple[float, float]) -> Figure:
    if figure is not None:
        return figure
    import matplotlib.pyplot as plt

    return plt.figure(figsize=size_in, layout="constrained")


def _dress(ax: Axes, grid: str = "") -> Axes:
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


@_styled
def to_png(drawn: Axes | np.ndarray | Figure, dpi: int = 144) -> bytes:
    """Return a drawing as PNG: the same bytes for the same drawing."""
    target = io.BytesIO()
    _make_legible(figure_of(drawn))
    figure_of(drawn).savefig(target, format="png", dpi=dpi, metadata={"Software": None})
    return target.getvalue()


@_styled
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
    from cellkit.files import atomic_path

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


def _class_line(class_id: int, label: str):
    """Return the entry of a legend for outlines of a class."""
    from matplotlib.lines import Line2D

    style = (0, class_dashes(class_id)) if class_dashes(class_id) else "-"
    return Line2D([], [], color=class_colour(class_id), lw=3, ls=style, label=label)


def _class_patch(class_id: int, label: str):
    """Return the entry of a legend for areas of a class."""
    from matplotlib.patches import Patch

    colour = class_colour(class_id)
    return Patch(**{"facecolor": colour, "edgecolor": colour} | class_stripes(class_id), label=label)


def class_name(class_id: int, classes: Sequence[str]) -> str:
    """Return the name of a class: "" for 0, "class 3" where the name is not known."""
    if class_id <= 0:
        return ""
    return classes[class_id - 1] if class_id <= len(classes) else f"class {class_id}"


def model_name(name: str) -> str:
    """Return how a predictions file is called in print; names that are not known stay as they are.

    Examples
    --------
    >>> model_name("cellpose_tuned"), model_name("my_unet")
    ('Cellpose, tuned', 'my_unet')
    """
    return MODEL_NAMES.get(name, name)


def order_models(names: Iterable[str]) -> list[str]:
    """Return the names in the order of every table: the floor, Cellpose before and after, Mask R-CNN, then the others.

    Examples
    --------
    >>> order_models(["unet", "maskrcnn", "threshold"])
    ['threshold', 'maskrcnn', 'unet']
    """
    names, known = set(names), list(MODEL_NAMES)
    return [name for name in known if name in names] + sorted(names - set(known))


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


# ---- images --------------------------------------------------------------------------------------------------------
def _checked_image(image: np.ndarray) -> np.ndarray:
    good = isinstance(image, np.ndarray) and image.dtype == np.uint8
    if not good or not (image.ndim == 2 or image.ndim == 3 and image.shape[2] == 3) or 0 in image.shape:
        came = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"an image is (H, W) or (H, W, 3) uint8, this is {came}")
    return image


def _checked_pair(image: np.ndarray, *objects: Instances | None) -> None:
    shape = _checked_image(image).shape[:2]
    for one in objects:
        if one is not None and one.shape != shape:
            raise UserError(
                f"the image is {shape[0]} x {shape[1]} px, its objects are of {one.shape[0]} x {one.shape[1]} px",
                "give the objects of this very image",
            )


def _picture(ax: Axes, image: np.ndarray, title: str = "", **how) -> Axes:
    """Show pixels without ticks; grey values from 0 to 255."""
    how = {"cmap": "gray", "vmin": 0, "vmax": 255} | how if image.ndim == 2 else how
    ax.imshow(image, **how)
    ax.set_axis_off()
    if title:
        ax.set_title(title)
    return ax


def grey_of(image: np.ndarray) -> np.ndarray:
    """Return the brightest channel of each pixel, (H, W) uint8."""
    return image if image.ndim == 2 else image.max(axis=2)


@_styled
def show_image(image: np.ndarray, ax: Axes | None = None, title: str = "", um_per_px: float = math.nan) -> Axes:
    """Show one image; with a scale bar where its pixel size is known."""
    return draw_bar(_picture(_axes(ax, shape=_checked_image(image).shape), image, title), um_per_px)


# ---- outlines ------------------------------------------------------------------------------------------------------
def _at_drawing_scale(labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the label image enlarged (or thinned out) by a whole number to about `DRAWN_PX`, and the factor."""
    longest = max(labels.shape)
    if longest >= 2 * DRAWN_PX:
        step = longest // DRAWN_PX
        return labels[::step, ::step], 1 / step
    times = max(1, round(DRAWN_PX / longest))
    return np.repeat(np.repeat(labels, times, axis=0), times, axis=1), float(times)


def outline_of(labels: np.ndarray, width_px: int = 1) -> np.ndarray:
    """Return the pixels of each object within `width_px` of another object or the background: (H, W) bool, one pass.

    Examples
    --------
    >>> outline_of(np.array([[0, 0, 0, 0], [0, 1, 1, 2], [0, 0, 0, 0]])).astype(int).tolist()
    [[0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]]
    """
    edge = np.zeros(labels.shape, bool)
    for step in range(1, min(width_px, *(n - 1 for n in labels.shape)) + 1):
        down, right = labels[step:] != labels[:-step], labels[:, step:] != labels[:, :-step]
        edge[step:] |= down
        edge[:-step] |= down
        edge[:, step:] |= right
        edge[:, :-step] |= right
    return edge & (labels > 0)


def _rgb(colours: Sequence[str]) -> np.ndarray:
    """Return hexadecimal colours as (N + 1, 3) uint8; row 0 is the background."""
    from matplotlib.colors import to_rgb

    table = np.array([(0.0, 0.0, 0.0), *(to_rgb(colour) for colour in colours)])
    return (255 * table).round().astype(np.uint8)


def _cell_layer(
    objects: Instances, colours: Sequence[str], width_px: int, fill: float = 0.0, stripes=False, dashes: Sequence = ()
):
    """Return an RGBA picture of outlines with a dark seam, and of areas filled to `fill` (0 to 1), striped or not.

    `dashes` has, for each object, `class_dashes`; without it all outlines are whole.
    """
    from scipy.ndimage import binary_dilation

    labels, scale = _at_drawing_scale(objects.paint())
    table = _rgb(colours)
    layer = np.zeros((*labels.shape, 4), np.uint8)
    if fill:
        inside = labels > 0
        if stripes:
            rows, columns = np.indices(labels.shape, sparse=True)
            inside &= (rows + columns) % 20 < 7
        layer[inside, :3] = table[labels[inside]]
        layer[inside, 3] = round(255 * fill)
    edge = outline_of(labels, width_px)
    seam = binary_dilation(edge, iterations=2) & (labels == 0)
    layer[seam] = (0, 0, 0, 110)
    layer[edge, :3] = table[labels[edge]]
    layer[edge, 3] = 255
    if any(dashes):
        y, x = np.nonzero(edge)
        owner, turned, pairs = _along_outline(objects, labels, scale, y, x)
        for pattern in sorted({one for one in dashes if one}):
            ends = np.cumsum(pattern) / sum(pattern)
            whole = np.maximum(2, np.round(pairs / (len(pattern) / 2)))  # a pattern of two dashes is twice as long
            left_out = np.searchsorted(ends, turned * whole % 1, side="right") % 2 == 1
            of_pattern = np.array([one == pattern for one in dashes])[owner]
            layer[y[of_pattern & left_out], x[of_pattern & left_out]] = (0, 0, 0, 170)
    return layer


def _along_outline(objects: Instances, labels: np.ndarray, scale: float, y: np.ndarray, x: np.ndarray):
    """Return the object of each pixel, how far round it lies (0 to 1), and how many pairs of dashes go round."""
    owner = labels[y, x] - 1
    left, top, width, height = objects.boxes_xywh.T * scale
    angle = np.arctan2(y - (top + height / 2)[owner], x - (left + width / 2)[owner])
    pairs = np.maximum(2, np.round((width + height) * np.pi / 2 / 26)).astype(int)[owner]  # 26 px a pair of dashes
    return owner, angle / (2 * np.pi) + 0.5, pairs


def _dashed_layer(objects: Instances, width_px: int) -> np.ndarray:
    """Return an RGBA picture of dashed outlines, white with a dark seam and dark in turn: visible on any ground and line."""
    from scipy.ndimage import binary_dilation

    labels, scale = _at_drawing_scale(objects.paint())
    layer = np.zeros((*labels.shape, 4), np.uint8)
    y, x = np.nonzero(outline_of(labels, width_px))
    _, turned, pairs = _along_outline(objects, labels, scale, y, x)
    light = np.floor(turned * 2 * pairs) % 2 == 0
    white = np.zeros(labels.shape, bool)
    white[y[light], x[light]] = True
    layer[binary_dilation(white)] = (0, 0, 0, 200)
    layer[y, x] = np.where(light[:, None], (255, 255, 255, 255), (0, 0, 0, 200))
    return layer


def _lay(ax: Axes, layer: np.ndarray, shape: tuple[int, int]) -> None:
    ax.imshow(layer, extent=(-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5), interpolation="antialiased")


def _legend_below(ax: Axes, handles: list, columns: int | None = None) -> None:
    if handles:
        where = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.005), "borderaxespad": 0.2}
        ax.legend(handles=handles, ncols=columns or len(handles), columnspacing=1.1, handlelength=1.2, **where)


@_styled
def show_overlay(
    image: np.ndarray,
    found: Instances,
    truth: Instances | None = None,
    ax: Axes | None = None,
    title: str = "",
    classes: Sequence[str] = (),
    fill: float = 0.0,
    legend: bool = True,
    line_px: int = 4,
    names: tuple[str, str] = ("found", "truth"),
    um_per_px: float = math.nan,
) -> Axes:
    """Show found cells as outlines in the colour of their class, true cells as thin dashes, white and dark.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) uint8
    found, truth : Instances
        Of this image. Where masks overlap, the one of higher score is drawn.
    classes : sequence of str
        Names for the legend.
    fill : float
        0 = outlines only, up to 1 = areas painted over.
    line_px : int
        Width of an outline where the image is drawn 900 px wide.
    names : (str, str)
        What the legend calls the two sides: dashed outlines that a model proposed are no truth.
    um_per_px : float
        Of the image: a scale bar is drawn where it is known.
    """
    _checked_pair(image, found, truth)
    ax = _picture(_axes(ax, shape=image.shape), image, title)
    shape = image.shape[:2]
    if len(found):
        colours, dashes = zip(*((class_colour(k), class_dashes(k)) for k in found.class_ids.tolist()), strict=True)
        _lay(ax, _cell_layer(found, colours, line_px, fill, dashes=dashes), shape)
    if truth is not None and len(truth):
        _lay(ax, _dashed_layer(truth, max(2, line_px // 2)), shape)
    if legend:
        _legend_below(ax, _overlay_handles(found, truth, classes, names))
    return draw_bar(ax, um_per_px)


def _overlay_handles(
    found: Instances, truth: Instances | None, classes: Sequence[str], names: tuple[str, str] = ("found", "truth")
) -> list:
    from matplotlib.lines import Line2D

    kinds, counts = np.unique(found.class_ids, return_counts=True)
    side = f"{names[0]}: " if truth is not None and any(class_name(k, classes) for k in kinds) else ""
    handles = [
        _class_line(k, f"{side}{class_name(k, classes) or names[0]} {n}")
        for k, n in zip(kinds.tolist(), counts.tolist(), strict=True)
    ] or [Line2D([], [], color=UNKNOWN_COLOUR, lw=3, label=f"{names[0]} 0")]
    if truth is not None:
        handles.append(Line2D([], [], color=INK, lw=1.4, ls=(0, (2, 1.4)), label=f"{names[1]} {len(truth)}"))
    return handles


# ---- errors --------------------------------------------------------------------------------------------------------
def verdicts(truth: Instances, found: Instances, threshold: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Return what became of every true and every found object of one image.

    Returns
    -------
    of_truth : (G,) object
        "hit" or "missed".
    of_found : (P,) object
        "hit", "invented", or "wrong class": matched (IoU above `threshold`), both classes known, and not the same.

    Examples
    --------
    >>> truth = Instances.from_labels(np.array([[1, 1, 0, 2, 2]]), class_ids=[1, 1])
    >>> found = Instances.from_labels(np.array([[1, 1, 0, 0, 2]]), class_ids=[2, 1])
    >>> [side.tolist() for side in verdicts(truth, found)]
    [['hit', 'missed'], ['wrong class', 'invented']]
    """
    from cellkit.scores_matching import match_pairs

    i, j = match_pairs(truth, found, threshold)
    of_truth, of_found = np.full(len(truth), "missed", object), np.full(len(found), "invented", object)
    of_truth[i] = "hit"
    known = (truth.class_ids[i] > 0) & (found.class_ids[j] > 0)
    of_found[j] = np.where(known & (truth.class_ids[i] != found.class_ids[j]), "wrong class", "hit")
    return of_truth, of_found


@_styled
def show_errors(
    image: np.ndarray,
    truth: Instances,
    found: Instances,
    ax: Axes | None = None,
    title: str = "",
    threshold: float = 0.5,
    legend: bool = True,
    um_per_px: float = math.nan,
) -> Axes:
    """Show where an answer is right and wrong: hit, missed (striped), invented, wrong class, with counts.

    A hit is a pair with IoU strictly above `threshold`. The image is shown in grey, with a scale bar where its pixel size
    is known.
    """
    _checked_pair(image, truth, found)
    of_truth, of_found = verdicts(truth, found, threshold)
    ax = _picture(_axes(ax, shape=image.shape), (grey_of(image) * 0.75).astype(np.uint8), title)
    shape, missed = image.shape[:2], truth[of_truth == "missed"]
    if len(missed):
        _lay(ax, _cell_layer(missed, [VERDICTS["missed"]] * len(missed), 3, fill=0.55, stripes=True), shape)
    if len(found):
        _lay(ax, _cell_layer(found, [VERDICTS[v] for v in of_found], 5, fill=0.28), shape)
    if legend:
        counts = {name: int((of_found == name).sum()) for name in VERDICTS} | {"missed": len(missed)}
        with_class = truth.class_ids.any() and found.class_ids.any()
        _legend_below(ax, _verdict_handles(counts, with_class))
    return draw_bar(ax, um_per_px)


@_styled
def show_worst(data: CellDataset, found: Sequence[Instances], ax: Axes | None = None) -> Axes:
    """Show the errors in the image of lowest MAP IoU; where a model proposed all labels, only where the two differ most.

    Parameters
    ----------
    data : CellDataset
        Images with their labels; proposals are no truth (`CellDataset.made_by`).
    found : list of Instances
        One per image.
    """
    from cellkit.scores_iou import overlaps
    from cellkit.scores_kaggle import kaggle

    own = [k for k, maker in enumerate(data.made_by) if maker != "proposed"]
    score = {k: kaggle([overlaps(data.instances[k], found[k])], bootstrap=0)["score"] for k in own or range(len(data))}
    k = min(score, key=lambda place: (score[place], place))
    name, um = data.records[k].image_id, data.records[k].um_per_px
    if own:
        return show_errors(*data[k], found[k], ax, f"{name}: MAP IoU {score[k]:.3f}", um_per_px=um)
    names = ("found", "proposed, no truth")
    return show_overlay(data.image(k), found[k], data.instances[k], ax, name, names=names, um_per_px=um)


def _verdict_handles(counts: Mapping[str, int] | None = None, with_class: bool = True) -> list:
    from matplotlib.patches import Patch

    handles = []
    for name, colour in VERDICTS.items():
        if name != "wrong class" or with_class:
            text = name if counts is None else f"{name} {counts[name]}"
            stripes = {"hatch": "/////", "facecolor": "white"} if name == "missed" else {"facecolor": colour}
            handles.append(Patch(**stripes, edgecolor="#B5A800" if name == "missed" else colour, label=text))
    return handles


# ---- from microscope to picture ------------------------------------------------------------------------------------
CHANNEL_INK = {"red": "#C92A2A", "green": "#2B8A3E", "blue": "#1C5FD4"}


def channel_names(channels: str) -> dict[str, str]:
    """Return what is in each colour of a record's `channels` text; empty colours are left out.

    Examples
    --------
    >>> channel_names("red=;green=GFP;blue=DAPI")
    {'green': 'GFP', 'blue': 'DAPI'}
    """
    pairs = (part.partition("=") for part in channels.split(";"))
    return {colour: name for colour, _, name in pairs if colour in CHANNEL_INK and name}


def channels_told(maps: Iterable[str]) -> dict[str, str]:
    """Return what is in each colour where the `channels` of all records agree on it.

    Examples
    --------
    >>> channels_told(["red=;green=GFP;blue=DAPI", "red=;green=GFP;blue=Hoechst"])
    {'green': 'GFP'}
    """
    named = [channel_names(one) for one in maps]
    return {c: named[0][c] for c in CHANNEL_INK if named and len({one.get(c) for one in named}) == 1 and c in named[0]}


@_styled
def show_channels(
    image: np.ndarray,
    channels: str = "",
    figure: Figure | None = None,
    title: str = "",
    um_per_px: float = math.nan,
) -> np.ndarray:
    """Show a picture beside each of its colours in grey, under the name of the channel that is in it.

    Parameters
    ----------
    image : (H, W, 3) uint8
    channels : str
        A record's: "red=;green=GFP;blue=DAPI". Without it every colour that is not empty is shown.
    """
    _checked_image(image)
    colours = list(CHANNEL_INK)
    names = channel_names(channels) or {c: c for k, c in enumerate(colours) if image.ndim == 3 and image[..., k].any()}
    figure = _figure(figure, (3.0 * (1 + len(names)), 3.3))
    axes = np.atleast_1d(figure.subplots(1, 1 + len(names)))
    for ax, (colour, name) in zip(axes, names.items(), strict=False):
        plane = image if image.ndim == 2 else image[..., colours.index(colour)]
        _picture(ax, plane)
        ax.set_title(f"{name}: in {colour}" if name != colour else colour, color=CHANNEL_INK[colour])
    draw_bar(_picture(axes[-1], image, title or "the picture"), um_per_px)
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
        The folder that was converted; ``record.source`` begins with a path below it.
    record : ImageRecord
    config : ConvertConfig, optional
        Its ``axes``, where a file does not say what its axes are.

    Returns
    -------
    array of Axes
        As `show_planes`; as `show_channels` where no file of channels is behind the picture (labelme, composed images).
    """
    from cellkit.dataset import CellDataset
    from cellkit.open import READ_SUFFIXES, open_file

    empty = Instances.empty((record.height_px, record.width_px))
    image = CellDataset([record], [empty], (), Path(run_dir), [1]).image(0)
    path, rest = _source_file(Path(source), record.source)
    if path is None or path.suffix.lower() not in READ_SUFFIXES:
        made = f"{record.image_id}, from {record.source}"
        return show_channels(image, record.channels, figure, made, record.um_per_px)
    scene, time = _number_after("scene", rest), _number_after("t", rest)
    with open_file(path, getattr(config, "axes", None)) as opened:
        series = opened.info.series[scene]
        names = [channel.name or f"channel {k}" for k, channel in enumerate(series.channels)][:4]
        z = series.size("Z") // 2
        planes = np.stack([opened.plane(scene, time, z, k) for k in range(len(names))])
        where = f", plane {z + 1} of {series.size('Z')}" if series.size("Z") > 1 else ""
    levels = _levels_of(Path(run_dir) / "conversion.csv", record.image_id)
    made = f"{record.image_id}: 8-bit RGB{f', {rest}' if rest else ''}"
    named = [f"{name}{where}" for name in names]
    return show_planes(planes, named, image, levels, made, figure, record.um_per_px)


def _source_file(root: Path, source: str) -> tuple[Path | None, str]:
    """Split a record's source into the file it begins with and the rest: scene, time, planes."""
    from cellkit.open import is_image_folder

    words = source.split(" ")
    for cut in range(len(words), 0, -1):
        path = root / " ".join(words[:cut])
        if path.is_file() or is_image_folder(path):
            return path, " ".join(words[cut:])
    return None, source


def _number_after(word: str, text: str) -> int:
    words = text.split()
    later = [words[k + 1] for k, one in enumerate(words[:-1]) if one == word]
    return int(later[0]) if later and later[0].isdigit() else 0


class _Level(NamedTuple):
    """A row of conversion.csv."""

    colour: str
    channel: str
    low: float
    high: float


def _levels_of(path: Path, image_id: str) -> list[_Level]:
    import csv

    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["image_id"] == image_id]
    return [_Level(row["colour"], row["channel"], float(row["low"]), float(row["high"])) for row in rows]


@_styled
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
    levels : sequence of `cellkit.convert.Level`
        Colour, channel, low and high of each channel that was used.
    text : str
        Above the picture.
    um_per_px : float
        Of the picture, which shows the same field as the planes: all get a scale bar where it is known.

    Returns
    -------
    (2 C + 1,) Axes
        Plane and values of each channel, then the picture.
    """
    _checked_image(image)
    planes = np.asarray(planes)
    if planes.ndim != 3 or len(planes) != len(names):
        raise ValueError(f"planes are (C, H, W) with C names, these are {planes.shape} with {len(names)} names")
    by_channel = {level.channel: level for level in levels}
    figure = _figure(figure, (2.8 * (len(planes) + 1.4), 4.5))
    grid = figure.add_gridspec(2, len(planes) + 1, height_ratios=[3, 1], width_ratios=[1] * len(planes) + [1.4])
    pairs = [[figure.add_subplot(grid[row, k]) for row in (0, 1)] for k in range(len(planes))]
    last = draw_bar(_picture(figure.add_subplot(grid[:, -1]), image, text or "8-bit RGB picture"), um_per_px)
    for (ax, below), plane, name in zip(pairs, planes, names, strict=True):
        level = by_channel.get(name) or by_channel.get(name.partition(", plane")[0])
        colour = CHANNEL_INK[level.colour] if level else QUIET
        _picture(ax, plane, vmin=plane.min(), vmax=max(plane.max(), plane.min() + 1))
        draw_bar(ax, um_per_px * math.sqrt(image.shape[0] * image.shape[1] / plane.size))  # the picture may be scaled
        use = f"goes to {level.colour}" if level else "not used" if levels else ""
        ax.set_title(f"{name}\n{use or plane.dtype}", color=colour)
        _values(below, plane, level, colour)
    return np.array([*(ax for pair in pairs for ax in pair), last], object)


def _values(ax: Axes, plane: np.ndarray, level: Any, colour: str) -> None:
    """Draw how many pixels hold which value, and the values that became 0 and 255."""
    from matplotlib.ticker import LogLocator

    counts, edges = np.histogram(plane, bins=80)
    ax.stairs(np.maximum(counts, 0.5), edges, fill=True, color=colour, alpha=0.35, baseline=0.5)
    ax.set_yscale("log")
    ax.minorticks_off()
    ax.yaxis.set_major_locator(LogLocator(numticks=4))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set(xlabel=f"value in the file ({plane.dtype})", ylabel="pixels (log)")
    ax.locator_params(axis="x", nbins=4)
    _dress(ax).tick_params(axis="y", labelsize=8)
    for value, to in ((level.low, "0"), (level.high, "255")) if level else ():
        ax.axvline(value, color=INK, lw=1.1)
        ax.annotate(f"→ {to}", (value, 1), (3, -2), ("data", "axes fraction"), "offset points", va="top", fontsize=8)


# ---- sheets of examples --------------------------------------------------------------------------------------------
class _Examples:
    """Images and their cells: a CellDataset, a folder with records, or a sequence of images; opened one by one."""

    def __init__(self, images: Any, records: Any, instances: Sequence[Instances] | None, classes: Sequence[str]):
        if isinstance(images, (str, Path)):
            images = _folder_of(Path(images), records)
            own = None
        else:
            own = getattr(images, "instances", None)
        self.records = getattr(images, "records", records)
        self.image = images.image if hasattr(images, "image") else images.__getitem__
        self.instances = own if instances is None else instances
        self.classes = tuple(classes) or tuple(getattr(images, "classes", ()))
        self.count = len(images)
        for name, given in (("records", self.records), ("sets of objects", self.instances)):
            if given is not None and len(given) != self.count:
                raise UserError(f"{self.count} images, {len(given)} {name}", "give one per image")

    def shape(self, position: int) -> tuple[int, int]:
        """Return height and width of an image."""
        if self.records is not None:
            return self.records[position].height_px, self.records[position].width_px
        return self.image(position).shape[:2]

    def um_per_px(self, position: int) -> float:
        """Return the pixel size of an image; nan where it is not known."""
        return self.records[position].um_per_px if self.records is not None else math.nan

    def chosen(self, n: int) -> list[int]:
        """Return `n` positions: each cell type in turn, evenly spread within it."""
        groups: dict[str, list[int]] = {}
        for position in range(self.count):
            key = self.records[position].cell_type if self.records is not None else ""
            groups.setdefault(key, []).append(position)
        shares = [len(part) for part in np.array_split(np.arange(min(n, self.count)), len(groups))] if groups else []
        chosen, left = [], 0
        for (_, members), share in zip(
            sorted(groups.items(), key=lambda pair: len(pair[1])), shares[::-1], strict=True
        ):
            take = min(len(members), share + left)
            left += share - take
            chosen += [members[k] for k in np.linspace(0, len(members) - 1, take).round().astype(int)]
        return sorted(chosen)


def _folder_of(root: Path, records: Sequence[ImageRecord] | None):
    from cellkit.dataset import CellDataset

    if records is None:
        raise UserError(f"'{root}' is given without records", "give the records of the images to show")
    nothing = [Instances.empty((r.height_px, r.width_px)) for r in records]
    return CellDataset(list(records), nothing, (), root, list(range(1, len(records) + 1)))


@_styled
def show_sheet(
    images: Any,
    records: Sequence[ImageRecord] | None = None,
    instances: Sequence[Instances] | None = None,
    classes: Sequence[str] = (),
    title: str = "",
    n: int = 8,
    columns: int = 4,
    fill: float = 0.2,
    figure: Figure | None = None,
) -> np.ndarray:
    """Show a sheet of up to `n` images with their masks in the colours of the classes.

    Parameters
    ----------
    images : CellDataset, folder, or sequence of images
        Records count from the folder. More than `n` are thinned out evenly, every cell type in its turn.
    records : list of ImageRecord, optional
        One per image; a CellDataset brings its own. Named above each image, with the flags of images set aside.
    instances : list of Instances, optional
        One per image; a CellDataset brings its own.

    Returns
    -------
    (rows, columns) Axes
    """
    data = _Examples(images, records, instances, classes)
    chosen = data.chosen(n)
    columns = max(1, min(columns, len(chosen)))
    rows = max(1, -(-len(chosen) // columns))
    high = aspect_of(data.shape(chosen[0])) if chosen else 1.0
    figure = _figure(figure, (2.4 * columns, (2.4 * high + 0.4) * rows + 0.4))
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, position in zip(axes.flat, chosen, strict=False):
        cells = data.instances[position] if data.instances is not None else None
        image, name = data.image(position), _title_of(data, position, cells)
        if cells is None:
            _picture(ax, _checked_image(image), name)
        else:
            show_overlay(image, cells, None, ax, name, data.classes, fill, legend=False, line_px=7)
        ax.title.set_fontsize(9)
    draw_bars(axes.flat[: len(chosen)], [(data.shape(k), data.um_per_px(k)) for k in chosen])
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.5)
    present = [data.instances[k].class_ids for k in chosen] if data.instances is not None else []
    _class_legend(figure, present, data.classes)
    return axes


def _title_of(data: _Examples, position: int, cells: Instances | None) -> str:
    record = data.records[position] if data.records is not None else None
    name = str(position + 1) if record is None else shortened(record.image_id)
    told = [_several(len(cells), "cell")] if cells is not None else []
    told += [record.flags.replace(";", ", ").replace("_", " ")] if record is not None and record.flags else []
    return textwrap.fill(f"{name}: {', '.join(told)}" if told else name, 34)


def shortened(name: str, letters: int = 24) -> str:
    """Return a name cut in its middle to at most so many letters.

    Examples
    --------
    >>> shortened("plate_07_well_B03_field_002_channel_1", 15)
    'plate_0…annel_1'
    """
    half = (letters - 1) // 2
    return name if len(name) <= letters else f"{name[:half]}…{name[-half:]}"


def _class_legend(figure: Figure, class_ids: Sequence[np.ndarray], classes: Sequence[str]) -> None:
    ids, counts = np.unique(np.concatenate([np.zeros(0, int), *class_ids]), return_counts=True)
    handles = [
        _class_line(k, f"{class_name(k, classes) or 'cell of unknown class'} ({n})")
        for k, n in zip(ids.tolist(), counts.tolist(), strict=True)
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), handlelength=1.0)


@_styled
def show_crops(
    images: Any,
    records: Sequence[ImageRecord] | None = None,
    instances: Sequence[Instances] | None = None,
    classes: Sequence[str] = (),
    n: int = 8,
    seed: int = 0,
    figure: Figure | None = None,
) -> np.ndarray:
    """Show single cells: a row per class with up to `n` cells each, all at one scale, whole cells first.

    Parameters
    ----------
    images, records, instances, classes
        As in `show_sheet`.
    seed : int
        Which cells are drawn from all of the class.

    Returns
    -------
    (classes, n) Axes
    """
    data = _Examples(images, records, instances, classes)
    cells = data.instances or []
    owner = np.repeat(np.arange(len(cells)), [len(x) for x in cells]) if cells else np.zeros(0, int)
    ids = np.concatenate([np.zeros(0, int), *(x.class_ids for x in cells)])
    boxes = np.concatenate([np.zeros((0, 4), int), *(x.boxes_xywh for x in cells)])
    local = np.concatenate([np.zeros(0, int), *(np.arange(len(x)) for x in cells)])
    side = int(np.ceil(1.4 * np.quantile(boxes[:, 2:].max(axis=1), 0.9))) if len(boxes) else 32
    kinds = np.unique(ids).tolist() or [0]
    figure = _figure(figure, (1.2 * n, 1.45 * len(kinds) + 0.25))
    axes = figure.subplots(len(kinds), n, squeeze=False)
    order = np.random.default_rng(seed).permutation(len(ids))
    cut = np.array([_at_border(box, cells[k].shape) for box, k in zip(boxes, owner, strict=True)], bool)
    order = order[np.argsort(cut[order], kind="stable")]
    shown: list = []
    for row, kind in zip(axes, kinds, strict=True):
        members = order[ids[order] == kind][:n]
        for ax in row:
            ax.set_axis_off()
        for ax, member in zip(row, members, strict=False):
            one = cells[owner[member]][int(local[member])]
            _crop(ax, data.image(int(owner[member])), one, boxes[member], side)
            shown.append((ax, ((side, side), data.um_per_px(int(owner[member])))))
        label = class_name(kind, data.classes) or ("cells" if len(kinds) == 1 else "of unknown class")
        label += f": {len(members)} of {int((ids == kind).sum())}"
        where = {"transform": row[0].transAxes, "va": "bottom", "in_layout": False}
        row[0].text(0, 1.03, label, color=INK, fontsize=10, **where)
        row[0].set_title(" ", fontsize=10)  # keeps the height of the label free, whatever its width
    if shown:
        draw_bars(*zip(*shown, strict=True), size_pt=7.5)
    return axes


def _at_border(box: np.ndarray, shape: tuple[int, int]) -> bool:
    x, y, width, height = box.tolist()
    return x == 0 or y == 0 or x + width == shape[1] or y + height == shape[0]


def _crop(ax: Axes, image: np.ndarray, cell: Instances, box: np.ndarray, side: int) -> None:
    """Show the square of `side` px around a cell; what lies outside the image is black."""
    x, y, width, height = box.tolist()
    left, top = x + width // 2 - side // 2, y + height // 2 - side // 2
    ax.imshow(image, **({"cmap": "gray", "vmin": 0, "vmax": 255} if image.ndim == 2 else {}))
    shape = image.shape[:2]
    rows, columns = slice(max(0, top), min(shape[0], top + side)), slice(max(0, left), min(shape[1], left + side))
    part = Instances.from_labels(cell.paint()[rows, columns])
    kind = int(cell.class_ids[0])
    layer = _cell_layer(part, [class_colour(kind)] * len(part), 16, dashes=[class_dashes(kind)] * len(part))
    ax.imshow(layer, extent=(columns.start - 0.5, columns.stop - 0.5, rows.stop - 0.5, rows.start - 0.5))
    ax.set(xlim=(left - 0.5, left + side - 0.5), ylim=(top + side - 0.5, top - 0.5))
    ax.add_patch(_black(left, top, side))


def _black(left: int, top: int, side: int):
    from matplotlib.patches import Rectangle

    return Rectangle((left - 0.5, top - 0.5), side, side, facecolor="black", zorder=-1)


# ---- scores --------------------------------------------------------------------------------------------------------
def _all_objects(table: pandas.DataFrame) -> pandas.DataFrame:
    """Keep the rows about all objects, whatever their class and size."""
    plain = table["class_name"].fillna("").astype(str) == ""
    return table[plain & (table["size"].fillna("").astype(str) == "")] if "size" in table else table[plain]


def _by_model(table: pandas.DataFrame | Mapping[str, pandas.DataFrame]) -> dict[str, pandas.DataFrame]:
    if isinstance(table, Mapping):
        return {name: table[name] for name in order_models(table)}
    if "model" not in table:
        return {"": table}
    return {name: table[table["model"] == name] for name in order_models(table["model"].unique())}


def _splits_of(table: Any) -> list[str]:
    """Return the splits a table tells apart; [] for one, or none."""
    known = list(dict.fromkeys(table["split"])) if hasattr(table, "columns") and "split" in table else []
    return [name for name in ("train", "val", "test") if name in known] if len(known) > 1 else []


@_styled
def show_curves(
    table: pandas.DataFrame | Mapping[str, pandas.DataFrame], ax: Axes | None = None, title: str = ""
) -> Axes | np.ndarray:
    """Show TP / (TP + FP + FN) over the IoU thresholds, one line per model; its mean is the MAP IoU in the legend.

    Parameters
    ----------
    table : DataFrame or dict
        Of `score_table`, with a column `model`; or name -> table. Mean of the images; an image with nothing on
        either side counts 1. A table of several splits gets Axes for each, unless `ax` is given.
    """
    splits = _splits_of(table)
    if splits and ax is not None:
        raise UserError(f"scores of the splits {', '.join(splits)} for one picture", "give those of one split")
    if splits:
        axes = _figure(None, (5.4 * len(splits), 4.2)).subplots(1, len(splits), sharey=True)
        for one, split in zip(axes, splits, strict=True):
            show_curves(table[table["split"] == split], one, f"{title} {SPLIT_NAMES[split]}".strip())
            one.label_outer()
        return axes
    ax, tables = _axes(ax, (5.6, 4.2)), _by_model(table)
    looks = model_looks(tables)
    curves = {name: curve_of(rows) for name, rows in tables.items() if len(_all_objects(rows))}
    for name in sorted(curves, key=lambda key: -curves[key].mean()):
        curve, label = curves[name], f"{model_name(name)}  {curves[name].mean():.3f}".strip()
        ax.plot(curve.index, curve, label=label, lw=2, ms=5, clip_on=False, zorder=3, **looks[name])
    ax.set(xlabel="IoU threshold (a hit is above it)", ylabel="TP / (TP + FP + FN), mean of images", ylim=(0, 1))
    if curves:
        where = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": 3.4}
        ax.legend(title="MAP IoU", ncols=2, title_fontsize=9, handlelength=3.2, **where)
    ax.set_title(title)
    return _dress(ax, "y")


def curve_of(table: pandas.DataFrame) -> pandas.Series:
    """Return the mean over images of TP / (TP + FP + FN) at each threshold; nothing on either side counts 1."""
    rows = _all_objects(table)
    total = rows["tp"] + rows["fp"] + rows["fn"]
    share = (rows["tp"] / total.where(total > 0, 1)).where(total > 0, 1.0)
    return share.groupby(rows["threshold"]).mean()


@_styled
def show_scores(
    frame: pandas.DataFrame, by: str | None = None, ax: Axes | None = None, title: str = "", value: str = "MAP IoU"
) -> Axes:
    """Show scores as points with their intervals: a row per model, or per part and model.

    Parameters
    ----------
    frame : DataFrame
        `summary` of several models, with a column `model`: model, score, low, high (and the column `by`).
    by : str, optional
        Column that names the parts: cell_type, class_name, size, split; split where there are several.
    """
    by = by or ("split" if _splits_of(frame) else None)
    parts = list(dict.fromkeys(frame[by])) if by else [""]
    models = order_models(frame["model"].unique())
    looks = model_looks(models)
    ax = _axes(ax, (6.2, 0.7 + 0.38 * len(parts) * len(models)))
    places, labels, place = [], [], 0.0
    for part in parts:
        rows = frame[frame[by] == part] if by else frame
        if part:
            name = SPLIT_NAMES.get(part, part) if by == "split" else part
            ax.text(0.0, place - 0.62, name, ha="left", va="center", fontsize=9.5, weight="bold")
        for name in models:
            for line in rows[rows["model"] == name].itertuples():
                _point(ax, line, place, looks[name])
                places.append(place)
                labels.append(model_name(name))
                place += 1
        place += 0.9
    if not places:
        ax.text(0.5, 0.0, "nothing is scored: no image was labelled by a person", ha="center", va="center", color=QUIET)
    ax.set_yticks(places, labels)
    ax.set(xlim=(0, 1), ylim=(max(places, default=0) + 0.6, -1.0 if by else -0.6), xlabel=value)
    ax.set_title(title)
    _rows_only(ax).tick_params(axis="y", pad=8)  # a marker at 0 stands beside the name
    return ax


def _rows_only(ax: Axes, grid: str = "x") -> Axes:
    """Dress a chart whose rows are names."""
    _dress(ax, grid).spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0, labelcolor=INK)
    return ax


def _point(ax: Axes, line: Any, place: float, look: Mapping[str, str]) -> None:
    if not np.isfinite(line.score):
        return
    reach = line.score
    if np.isfinite(line.low) and np.isfinite(line.high):
        ax.plot([line.low, line.high], [place, place], color=look["color"], lw=3, alpha=0.45, solid_capstyle="butt")
        reach = max(line.high, line.score)
    ax.plot([line.score], [place], color=look["color"], marker=look["marker"], ms=7, ls="none", clip_on=False)
    least = line.low if np.isfinite(line.low) else line.score
    if reach < 0.88:
        beside, (shift, up), how = reach, (7, 0), {"ha": "left", "va": "center"}
    elif least > 0.12:
        beside, (shift, up), how = least, (-9, 0), {"ha": "right", "va": "center"}
    else:  # no room on either side of the interval
        beside, (shift, up), how = line.score, (0, 4), {"ha": "center", "va": "bottom"}
    ax.annotate(f"{line.score:.3f}", (beside, place), (shift, up), textcoords="offset points", **how)


@_styled
def show_history(history: Any, figure: Figure | None = None, title: str = "", score: str = "MAP IoU") -> np.ndarray:
    """Show a training: loss above, validation score below with the weights that were kept marked.

    Parameters
    ----------
    history : path or DataFrame, or name -> path or DataFrame
        ``history.csv``: step, loss (mean since the row before), score, seconds.
    score : str
        What the score is.

    Returns
    -------
    (2,) Axes
    """
    from matplotlib.ticker import MaxNLocator

    histories = history if isinstance(history, Mapping) else {"": history}
    figure = _figure(figure, (5.6, 4.6))
    axes = figure.subplots(2, 1, sharex=True)
    looks = model_looks(histories)
    for name, one in histories.items():
        rows = _history_rows(one)
        look = looks[name] if name else {"color": "#0072B2", "marker": "o", "linestyle": "-"}
        label = model_name(name)
        lossy = rows[rows["loss"].notna()]
        whole = {"label": label, "lw": 2, "ms": 4, "clip_on": False, "zorder": 3}
        axes[0].plot(lossy["step"], lossy["loss"], **whole, **look)
        axes[1].plot(rows["step"], rows["score"], **whole, **look)
        if rows["score"].notna().any():
            kept = rows["kept"].astype(bool) if "kept" in rows else rows["score"] == rows["score"].max()
            best = rows[kept].iloc[0] if kept.any() else rows.iloc[-1]
            ring = {"mfc": "none", "mec": look["color"], "mew": 1.6, "clip_on": False, "zorder": 4}
            axes[1].plot([best["step"]], [best["score"]], "o", ms=13, **ring)
            low = best["score"] < 0.25  # then the words stand above
            axes[1].annotate(
                f"kept: step {best['step']:.0f}, {best['score']:.3f}", (best["step"], best["score"]), (0, 12 if low else -12),
                textcoords="offset points", fontsize=9, va="bottom" if low else "top",
                ha="right" if best["step"] > rows["step"].mean() else "left",
            )  # fmt: skip
    axes[0].set(ylabel="training loss", ylim=(0, 1.08 * max(axes[0].get_ylim()[1], 1e-9)))
    note = next((text for one in histories.values() if (text := _read_at(one))), "")
    axes[1].set(ylabel=textwrap.fill(f"validation {score}", 28), xlabel=f"training step{note}", ylim=(0, 1))
    axes[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax in axes:
        _dress(ax, "y").margins(x=0.03)
    if "" not in histories:
        axes[0].legend()
    axes[0].set_title(title)
    return axes


def _read_at(history: Any) -> str:
    """Say why the curve's first and kept points are not the scores of base and tuned in the tables beside it."""
    from cellkit.weights import read_card

    if not isinstance(history, str | Path):
        return ""
    cards = {path.stem: read_card(path) for path in sorted(Path(history).parent.glob("cellpose_*.safetensors"))}
    if "cellpose_tuned" not in cards:
        return ""
    read_at = cards["cellpose_tuned"].metrics.get("read_at", {})
    own = {
        name.removeprefix("cellpose_"): {key: card.config[key] for key in read_at if key in card.config}
        for name, card in cards.items()
    }
    if all(one == read_at for one in own.values()):
        return ""
    at = lambda told: " and ".join(f"{value:g}" for value in told.values())  # noqa: E731
    others = ", ".join(f"{name} at {at(one)}" for name, one in own.items())
    told = (
        f"the curve is read at {' and '.join(f'{key} {value:g}' for key, value in read_at.items())}; "
        f"the scores in the tables are not the curve's: each model is read there at the thresholds that suit it ({others})"
    )
    return "\n" + textwrap.fill(told, 62)


def _history_rows(history: Any) -> pandas.DataFrame:
    import pandas as pd

    rows = history if isinstance(history, pd.DataFrame) else pd.read_csv(history)
    missing = [name for name in ("step", "loss", "score") if name not in rows]
    if missing:
        raise UserError(f"{history} lacks the column(s) {', '.join(missing)}", "give the history.csv of a training")
    return rows


@_styled
def show_counts(counts: pandas.DataFrame, ax: Axes | None = None, title: str = "", images: int = 8) -> Axes:
    """Show which share of the cells is of which class, truth (pale) above found (full), over all and per image.

    Parameters
    ----------
    counts : DataFrame
        Of `evaluation.count_lines`: image_id (and "all"), class_name, found, and truth where it is known.
    images : int
        At most so many images have rows of their own.
    """
    classes = list(dict.fromkeys(counts["class_name"]))
    names = [name for name in dict.fromkeys(counts["image_id"]) if name != "all"]
    shown = [*(["all"] if "all" in set(counts["image_id"]) and len(names) != 1 else []), *names[:images]]
    columns = [(name, shift) for name, shift in (("truth", -0.19), ("found", 0.19)) if name in counts]
    ax = _axes(ax, (6.6, 1.1 + 0.6 * max(len(shown), 1)))
    for place, name in enumerate(shown):
        part = counts[counts["image_id"] == name].set_index("class_name").reindex(classes)
        for column, shift in columns:
            _share_bar(ax, place + shift, part[column].fillna(0).to_numpy(float), pale=column == "truth")
    labels = [f"all {len(names)} images" if name == "all" else shortened(name) for name in shown]
    ax.set_yticks(range(len(shown)), labels)
    ax.set(xlim=(0, 100), ylim=(len(shown) - 0.45, -0.55), xlabel="share of the cells (%), and their number")
    _counts_legend(ax, classes, "truth" in counts)
    ax.set_title(title)
    return _rows_only(ax)


def _share_bar(ax: Axes, place: float, cells: np.ndarray, pale: bool) -> None:
    total, left = cells.sum(), 0.0
    if not total:
        ax.text(1, place, "no cell", va="center", fontsize=8.5, color=QUIET)
    for k, n in enumerate(cells):
        width = 100 * n / total if total else 0
        if width:
            look = {"color": class_colour(k + 1), "lw": 0, "alpha": 0.45 if pale else 1}
            ax.barh(place, width, 0.36, left=left, **look | class_stripes(k + 1))
            text = f"{n:.0f} ({width:.1f} %)" if width > 18 else f"{n:.0f}"
            if width > 4:
                ax.text(left + width / 2, place, text, ha="center", va="center", fontsize=8.5)
        left += width


def _counts_legend(ax: Axes, classes: Sequence[str], with_truth: bool) -> None:
    from matplotlib.patches import Patch

    handles = [_class_patch(k, name) for k, name in enumerate(classes, 1)]
    if with_truth:
        handles += [Patch(color="#8A8F98", alpha=0.35, lw=0, label="truth (above)")]
        handles += [Patch(color="#8A8F98", label="found (below)")]
    where = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": 3.6}
    ax.legend(handles=handles, ncols=len(handles), handlelength=1.2, columnspacing=1.2, **where)


@_styled
def show_gains(attribution: pandas.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Show what the MAP IoU would gain if one kind of fault were repaired: `attribution.attribute` of one model."""
    from cellkit.attribution import gains

    rows = gains(attribution)
    ax = _axes(ax, (5.6, 0.8 + 0.4 * len(rows)))
    ax.barh(np.arange(len(rows)), rows["gain"], 0.62, color="#0072B2")
    for place, line in enumerate(rows.itertuples()):
        where = f"{_several(line.cells, 'cell')} in {_several(line.images, 'image')}"
        text = f"{line.gain:.3f}   {where}" if line.cells else "no such cell"
        ax.annotate(text, (line.gain, place), (6, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_yticks(range(len(rows)), rows["kind"])
    ax.set(ylim=(len(rows) - 0.4, -0.6), xlabel="MAP IoU given back by repairing this kind alone")
    _room_beside(ax, rows["gain"], 1.0, 2.4, 0.1)
    ax.set_title(title)
    return _rows_only(ax)


def _room_beside(ax: Axes, lengths: Sequence[float], most: float, times: float, least: float) -> None:
    """Leave room for the words beside bars, `times` the longest (`least` at least), with no tick beyond `most`."""
    limit = max(least, times * max(lengths, default=0.0))
    ax.set_xlim(0, limit)
    ax.set_xticks([tick for tick in ax.get_xticks() if 0 <= tick <= min(most, limit)])


def _several(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


@_styled
def show_confusion(confusion: pandas.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Show who was taken for whom among matched cells: rows truth, columns found (`class_accuracy`)."""
    ax = _axes(ax, (1.6 + 0.9 * len(confusion.columns), 1.2 + 0.8 * len(confusion)))
    values = confusion.to_numpy(float)
    share = values / np.maximum(values.sum(axis=1, keepdims=True), 1)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    for (row, column), n in np.ndenumerate(values):
        text = f"{n:.0f}\n{100 * share[row, column]:.0f} %"
        ax.text(column, row, text, ha="center", va="center", color="white" if share[row, column] > 0.62 else INK)
    ax.set_xticks(range(len(confusion.columns)), confusion.columns, color=INK)
    ax.set_yticks(range(len(confusion)), confusion.index, color=INK)
    ax.set(xlabel="found as", ylabel="truth")
    ax.set_title(title)
    _dress(ax).tick_params(length=0, labelcolor=INK)
    ax.spines[:].set_visible(False)
    return ax


# ---- what networks see ---------------------------------------------------------------------------------------------
def flow_colours(flow_y: np.ndarray, flow_x: np.ndarray, full: float | None = None) -> np.ndarray:
    """Return flows as colours: hue = direction, brightness = length up to `full` (default the 99th percentile).

    Returns
    -------
    (H, W, 3) uint8
        No flow is black.
    """
    from matplotlib.colors import hsv_to_rgb

    length = np.hypot(flow_y, flow_x)
    if full is None:
        full = float(np.percentile(length[length > 0], 99)) if (length > 0).any() else 1.0
    hue = np.arctan2(flow_y, flow_x) / (2 * np.pi) % 1
    hsv = np.stack([hue, np.full_like(hue, 0.85), np.clip(length / full, 0, 1)], axis=-1)
    return (255 * hsv_to_rgb(hsv)).round().astype(np.uint8)


@_styled
def show_flows(image: np.ndarray, maps: np.ndarray, figure: Figure | None = None, title: str = "") -> np.ndarray:
    """Show what Cellpose's network answers: for each pixel the way to the middle of its cell, and whether it is one.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) uint8
    maps : (3, H, W) float
        Flow y, flow x and cell probability: a network's output (a logit) or its training target (0 or 1).

    Returns
    -------
    (3,) Axes
        Image; flows (hue = direction, arrows); cell probability.
    """
    _checked_image(image)
    maps = np.asarray(maps, np.float32)
    if maps.ndim != 3 or len(maps) < 3:
        raise ValueError(f"maps are flow y, flow x, cell probability: (3, H, W), these are {maps.shape}")
    figure = _figure(figure, (10.5, 3.8))
    axes = figure.subplots(1, 3)
    _picture(axes[0], image, title or "image")
    draw_flows(axes[1], maps)
    axes[1].set_title("flows: colour and arrow = direction", y=1.0)
    cell = maps[2]
    if cell.min() < 0 or cell.max() > 1:
        cell = 1 / (1 + np.exp(-np.clip(cell, -30, 30)))
    _picture(axes[2], cell, "probability of being in a cell", vmin=0, vmax=1, cmap="magma")
    return axes


def draw_flows(ax: Axes, maps: np.ndarray, arrows: int = 34) -> Axes:
    """Draw flows on given Axes, with about `arrows` arrows along the longer side and a wheel of directions."""
    flow_y, flow_x = maps[:2]
    height, width = flow_y.shape
    ax.imshow(flow_colours(flow_y, flow_x), interpolation="nearest")
    step = max(1, max(height, width) // arrows)
    y, x = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    v, u = flow_y[y, x], flow_x[y, x]
    length = np.hypot(u, v)
    some = length > 0.3 * max(float(length.max()), 1e-6)
    u, v = u[some] / length[some], v[some] / length[some]
    reach = 0.8 * step
    ax.quiver(x[some], y[some], u * reach, v * reach, color="white", angles="xy", scale_units="xy", scale=1, pivot="mid",
              width=0.0035, rasterized=True, headwidth=4, headlength=4, headaxislength=3.6)  # fmt: skip
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    ax.set_axis_off()
    wheel = ax.inset_axes((0.91, 1.005, 0.085, 0.085))
    grid = np.linspace(-1, 1, 101)
    dy, dx = np.meshgrid(grid, grid, indexing="ij")
    colours = np.dstack([flow_colours(dy, dx, 1.0), np.where(np.hypot(dy, dx) <= 1, 255, 0).astype(np.uint8)])
    wheel.imshow(colours)
    wheel.set_axis_off()
    return ax


KERNELS = {
    "blur": np.full((3, 3), 1 / 9),
    "left edges": np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4,
    "upper edges": np.array([[-1, -2, -1], [0, 0, 0], [1, 2, 1]]) / 4,
}


@_styled
def show_convolution(
    image: np.ndarray, kernels: Mapping[str, np.ndarray] | None = None, figure: Figure | None = None
) -> np.ndarray:
    """Show what a convolution does: every pixel becomes the weighted sum of its neighbours; the weights decide.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) uint8
        Its brightest channel is used.
    kernels : name -> (3, 3) weights, optional
        Default `KERNELS`.

    Returns
    -------
    (2, 1 + kernels) Axes
        The image and nine of its pixels; above the weights, below what they make of the image.
    """
    from scipy.ndimage import correlate

    kernels = KERNELS if kernels is None else kernels
    plane = grey_of(_checked_image(image)).astype(float)
    figure = _figure(figure, (2.6 * (1 + len(kernels)), 4.9))
    axes = figure.subplots(2, 1 + len(kernels), gridspec_kw={"height_ratios": [1, 1.9]})
    row, column = _edge_pixel(plane)
    patch = np.pad(plane, 1, mode="edge")[row : row + 3, column : column + 3]
    _number_grid(axes[0, 0], patch, "9 pixels", "{:.0f}", cmap="gray", vmin=0, vmax=255)
    _picture(axes[1, 0], plane, "image", vmin=0, vmax=max(plane.max(), 1))
    axes[1, 0].add_patch(_frame(row, column, plane.shape))
    for (top, bottom), (name, kernel) in zip(axes[:, 1:].T, kernels.items(), strict=True):
        answer = correlate(plane, np.asarray(kernel, float), mode="nearest")
        limit = max(abs(kernel).max(), 1e-6)
        _number_grid(
            top, np.asarray(kernel, float), f"weights: {name}", "{:.2g}", cmap="PuOr_r", vmin=-limit, vmax=limit
        )
        signed = answer.min() < -1
        reach = max(float(np.percentile(abs(answer), 99.5)), 1.0)
        how = {"cmap": "PuOr_r", "vmin": -reach, "vmax": reach} if signed else {"vmin": 0, "vmax": max(plane.max(), 1)}
        _picture(bottom, answer, f"here: {(patch * kernel).sum():.0f}", **how)
        bottom.add_patch(_frame(row, column, plane.shape))
    return axes


def _edge_pixel(plane: np.ndarray) -> tuple[int, int]:
    """Return a pixel on a strong edge away from the border, where a kernel has something to say."""
    from scipy.ndimage import gaussian_filter, sobel

    smooth = gaussian_filter(plane, 1)
    strength = np.hypot(sobel(smooth, 0), sobel(smooth, 1))
    margin = min(8, (min(plane.shape) - 1) // 2)
    inner = strength[margin : plane.shape[0] - margin, margin : plane.shape[1] - margin]
    row, column = np.unravel_index(int(inner.argmax()), inner.shape)
    return int(row) + margin, int(column) + margin


def _frame(row: int, column: int, shape: tuple[int, int]):
    from matplotlib.patches import Rectangle

    half = max(1.5, max(shape) / 60)
    return Rectangle((column - half, row - half), 2 * half, 2 * half, fill=False, ec="#FFC20A", lw=2)


def _number_grid(ax: Axes, values: np.ndarray, title: str, form: str, **how) -> None:
    """Show a few numbers as coloured squares with the numbers written in them."""
    shown = ax.imshow(values, **how)
    for (row, column), value in np.ndenumerate(values):
        red, green, blue, _ = shown.cmap(shown.norm(value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        ax.text(column, row, form.format(value), ha="center", va="center", fontsize=9, color="white" if dark else INK)
    ax.set_xticks(np.arange(values.shape[1] + 1) - 0.5, [])
    ax.set_yticks(np.arange(values.shape[0] + 1) - 0.5, [])
    ax.grid(True, color="white", lw=1)
    ax.set_axisbelow(False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title)


# ---- what is in a data set -----------------------------------------------------------------------------------------
@_styled
def show_data(sheet: Mapping[str, Any], figure: Figure | None = None, title: str = "") -> np.ndarray:
    """Show a data-set sheet (`sheet.describe`): cells per class and split, sizes, brightness, label faults.

    Of sizes and brightness, a thin line spans all, a thick one 5 to 95 %, a bar the middle half; the dot is the median.

    Returns
    -------
    (2, 2) Axes
    """
    figure = _figure(figure, (9.6, 6.4))
    axes = figure.subplots(2, 2)
    names, told = list(sheet["area_px"]), channels_told(sheet["channels"])
    ids = {name: 0 if name == "unknown" else k for k, name in enumerate(names, 1)}
    looks = {name: {"color": class_colour(k), "edgecolor": "#666C75"} | class_stripes(k) for name, k in ids.items()}
    _cells_by_split(axes[0, 0], sheet, looks)
    areas, unit = (sheet["area_um2"], "µm²") if sheet.get("area_um2") else (sheet["area_px"], "px")
    _spans(axes[0, 1], {name: areas[name] for name in names}, looks, log=True)
    axes[0, 1].set(xlabel=f"area of a cell ({unit})", title="sizes")
    rows = {
        f"{name}, {told.get(colour, colour)}": (points, CHANNEL_INK[colour])
        for name, light in [*((name, sheet["light"].get(name, {})) for name in names), ("background", sheet["ground"])]
        for colour, points in light.items()
    }
    inks = {row: {"color": ink, "edgecolor": "#666C75"} for row, (_, ink) in rows.items()}
    _spans(axes[1, 0], {row: points for row, (points, _) in rows.items()}, inks)
    grey = "mean grey level of a cell, median of the background,\nin the pictures that 01 made (0 to 255)"
    axes[1, 0].set(xlabel=grey, title="brightness", xlim=(0, 255))
    _fault_bars(axes[1, 1], sheet)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.5)
    return axes


def _cells_by_split(ax: Axes, sheet: Mapping[str, Any], looks: Mapping[str, dict]) -> None:
    """Draw a bar per split, parted by class; images and cells are written beside it."""
    from matplotlib.patches import Patch

    splits = list(sheet["classes_by_split"])
    for place, split in enumerate(splits):
        left = 0
        for name, n in sheet["classes_by_split"][split].items():
            ax.barh(place, n, 0.6, left=left, lw=0.6, **looks[name])
            left += n
        images = sum(row["images"] for row in sheet["by_split"] if row["split"] == split)
        text = f"{_several(left, 'cell')}, {_several(images, 'image')}"
        ax.annotate(text, (left, place), (5, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_yticks(range(len(splits)), [SPLIT_NAMES.get(split, "set aside") for split in splits])
    ax.set(ylim=(len(splits) - 0.4, -0.6), title="cells by class and split")
    ax.set_xlim(0, 1.7 * max([1, *(sum(counts.values()) for counts in sheet["classes_by_split"].values())]))
    _rows_only(ax)
    rest = {name: {key: value for key, value in look.items() if key != "color"} for name, look in looks.items()}
    handles = [Patch(facecolor=looks[name]["color"], **rest[name], label=name) for name in looks]
    if handles:
        ax.legend(handles=handles, ncols=min(3, len(handles)), loc="upper center", bbox_to_anchor=(0.5, -0.08))


def _spans(ax: Axes, rows: Mapping[str, Sequence[float]], looks: Mapping[str, dict], log: bool = False) -> None:
    """Draw seven points (least, 5, 25, 50, 75, 95 %, most) of each row: thin line, line, bar, dot."""
    rows = {name: points for name, points in rows.items() if points}
    for place, (name, points) in enumerate(rows.items()):
        least, low, lower, middle, upper, high, most = (max(v, 1e-3) if log else v for v in points)
        ax.plot([least, most], [place, place], color="#A8ADB5", lw=1)
        ax.plot([low, high], [place, place], color="#666C75", lw=2.5, solid_capstyle="butt")
        ax.barh(place, upper - lower, 0.5, left=lower, lw=0.6, **looks[name])
        ax.plot([middle], [place], "o", color="white", mec=INK, ms=5)
    ax.set_yticks(range(len(rows)), [shortened(name) for name in rows])
    ax.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    if log:
        _log_axis(ax, [value for points in rows.values() for value in points])
    _rows_only(ax)


def _log_axis(ax: Axes, values: Sequence[float]) -> None:
    """Make the x axis logarithmic, with several ticks whatever it spans."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    ax.set_xscale("log")
    least, most = max(min(values, default=1.0), 1e-3), max(max(values, default=10.0), 1e-3)
    ax.set_xlim(least / 1.25, most * 1.25)
    digits = next(
        digits
        for reach, digits in ((5, ()), (50, (1, 2, 5)), (1000, (1, 3)), (math.inf, (1,)))
        if most <= reach * least
    )
    ax.xaxis.set_major_locator(LogLocator(subs=digits) if digits else MaxNLocator(4))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()


def _fault_bars(ax: Axes, sheet: Mapping[str, Any]) -> None:
    from cellkit.sheet import FAULT_WORDS

    kinds = list(sheet["faults"])
    share = [100 * sheet["faults"][kind] / max(sheet["cells"], 1) for kind in kinds]
    ax.barh(range(len(kinds)), share, 0.6, color="#0072B2")
    for place, kind in enumerate(kinds):
        text = f"{sheet['faults'][kind]} ({share[place]:.1f} %)" if sheet["faults"][kind] else "none"
        ax.annotate(text, (share[place], place), (5, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_yticks(range(len(kinds)), [FAULT_WORDS[kind] for kind in kinds])
    ax.set(ylim=(len(kinds) - 0.4, -0.6), xlabel="share of the cells (%)", title="labels")
    _room_beside(ax, share, 100.0, 1.45, 1.0)
    _rows_only(ax)


@_styled
def show_set_aside(
    root: str | Path,
    records: Sequence[ImageRecord],
    quality: Sequence[Mapping[str, Any]],
    thresholds: Mapping[str, float],
    n: int = 12,
    columns: int = 4,
    figure: Figure | None = None,
    title: str = "flagged",
) -> np.ndarray:
    """Show up to `n` flagged images with the reason in words and numbers; more are thinned out, every flag in its turn.

    Parameters
    ----------
    root : path
        The folder that the records' paths count from.
    records : sequence of ImageRecord
    quality : sequence of mapping
        Of each record, in the same order: rows of quality.csv.
    thresholds : mapping
        As `quality.flag_records` returns them.

    Returns
    -------
    (rows, columns) Axes
        One empty row where nothing is flagged.
    """
    from cellkit.flags import reasons

    data = _folder_of(Path(root), records)
    flags = sorted({record.flags for record in records} - {""})
    turns = [[k for k, record in enumerate(records) if record.flags == flag] for flag in flags]
    chosen = [k for turn in range(n) for members in turns for k in members[turn : turn + 1]][:n]
    columns = max(1, min(columns, len(chosen)))
    rows = max(1, -(-len(chosen) // columns))
    figure = _figure(figure, (2.4 * columns, 3.0 * rows + 0.4))
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, k in zip(axes.flat, chosen, strict=False):
        told = [shortened(records[k].image_id, 30), *reasons(quality[k], thresholds, records[k].flags)]
        _picture(ax, data.image(k)).set_title("\n".join(textwrap.fill(line, 40) for line in told), fontsize=8)
    scales = [((records[k].height_px, records[k].width_px), records[k].um_per_px) for k in chosen]
    draw_bars(axes.flat[: len(chosen)], scales)
    left = sum(map(len, turns)) - len(chosen)
    figure.suptitle(f"{title}{f' ({left} more)' if left else ''}", x=0.01, ha="left", fontsize=11.5)
    return axes
