"""Who made the cells of an image in a COCO file, told for as long as nobody changes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cellkit.cells.dataset import MAKERS, MARKED
from cellkit.formats.coco_dialects import key_of


def maker_keys(
    made_by: str, rows: Iterable[Mapping[str, Any]], categories: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """Return the keys of an image's entry that say who made its cells; none for the truth.

    Parameters
    ----------
    made_by : str
        "corrected", "proposed", or anything else for no mark.
    rows : iterable of mapping
        The image's annotations, regions too.
    categories : sequence of mapping
        Of the file.
    """
    return {"labels": made_by, "labels_stamp": stamp_of_rows(rows, categories)} if made_by in MARKED else {}


def maker_in(entry: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], categories: Sequence[Any]) -> str:
    """Return who made the cells of an image; "" where nothing says so, or where somebody changed them since.

    A mark without a stamp, as other programs write it, stands until it is removed.
    """
    maker, stamp = entry.get("labels"), entry.get("labels_stamp")
    if not isinstance(maker, str) or maker not in MAKERS:
        return ""
    return maker if stamp is None or stamp == stamp_of_rows(rows, categories) else ""


def stamp_of_rows(rows: Iterable[Mapping[str, Any]], categories: Sequence[Any]) -> str:
    """Return what tells later whether the cells of an image are still the same: their outlines and classes, in any order.

    It is the sum of a hash of each cell, so that an image may be written part by part: see `sum_of_stamps`.

    Examples
    --------
    >>> square = {"id": 1, "category_id": 7, "segmentation": [[0, 0, 2, 0, 2, 2]]}
    >>> one = stamp_of_rows([square], [{"id": 7, "name": "HEK"}])
    >>> one == stamp_of_rows([square | {"id": 5, "category_id": 1}], [{"id": 1, "name": "HEK"}])
    True
    >>> one == stamp_of_rows([square], [{"id": 7, "name": "N2a"}]), one == stamp_of_rows([], [])
    (False, False)
    """
    names = {key_of(one.get("id")): one.get("name") for one in categories if isinstance(one, Mapping)}
    cells = (json.dumps([names.get(key_of(row.get("category_id"))), _outline(row)], sort_keys=True) for row in rows)
    return _written(sum(int.from_bytes(hashlib.sha256(cell.encode()).digest()[:16]) for cell in cells))


def sum_of_stamps(one: str, other: str) -> str:
    """Return the stamp of the cells of two stamps together.

    Examples
    --------
    >>> a, b = {"segmentation": [[0, 0, 2, 0, 2, 2]]}, {"segmentation": [[5, 5, 7, 5, 7, 7]]}
    >>> sum_of_stamps(stamp_of_rows([a], []), stamp_of_rows([b], [])) == stamp_of_rows([b, a], [])
    True
    """
    return _written(int(one, 16) + int(other, 16))


def _written(total: int) -> str:
    return f"{total % 2**128:032x}"


def _outline(row: Mapping[str, Any]) -> Any:
    """Return an annotation's outline, or its box where it has none; the same from whole numbers as from others."""
    outline = row.get("segmentation") or [row.get("bbox")]
    if isinstance(outline, list):
        return [
            [float(x) if isinstance(x, int) else x for x in one] if isinstance(one, list) else one for one in outline
        ]
    return outline
