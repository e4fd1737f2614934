"""Drawn fields as pictures of 8 bits, of every kind that the starter weights know."""

from __future__ import annotations

import numpy as np

from cellkit.cells.drawn.camera import expose
from cellkit.cells.drawn.field import draw_field
from cellkit.cells.drawn.style import random_style
from cellkit.cells.drawn.transmitted import CONTRASTS, transmit
from cellkit.cells.instances import Instances

LINES = (("HEK",), ("N2a",), ("HEK", "N2a"))
KINDS = ("two channels", "cytoplasm", "nuclei", *CONTRASTS)


def draw(kind: str, index: int, seed: int) -> tuple[np.ndarray, Instances]:
    """Return one drawn field of 256 px: what the starter weights were made with, and what a training may replay.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    index, seed : int
        Which field: another one for each.

    Returns
    -------
    image : (256, 256, 3) uint8
        Cytoplasm, or the unstained cells, in green, nuclei in blue.
    truth : Instances
        The cells; of "nuclei" the nuclei.
    """
    place = [seed, KINDS.index(kind), index]
    style = random_style(np.random.default_rng(place), (256, 256))
    field = draw_field(LINES[index % 3], style, place)
    labels = field.nuclei_labels if kind == "nuclei" else field.labels
    nuclei, cytoplasm = (_eight_bit(plane) for plane in expose(field, style, [*place, 1]))
    if kind in CONTRASTS:
        cytoplasm = _eight_bit(transmit(field, style, kind, [*place, 1]))
    if kind == "nuclei":
        cytoplasm = np.zeros_like(cytoplasm)
    elif kind != "two channels" and (kind == "cytoplasm" or index % 4):  # one in four unstained fields shows its nuclei
        nuclei = np.zeros_like(nuclei)
    truth = Instances.from_labels(labels)
    return np.stack([np.zeros_like(nuclei), cytoplasm, nuclei], axis=-1), truth[truth.areas_px >= 15]


def _eight_bit(plane: np.ndarray) -> np.ndarray:
    """Scale as 01_convert does: the percentiles 0.3 and 99.8 become 0 and 255."""
    low, high = np.percentile(plane, (0.3, 99.8))
    return (np.clip((plane - low) / max(high - low, 1), 0, 1) * 255).round().astype(np.uint8)
