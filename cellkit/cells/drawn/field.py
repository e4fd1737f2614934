"""Drawn two-channel cells with exact truth: HEK-like islands of flat-sided cells, N2a-like round cells with neurites.

No public set has two stained channels and whole-cell masks, so the demonstration, the tests and a part of the starter
weights' training data are drawn here. A field is made in four steps: where cells sit, which pixels are whose, how much
light each pixel sends (`draw_field`), and what a camera makes of that (`expose`, `expose_stack`). The truth is the
second step, taken before any blur or noise.

What tells the lines apart is what tells them apart under a microscope: HEK 293 cells (human) grow in tight islands,
polygonal where they touch, with smooth nuclei and dark nucleoli; Neuro-2a cells (mouse) are looser, round, send out
neurites, and have bright chromocentres in DAPI.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellkit.cells.drawn.style import LINES, CellLine, FieldStyle
from cellkit.errors import UserError, nearest

DEFECTS = ("", "out_of_focus", "debris", "saturated", "empty")
CHANNELS = ("DAPI", "GFP")
DEBRIS_SIZES = (0.5, 1.3)
MIN_AREA_PX = 8


@dataclass(frozen=True, eq=False)
class Field:
    """One drawn field: light without noise, and the truth.

    Attributes
    ----------
    cytoplasm, nuclei : (H, W) float32
        Photons expected per pixel, before blur, background and uneven light.
    labels : (H, W) int32
        Whole cells 1..N, each one 8-connected piece; 0 = background.
    nuclei_labels : (H, W) int32
        Nuclei under the number of their cell, strictly inside it. A cell whose nucleus the border cut off, or one too
        small for a nucleus, has none.
    class_names : tuple of str
        Line of each cell: label k is `class_names[k - 1]`.
    defect : str
        One of `DEFECTS`; out_of_focus and saturated happen when the field is exposed.
    """

    cytoplasm: np.ndarray
    nuclei: np.ndarray
    labels: np.ndarray
    nuclei_labels: np.ndarray
    class_names: tuple[str, ...]
    defect: str = ""


def draw_field(lines: Sequence[str], style: FieldStyle, seed: int | Sequence[int], defect: str = "") -> Field:
    """Draw one field of view of one or more cell lines, without blur or noise, with its truth.

    Parameters
    ----------
    lines : sequence of str
        Names out of `LINES`; several are mixed in about equal numbers.
    style : FieldStyle
        Sizes, crowding, brightness.
    seed : int or sequence of int
        The same seed and style give the same field.
    defect : str
        One of `DEFECTS`: "empty" has no cells, "debris" adds bright clumps and fibres that are not in the truth;
        "out_of_focus" and "saturated" are carried along for `expose`.

    Returns
    -------
    Field
        Arrays of `style.size_px`. Cells at the border are cut by it. May hold no cell at all when density is small.

    Raises
    ------
    UserError
        Unknown line or defect; a field without pixels, or cells under 8 px across.
    """
    check_names(lines, defect)
    if min(style.size_px) < 1 or style.diameter_px < 8:
        came = f"size_px is {style.size_px}, diameter_px {style.diameter_px:g}"
        raise UserError(f"{came}; wanted sizes >= 1 and cells >= 8 px", "draw larger cells, or a larger field")
    rng = np.random.default_rng(seed)
    margin = int(round(1.2 * style.diameter_px))
    canvas = (style.size_px[0] + 2 * margin, style.size_px[1] + 2 * margin)
    centres, owners = _place_cells(rng, [LINES[name] for name in lines], style, canvas, defect == "empty")
    kinds = [LINES[lines[owner]] for owner in owners]
    labels, radii_px = _claim_pixels(rng, centres, kinds, style, canvas)
    depth_px = depth(labels)
    nuclei_labels, nuclei_light = _draw_nuclei(rng, labels, depth_px, radii_px, kinds)
    inner = (slice(margin, margin + style.size_px[0]), slice(margin, margin + style.size_px[1]))
    labels, nuclei_labels, kept = _tidy(labels[inner], nuclei_labels[inner])
    cytoplasm = _paint_cytoplasm(
        rng, labels, nuclei_labels, depth_px[inner], radii_px[kept - 1], [kinds[old - 1] for old in kept], style
    )
    nuclei = nuclei_light[inner] * (nuclei_labels > 0) + 0.02 * cytoplasm
    if defect == "debris":
        dirt = _draw_debris(rng, style)
        cytoplasm, nuclei = cytoplasm + dirt, nuclei + dirt * rng.uniform(0.3, 0.9)
    return Field(
        cytoplasm=(style.photons * cytoplasm).astype(np.float32),
        nuclei=(style.photons * nuclei).astype(np.float32),
        labels=labels,
        nuclei_labels=nuclei_labels,
        class_names=tuple(lines[owners[old - 1]] for old in kept),
        defect=defect,
    )


# ---- where cells sit -------------------------------------------------------------------------------------------------


def check_names(lines: Sequence[str], defect: str) -> None:
    """Raise UserError for an unknown line or defect, or for no line at all.

    Raises
    ------
    UserError
        With the names to choose from.
    """
    if isinstance(lines, str) or not lines:
        raise UserError(f"lines is {lines!r}, wanted a sequence of names", f"choose from {', '.join(LINES)}")
    for name in lines:
        if name not in LINES:
            raise UserError(f"no cell line {name!r}{nearest(name, LINES)}", f"choose from {', '.join(LINES)}")
    if defect not in DEFECTS:
        choices = ", ".join(repr(name) for name in DEFECTS)
        raise UserError(f"no defect {defect!r}{nearest(defect, DEFECTS)}", f"choose from {choices}")


def _place_cells(rng, kinds: list[CellLine], style: FieldStyle, canvas, empty: bool) -> tuple[np.ndarray, list[int]]:
    """Return centres (N, 2) and the owner (index of line) of each, cell by cell: islands grow, loners scatter."""
    d = style.diameter_px
    wanted = 0 if empty else rng.poisson(style.density * canvas[0] * canvas[1] / (np.pi / 4 * d * d))
    centres, owners = np.empty((wanted, 2)), np.empty(wanted, dtype=int)
    found = 0
    for turn in range(wanted):
        owner = turn % len(kinds)
        kind = kinds[owner]
        tries = rng.uniform(0, canvas, size=(24, 2))
        mates = centres[:found][owners[:found] == owner]
        beside = len(mates) > 0 and rng.random() < kind.sociable
        if beside:
            angle, step = rng.uniform(0, 2 * np.pi, 24), d * kind.pitch * rng.uniform(0.92, 1.12, 24)
            steps = step[:, None] * np.stack([np.sin(angle), np.cos(angle)], 1)
            tries = mates[rng.integers(len(mates), size=24)] + steps
        inside = ((tries >= 0) & (tries < canvas)).all(1)
        y, x = centres[:found].T
        squares = (tries[:, :1] - y) ** 2 + (tries[:, 1:] - x) ** 2
        free = inside & (squares >= (kind.closest * d) ** 2).all(1)
        if not free.any():
            continue
        neighbours = (squares < (1.4 * d) ** 2).sum(1) * beside  # the snuggest place makes the island tight
        best = int(np.argmax(np.where(free, neighbours, -1)))
        centres[found], owners[found] = tries[best], owner
        found += 1
    return centres[:found], owners[:found].tolist()


# ---- which pixels are whose ------------------------------------------------------------------------------------------

ANGLES = np.linspace(-np.pi, np.pi, 73)


def _outline(rng, corners: tuple[int, int], stretch: tuple[float, float], wobble: float) -> np.ndarray:
    """Return the outline of a body of mean radius 1: its radius at each of `ANGLES` (first = last)."""
    turn, ratio = rng.uniform(0, np.pi), rng.uniform(*stretch)
    across = np.hypot(np.cos(ANGLES - turn) / np.sqrt(ratio), np.sin(ANGLES - turn) * np.sqrt(ratio))
    if corners[1]:
        n = int(rng.integers(corners[0], corners[1] + 1))
        normals = (np.arange(n) + rng.uniform(-0.32, 0.32, n)) * 2 * np.pi / n + rng.uniform(0, 2 * np.pi)
        reach = rng.uniform(0.85, 1.15, n)
        facing = np.maximum(np.cos(ANGLES[:, None] - normals) / reach, 0.0)
        across = across * (facing**20).sum(1) ** (1 / 20)  # a soft maximum: flat sides, rounded corners
    waves = np.arange(2, 6)
    sway = rng.normal(0, wobble, 4) / (waves - 1)
    radii = (1 + (sway * np.cos(waves * ANGLES[:, None] + rng.uniform(0, 2 * np.pi, 4))).sum(1)) / across
    return radii / np.sqrt((radii[1:] ** 2).mean())


def _window(centre, reach_px: float, canvas) -> tuple[slice, slice]:
    """Return the slices of the square around `centre`, clipped to the canvas."""
    low = [max(0, int(c - reach_px)) for c in centre]
    high = [min(size, int(c + reach_px) + 2) for c, size in zip(centre, canvas, strict=True)]
    return slice(low[0], high[0]), slice(low[1], high[1])


def _inside(dy: np.ndarray, dx: np.ndarray, outline_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (distance over outline radius in that direction, squared distance in px)."""
    square = dy * dy + dx * dx
    return np.sqrt(square) / np.interp(np.arctan2(dy, dx), ANGLES, outline_px), square


def _claim_pixels(rng, centres, kinds: list[CellLine], style: FieldStyle, canvas) -> tuple[np.ndarray, np.ndarray]:
    """Return (labels (H, W) int32, cell radii (N,) px).

    A pixel inside several outlines goes to the cell with the smallest power distance |x - c|^2 - r^2: that makes the
    border of two touching cells a straight line, as between epithelial cells. Neurites grow over free ground only.
    """
    d = style.diameter_px
    labels, cost = np.zeros(canvas, dtype=np.int32), np.full(canvas, np.inf)
    bend = 0.035 * d * np.stack([clouds(rng, canvas, 0.45 * d), clouds(rng, canvas, 0.45 * d)])
    rows, columns = np.mgrid[: canvas[0], : canvas[1]] + bend
    radii_px, outlines = np.empty(len(centres)), []
    for k, (centre, kind) in enumerate(zip(centres, kinds, strict=True), start=1):
        tiny = rng.uniform(0.3, 0.5) if rng.random() < style.tiny_fraction else 1.0
        radius = 0.5 * d * kind.spread * tiny * np.exp(rng.normal(0, kind.size_sigma))
        outline = radius * _outline(rng, kind.corners, kind.stretch, 0.03 if kind.corners[1] else 0.055)
        window = _window(centre, outline.max() + 0.2 * d, canvas)
        share, square = _inside(rows[window] - centre[0], columns[window] - centre[1], outline)
        bid = square - radius * radius
        won = (share < 1) & (bid < cost[window])
        labels[window][won], cost[window][won] = k, bid[won]
        radii_px[k - 1] = radius
        outlines.append(outline)
    for k, (centre, kind, outline) in enumerate(zip(centres, kinds, outlines, strict=True), start=1):
        for _ in range(min(4, rng.poisson(kind.neurites))):
            _grow_neurite(rng, labels, k, centre, outline, d)
    return labels, radii_px


def _grow_neurite(rng, labels: np.ndarray, k: int, centre, outline_px: np.ndarray, d: float) -> None:
    """Paint one process of cell k in place: from the soma outwards over free ground, ending at the first other cell."""
    path, thick = _neurite_path(rng, outline_px, d)
    path = path + np.asarray(centre)
    at = np.round(path).astype(int)
    within = ((at >= 0) & (at < labels.shape)).all(1)
    owner = np.where(within, labels[tuple(np.clip(at, 0, np.array(labels.shape) - 1).T)], -1)
    blocked = np.flatnonzero((owner != 0) & (owner != k))
    end = blocked[0] if blocked.size else len(path)
    reach = int(np.ceil(thick.max())) + 1
    stamp = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1).T
    pixels = at[:end, None] + stamp
    pixels = pixels[((pixels - path[:end, None]) ** 2).sum(2) <= thick[:end, None] ** 2]
    pixels = pixels[((pixels >= 0) & (pixels < labels.shape)).all(1)].T
    free = labels[tuple(pixels)] == 0
    labels[tuple(pixels[:, free])] = k


def _neurite_path(rng, outline_px: np.ndarray, d: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (points (P, 2) one px apart from the soma's centre, half width (P,) px, nowhere under 1.25)."""
    heading = rng.uniform(-np.pi, np.pi)
    length = max(3, int(2.2 * outline_px.mean() * np.clip(rng.lognormal(-0.15, 0.5), 0.3, 2.4)))
    along = np.arange(length)
    turns = heading + np.cumsum(rng.normal(0, 0.018, length)) + rng.normal(0, 0.012) * along
    path = np.cumsum(np.stack([np.sin(turns), np.cos(turns)], 1), 0)
    path += 0.8 * np.interp(heading, ANGLES, outline_px) * np.array([np.sin(heading), np.cos(heading)])
    thick = max(1.25, 0.04 * d) + 0.16 * d * rng.uniform(0.7, 1.2) * np.exp(-along / (0.22 * d))
    thick = thick * (1 + 0.12 * np.sin(along / (0.12 * d) + rng.uniform(0, 6)))
    if rng.random() < 0.5:  # a growth cone at the tip
        thick = thick + 0.07 * d * np.exp(-0.5 * ((along - length + 0.08 * d) / (0.06 * d)) ** 2)
    return path, np.maximum(thick, 1.25)


def depth(labels: np.ndarray) -> np.ndarray:
    """Return the distance (px, float32) of each cell pixel to the nearest pixel that is not of its cell; else 0."""
    from scipy.ndimage import distance_transform_edt

    edge = labels == 0
    for axis in (0, 1):
        step = np.diff(labels, axis=axis) != 0
        ahead, behind = [slice(None)] * 2, [slice(None)] * 2
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        edge[tuple(ahead)] |= step
        edge[tuple(behind)] |= step
    return ((distance_transform_edt(~edge) + 1) * (labels > 0)).astype(np.float32)


def _tidy(labels: np.ndarray, nuclei_labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep the largest piece of each cell and nucleus, drop specks, number 1..N in reading order.

    Returns
    -------
    labels, nuclei_labels : (H, W) int32
    kept : (N,) int
        The old number of each new one.
    """
    labels = _largest_pieces(labels)
    found, first, areas = np.unique(labels, return_index=True, return_counts=True)
    sound = (found > 0) & (areas >= MIN_AREA_PX)
    kept = found[sound][np.argsort(first[sound])]
    number = np.zeros(int(found[-1]) + 1, dtype=np.int32)
    number[kept] = np.arange(1, len(kept) + 1)
    nuclei_labels = np.where(nuclei_labels == labels, nuclei_labels, 0)
    return number[labels], number[_largest_pieces(nuclei_labels)], kept


def _largest_pieces(labels: np.ndarray) -> np.ndarray:
    """Return labels with only the largest 8-connected piece of each (ties: the first in reading order)."""
    from skimage.measure import label

    pieces, count = label(labels, background=0, connectivity=2, return_num=True)
    areas = np.bincount(pieces.ravel(), minlength=count + 1)
    owner = np.zeros(count + 1, dtype=labels.dtype)
    owner[pieces.ravel()] = labels.ravel()
    order = np.lexsort((np.arange(count + 1), -areas, owner))
    _, first = np.unique(owner[order], return_index=True)
    keep = np.zeros(count + 1, dtype=labels.dtype)
    keep[order[first]] = owner[order[first]]
    keep[0] = 0
    return keep[pieces]


# ---- how much light --------------------------------------------------------------------------------------------------


def clouds(rng: np.random.Generator, shape: tuple[int, int], scale_px: float) -> np.ndarray:
    """Return smooth noise (H, W) of mean about 0 and standard deviation about 1, with features of `scale_px`."""
    bases = []
    for size in shape:
        knots = np.arange(-2, np.ceil(size / scale_px) + 3) * scale_px
        basis = np.exp(-0.5 * ((np.arange(size)[:, None] - knots) / (0.75 * scale_px)) ** 2)
        bases.append(basis / np.sqrt((basis**2).sum(1, keepdims=True)))
    noise = rng.standard_normal((bases[0].shape[1], bases[1].shape[1]))
    half = np.einsum("yk,kl->yl", bases[0], noise)  # einsum, not BLAS: the same sum for any number of threads
    return np.einsum("yl,xl->yx", half, bases[1])


def _draw_nuclei(rng, labels, depth_px, radii_px, kinds: list[CellLine]) -> tuple[np.ndarray, np.ndarray]:
    """Return (nuclei labels (H, W) int32, their light (H, W), 1 = an ordinary nucleus)."""
    nuclei, light = np.zeros_like(labels), np.zeros(labels.shape)
    weight = depth_px.ravel().astype(float) ** 4  # the middle of the thickest part
    rows, columns = np.indices(labels.shape)
    total = np.maximum(np.bincount(labels.ravel(), weight, len(kinds) + 1), 1e-9)
    middle = [np.bincount(labels.ravel(), weight * axis.ravel(), len(kinds) + 1) / total for axis in (rows, columns)]
    grain = clouds(rng, labels.shape, max(2.0, 0.09 * float(np.mean(radii_px)) * 2)) if len(kinds) else light
    for k, kind in enumerate(kinds, start=1):
        centre = np.array([middle[0][k], middle[1][k]])
        outline = _outline(rng, (0, 0), (1.0, 1.35), 0.03)
        size, shift, glow = np.exp(rng.normal(0, 0.1)), rng.normal(0, 0.06, 2) * radii_px[k - 1], rng.normal(0, 0.18)
        spots = rng.normal(0, 0.42, (int(rng.integers(kind.spots[0], kind.spots[1] + 1)), 2))
        if total[k] < 1:
            continue
        room = depth_px[tuple(np.round(centre).astype(int))]
        radius = min(kind.nucleus * radii_px[k - 1] * size, 0.92 * room)
        if radius < 1.5:
            continue
        centre = centre + np.clip(shift, -0.5 * max(0.0, room - radius), 0.5 * max(0.0, room - radius))
        window = _window(centre, radius * outline.max() + 1, labels.shape)
        dy, dx = rows[window] - centre[0], columns[window] - centre[1]
        share, _ = _inside(dy, dx, radius * outline)
        body = (share < 1) & (labels[window] == k) & (depth_px[window] >= 2)
        shade = (0.62 + 0.38 * np.sqrt(np.clip(1 - share**2, 0, 1))) * (1 + 0.1 * grain[window])
        for y, x in spots * radius:
            square = ((dy - y) ** 2 + (dx - x) ** 2) / (kind.spot_size * radius) ** 2
            shade = shade + kind.spot_light * np.exp(-0.5 * square)
        nuclei[window][body] = k
        light[window][body] = np.maximum(shade[body], 0.15) * kind.nucleus_light * np.exp(glow)
    return nuclei, light


def _paint_cytoplasm(rng, labels, nuclei_labels, depth_px, radii_px, kinds, style: FieldStyle) -> np.ndarray:
    """Return the cytoplasm's light (H, W), 1 = the body of an ordinary cell: thick in the middle, cloudy, rimmed."""
    from scipy.ndimage import distance_transform_edt

    d = style.diameter_px
    glow = np.exp(rng.normal(0, style.brightness_sigma, len(kinds))) * [kind.light for kind in kinds]
    expression = np.concatenate([[0.0], glow])
    full_px = np.concatenate([[1.0], radii_px * [kind.dome for kind in kinds]])[labels]
    body = 0.35 + 0.65 * (1 - (1 - np.clip(depth_px / full_px, 0, 1)) ** 2)
    cloudy = clouds(rng, labels.shape, 0.22 * d) + 0.6 * clouds(rng, labels.shape, max(1.5, 0.07 * d))
    body = body * np.exp(style.texture * 0.8 * cloudy)
    if nuclei_labels.any():
        away = distance_transform_edt(nuclei_labels == 0)
        body = body * (1 + 0.35 * np.exp(-away / (0.12 * d)))
        body = np.where(nuclei_labels > 0, body * style.nuclear_light, body)
    body = body + style.edge_light * np.exp(-0.5 * ((depth_px - 1.5) / max(1.0, 0.04 * d)) ** 2)
    return np.maximum(body, 0.05) * expression[labels]


def _draw_debris(rng, style: FieldStyle) -> np.ndarray:
    """Return the light of dirt (H, W): crumpled clumps far brighter than cells, specks and fibres."""
    from scipy.ndimage import gaussian_filter

    height, width = style.size_px
    d = style.diameter_px
    rows, columns = np.mgrid[:height, :width].astype(float)
    rough = clouds(rng, style.size_px, 0.18 * d) + 0.7 * clouds(rng, style.size_px, 0.5 * d)
    dirt = np.zeros(style.size_px)
    for _ in range(int(rng.integers(5, 9))):
        y, x, size = rng.uniform(0, height), rng.uniform(0, width), d * rng.uniform(*DEBRIS_SIZES)
        far = np.hypot(rows - y, columns - x) / size
        dirt += rng.uniform(4, 10) * np.clip(1 + 0.45 * rough - far, 0, 1)
    for _ in range(int(rng.integers(1, 4))):
        turn, y, x = rng.uniform(0, np.pi), rng.uniform(0, height), rng.uniform(0, width)
        across = (rows - y) * np.cos(turn) - (columns - x) * np.sin(turn)
        along = (rows - y) * np.sin(turn) + (columns - x) * np.cos(turn)
        across = across + rng.normal(0, 0.004) * along**2 + 0.6 * d * rough / 8
        fibre = np.exp(-0.5 * (across / (0.05 * d)) ** 2) * (np.abs(along) < rng.uniform(1.5, 5) * d)
        dirt += rng.uniform(3, 7) * fibre
    return gaussian_filter(dirt, 0.05 * d)
