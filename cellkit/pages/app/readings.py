"""Cells of a picture as one reading of what a model saw gave them."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.models.shared.live import Read
from cellkit.pages.app.views import View, cells_bytes


class Found(NamedTuple):
    """Cells as they were read: with their label image, the settings that were changed, whether exactly, and what was left out."""

    cells: Instances
    labels: np.ndarray
    changed: dict[str, Any]
    exact: bool
    left_out: dict[str, int]

    def is_of(self, changed: dict[str, Any], quick: bool) -> bool:
        """Tell whether it is what these settings find; with `quick`, or nearly so."""
        return self.changed == changed and (self.exact or quick)

    def to_bytes(self, view: View) -> bytes:
        """Return them as `cells_bytes`, in a part of the picture."""
        per_cell = {
            "class": self.cells.class_ids,
            "area": self.cells.areas_px,
            "score": np.asarray(self.cells.scores, np.float32),
        }
        return cells_bytes({"exact": self.exact, "left_out": self.left_out}, per_cell, self.labels, view)


def found_by(read: Read, changed: dict[str, Any], quick: bool) -> Found:
    """Read what a model saw with some settings changed."""
    counts: Counter[str] = Counter()
    cells, exact = read(changed, counts, quick)
    return Found(cells, cells.paint(), changed, exact, {why: int(n) for why, n in sorted(counts.items()) if n})
