"""Charts of counts: cells of each class, found and true, and what is in a data set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.records import OVERALL, SPLIT_IMAGES, common_channels
from cellkit.errors import counted
from cellkit.show.charts import room_beside
from cellkit.show.conversion import CHANNEL_INK
from cellkit.show.style import (
    INK,
    QUIET,
    axes_or_new,
    class_colour,
    class_patch,
    class_stripes,
    figure_or_new,
    legend_below,
    rows_only,
    shortened,
    styled,
    words_only,
)
from cellkit.sources.statistics import FAULT_WORDS

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def show_counts(counts: pandas.DataFrame, ax: Axes | None = None, images: int = 8) -> Axes:
    """Show which share of the cells is of which class, truth (pale) above found (full), over all and per image.

    Parameters
    ----------
    counts : DataFrame
        Of `classes.count_by_class`: image_id (last that of all images), class_name, found, and truth where it is known.
    images : int
        At most so many images have rows of their own.
    """
    classes, names = list(dict.fromkeys(counts["class_name"])), list(dict.fromkeys(counts["image_id"]))
    overall = names.pop() if names and names[-1] in OVERALL else None
    if not names:
        return words_only("there is no image whose cells are counted", ax)
    shown = [*([overall] if overall and len(names) != 1 else []), *names[:images]]
    columns = [(name, shift) for name, shift in (("truth", -0.19), ("found", 0.19)) if name in counts]
    ax = axes_or_new(ax, counts_size(counts, images))
    for place, name in enumerate(shown):
        part = counts[counts["image_id"] == name].set_index("class_name").reindex(classes)
        for column, shift in columns:
            _share_bar(ax, place + shift, part[column].fillna(0).to_numpy(float), pale=column == "truth")
    labels = [f"all {len(names)} images" if name == overall else shortened(name) for name in shown]
    ax.set_yticks(range(len(shown)), labels)
    ax.set(xlim=(0, 100), ylim=(len(shown) - 0.45, -0.55), xlabel="share of the cells (%), and their number")
    _counts_legend(ax, classes, "truth" in counts)
    return rows_only(ax)


def counts_size(counts: pandas.DataFrame, images: int = 8) -> tuple[float, float]:
    """Return width and height (inches) of the chart of counts: of its rows, and of the lines that its legend takes."""
    rows = min(counts["image_id"].nunique(), images + 1)
    letters = sum(len(shortened(name)) + 7 for name in dict.fromkeys(counts["class_name"])) + 40 * ("truth" in counts)
    return 7.6, 1.3 + 0.6 * rows + 0.2 * -(-letters // 80)


def _share_bar(ax: Axes, place: float, cells: np.ndarray, pale: bool) -> None:
    from matplotlib.colors import to_rgba

    total, left = cells.sum(), 0.0
    if not total:
        ax.text(1, place, "no cell", va="center", fontsize=8.5, color=QUIET)
    for k, n in enumerate(cells):
        width = 100 * n / total if total else 0
        if width:
            look = {"facecolor": to_rgba(class_colour(k + 1), 0.45 if pale else 1), "lw": 0.5, "edgecolor": "#666C75"}
            ax.barh(place, width, 0.36, left=left, **look | class_stripes(k + 1))
            text = f"{n:.0f} ({width:.1f} %)" if width > 18 else f"{n:.0f}"
            if width > 4:
                ax.text(left + width / 2, place, text, ha="center", va="center", fontsize=8.5)
        left += width


def _counts_legend(ax: Axes, classes: Sequence[str], with_truth: bool) -> None:
    from matplotlib.patches import Patch

    handles = [class_patch(k, shortened(name)) for k, name in enumerate(classes, 1)]
    for k, handle in enumerate(handles, 1):
        handle.set(edgecolor=class_stripes(k).get("edgecolor", "#666C75"), linewidth=0.5)
    if with_truth:
        handles += [Patch(color="#8A8F98", alpha=0.35, lw=0, label="truth (above)")]
        handles += [Patch(color="#8A8F98", label="found (below)")]
    legend_below(ax, handles, pad=3.8)


@styled
def show_data(sheet: Mapping[str, Any], figure: Figure | None = None) -> np.ndarray:
    """Show a data-set sheet (`statistics.describe`): cells per class and split, sizes, brightness, label faults.

    Of sizes and brightness, a thin line spans all, a thick one 5 to 95 %, a bar the middle half; the dot is the median.

    Returns
    -------
    (2, 2) Axes
    """
    figure = figure_or_new(figure, data_size(sheet))
    axes = figure.subplots(2, 2, height_ratios=_heights(sheet))
    names, channel_of = list(sheet["area_px"]), common_channels(sheet["channels"])
    ids = {name: 0 if name == "unknown" else k for k, name in enumerate(names, 1)}
    looks = {name: {"color": class_colour(k), "edgecolor": "#666C75"} | class_stripes(k) for name, k in ids.items()}
    _cells_by_split(axes[0, 0], sheet, looks)
    areas, unit = (sheet["area_um2"], "µm²") if sheet.get("area_um2") else (sheet["area_px"], "px")
    spans(axes[0, 1], {name: areas[name] for name in names}, looks, log=True)
    axes[0, 1].set(xlabel=f"area of a cell ({unit})", title="sizes")
    rows = {
        f"{name}, {channel_of.get(colour, colour)}": (points, CHANNEL_INK[colour])
        for name, light in [*((name, sheet["light"].get(name, {})) for name in names), ("background", sheet["ground"])]
        for colour, points in light.items()
    }
    inks = {row: {"color": ink, "edgecolor": "#666C75"} for row, (_, ink) in rows.items()}
    spans(axes[1, 0], {row: points for row, (points, _) in rows.items()}, inks)
    grey = "mean grey level of a cell, median of the background,\nin the pictures that 01 made (0 to 255)"
    axes[1, 0].set(xlabel=grey, title="brightness", xlim=(0, 255))
    _fault_bars(axes[1, 1], sheet)
    return axes


def data_size(sheet: Mapping[str, Any]) -> tuple[float, float]:
    """Return width and height (inches) of the picture of a data-set sheet: each row of sizes and brightness has its place."""
    return 9.6, sum(_heights(sheet))


def _heights(sheet: Mapping[str, Any]) -> list[float]:
    """Return the heights of the upper and the lower charts."""
    lower = len(sheet["ground"]) + sum(map(len, sheet["light"].values()))
    return [max(3.2, 1.4 + 0.26 * len(sheet["area_px"])), max(3.2, 1.3 + 0.23 * lower)]


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
        text = f"{counted(left, 'cell')}, {counted(images, 'image')}"
        ax.annotate(text, (left, place), (5, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_yticks(range(len(splits)), [SPLIT_IMAGES.get(split, "excluded") for split in splits])
    ax.set(ylim=(len(splits) - 0.4, -0.6), title="cells by class and split")
    ax.set_xlim(0, 1.7 * max([1, *(sum(counts.values()) for counts in sheet["classes_by_split"].values())]))
    rows_only(ax)
    rest = {name: {key: value for key, value in look.items() if key != "color"} for name, look in looks.items()}
    handles = [Patch(facecolor=looks[name]["color"], **rest[name], label=shortened(name)) for name in looks]
    if handles:
        legend_below(ax, handles, pad=1.9)


def spans(ax: Axes, rows: Mapping[str, Sequence[float]], looks: Mapping[str, dict], log: bool = False) -> None:
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
    rows_only(ax)


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
    kinds = list(sheet["faults"])
    share = [100 * sheet["faults"][kind] / max(sheet["cells"], 1) for kind in kinds]
    ax.barh(range(len(kinds)), share, 0.6, color="#0072B2")
    for place, kind in enumerate(kinds):
        text = f"{sheet['faults'][kind]} ({share[place]:.1f} %)" if sheet["faults"][kind] else "none"
        ax.annotate(text, (share[place], place), (5, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_yticks(range(len(kinds)), [FAULT_WORDS[kind] for kind in kinds])
    ax.set(ylim=(len(kinds) - 0.4, -0.6), xlabel="share of the cells (%)", title="labels")
    room_beside(ax, share, 100.0, 1.45, 1.0)
    rows_only(ax)
