"""Drawn cells of many kinds, always the same: what a model knew before it was adapted to others."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.cells.drawn.camera import expose
from cellkit.cells.drawn.field import draw_field
from cellkit.cells.drawn.style import random_style
from cellkit.cells.drawn.transmitted import CONTRASTS, transmit
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.files import atomic_path

KINDS = ("two channels", "nuclei", "cytoplasm", *CONTRASTS)
SIZE_PX, SEED, LEAST_AREA_PX = 160, 2022, 15


def draw_others(folder: str | Path) -> CellDataset:
    """Draw one field of each of six kinds: stained in two channels or one, and in transmitted light.

    Style, cells and noise follow from fixed seeds: every call draws the same pictures.

    Parameters
    ----------
    folder : path
        Where the pictures are written, (160, 160, 3) uint8.

    Returns
    -------
    CellDataset
        The kind of each image is its cell_type; the cells have no class.

    Raises
    ------
    OSError
        The folder cannot be written.
    """
    from PIL import Image

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    records, instances = [], []
    for number, kind in enumerate(KINDS):
        image, cells = _draw(kind, number)
        name = f"{kind.replace(' ', '_')}.png"
        with atomic_path(folder / name) as temporary:
            Image.fromarray(image).save(temporary, format="PNG")
        records.append(ImageRecord(kind, name, *cells.shape, cell_type=kind))
        instances.append(cells)
    return CellDataset(records, instances, (), folder, list(range(1, len(records) + 1)))


def _draw(kind: str, number: int) -> tuple[np.ndarray, Instances]:
    """Return a picture and its cells."""
    place = [SEED, number]
    style = random_style(np.random.default_rng(place), (SIZE_PX, SIZE_PX))
    field = draw_field((("HEK",), ("N2a",))[number % 2], style, place)
    nuclei, cytoplasm = (_eight_bit(plane) for plane in expose(field, style, [*place, 1]))
    if kind in CONTRASTS:
        cytoplasm = _eight_bit(transmit(field, style, kind, [*place, 1]))
    empty = np.zeros_like(nuclei)
    planes = {"two channels": (cytoplasm, nuclei), "nuclei": (empty, nuclei)}.get(kind, (cytoplasm, empty))
    cells = Instances.from_labels(field.nuclei_labels if kind == "nuclei" else field.labels)
    return np.stack([empty, *planes], axis=-1), cells[cells.areas_px >= LEAST_AREA_PX]


def _eight_bit(plane: np.ndarray) -> np.ndarray:
    """Scale as notebook 01 does: the percentiles 0.3 and 99.8 become 0 and 255."""
    low, high = np.percentile(plane, (0.3, 99.8))
    return (np.clip((plane - low) / max(high - low, 1), 0, 1) * 255).round().astype(np.uint8)
