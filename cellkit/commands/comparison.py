"""Two sides scored, and the result as text for the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cellkit.cells.dataset import CellDataset, known_in_part
from cellkit.errors import UserError, counted
from cellkit.formats.sides import first_names, match_sides, name_groups, without_proposed


# ---- the score -----------------------------------------------------------------------------------------------------
def score_sides(
    truth: CellDataset,
    found: CellDataset,
    conventions: Sequence[str] | None = None,
    by: str | None = None,
    bootstrap: int | None = None,
    workers: int = 1,
) -> dict[str, Any]:
    """Score two matched sides under the named conventions; see `cellkit.scores.conventions`.

    Intervals are drawn by groups: those of the truth, else those that names and folders tell (`name_groups`).

    Found cells that lie mostly where the truth is not annotated do not count, see `compare_conventions`.

    Raises
    ------
    UserError
        An unknown convention or part, or a part that no image of the truth tells.
    """
    from cellkit.scores.conventions import compare_conventions
    from cellkit.scores.intervals import BOOTSTRAP
    from cellkit.scores.iou import scorable

    truth, found, proposed = without_proposed(truth, found)
    truth, groups_told = name_groups(truth)
    if by in ("cell_type", "group", "split") and not any(getattr(record, by) for record in truth.records):
        raise UserError(f"no image of {truth.path} has its {by}", "give a COCO file that cellkit wrote as the truth")
    if by == "class_name" and not truth.classes:
        raise UserError("the two sides share no class", "score by class where both sides name the same classes")
    n = BOOTSTRAP if bootstrap is None else bootstrap
    how = {"records": truth.records, "by": by, "classes": truth.classes, "bootstrap": n, "workers": workers}
    result = compare_conventions(truth.instances, found.instances, conventions=conventions, **how)
    how = ({"not_scored": {"proposed": proposed}} if proposed else {}) | (
        {"groups_told": groups_told} if groups_told else {}
    )
    if partly := known_in_part(truth.instances):
        left = sum(len(b) - len(scorable(a, b)) for a, b in zip(truth.instances, found.instances, strict=True))
        how["in_part"] = f"{partly}; found mostly elsewhere and not counted: {counted(left, 'cell')}"
    return result | {"truth_cells": truth.cells, "found_cells": found.cells} | how


def compare_models(
    truth: CellDataset, other: CellDataset, found: CellDataset, common: bool = False, bootstrap: int | None = None
) -> dict[str, Any]:
    """Say whether `found` is better than `other`, by the MAP IoU of the same images (see `paired_bootstrap`).

    Parameters
    ----------
    truth, found : CellDataset
        Matched, see `match_sides`.
    other : CellDataset
        The other model's predictions.
    common : bool
        Compare on the images that all three have, instead of refusing the others.

    Returns
    -------
    dict
        other (its path), difference, interval, images, and the sentence that says it; ready for JSON.
    """
    from cellkit.scores.intervals import BOOTSTRAP
    from cellkit.scores.table import paired_bootstrap, score_table

    shared, other = match_sides(truth, other, common)
    kept = {record.image_id for record in shared.records}
    places = [k for k, record in enumerate(truth.records) if record.image_id in kept]
    scored, other, _ = without_proposed(shared, other)
    scored, _ = name_groups(scored)
    found = without_proposed(shared, found.subset(places))[1]
    tables = [score_table(scored.instances, side.instances, scored.records) for side in (other, found)]
    gain = paired_bootstrap(*tables, n=BOOTSTRAP if bootstrap is None else bootstrap)
    names = [side.path.name for side in (other, found)]
    if names[0] == names[1]:
        names = [str(side.path) for side in (other, found)]
    interval = [None if np.isnan(bound) else float(bound) for bound in (gain.low, gain.high)]
    difference = None if np.isnan(gain.difference) else float(gain.difference)
    about = {"other": str(other.path), "difference": difference, "interval": interval, "images": gain.n}
    return about | {"groups": gain.units, "better": gain.better, "sentence": gain.sentence(*names)}


def scores_to_text(result: Mapping[str, Any], truth: str, found: str) -> str:
    """Return the scores as a table for people: each convention with the line that says why its number differs."""
    lines = [
        f"{truth} (truth) and {found}: {counted(result['images'], 'image')}, {counted(result['truth_cells'], 'true cell')}, "
        f"{result['found_cells']} found",
        *_intervals_of(result),
        "",
    ]
    if "not_scored" in result:
        left = result["not_scored"]["proposed"]
        lines.insert(
            1, f"not scored, as a model proposed the labels: {counted(len(left), 'more image')}, {first_names(left)}"
        )
    if "in_part" in result:
        lines.insert(1, result["in_part"])
    for name, one in result["conventions"].items():
        interval = _interval(one["interval"]) if "interval" in one else ""
        lines.append(f"{name:<13}{_shown(one['score'])}  {interval:<16} {one['why']}")
    for by, parts in result["by"].items():
        width = max(len(by), *(len(part) for part in parts)) if parts else len(by)
        lines += ["", f"{by:<{width}}  MAP IoU (kaggle)"]
        for part, one in parts.items():
            counts = f"{counted(one['images'], 'image')}, {one['truth_cells']} true, {one['found_cells']} found"
            lines.append(f"{part:<{width}}  {_shown(one['score'])}  {_interval(one['interval']):<16} {counts}")
    if "against" in result:
        lines += ["", f"MAP IoU (kaggle): {result['against']['sentence']}"]
    return "\n".join(lines)


def _intervals_of(result: Mapping[str, Any]) -> list[str]:
    """Return a line that says what the intervals were drawn from."""
    units = {convention["interval_of"] for convention in result["conventions"].values() if "interval_of" in convention}
    by = f", {result['groups_told']}" if "groups_told" in result else ""
    return [f"intervals: 95 %, over {', '.join(sorted(units))}{by}"] if units else []


def _shown(score: float | None) -> str:
    return "undef." if score is None else f"{score:6.3f}"


def _interval(bounds: Sequence[float | None]) -> str:
    return "" if None in bounds else f"[{bounds[0]:.3f}, {bounds[1]:.3f}]"
