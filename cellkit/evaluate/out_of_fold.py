"""Scores of folds: every image is judged by the models that had it held back; test images by all folds, fused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.cells.disjoint import resolve_overlaps
from cellkit.cells.instances import Instances
from cellkit.errors import UserError, counted
from cellkit.models import order_models
from cellkit.models.gate import judges
from cellkit.models.shared.fusion import fuse
from cellkit.scores.table import score_table, summary

if TYPE_CHECKING:
    import pandas

MEAN, OUT_OF_FOLD, TEST = "mean", "out of fold", "test, folds fused"
NONE = CellDataset([], [])


@dataclass(frozen=True)
class FoldFound:
    """What the run of one fold found in the images that it held back.

    Parameters
    ----------
    held : CellDataset
        The validation images of that run; `instances` are not looked at.
    truth : CellDataset
        Those of them that a person labelled, with their cells.
    found : mapping
        Model -> image_id -> cells.
    taught : frozenset of str
        The training images of that run.
    test, test_truth : CellDataset
        Likewise of the test images.
    """

    held: CellDataset
    truth: CellDataset
    found: Mapping[str, Mapping[str, Instances]]
    taught: frozenset[str]
    test: CellDataset = NONE
    test_truth: CellDataset = NONE


def out_of_fold(folds: Sequence[FoldFound]) -> dict[str, CellDataset]:
    """Return, of every model that all folds have, what it found in each image by the run that held the image back.

    Parameters
    ----------
    folds : list of FoldFound

    Returns
    -------
    dict
        Model -> its images in the order of their ids, with what was found, overlaps and scores as they are.

    Raises
    ------
    UserError
        An image is held back in two folds, or taught the run that held it back.
    """
    names = [record.image_id for fold in folds for record in fold.held.records]
    twice = sorted({name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ())
    seen = sorted(r.image_id for fold in folds for r in fold.held.records if r.image_id in fold.taught)
    if twice or seen:
        what = f"'{(twice or seen)[0]}' " + (
            "is held back in two folds" if twice else "taught the run that held it back"
        )
        raise UserError(what, "repeat the folds: cellkit run CONFIG --folds K --fresh")
    rows = [(k, n) for k, fold in enumerate(folds) for n in range(len(fold.held))]
    rows.sort(key=lambda row: folds[row[0]].held.ids[row[1]])
    records = [folds[k].held.records[n] for k, n in rows]
    ids = [folds[k].held.ids[n] for k, n in rows]
    classes = folds[0].truth.classes
    return {
        model: CellDataset(
            records,
            [folds[k].found[model][folds[k].held.records[n].image_id] for k, n in rows],
            classes,
            ids=ids,
            made_by=["proposed"] * len(rows),
            of_model=True,
        )
        for model in _models(folds)
    }


def fused_test(folds: Sequence[FoldFound]) -> dict[str, CellDataset]:
    """Return, of every model that all folds have, what its folds found in the test images, fused with equal weights.

    Parameters
    ----------
    folds : list of FoldFound

    Returns
    -------
    dict
        Model -> the test images, with the fused cells (`cellkit.models.shared.fusion.fuse`) of the folds that use them.
    """
    classes = folds[0].truth.classes
    asked = [{record.image_id for record in fold.test.records} for fold in folds]
    test = _joined([fold.test for fold in folds])
    names = [record.image_id for record in test.records]
    return {
        model: replace(
            test,
            instances=[
                fuse([fold.found[model][name] for fold, own in zip(folds, asked, strict=True) if name in own])
                for name in names
            ],
            classes=classes,
            made_by=["proposed"] * len(names),
            of_model=True,
        )
        for model in _models(folds)
    }


def _joined(parts: Sequence[CellDataset]) -> CellDataset:
    """Return the images of all parts, each once, in the order of their ids."""
    place = {}
    for part in parts:
        for k, number in enumerate(part.ids or ()):
            place.setdefault(number, (part, k))
    rows = [place[number] for number in sorted(place)]
    records, cells = [part.records[k] for part, k in rows], [part.instances[k] for part, k in rows]
    made_by = [part.made_by[k] for part, k in rows if part.made_by]
    return replace(parts[0], records=records, instances=cells, ids=sorted(place), made_by=made_by)


def left_out(folds: Sequence[FoldFound]) -> list[str]:
    """Say which images no fold judges, and which test images some folds did not find, as faults flagged them there.

    Limits of faults are learned from training images, which differ between folds.
    """
    held = {record.image_id for fold in folds for record in fold.held.records}
    some = set().union(*(fold.taught for fold in folds)) - held - set.intersection(*(set(f.taught) for f in folds))
    test = [{record.image_id for record in fold.test.records} for fold in folds]
    partly = set().union(*test) - set.intersection(*test)
    told = (
        (some, "not out of fold: flagged, and so not used, in the fold that held it back"),
        (partly, "of the test found by some folds alone: flagged, and so not used, in others"),
    )
    return [f"{counted(len(names), 'image')} {why} (e.g. {min(names)})" for names, why in told if names]


def _models(folds: Sequence[FoldFound]) -> list[str]:
    """Return the models that all folds have, in the order of every table."""
    return order_models(set.intersection(*(set(fold.found) for fold in folds)))


def fold_table(folds: Sequence[FoldFound], n: int = 1000, seed: int = 0) -> pandas.DataFrame:
    """Score the models of the folds, overlaps removed: each fold, their mean, all images out of fold; and test images.

    Images that chose a checkpoint (`cellkit.models.gate.choosers`) judge nothing, and are left out. The mean counts every fold
    the same, the score out of fold every image.

    Parameters
    ----------
    folds : list of FoldFound
    n, seed : int
        Draws behind the intervals, and their seed.

    Returns
    -------
    DataFrame
        model, fold ("1", "2", ... "mean", "out of fold", and where test images have truth "test, folds fused"), images, score
        (MAP IoU), low, high (95 %; of a mean: nan), ap50, ap75.
    """
    import pandas as pd

    judged, fused = [judges(fold.truth) for fold in folds], fused_test(folds)
    truth = _joined([fold.test_truth for fold in folds])
    rows = []
    for model in _models(folds):
        tables = [_scored(part, fold.found[model]) for fold, part in zip(folds, judged, strict=True)]
        lines = [_line(model, str(k), table, n, seed) for k, table in enumerate(tables, 1)]
        some = [line for line in lines if line["images"]]
        means = {name: np.mean([line[name] for line in some]) if some else np.nan for name in ("score", "ap50", "ap75")}
        images = sum(line["images"] for line in lines)
        mean = {"model": model, "fold": MEAN, "images": images, "low": np.nan, "high": np.nan, **means}
        whole = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
        found = dict(zip([r.image_id for r in fused[model].records], fused[model].instances, strict=True))
        test = _line(model, TEST, _scored(truth, found), n, seed)
        rows += [*lines, mean, _line(model, OUT_OF_FOLD, whole, n, seed), *([test] if test["images"] else [])]
    return pd.DataFrame(rows, columns=["model", "fold", "images", "score", "low", "high", "ap50", "ap75"])


def _scored(truth: CellDataset, found: Mapping[str, Instances]) -> pandas.DataFrame:
    cells = [resolve_overlaps(found[record.image_id])[0] for record in truth.records]
    return score_table(truth.instances, cells, truth.records)


def _line(model: str, fold: str, table: pandas.DataFrame, n: int, seed: int) -> dict[str, object]:
    if not len(table):
        return {
            "model": model,
            "fold": fold,
            "images": 0,
            **dict.fromkeys(("score", "low", "high", "ap50", "ap75"), np.nan),
        }
    whole = summary(table, n=n, seed=seed).iloc[0]
    return {"model": model, "fold": fold} | {
        key: whole[key] for key in ("images", "score", "low", "high", "ap50", "ap75")
    }
