"""The nucleus of each cell and the cytoplasm around it, where both were segmented."""

from __future__ import annotations

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.runs import merge_adjacent_of_each
from cellkit.errors import UserError
from cellkit.measure.intensity import Brightness
from cellkit.measure.neighbours import shared_pixels
from cellkit.measure.rows import Rows, divided, sums_of_each


def nuclear_parts(cells: Instances, nuclei: Instances) -> tuple[np.ndarray, Instances]:
    """Give each nucleus to the cell that holds most of it, if that is more than half; of equals to the first.

    Returns
    -------
    counts : (N,) int64
        How many nuclei each cell has.
    parts : Instances
        For each cell the pixels that it shares with its nuclei; none where it has no nucleus.

    Raises
    ------
    UserError
        The two are of images of different size.

    Examples
    --------
    >>> cells = Instances.from_labels(np.array([[1, 1, 1, 2, 2]]))
    >>> counts, parts = nuclear_parts(cells, Instances.from_labels(np.array([[0, 5, 5, 5, 0]])))
    >>> counts, parts.areas_px
    (array([1, 0]), array([2, 0]))
    """
    if cells.shape != nuclei.shape:
        raise UserError(
            f"the nuclei are of an image of {nuclei.shape[0]} x {nuclei.shape[1]} px, the cells of "
            f"{cells.shape[0]} x {cells.shape[1]} px",
            "give the cells and the nuclei of the very same image",
        )
    cell, nucleus, starts, lengths = shared_pixels(Rows.of(cells), Rows.of(nuclei), cells.shape[1])
    pair = np.flatnonzero(np.r_[True, (cell[1:] != cell[:-1]) | (nucleus[1:] != nucleus[:-1])][: len(cell)])
    shared = sums_of_each(lengths, np.r_[pair, len(cell)]) if len(pair) else np.zeros(0, np.int64)
    order = np.lexsort((cell[pair], -shared, nucleus[pair]))
    first = np.r_[True, np.diff(nucleus[pair][order]) > 0][: len(order)]
    best = order[first]
    best = best[2 * shared[best] > nuclei.areas_px[nucleus[pair][best]]]
    taken = np.repeat(np.isin(np.arange(len(pair)), best), np.diff(np.r_[pair, len(cell)]))
    return np.bincount(cell[pair][best], minlength=len(cells)), _union(
        cells, cell[taken], starts[taken], lengths[taken]
    )


def _union(cells: Instances, owner: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Instances:
    """Return one object for each cell of stretches of pixels that may overlap."""
    room = cells.shape[0] * cells.shape[1] + 1  # each cell has a stretch of its own
    order = np.lexsort((starts, owner))
    owner, starts, lengths = owner[order], starts[order], lengths[order]
    far = owner * room + starts
    reach = np.maximum.accumulate(far + lengths)
    begins = np.maximum(far, np.r_[0, reach[:-1]][: len(far)])
    kept = reach > begins
    runs = (begins - owner * room)[kept], (reach - begins)[kept]
    offsets = np.searchsorted(owner[kept], np.arange(len(cells) + 1))
    return Instances.from_runs(cells.shape, *merge_adjacent_of_each(*runs, offsets))


def nucleus_and_cytoplasm(found: Brightness, cells: Instances, parts: Instances) -> dict[str, np.ndarray]:
    """Return the mean in each cell's nucleus and in the rest of it, and how many times brighter the nucleus is.

    Parameters
    ----------
    found : Brightness
        Of the cells and of `parts`, the nucleus of each (`nuclear_parts`). Both means are less by the background in the quotient.
    """
    nucleus = found.parts["mean"]
    around = cells.areas_px - parts.areas_px
    cytoplasm = divided(found.cells["integrated"] - found.parts["integrated"], around)
    above = cytoplasm - found.background
    ratio = divided(nucleus - found.background, np.where(above > 0, above, 0))
    return {"nucleus_mean": nucleus, "cytoplasm_mean": cytoplasm, "nucleus_to_cytoplasm": ratio}
