"""What drawn cells look like: the cell lines, and the style of a field."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
