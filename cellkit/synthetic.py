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

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cellkit.errors import UserError, nearest
from cellkit.files import atomic_path, write_text

DEFECTS = ("", "out_of_focus", "debris", "saturated", "empty")
CHANNELS = ("DAPI", "GFP")
MAX_COUNT = 65535
DEBRIS_SIZES = (0.5, 1.3)
MIN_AREA_PX = 8


@dataclass(frozen=True)
class CellLine:
    """How one cell line looks. Lengths are fractions of the mean cell diameter unless the name says otherwise."""

    sociable: float  # chance that a new cell settles beside one of its own line
    pitch: float  # distance between the centres of two cells that settled side by side
    closest: float  # no two centres come nearer than this
    spread: float  # outline radius times two, before neighbours cut it back
    size_sigma: float  # log-normal spread of cell sizes
    corners: tuple[int, int]  # fewest and most flat sides; (0, 0) = round
    stretch: tuple[float, float]  # long over short axis, from and to
    neurites: float  # mean number of processes per cell
    dome: float  # depth at which the cell is at full height, over its radius: flat cells 0.4, round ones 1
    light: float  # cytoplasm brightness relative to the other lines
    nucleus: float  # nucleus radius over cell radius
    nucleus_light: float  # DAPI brightness relative to the other lines
    spots: tuple[int, int]  # fewest and most nucleoli or chromocentres
    spot_light: float  # what a spot adds (negative: a dark nucleolus)
    spot_size: float  # spot sigma over nucleus radius


LINES = {
    "HEK": CellLine(0.93, 0.92, 0.74, 1.24, 0.12, (5, 7), (1.0, 1.6), 0.0, 0.4, 0.9, 0.56, 1.1, (2, 4), -0.4, 0.16),
    "N2a": CellLine(0.4, 1.0, 0.8, 0.94, 0.15, (0, 0), (1.0, 1.3), 1.9, 0.85, 1.2, 0.64, 0.8, (5, 10), 1.1, 0.10),
}


@dataclass(frozen=True)
class FieldStyle:
    """Size, crowding and optics of one field of view.

    Attributes
    ----------
    size_px : (int, int)
        Height and width.
    diameter_px : float
        Mean diameter of a whole cell.
    density : float
        Cells per field, as the sum of mean cell areas over the field's area (0.5 is crowded, 1 confluent).
    tiny_fraction : float
        Share of cells drawn at under half size.
    photons : float
        Photons expected from the body of an ordinary cell; fewer means more shot noise.
    brightness_sigma : float
        Log-normal spread of cell brightness (expression differs from cell to cell).
    texture, edge_light, nuclear_light : float
        Cytoplasm: strength of its clouds; brightening of the rim (a membrane or actin stain); light over the nucleus
        relative to around it (0.3 = the nucleus is a hole, 1.2 = the stain gathers there).
    background, haze : float
        Light everywhere, in photons; share of the light that spreads far (wide-field microscopes).
    blur_px : float
        Sigma of the point spread in the focus plane.
    illumination : float
        Light lost towards the corners, as a share of the light in the middle.
    offset, gain, read_noise : float
        Camera: counts at darkness, counts per photon, and the sigma of its own noise in counts.
    um_per_px : float
        Pixel size written into files.
    """

    size_px: tuple[int, int] = (256, 256)
    diameter_px: float = 34.0
    density: float = 0.45
    tiny_fraction: float = 0.05
    photons: float = 160.0
    brightness_sigma: float = 0.28
    texture: float = 0.22
    edge_light: float = 0.2
    nuclear_light: float = 0.75
    background: float = 6.0
    haze: float = 0.12
    blur_px: float = 1.1
    illumination: float = 0.25
    offset: float = 400.0
    gain: float = 45.0
    read_noise: float = 60.0
    um_per_px: float = 0.45


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


def random_style(rng: np.random.Generator, size_px: tuple[int, int] = (256, 256)) -> FieldStyle:
    """Draw a style at random, broad enough to train a network that has to meet unknown microscopes.

    Parameters
    ----------
    rng : numpy.random.Generator
        Advanced by a fixed number of draws.
    size_px : (int, int)
        Height and width of the field.

    Examples
    --------
    >>> style = random_style(np.random.default_rng(0), (128, 160))
    >>> style.size_px, 18 <= style.diameter_px <= 45
    ((128, 160), True)
    """
    photons = float(np.exp(rng.uniform(np.log(12.0), np.log(600.0))))
    return FieldStyle(
        size_px=size_px,
        diameter_px=float(rng.uniform(18.0, 45.0)),
        density=float(rng.uniform(0.12, 0.95)),
        tiny_fraction=float(rng.uniform(0.0, 0.12)),
        photons=photons,
        brightness_sigma=float(rng.uniform(0.1, 0.55)),
        texture=float(rng.uniform(0.05, 0.4)),
        edge_light=float(rng.uniform(-0.1, 0.9)),
        nuclear_light=float(rng.uniform(0.3, 1.25)),
        background=photons * float(rng.uniform(0.01, 0.2)),
        haze=float(rng.uniform(0.0, 0.3)),
        blur_px=float(rng.uniform(0.5, 2.4)),
        illumination=float(rng.uniform(0.0, 0.5)),
        offset=float(rng.uniform(0.0, 1500.0)),
        gain=6000.0 / photons,
        read_noise=float(rng.uniform(10.0, 250.0)),
        um_per_px=0.45,
    )


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
    _check_names(lines, defect)
    if min(style.size_px) < 1 or style.diameter_px < 8:
        came = f"size_px is {style.size_px}, diameter_px {style.diameter_px:g}"
        raise UserError(f"{came}; wanted sizes >= 1 and cells >= 8 px", "draw larger cells, or a larger field")
    rng = np.random.default_rng(seed)
    margin = int(round(1.2 * style.diameter_px))
    canvas = (style.size_px[0] + 2 * margin, style.size_px[1] + 2 * margin)
    centres, owners = _place_cells(rng, [LINES[name] for name in lines], style, canvas, defect == "empty")
    kinds = [LINES[lines[owner]] for owner in owners]
    labels, radii_px = _claim_pixels(rng, centres, kinds, style, canvas)
    depth_px = _depth(labels)
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


def expose(field: Field, style: FieldStyle, seed: int | Sequence[int]) -> np.ndarray:
    """Take one picture of a field: blur, uneven light, background, shot noise, camera.

    Parameters
    ----------
    field : Field
        What is there; its defect out_of_focus blurs by a fifth of a cell diameter, saturated overexposes.
    style : FieldStyle
        Optics and camera.
    seed : int or sequence of int
        Seed of light and noise.

    Returns
    -------
    (2, H, W) uint16
        Nuclei, cytoplasm.
    """
    return expose_stack(field, style, 1, seed)[0]


def expose_stack(field: Field, style: FieldStyle, planes: int, seed: int | Sequence[int]) -> np.ndarray:
    """Take a z-stack of a field: the middle plane is sharp, the others are blurred and dimmer the further they are.

    Parameters
    ----------
    field : Field
        What is there.
    style : FieldStyle
        Optics and camera.
    planes : int
        Number of planes; plane `planes // 2` is in focus.
    seed : int or sequence of int
        Seed of light and noise.

    Returns
    -------
    (Z, 2, H, W) uint16
        Per plane: nuclei, cytoplasm.

    Raises
    ------
    UserError
        Fewer than one plane.
    """
    if planes < 1:
        raise UserError(f"planes is {planes}, wanted 1 or more", "ask for at least one plane")
    rng = np.random.default_rng(seed)
    light = _uneven_light(rng, field.labels.shape, style.illumination)
    lost_px = style.diameter_px / 5 if field.defect == "out_of_focus" else 0.0
    boost = 30.0 if field.defect == "saturated" else 1.0
    stack = np.empty((planes, 2, *field.labels.shape), dtype=np.uint16)
    for plane in range(planes):
        away = abs(plane - planes // 2)
        blur_px = float(np.hypot(style.blur_px, away * 0.07 * style.diameter_px + lost_px))
        for channel, sent in enumerate((field.nuclei, field.cytoplasm)):
            seen = _blur(sent, blur_px, style) * light * (boost / (1.0 + 0.2 * away)) + style.background
            stack[plane, channel] = _camera(rng, seen, style)
    return stack


@dataclass(frozen=True)
class FieldFile:
    """One written microscope file: paths relative to the folder, what it shows, how many cells, which seed."""

    path: str
    truth: str
    line: str
    defect: str
    cells: int
    seed: tuple[int, ...]


def write_fields(
    folder: str | Path,
    *,
    lines: Sequence[str] = ("HEK", "N2a"),
    images_per_line: int = 8,
    mixed_images: int = 4,
    size_px: int = 256,
    planes: int = 3,
    diameter_px: float = 34.0,
    defect_images_per_line: int = 1,
    empty_images: int = 0,
    seed: int = 0,
) -> list[FieldFile]:
    """Write drawn fields as 16-bit OME-TIFF z-stacks (ZCYX; channels DAPI, GFP), with their truth beside them.

    `<folder>/HEK/HEK_01.ome.tif`, ..., `<folder>/mixed/mixed_01.ome.tif`; truth in `<folder>/truth/HEK/HEK_01.tif`
    (label images) and `<folder>/truth/classes.csv` (file, label, class). The same arguments give the same bytes.

    Parameters
    ----------
    folder : path
        Made when missing.
    lines : sequence of str
        Names out of `LINES`, one subfolder each.
    images_per_line, mixed_images : int
        Sound images per line, and images of all lines together.
    size_px, planes : int
        Height = width, and z planes of every image.
    diameter_px : float
        Mean cell diameter.
    defect_images_per_line : int
        Out-of-focus frames, and as many debris frames, added at the end of each line.
    empty_images : int
        Frames without a cell, added at the end of the mixed images (of the last line when there are none).
    seed : int
        Each image has its own stream, so adding images leaves the others as they were.

    Returns
    -------
    list of FieldFile
        In the order written.

    Raises
    ------
    UserError
        Unknown line, or mixed images of fewer than two lines.
    """
    folder = Path(folder)
    _check_lines(lines, mixed_images)
    style = FieldStyle(size_px=(size_px, size_px), diameter_px=diameter_px)
    written, rows = [], ["file,label,class"]
    for group, (name, mixed, defects) in enumerate(
        _plan(lines, images_per_line, mixed_images, defect_images_per_line, empty_images)
    ):
        for number, defect in enumerate(defects, start=1):
            stream = (seed, group, number)
            field, stack = _one_image(mixed, style, stream, defect, planes)
            path, truth = f"{name}/{name}_{number:02d}.ome.tif", f"truth/{name}/{name}_{number:02d}.tif"
            _write_ome_tiff(folder / path, stack, style.um_per_px)
            _write_truth(folder / truth, field.labels)
            rows += [f"{path},{label},{line}" for label, line in enumerate(field.class_names, start=1)]
            written.append(FieldFile(path, truth, name, defect, len(field.class_names), stream))
    write_text(folder / "truth" / "classes.csv", "\n".join(rows) + "\n")
    return written


def write_blank_fields(folder: str | Path, lines: Sequence[str], config, size_px: int = 64) -> None:
    """Write what `write_fields` would, small and blank: the same files, names, axes and channels, to look ahead.

    The labels have one cell of each line, a band across the field.

    Parameters
    ----------
    config : DrawnConfig
        ``convert.drawn``.
    """
    from cellkit.labels import write_labels

    folder = Path(folder)
    _check_lines(lines, config.mixed_images)
    counts = (config.images_per_line, config.mixed_images, config.defect_images_per_line, config.empty_images)
    rows = ["file,label,class"]
    bands = np.arange(size_px) * len(lines) // size_px + 1
    cells = np.repeat(bands.astype(np.uint16)[:, None], size_px, axis=1)  # those of the rows below
    image, truth = folder / ".blank.ome.tif", folder / ".blank.tif"
    _write_ome_tiff(image, np.zeros((config.planes, 2, size_px, size_px), np.uint16), 1.0)
    write_labels(truth, cells)
    for name, mixed, defects in _plan(lines, *counts):
        for number in range(1, len(defects) + 1):
            path = f"{name}/{name}_{number:02d}.ome.tif"
            for first, own in ((image, folder / path), (truth, folder / f"truth/{name}/{name}_{number:02d}.tif")):
                own.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(first, own)
            rows += [f"{path},{label},{line}" for label, line in enumerate(mixed, start=1)]
    write_text(folder / "truth" / "classes.csv", "\n".join(rows) + "\n")


def _check_lines(lines: Sequence[str], mixed_images: int) -> None:
    _check_names(lines, "")
    if mixed_images and len(lines) < 2:
        raise UserError(f"{mixed_images} mixed images of one line ({lines[0]}), wanted two lines or more",
                        "name a second line, or set mixed_images to 0")  # fmt: skip


# ---- where cells sit -------------------------------------------------------------------------------------------------


def _check_names(lines: Sequence[str], defect: str) -> None:
    """Raise UserError for an unknown line or defect, or for no line at all."""
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
    bend = 0.035 * d * np.stack([_clouds(rng, canvas, 0.45 * d), _clouds(rng, canvas, 0.45 * d)])
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


def _depth(labels: np.ndarray) -> np.ndarray:
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


def _clouds(rng, shape, scale_px: float) -> np.ndarray:
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
    grain = _clouds(rng, labels.shape, max(2.0, 0.09 * float(np.mean(radii_px)) * 2)) if len(kinds) else light
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
    clouds = _clouds(rng, labels.shape, 0.22 * d) + 0.6 * _clouds(rng, labels.shape, max(1.5, 0.07 * d))
    body = body * np.exp(style.texture * 0.8 * clouds)
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
    rough = _clouds(rng, style.size_px, 0.18 * d) + 0.7 * _clouds(rng, style.size_px, 0.5 * d)
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


# ---- what the camera makes of it -------------------------------------------------------------------------------------


def _uneven_light(rng, shape, strength: float) -> np.ndarray:
    """Return the lamp's field (H, W), at most 1, `strength` lower in the corner farthest from its middle."""
    middle = rng.uniform(0.3, 0.7, 2)
    y, x = np.linspace(0, 1, shape[0])[:, None] - middle[0], np.linspace(0, 1, shape[1])[None] - middle[1]
    fall = y * y + x * x
    return (1 - strength * fall / fall.max()).astype(np.float32)


def _blur(sent: np.ndarray, sigma_px: float, style: FieldStyle) -> np.ndarray:
    """Spread light by the point spread, and a share of it (haze) a third of a cell diameter further."""
    from scipy.ndimage import gaussian_filter

    sharp = gaussian_filter(sent, sigma_px, mode="reflect", truncate=3.0)
    if not style.haze:
        return sharp
    return (1 - style.haze) * sharp + style.haze * gaussian_filter(sharp, 0.3 * style.diameter_px, truncate=2.5)


def _camera(rng, seen: np.ndarray, style: FieldStyle) -> np.ndarray:
    """Return counts (uint16) for expected photons: shot noise, gain, offset, read noise, clipped at full scale."""
    counts = style.gain * rng.poisson(np.maximum(seen, 0)) + style.offset
    counts = counts + style.read_noise * rng.standard_normal(seen.shape, dtype=np.float32)
    return np.clip(np.rint(counts), 0, MAX_COUNT).astype(np.uint16)


# ---- files -----------------------------------------------------------------------------------------------------------


def _plan(lines, images_per_line: int, mixed_images: int, defect_images: int, empty_images: int):
    """Return per subfolder: (name, lines in it, defect of each image)."""
    plan = [(line, (line,), [""] * images_per_line) for line in lines]
    for _, _, defects in plan:
        defects += ["out_of_focus"] * defect_images + ["debris"] * defect_images
    if mixed_images:
        plan.append(("mixed", tuple(lines), [""] * mixed_images))
    plan[-1][2].extend(["empty"] * empty_images)
    return plan


def _one_image(lines, style: FieldStyle, stream: tuple[int, ...], defect: str, planes: int):
    """Return (field, stack) of one file; brightness, crowding and light vary a little from image to image."""
    vary = np.random.default_rng((*stream, 0))
    own = replace(
        style,
        density=style.density * float(vary.uniform(0.75, 1.3)),
        photons=style.photons * float(vary.uniform(0.7, 1.3)),
        blur_px=style.blur_px * float(vary.uniform(0.85, 1.3)),
        illumination=style.illumination * float(vary.uniform(0.3, 1.3)),
    )
    field = draw_field(lines, own, (*stream, 1), defect)
    return field, expose_stack(field, own, planes, (*stream, 2))


def _write_ome_tiff(path: Path, stack: np.ndarray, um_per_px: float) -> None:
    """Write a (Z, C, Y, X) uint16 stack as OME-TIFF; no date and no random identifier, so bytes repeat."""
    import tifffile

    metadata = {
        "axes": "ZCYX",
        "Channel": {"Name": list(CHANNELS)},
        "PhysicalSizeX": um_per_px,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": um_per_px,
        "PhysicalSizeYUnit": "µm",
        "Name": path.name.removesuffix(".ome.tif"),
        "Description": "drawn cells, not a measurement",
        "Creator": "cellkit",
        "UUID": "00000000-0000-0000-0000-000000000000",
    }
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, stack, ome=True, photometric="minisblack", software="cellkit", metadata=metadata)


def _write_truth(path: Path, labels: np.ndarray) -> None:
    """Write a label image with the package's own writer."""
    from cellkit.labels import write_labels

    path.parent.mkdir(parents=True, exist_ok=True)
    write_labels(path, labels)
