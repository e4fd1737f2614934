"""Predictions of several models, from whatever they are stored in, fused image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cellkit.cells.dataset import CellDataset, class_numbers
from cellkit.cells.names import best_pairs
from cellkit.errors import UserError, counted
from cellkit.formats.sides import NAMES, first_names
from cellkit.log import LOG
from cellkit.models.shared.fusion import FusionSettings, fuse


def fuse_sides(
    sides: Sequence[CellDataset],
    weights: Sequence[float] | None = None,
    settings: FusionSettings | None = None,
    common: bool = False,
) -> CellDataset:
    """Fuse what several models found, see `cellkit.models.shared.fusion.fuse`.

    Images are matched as for a score (`cellkit.formats.sides.match_sides`), classes by name; cells without a class have no vote
    on it.

    Parameters
    ----------
    sides : list of CellDataset
        One per model.
    weights, settings
        As for `fuse`.
    common : bool
        Fuse the images that all have, instead of refusing others.

    Returns
    -------
    CellDataset
        The images of the first side, in its order.

    Raises
    ------
    UserError
        An image that not all have, or that has another size in one; none that all have; or as `fuse`.
    """
    first = sides[0]
    places = [best_pairs(first.records, side.records, NAMES) for side in sides]
    for side, pairs in zip(sides[1:], places[1:], strict=True):
        _refuse_others(first, side, pairs, common)
    kept = [k for k in range(len(first)) if all(k in pairs for pairs in places)]
    if not kept:
        raise UserError("no image is in all of these files", "fuse predictions of the same images")
    for side, pairs in zip(sides, places, strict=True):
        used = {pairs[k] for k in kept}
        if others := [record.image_id for k, record in enumerate(side.records) if k not in used]:
            LOG.info(
                f"{counted(len(others), 'image')} of {side.path} left out, not in all files ({first_names(others)})"
            )
    names = list(dict.fromkeys(name for side in sides for name in side.classes))
    cells = []
    for k in kept:
        own = [side.instances[pairs[k]] for side, pairs in zip(sides, places, strict=True)]
        if len({found.shape for found in own}) > 1:
            sizes = " and ".join(f"{height} x {width} px" for height, width in sorted({found.shape for found in own}))
            raise UserError(f"{first.records[k].image_id} is {sizes}", "fuse cells of the very same images")
        numbered = [_numbered(side, found, names) for side, found in zip(sides, own, strict=True)]
        cells.append(fuse(numbered, weights, settings))
    return replace(first.subset(kept), instances=cells, classes=tuple(names), made_by=["proposed"] * len(kept))


def _numbered(side: CellDataset, found, names: list[str]):
    return (
        found.with_classes(class_numbers(side.classes, names)[found.class_ids])
        if len(side.classes)
        else found.with_classes(0)
    )


def _refuse_others(first: CellDataset, side: CellDataset, pairs: dict[int, int], common: bool) -> None:
    used = set(pairs.values())
    lacking = [record.image_id for k, record in enumerate(first.records) if k not in pairs]
    extra = [record.image_id for k, record in enumerate(side.records) if k not in used]
    if (lacking or extra) and not common:
        problems = [
            f"{counted(len(names), 'image')} of {a.path} not in {b.path} ({first_names(names)})"
            for names, a, b in ((lacking, first, side), (extra, side, first))
            if names
        ]
        raise UserError(
            "; ".join(problems), "give predictions of the same images, or fuse those that all have: --common"
        )
