"""The drawings that only the slides need: each takes a matplotlib figure and what a run folder holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.scores.iou import overlaps
from cellkit.scores.matching import THRESHOLDS, count, hits, match_pairs
from cellkit.show.explained import draw_flows, flow_colours
from cellkit.show.overlays import VERDICTS, grey_of, show_overlay
from cellkit.show.style import CLASS_COLOURS, FAINT, INK, QUIET, class_colour, class_name, draw_bar

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE = "#0072B2"


# ---- crops ---------------------------------------------------------------------------------------------------------
class Crop(NamedTuple):
    """A square of an image and the cells in it; `origin` = its first row and column, `um_per_px` nan if not known."""

    image: np.ndarray
    cells: Instances
    origin: tuple[int, int]
    um_per_px: float = math.nan


def crop(
    image: np.ndarray, cells: Instances, centre: tuple[float, float], side: int, um_per_px: float = math.nan
) -> Crop:
    """Cut a square out of an image, moved inwards where it would leave it."""
    side = min(side, *image.shape[:2])
    row, column = (int(np.clip(c - side // 2, 0, n - side)) for c, n in zip(centre, image.shape[:2], strict=True))
    window = (slice(row, row + side), slice(column, column + side))
    labels = cells.paint()[window]
    present = np.unique(labels[labels > 0]) - 1
    part = Instances.from_labels(labels, cells.class_ids[present], cells.scores[present])
    return Crop(image[window], part, (row, column), um_per_px)


def busiest(cells: Instances, side: int) -> tuple[int, int]:
    """Return the centre of the square of `side` px that holds most classes, then most centres of cells."""
    x, y, width, height = cells.boxes_xywh.T
    middle = np.stack([y + height / 2, x + width / 2], axis=1)
    if not len(middle):
        return cells.shape[0] // 2, cells.shape[1] // 2
    half = side / 2
    inside = [np.clip(m, half, max(half, n - half)) for m, n in zip(middle.T, cells.shape, strict=True)]
    places = np.stack(inside, axis=1)
    near = (np.abs(places[:, None] - middle[None]) <= half).all(axis=2)
    kinds = np.array([len(np.unique(cells.class_ids[row])) for row in near])
    best = places[np.lexsort((-near.sum(axis=1), -kinds))[0]]
    return int(best[0]), int(best[1])


def typical_side(cells: Sequence[Instances], times: float) -> int:
    """Return `times` the median diameter of the cells, in px."""
    areas = np.concatenate([np.zeros(0), *(x.areas_px for x in cells)])
    return int(times * np.sqrt(np.median(areas) * 4 / np.pi)) if areas.size else 128


def _bare(ax, image: np.ndarray, title: str = "", **how) -> None:
    how = {"cmap": "gray", "vmin": 0, "vmax": 255} | how if image.ndim == 2 else how
    ax.imshow(image, **how)
    ax.set_axis_off()
    if title:
        ax.set_title(title)


# ---- the loop ------------------------------------------------------------------------------------------------------
def draw_loop(figure, pictures: Sequence[tuple[str, np.ndarray]], um_per_px: float = math.nan) -> None:
    """Draw small pictures in a ring with arrows from each to the next: (caption, image) clockwise from the top left.

    The first has pixels of `um_per_px` and a scale bar where that is known; the others show the same field.
    """
    ax = figure.subplots()
    width, height = figure.bbox.width / figure.dpi, figure.bbox.height / figure.dpi
    size = min(0.37 * height, 0.27 * width)
    columns = -(-len(pictures) // 2)
    xs = np.linspace(size / 2 + 0.05, width - size / 2 - 0.05, columns)
    top, bottom = height - 0.35 - size / 2, height - 0.35 - 1.5 * size - 0.85
    upper = [(x, top) for x in xs]
    lower = [(x, bottom) for x in (xs if len(pictures) % 2 == 0 else xs[1:])][::-1]
    places = upper + lower
    for k, ((x, y), (caption, image)) in enumerate(zip(places, pictures, strict=True)):
        place = ax.inset_axes((x - size / 2, y - size / 2, size, size), transform=ax.transData)
        _bare(place, image)
        if k == 0:
            draw_bar(place, um_per_px)
        ax.text(x, y + size / 2 + 0.07, f"{k + 1}  {caption}", ha="center", va="bottom", fontsize=9, weight="bold")
        _arrow(ax, (x, y), places[(k + 1) % len(places)], size)
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.set_axis_off()


def _arrow(ax, start: tuple[float, float], end: tuple[float, float], size: float) -> None:
    (x0, y0), (x1, y1) = start, end
    if abs(y1 - y0) < 0.1:
        side = np.sign(x1 - x0)
        a, b = (x0 + side * (size / 2 + 0.04), y0), (x1 - side * (size / 2 + 0.04), y1)
    else:
        down = np.sign(y1 - y0)
        label = 0.3  # captions stand above the pictures
        a = (x0, y0 + down * (size / 2 + (label if down > 0 else 0.05)))
        b = (x1, y1 - down * (size / 2 + (label if down < 0 else 0.05)))
    ax.annotate("", b, a, arrowprops={"arrowstyle": "-|>", "color": BLUE, "lw": 2, "mutation_scale": 14})


def picture_of(draw: Callable[[Axes], object], shape: tuple[int, int]) -> np.ndarray:
    """Return what `draw` paints on Axes without a frame, as (h, w, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 3 * shape[0] / shape[1]), dpi=150)
    canvas = FigureCanvasAgg(figure)
    draw(figure.add_axes((0, 0, 1, 1)))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


# ---- a network -----------------------------------------------------------------------------------------------------
class Insight(NamedTuple):
    """What a network makes of one crop.

    planes : (2, h, w) float; down, up : lists of (channels, h / 2**k, w / 2**k) float; maps : (3, h, w) float;
    influence : (h, w) float, how much the middle pixel's answer depends on each pixel; parameters : int.
    """

    planes: np.ndarray
    down: list[np.ndarray]
    up: list[np.ndarray]
    maps: np.ndarray
    influence: np.ndarray
    parameters: int


def look_inside(checkpoint, image: np.ndarray, diameter_px: float, channels: str, side: int = 128) -> Insight:
    """Run Cellpose's network on the middle of an image, as it sees it (cells of 30 px), and keep what is on the way."""
    import cv2
    import torch

    from cellkit.models.shared.inputs import two_channels
    from cellkit.models.unet_network import load_network

    network, _ = load_network(checkpoint)
    network = network.to("cpu")
    planes = two_channels(image, channels)
    scale = float(network.diam_mean.item()) / diameter_px
    size = [max(side, round(n * scale)) for n in image.shape[:2]]
    planes = np.stack([cv2.resize(plane, size[::-1], interpolation=cv2.INTER_AREA) for plane in planes])
    top, left = ((n - side) // 2 for n in size)
    planes = np.ascontiguousarray(planes[:, top : top + side, left : left + side])
    x = torch.from_numpy(planes)[None].requires_grad_()
    down, up = network.features(x)
    maps = network.output(up[0])
    maps[0, 2, side // 2, side // 2].backward()
    influence = x.grad[0].abs().sum(dim=0).numpy()
    plain = lambda parts: [part[0].detach().numpy() for part in parts]  # noqa: E731
    count = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return Insight(planes, plain(down), plain(up), maps[0].detach().numpy(), influence, count)


def seen_side(influence: np.ndarray, share: float = 0.9) -> int:
    """Return the side (px) of the centred square that holds `share` of all influence."""
    n = influence.shape[0]
    total = influence.sum()
    for half in range(n // 2 + 1):
        window = slice(n // 2 - half, n // 2 + half + 1)
        if influence[window, window].sum() >= share * total:
            return 2 * half + 1
    return n


def draw_network(figure, sight: Insight) -> None:
    """Draw the network as the U it is: every stack of squares is real maps of this image."""
    ax = figure.subplots()
    width, height = figure.bbox.width / figure.dpi, figure.bbox.height / figure.dpi
    levels = len(sight.down)
    sizes = [0.215 * height * 0.82**k for k in range(levels)]
    left = [width * x for x in np.linspace(0.2, 0.455, levels)]
    right = [width * 0.91 - x for x in left]
    ys = [height * y for y in np.linspace(0.84, 0.16, levels)]
    for k in range(levels):
        _maps_of_level(ax, left[k], ys[k], sizes[k], sight.down[k])
        if k < levels - 1:
            _maps_of_level(ax, right[k], ys[k], sizes[k], sight.up[k], shift=0.14)
            _line(ax, (left[k] + sizes[k] / 2 + 0.2, ys[k]), (right[k] - sizes[k] / 2 - 0.06, ys[k]), QUIET, ":")
            down = (left[k + 1] - 0.1, ys[k + 1] + sizes[k + 1] / 2 + 0.16)
            _line(ax, (left[k] + sizes[k] / 2 + 0.2, ys[k] - 0.3 * sizes[k]), down, BLUE)
            below = left[k + 1] if k == levels - 2 else right[k + 1]
            up = (below + 0.15, ys[k + 1] + sizes[k + 1] / 2 + 0.16)
            _line(ax, up, (right[k] - sizes[k] / 2 - 0.06, ys[k] - 0.3 * sizes[k]), BLUE)
    _note(ax, (left[0] + right[0]) / 2, ys[0] + 0.05, "what was seen is handed across", va="bottom")
    _input_card(ax, sight, width * 0.055, ys[0], sizes[0])
    _line(ax, (width * 0.055 + sizes[0] * 0.57, ys[0]), (left[0] - sizes[0] / 2 - 0.06, ys[0]), BLUE)
    _line(ax, (right[0] + sizes[0] / 2 + 0.2, ys[0]), (width * 0.94 - sizes[0] * 0.57, ys[0]), BLUE)
    _answers(ax, sight, width * 0.94, height, sizes[0])
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.set_axis_off()


def _maps_of_level(ax, x: float, y: float, size: float, maps: np.ndarray, shift: float = 0.0) -> None:
    _stack(ax, x, y, size, maps)
    _note(ax, x + shift, y - size / 2 - 0.04, f"{len(maps)} maps, {maps.shape[1]} px")


def _input_card(ax, sight: Insight, x: float, y: float, size: float) -> None:
    picture = np.zeros((*sight.planes.shape[1:], 3), np.uint8)
    picture[..., 1:] = (255 * np.clip(sight.planes.transpose(1, 2, 0), 0, 1)).astype(np.uint8)
    _card(ax, x, y, size, picture)
    _note(ax, x, y - size / 2 - 0.04, f"2 planes, {picture.shape[0]} px")


def _answers(ax, sight: Insight, x: float, height: float, size: float) -> None:
    """Draw the flows, the cell probability, and on which pixels the answer in the middle depends."""
    flows = flow_colours(sight.maps[0], sight.maps[1])
    cell = 1 / (1 + np.exp(-np.clip(sight.maps[2], -30, 30)))
    share = np.clip(sight.influence / max(float(np.percentile(sight.influence, 99.9)), 1e-12), 0, 1) ** 0.5
    ys = [height * y for y in (0.84, 0.5, 0.16)]
    _card(ax, x, ys[0], size, flows)
    _card(ax, x, ys[1], size, cell, cmap="magma", vmin=0, vmax=1)
    _card(ax, x, ys[2], size, share, cmap="viridis", vmin=0, vmax=1)
    ax.add_patch(_square(x, ys[2], seen_side(sight.influence) * size / len(share)))
    for y, text in zip(ys, ("flows (2 maps)", "is it a cell?", "seen by its middle"), strict=True):
        _note(ax, x, y - size / 2 - 0.04, text)


def _square(x: float, y: float, side: float):
    from matplotlib.patches import Rectangle

    return Rectangle((x - side / 2, y - side / 2), side, side, fill=False, ec=CLASS_COLOURS[0], lw=1.6, zorder=5)


def _stack(ax, x: float, y: float, size: float, maps: np.ndarray) -> None:
    """Draw the three liveliest maps as a stack of cards."""
    lively = np.argsort(-maps.reshape(len(maps), -1).std(axis=1), kind="stable")[:3][::-1]
    for place, k in enumerate(lively):
        low, high = np.percentile(maps[k], (1, 99))
        shift = 0.07 * (len(lively) - 1 - place)
        _card(
            ax, x + shift, y + shift, size, maps[k], cmap="gray", vmin=low, vmax=max(high, low + 1e-6), zorder=2 + place
        )


def _card(ax, x: float, y: float, size: float, image: np.ndarray, zorder: int = 2, **how) -> None:
    from matplotlib.patches import Rectangle

    box = (x - size / 2, x + size / 2, y - size / 2, y + size / 2)
    ax.imshow(image, extent=box, zorder=zorder, **how)
    ax.add_patch(Rectangle((box[0], box[2]), size, size, fill=False, ec="white", lw=1, zorder=zorder + 0.1))


def _note(ax, x: float, y: float, text: str, ha: str = "center", va: str = "top") -> None:
    ax.text(x, y, text, ha=ha, va=va, fontsize=8, color=QUIET, linespacing=1.15)


def _line(ax, start, end, colour: str, style: str = "-") -> None:
    how = {
        "arrowstyle": "-|>",
        "color": colour,
        "lw": 1.6,
        "ls": style,
        "mutation_scale": 11,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    ax.annotate("", end, start, arrowprops=how, zorder=1)


# ---- flows ---------------------------------------------------------------------------------------------------------
def follow(flows: np.ndarray, points_yx: np.ndarray, steps: int) -> np.ndarray:
    """Walk from each point along the flows, a pixel a step: (steps + 1, P, 2) float rows of (y, x)."""
    from scipy.ndimage import map_coordinates

    path = [np.asarray(points_yx, float)]
    limit = np.array(flows.shape[1:]) - 1.0
    for _ in range(steps):
        here = path[-1].T
        move = np.stack([map_coordinates(flow, here, order=1, mode="nearest") for flow in flows], axis=1)
        path.append(np.clip(path[-1] + move, 0, limit))
    return np.stack(path)


def draw_tracking(figure, part: Crop, steps: int = 60) -> None:
    """Draw how flows become masks: cells, flows, the way of some pixels, and which pixels end at one place."""
    from cellkit.models.shared.flows import target_of

    axes = figure.subplots(1, 4)
    labels = part.cells.paint()
    target = target_of(labels)
    flows = target[:2] / 5
    cells = part.cells.with_classes(0)
    show_overlay(part.image, cells, ax=axes[0], title="1  true cells", legend=False, um_per_px=part.um_per_px)
    draw_flows(axes[1], target, arrows=26)
    axes[1].set_title("2  flows to the middle", y=1.0)
    _draw_paths(axes[2], part.image, labels, flows, steps)
    axes[2].set_title("3  every pixel walks along")
    _draw_ends(axes[3], labels, flows, steps)
    axes[3].set_title("4  same end, same cell")


def _draw_paths(ax, image: np.ndarray, labels: np.ndarray, flows: np.ndarray, steps: int) -> None:
    from matplotlib.collections import LineCollection

    _bare(ax, (grey_of(image) * 0.45).astype(np.uint8))
    step = max(3, max(labels.shape) // 40)
    y, x = np.mgrid[step // 2 : labels.shape[0] : step, step // 2 : labels.shape[1] : step]
    inside = labels[y, x] > 0
    points = np.stack([y[inside], x[inside]], axis=1)
    path = follow(flows, points, steps)
    colours = _cell_colours(labels)[labels[points[:, 0], points[:, 1]]]
    ax.add_collection(LineCollection(path[:, :, ::-1].transpose(1, 0, 2), colors=colours, lw=0.8, rasterized=True))
    ax.scatter(path[-1, :, 1], path[-1, :, 0], s=9, c="white", edgecolors="black", linewidths=0.4, zorder=3)


def _draw_ends(ax, labels: np.ndarray, flows: np.ndarray, steps: int) -> None:
    """Colour every pixel by the cell in whose middle its walk ends."""
    y, x = np.nonzero(labels)
    ends = follow(flows, np.stack([y, x], axis=1), steps)[-1].round().astype(int)
    colours = _cell_colours(labels)
    picture = np.zeros((*labels.shape, 3))
    picture[y, x] = colours[labels[ends[:, 0], ends[:, 1]]]
    ax.imshow(picture)
    ax.set_axis_off()


def _cell_colours(labels: np.ndarray) -> np.ndarray:
    """Return a colour for each label, neighbours in number far apart: (N + 1, 3) float, row 0 black."""
    from matplotlib import colormaps

    n = int(labels.max())
    hues = (np.arange(n) * 0.61803) % 1
    return np.concatenate([np.zeros((1, 3)), colormaps["turbo"](0.08 + 0.84 * hues)[:, :3]])


# ---- Mask R-CNN ----------------------------------------------------------------------------------------------------
def draw_detection(figure, part: Crop, truth: Instances, classes: Sequence[str]) -> None:
    """Draw what a detector answers: boxes with class and score, a mask inside each box; and the truth."""
    boxes, masks, true = figure.subplots(1, 3)
    _bare(boxes, part.image, "1  boxes, classes, scores")
    height, width = part.image.shape[:2]
    for box, kind, score in zip(part.cells.boxes_xywh, part.cells.class_ids, part.cells.scores, strict=True):
        x, y, w, h = box.tolist()
        whole = x > 0 and y > 0 and x + w < width and y + h < height
        text = f"{class_name(int(kind), classes) or 'cell'} {score:.2f}" if whole else ""
        _draw_box(boxes, (x, y, w, h), class_colour(int(kind)), text)
    draw_bar(boxes, part.um_per_px)
    show_overlay(part.image, part.cells, ax=masks, classes=classes, fill=0.3, title="2  a mask in each box")
    show_overlay(part.image, truth, ax=true, classes=classes, title="truth", names=("truth", "truth"))


def _draw_box(ax, box: tuple[int, int, int, int], colour: str, text: str) -> None:
    from matplotlib.patches import Rectangle

    x, y, width, height = box
    ax.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, ec=colour, lw=1.6))
    if text:
        label = {"facecolor": colour, "edgecolor": "none", "pad": 1.0, "alpha": 0.9}
        ax.text(x, y, text, fontsize=8, va="bottom", ha="left", color=INK, bbox=label, clip_on=True)


# ---- the metric ----------------------------------------------------------------------------------------------------
class Pair(NamedTuple):
    """A true and a found cell of one image that overlap: their places, and their IoU."""

    truth: int
    found: int
    iou: float


def example_pair(truth: Instances, found: Instances, wanted: float = 0.78) -> Pair | None:
    """Return the matched pair (IoU > 0.5) whose IoU is nearest to `wanted`, away from the border if there is one."""
    pairs = overlaps(truth, found)
    i, j = match_pairs(pairs)
    if not len(i):
        return None
    size = max(pairs.n_found, 1)
    iou = pairs.iou[np.searchsorted(pairs.truth * size + pairs.found, i * size + j)]
    x, y, width, height = truth.boxes_xywh[i].T
    cut = (x == 0) | (y == 0) | (x + width == truth.shape[1]) | (y + height == truth.shape[0])
    best = np.lexsort((np.abs(iou - wanted), cut))[0]
    return Pair(int(i[best]), int(j[best]), float(iou[best]))


def draw_metric(
    figure, image: np.ndarray, truth: Instances, found: Instances, pair: Pair, um_per_px: float = math.nan
) -> None:
    """Draw one pair of cells and its IoU, at which thresholds it is a hit, and the whole image's score."""
    grid = figure.add_gridspec(2, 2, width_ratios=[1, 1.25], height_ratios=[0.45, 1])
    _draw_pair(figure.add_subplot(grid[:, 0]), image, truth[pair.truth], found[pair.found])
    draw_bar(figure.axes[-1], um_per_px)
    own = overlaps(truth[pair.truth], found[pair.found])
    passed = hits(own)[:, 0]
    ax = figure.add_subplot(grid[0, 1])
    _draw_ladder(ax, passed, pair.iou)
    counts = count(overlaps(truth, found))
    ax = figure.add_subplot(grid[1, 1])
    _draw_steps(ax, counts)


def _draw_pair(ax, image: np.ndarray, truth: Instances, found: Instances) -> None:
    from matplotlib.patches import Patch

    first, last = truth.boxes_xywh[0], found.boxes_xywh[0]
    left, top = min(first[0], last[0]), min(first[1], last[1])
    right, bottom = (max(a[k] + a[k + 2] for a in (first, last)) for k in (0, 1))
    side = int(1.35 * max(right - left, bottom - top))
    centre = ((top + bottom) / 2, (left + right) / 2)
    a, b = (crop(image, one, centre, side) for one in (truth, found))
    both, one = a.cells.paint() > 0, b.cells.paint() > 0
    ax.imshow((grey_of(a.image) * 0.6).astype(np.uint8), cmap="gray", vmin=0, vmax=255)
    layer = np.zeros((*both.shape, 4))
    for mask, colour in (
        (both & one, VERDICTS["hit"]),
        (both & ~one, VERDICTS["missed"]),
        (one & ~both, VERDICTS["invented"]),
    ):
        layer[mask] = [*(int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)), 0.75]
    ax.imshow(layer)
    ax.set_axis_off()
    areas = [int((both & one).sum()), int((both & ~one).sum()), int((one & ~both).sum())]
    names = ("in both", "only true", "only found")
    handles = [
        Patch(color=VERDICTS[v], label=f"{name}: {area} px")
        for v, name, area in zip(("hit", "missed", "invented"), names, areas, strict=True)
    ]
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=1, handlelength=1.2)
    ax.set_title(f"IoU = {areas[0]} / {sum(areas)} = {areas[0] / sum(areas):.3f}")


def _draw_ladder(ax, passed: np.ndarray, iou: float) -> None:
    thresholds = np.array([float(t) for t in THRESHOLDS])
    ax.axhline(0, color=FAINT, lw=6, zorder=0)
    for good, colour, face in ((True, BLUE, BLUE), (False, QUIET, "white")):
        some = thresholds[passed == good]
        ax.plot(some, 0 * some, "o", ms=9, mec=colour, mfc=face, mew=1.4)
    ax.plot([iou], [0.42], "v", color=INK, ms=8)
    ax.text(iou, 0.75, f"this pair: {iou:.3f}", ha="center", fontsize=9)
    ax.set(xlim=(0.46, 0.99), ylim=(-0.5, 1.25), yticks=[])
    ax.set_xticks(thresholds, [f"{t:.2f}" for t in thresholds], fontsize=7.5)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_title(f"a hit at {int(passed.sum())} of the ten thresholds")


def _draw_steps(ax, counts) -> None:
    thresholds = np.array([float(t) for t in THRESHOLDS])
    total = np.maximum(sum(counts), 1)
    share = counts.tp / total
    ax.bar(thresholds, share, 0.034, color=BLUE)
    texts = [f"{tp}/{n}" for tp, n in zip(counts.tp, total, strict=True)]
    turned = 90 if max(map(len, texts)) > 4 else 0
    for t, height, text in zip(thresholds, share, texts, strict=True):
        ax.text(t, height + 0.02, text, ha="center", fontsize=7.5, color=QUIET, rotation=turned)
    ax.axhline(share.mean(), color=INK, lw=1.2, ls="--")
    ax.text(0.995, share.mean(), f"mean\n{share.mean():.3f}", ha="left", va="center", fontsize=9, weight="bold")
    ax.set(xlim=(0.46, 0.99), ylim=(0, 1.25 if turned else 1.1), yticks=[0, 0.5, 1], ylabel="TP / (TP + FP + FN)")
    ax.set_xticks(thresholds, [f"{t:.2f}" for t in thresholds], fontsize=7.5)
    ax.set_title("the whole image: its MAP IoU is the mean")


# ---- tables and bars -----------------------------------------------------------------------------------------------
def draw_table(ax, columns: Sequence[str], rows: Sequence[Sequence[str]], mark: int = -1) -> None:
    """Write a table: the first column to the left, the others to the right; `mark` is set in bold."""
    widths = [max(len(row[k]) for row in [columns, *rows]) + 1.5 for k in range(len(columns))]
    rights = np.cumsum(widths) / sum(widths)
    lines = len(rows) + 1
    for place, row in enumerate([columns, *rows]):
        y = 1 - (place + 0.5) / lines
        weight = "bold" if place == mark + 1 and mark >= 0 else "normal"
        for k, text in enumerate(row):
            x, ha = (0.0, "left") if k == 0 else (rights[k], "right")
            ax.text(x, y, text, ha=ha, va="center", fontsize=8.5, weight=weight, color=QUIET if place == 0 else INK)
        ax.axhline(1 - (place + 1) / lines, color="#A8ADB5" if place == 0 else FAINT, lw=1)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.set_axis_off()


def draw_minutes(ax, minutes: Sequence[tuple[str, float]]) -> Any:
    """Draw how long each stage took."""
    names, values = [name for name, _ in minutes], [value for _, value in minutes]
    ax.barh(range(len(names)), values, 0.5, color=BLUE)
    for place, value in enumerate(values):
        text = f"{value:.1f} min" if value >= 0.95 else f"{60 * value:.0f} s"
        ax.annotate(text, (value, place), (6, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_yticks(range(len(names)), names)
    ax.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, 1.25 * max([*values, 0.1])), xlabel="minutes")
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(axis="y", length=0, labelcolor=INK)
    return ax
