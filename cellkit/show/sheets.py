"""Contact sheets: example images, single cells, and flagged images with the reason."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from fastcore.basics import groupby

from cellkit.cells.dataset import CellDataset, evenly_spaced
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError, counted
from cellkit.microscope.flags import reasons
from cellkit.show.overlays import cell_layer, checked_image, draw_picture, show_overlay
from cellkit.show.style import (
    INK,
    aspect_of,
    class_colour,
    class_dashes,
    class_line,
    class_name,
    draw_bars,
    figure_or_new,
    shortened,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _chosen(records: Sequence[ImageRecord], n: int) -> list[int]:
    """Return `n` positions: each cell type in turn, evenly spread within it."""
    groups = groupby(enumerate(record.cell_type for record in records), 1, 0)
    shares = [len(part) for part in np.array_split(np.arange(min(n, len(records))), len(groups))] if groups else []
    chosen, left = [], 0
    for members, share in zip(sorted(groups.values(), key=len), shares[::-1], strict=True):
        take = min(len(members), share + left)
        left += share - take
        chosen += [members[k] for k in evenly_spaced(len(members), take)]
    return sorted(chosen)


def _folder_of(root: Path, records: Sequence[ImageRecord] | None) -> CellDataset:
    if records is None:
        raise UserError(f"'{root}' is given without records", "give the records of the images to show")
    nothing = [Instances.empty((r.height_px, r.width_px)) for r in records]
    return CellDataset(list(records), nothing, (), root, list(range(1, len(records) + 1)))


@styled
def show_sheet(
    images: CellDataset | str | Path,
    records: Sequence[ImageRecord] | None = None,
    instances: Sequence[Instances] | None = None,
    title: str = "",
    n: int = 8,
    columns: int = 4,
    figure: Figure | None = None,
) -> np.ndarray:
    """Show a sheet of up to `n` images with their masks in the colours of the classes.

    Parameters
    ----------
    images : CellDataset, or folder
        Of more than `n`, evenly spaced ones are shown, every cell type in its turn.
    records : list of ImageRecord, optional
        The images of a folder, and what is said of each; a CellDataset brings its own.
    instances : list of Instances, optional
        One per image; a CellDataset brings its own.

    Raises
    ------
    UserError
        A folder without records, or not one `Instances` per image.

    Returns
    -------
    (rows, columns) Axes
    """
    data = _folder_of(Path(images), records) if isinstance(images, str | Path) else images
    if instances is None and data is images:
        instances = data.instances
    if instances is not None and len(instances) != len(data):
        raise UserError(f"{len(data)} images, {len(instances)} sets of objects", "give one per image")
    chosen = _chosen(data.records, n)
    shapes = [(data.records[k].height_px, data.records[k].width_px) for k in chosen]
    columns = max(1, min(columns, len(chosen)))
    rows = max(1, -(-len(chosen) // columns))
    high = aspect_of(shapes[0]) if chosen else 1.0
    figure = figure_or_new(figure, (2.4 * columns, (2.4 * high + 0.4) * rows + 0.4))
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, position in zip(axes.flat, chosen, strict=False):
        cells = None if instances is None else instances[position]
        image, name = data.image(position), _title_of(data.records[position], cells)
        if cells is None:
            draw_picture(ax, checked_image(image), name)
        else:
            show_overlay(image, cells, None, ax, name, data.classes, 0.2, legend=False, line_px=7)
        ax.title.set_fontsize(9)
    draw_bars(axes.flat[: len(chosen)], [(s, data.records[k].um_per_px) for s, k in zip(shapes, chosen, strict=True)])
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.5)
    _class_legend(figure, [] if instances is None else [instances[k].class_ids for k in chosen], data.classes)
    return axes


def _title_of(record: ImageRecord, cells: Instances | None) -> str:
    notes = [counted(len(cells), "cell")] if cells is not None else []
    notes += [record.flags.replace(";", ", ").replace("_", " ")] if record.flags else []
    name = shortened(record.image_id, 22)
    return textwrap.fill(
        f"{name}: {', '.join(notes)}" if notes else name, 25
    )  # so many digits are as wide as a picture


def _class_legend(figure: Figure, class_ids: Sequence[np.ndarray], classes: Sequence[str]) -> None:
    ids, counts = np.unique(np.concatenate([np.zeros(0, int), *class_ids]), return_counts=True)
    handles = [
        class_line(k, f"{class_name(k, classes) or 'cell of unknown class'} ({n})")
        for k, n in zip(ids.tolist(), counts.tolist(), strict=True)
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), handlelength=1.0)


@styled
def show_crops(data: CellDataset, n: int = 8, seed: int = 0, figure: Figure | None = None) -> np.ndarray:
    """Show single cells: a row per class with up to `n` cells each, all at one scale, whole cells first.

    Parameters
    ----------
    data : CellDataset
    seed : int
        Which cells are drawn from all of the class.

    Returns
    -------
    (classes, n) Axes
    """
    cells = data.instances
    owner = np.repeat(np.arange(len(cells)), [len(x) for x in cells]) if cells else np.zeros(0, int)
    ids = np.concatenate([np.zeros(0, int), *(x.class_ids for x in cells)])
    boxes = np.concatenate([np.zeros((0, 4), int), *(x.boxes_xywh for x in cells)])
    local = np.concatenate([np.zeros(0, int), *(np.arange(len(x)) for x in cells)])
    side = int(np.ceil(1.4 * np.quantile(boxes[:, 2:].max(axis=1), 0.9))) if len(boxes) else 32
    kinds = np.unique(ids).tolist() or [0]
    figure = figure_or_new(figure, (1.2 * n, 1.45 * len(kinds) + 0.25))
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
            shown.append((ax, ((side, side), data.records[owner[member]].um_per_px)))
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
    layer = cell_layer(part, [class_colour(kind)] * len(part), 16, dashes=[class_dashes(kind)] * len(part))
    ax.imshow(layer, extent=(columns.start - 0.5, columns.stop - 0.5, rows.stop - 0.5, rows.start - 0.5))
    ax.set(xlim=(left - 0.5, left + side - 0.5), ylim=(top + side - 0.5, top - 0.5))
    ax.add_patch(_black(left, top, side))


def _black(left: int, top: int, side: int):
    from matplotlib.patches import Rectangle

    return Rectangle((left - 0.5, top - 0.5), side, side, facecolor="black", zorder=-1)


@styled
def show_flagged(
    root: str | Path,
    records: Sequence[ImageRecord],
    quality: Sequence[Mapping[str, Any]],
    thresholds: Mapping[str, float],
    n: int = 12,
    columns: int = 4,
    figure: Figure | None = None,
) -> np.ndarray:
    """Show up to `n` flagged images with the reason in words and numbers; of more, evenly spaced ones, every flag in its turn.

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
        One, with the words, where nothing is flagged.
    """
    data = _folder_of(Path(root), records)
    flags = sorted({record.flags for record in records} - {""})
    turns = [[k for k, record in enumerate(records) if record.flags == flag] for flag in flags]
    chosen = [k for turn in range(n) for members in turns for k in members[turn : turn + 1]][:n]
    columns = max(1, min(columns, len(chosen)))
    rows = max(1, -(-len(chosen) // columns))
    figure = figure_or_new(figure, (2.4 * columns, (3.0 if chosen else 0.4) * rows + 0.4))
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    if not chosen:
        axes[0, 0].text(0, 0.5, f"none of {counted(len(records), 'image')} is flagged")
    for ax, k in zip(axes.flat, chosen, strict=False):
        lines = [shortened(records[k].image_id, 30), *reasons(quality[k], thresholds, records[k].flags)]
        draw_picture(ax, data.image(k)).set_title("\n".join(textwrap.fill(line, 40) for line in lines), fontsize=8)
    scales = [((records[k].height_px, records[k].width_px), records[k].um_per_px) for k in chosen]
    draw_bars(axes.flat[: len(chosen)], scales)
    left = sum(map(len, turns)) - len(chosen)
    figure.suptitle(f"flagged{f' ({left} more)' if left else ''}", x=0.01, ha="left", fontsize=11.5)
    return axes


@styled
def show_side_by_side(
    image: np.ndarray,
    sides: Mapping[str, Instances | None],
    classes: Sequence[str] = (),
    figure: Figure | None = None,
    um_per_px: float = math.nan,
) -> np.ndarray:
    """Show one image several times, side by side: with nothing, with its boxes, with what was made of them or found.

    Parameters
    ----------
    image : (H, W, 3) uint8
    sides : mapping
        Title -> cells or boxes, in the colours of their classes; None = the image alone. The legend counts the last.

    Returns
    -------
    (N,) Axes
    """
    figure = figure_or_new(figure, (3.4 * len(sides), 3.4 * aspect_of(image.shape) + 0.8))
    axes = figure.subplots(1, len(sides), squeeze=False)[0]
    for ax, (title, cells) in zip(axes, sides.items(), strict=True):
        if cells is None:
            draw_picture(ax, checked_image(image), title)
        else:
            show_overlay(image, cells, None, ax, f"{title}: {len(cells)}", classes, 0.15, legend=False, line_px=6)
    draw_bars(axes, [(image.shape, um_per_px)] * len(axes))
    _class_legend(figure, [cells.class_ids for cells in sides.values() if cells is not None][-1:], classes)
    return axes
