"""Adapt a model to labelled images and judge it on images that it did not see: one function for every backend."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cellkit.cells.dataset import CellDataset, predict_all
from cellkit.cells.instances import Instances
from cellkit.errors import UserError, counted
from cellkit.evaluate.folds import Fold, Found, checkpoint_at, fold_settings, judged_of, run_fold, scores_of, weights_of
from cellkit.evaluate.quarters import joined, judged_in, quarters, without_quarter
from cellkit.evaluate.verdict import Verdict, keep_if_better
from cellkit.log import LOG
from cellkit.models import if_able
from cellkit.models.gate import FOLDS, IN_QUARTERS, NOBODY, THREE_PARTS, Regime, regime_of, unit_of
from cellkit.models.interpolation import best_step, nested_steps, steps_between
from cellkit.models.shared.fine_tuning import refuse_untrainable
from cellkit.models.weights import add_to_card, copy_checkpoint, hashed

PREFIX = "cellpose_"  # before "base" and "tuned": what their predictions are called
BASE, HANDED_ON = f"{PREFIX}base", "handed_on"
WITHOUT_VAL = "without_validation"  # folder of an adaptation that saw training images alone


@dataclass(frozen=True)
class Adapted:
    """What `adapt` leaves: checkpoints, who judged, and the verdict.

    Attributes
    ----------
    regime : Regime
        Who taught, chose and judged.
    verdict : Verdict
    base : Path or None
        The start, read as suits these images; None where the backend starts from nothing.
    tuned : Path
        The adapted model, as far from the base as `step` says.
    kept : Path
        Of both the one that is handed on.
    encoder : Path or None
        What another network may start from: as `kept`, and no validation image taught it; None where nothing of the kind is.
    step : float
        How far from base (0) to tuned (1) scored best on images that do not judge; of 0 the tuned one is the whole step,
        and so it is judged.
    judged_steps : tuple of float
        How far from the base what was judged as tuned went, for each image (quarter) that judged: chosen by the others.
    judge : CellDataset
        The images that judged; quarters of one where there is a single one.
    judged : dict
        "base" (where there is one) and "tuned" -> the cells found in each of them.
    unseen : dict
        Model -> image_id -> cells of the training and validation images, found by models that did not see them.
    backend : module of cellkit.models
    """

    regime: Regime
    verdict: Verdict
    base: Path | None
    tuned: Path
    kept: Path
    encoder: Path | None
    step: float
    judged_steps: tuple[float, ...]
    judge: CellDataset
    judged: dict[str, list[Instances]]
    unseen: dict[str, dict[str, Instances]] = field(repr=False)
    backend: ModuleType = field(repr=False)

    @property
    def models(self) -> dict[str, Path]:
        """The checkpoints of "base" (where there is one) and "tuned"."""
        return {name: path for name, path in (("base", self.base), ("tuned", self.tuned)) if path is not None}

    def predict(self, images: CellDataset) -> dict[str, list[Instances]]:
        """Return what each model finds; in images that taught it, what short runs found which had not seen them.

        Of a single labelled image those runs had not seen the quarter that a cell lies in. Images that chose, among twelve
        validation images or more, are predicted as any other: what is found there flatters the tuned model a little.
        """
        return {name: self._predict(name, path, images) for name, path in self.models.items()}

    def _predict(self, name: str, path: Path, images: CellDataset) -> list[Instances]:
        known = dict(self.unseen.get(name, {}))
        rest = images.subset([record.image_id not in known for record in images.records])
        found = predict_all(self.backend.load(path), rest, f"{PREFIX}{name}") if len(rest) else []
        known |= {record.image_id: cells for record, cells in zip(rest.records, found, strict=True)}
        return [known[record.image_id] for record in images.records]

    @property
    def tuned_in_words(self) -> str:
        """What the scores of "tuned" are of, where that is not plain; else ""."""
        if self.step == 0:
            return "The base scored best of all steps away from it; what is called tuned, and scored so, is the whole step."
        if len(set(self.judged_steps)) > 1:
            each = ", ".join(f"{step} ({count} times)" for step, count in self._counts().items())
            return (
                f"What is called tuned goes {self.step:g} of the way from the base (1 = all of it); each image that judges was "
                f"found at the step that the others chose: {each}."
            )
        return ""

    def _counts(self) -> dict[str, int]:
        return {f"{step:g}": self.judged_steps.count(step) for step in sorted(set(self.judged_steps))}

    @property
    def decision(self) -> dict[str, Any]:
        """What is written to ``decision.json``: regime, judges, rule, numbers, verdict; plain values."""
        gain = self.verdict.gain
        numbers = {} if gain is None or not gain.n else {
            "gain": round(gain.difference, 6), "low": round(gain.low, 6), "high": round(gain.high, 6), "n": gain.n,
            "units": gain.units,
        }  # fmt: skip
        return {
            "kept": self.kept.stem,
            "verdict": self.verdict.kept,
            "sentence": self.verdict.sentence,
            "regime": self.regime.name,
            "regime_in_words": str(self.regime),
            "choosers": list(self.regime.choosers),
            "judges": list(self.regime.judges),
            "step_from_base": self.step,
            "judged_steps": self._counts(),
            "tuned_in_words": self.tuned_in_words,
            "rule": self.verdict.rule,
            "what_would_change": self.verdict.change,
            **numbers,
        }


def adapt(backend: ModuleType, labelled: CellDataset, settings: Any, folder: str | Path) -> Adapted:
    """Adapt a model to labelled images, go from base to tuned as far as scores best, and judge by images that chose nothing.

    Who teaches, chooses and judges is `cellkit.models.gate.regime_of`'s. Where few images are labelled, each is judged by a
    short run that did not see it, and one whole run on all of them is handed on if those comparisons win.

    Parameters
    ----------
    backend : module of cellkit.models
        `train` and `load`, and `calibrate` where it starts from a base.
    labelled : CellDataset
        Images of the splits ``train`` and ``val``; others are left alone. What a model proposed teaches, if it is in
        ``train``, and judges nothing.
    settings : TrainSettings
        With `folds`, `fold_steps` and `min_train_masks` where it is the section of notebook 03.
    folder : path
        For checkpoints and what was found. A run that was killed and is repeated with the same settings and images goes on:
        parts that were finished are not run again.

    Raises
    ------
    UserError
        As the backend: no labelled cell to train on, no weights to start from.
    """
    folder, regime = Path(folder), regime_for(labelled, settings)
    LOG.info(f"who judges: {regime}")
    make = _three_parts if regime.name in (THREE_PARTS, NOBODY) else _cross_fitted
    adapted = make(backend, labelled, settings, folder, regime)
    told = {"regime": regime.name, "judged_by": hashed(regime.judges), "verdict": adapted.verdict.sentence}
    for path in adapted.models.values():
        add_to_card(path, **told)
    return adapted


def regime_for(labelled: CellDataset, settings: Any) -> Regime:
    """Return who teaches, chooses and judges in `adapt`, with the same arguments."""
    least = getattr(settings, "min_train_masks", 1)
    return regime_of(labelled, getattr(settings, "folds", FOLDS), least, getattr(settings, "seed", 0))


def images_that_teach(labelled: CellDataset, regime: Regime) -> CellDataset:
    """Return the images that the whole run learns from: those to train on, and where few are labelled validation images too.

    Parameters
    ----------
    labelled : CellDataset
        As for `adapt`.
    regime : Regime
        Who judges, see `cellkit.models.gate.regime_of`.
    """
    if regime.name in (THREE_PARTS, NOBODY):
        return labelled.select("train").with_at_least(regime.least)
    return labelled.subset(
        [
            record.split == "train" or (record.split == "val" and made_by != "proposed")
            for record, made_by in zip(labelled.records, labelled.made_by, strict=True)
        ]
    ).with_at_least(regime.least)


def _three_parts(backend: ModuleType, labelled: CellDataset, settings: Any, folder: Path, regime: Regime) -> Adapted:
    """Train on training images; choosers choose checkpoint and step, the others judge."""
    train = images_that_teach(labelled, regime)
    refuse_untrainable(train, "finetune.min_train_masks")
    val = labelled.select("val")
    watched = val.without_proposed() or val
    base = if_able(backend, "calibrate", train, settings, folder / BASE)
    whole = backend.train(train, watched, settings, folder)
    is_chooser = np.array([record.image_id in regime.choosers for record in watched.records], bool)
    chose, judge = watched.subset(is_chooser), watched.subset(~is_chooser)
    if regime.name == NOBODY:
        judge = watched.subset([])
    steps, found = steps_between(base, whole), {}
    for step in steps if len(chose) else ():
        checkpoint = checkpoint_at(base, whole, step, folder / "between")
        found[step] = predict_all(backend.load(checkpoint), chose, f"step {step:g}")
    shutil.rmtree(folder / "between", ignore_errors=True)
    step = _said(scores_of(chose, found), steps, "the images that choose") if found else steps[-1]
    tuned = checkpoint_at(base, whole, step or 1.0, folder / HANDED_ON)
    models = {name: path for name, path in (("base", base), ("tuned", tuned)) if path is not None}
    judged = {name: predict_all(backend.load(path), judge, name) for name, path in models.items()}
    verdict = _of_step(keep_if_better(judge, judged), step)
    kept, unseen = models[verdict.kept], {name: _named(judge, cells) for name, cells in judged.items()}
    return Adapted(
        regime, verdict, base, tuned, kept, kept, step, (step or 1.0,) * len(judge), judge, judged, unseen, backend
    )


def _cross_fitted(backend: ModuleType, labelled: CellDataset, settings: Any, folder: Path, regime: Regime) -> Adapted:
    """Hold parts back in turn, judge each by a run that did not see it; hand on one run on all labelled images."""
    in_use = labelled.subset([record.split in ("train", "val") for record in labelled.records])
    teaching = images_that_teach(labelled, regime)
    part = _quarters if regime.name == IN_QUARTERS else _folds
    folds = part(teaching, in_use.without_proposed(), regime, folder)
    founds = []
    for number, fold in enumerate(folds, 1):
        LOG.info(f"part {number} of {len(folds)} held back: {', '.join(r.image_id for r in fold.held.records)}")
        founds.append(run_fold(backend, fold, settings))
    judge, cells, place = judged_of(folds, founds)
    steps, scores = tuple(cells), scores_of(judge, cells)
    step = _said(scores, steps, f"{len(judge)} {'quarters' if regime.name == IN_QUARTERS else 'images'} held back")
    nested = nested_steps(scores, place) if step else np.full(len(judge), len(steps) - 1)
    judged = {"base": cells[0.0]} if 0.0 in cells else {}
    judged["tuned"] = [cells[steps[column]][k] for k, column in enumerate(nested)]
    verdict = _of_step(keep_if_better(judge, judged, "quarter" if regime.name == IN_QUARTERS else ""), step)
    LOG.info(f"one whole run on all that teach: {teaching}")
    base = if_able(backend, "calibrate", teaching, settings, folder / BASE)
    whole = backend.train(teaching, teaching.subset([]), settings, folder)
    tuned = checkpoint_at(base, whole, step or 1.0, folder / HANDED_ON)
    kept = encoder = base if verdict.kept == "base" else tuned
    if verdict.kept == "tuned" and any(record.split == "val" for record in teaching.records):
        encoder = _without_validation(backend, folds, teaching, settings, folder / WITHOUT_VAL, step, base)
    unseen = {name: _named(judge, found) for name, found in judged.items()}
    if regime.name == IN_QUARTERS:
        unseen = _whole_image(
            regime, folds, founds, dict(zip(place.tolist(), nested.tolist(), strict=True)), steps, step or 1.0
        )
    judged_steps = tuple(steps[column] for column in nested)
    return Adapted(regime, verdict, base, tuned, kept, encoder, step, judged_steps, judge, judged, unseen, backend)


def _folds(teaching: CellDataset, known: CellDataset, regime: Regime, folder: Path) -> list[Fold]:
    """Return the parts to hold back; images whose labels were proposed teach where their group is not held back."""
    fold_of = {name: number for number, names in enumerate(regime.folds) for name in names}
    dealt: dict[str, set[int]] = {}  # where each group is; a single group is not held back whole
    for record in known.records:
        dealt.setdefault(unit_of(record), set()).add(fold_of[record.image_id])
    folds, has_val = [], any(record.split == "val" for record in teaching.records)
    for number in range(len(regime.folds)):
        train = teaching.subset(
            [fold_of.get(r.image_id) != number and dealt.get(unit_of(r)) != {number} for r in teaching.records]
        )
        held = known.subset([fold_of[record.image_id] == number for record in known.records])
        lasts = has_val and all(record.split == "train" for record in train.records)
        folds.append(Fold(train, held, folder / f"fold_{number + 1}", lasts=lasts))
    return folds


def _quarters(teaching: CellDataset, known: CellDataset, regime: Regime, folder: Path) -> list[Fold]:
    """Return the quarters without which something teaches; images whose labels were proposed teach along."""
    image = known.subset([record.image_id in regime.judges for record in known.records])
    others = teaching.subset([record.image_id not in regime.judges for record in teaching.records])
    cells, folds = image.instances[0], []
    boxes = quarters(cells)
    for number in range(len(boxes)):
        place = folder / f"fold_{number + 1}"
        train = without_quarter(image, number, boxes, others, place / "images")
        if train.cells:
            folds.append(Fold(train, image, place, boxes[number]))
    if not any(len(judged_in(fold.box, cells, cells[:0])[0]) for fold in folds):
        raise UserError(
            f"the one labelled image, {regime.judges[0]}, has {counted(len(cells), 'cell')}, none of them whole in a quarter",
            "label more of its cells, or one more image: something has to be held back to judge by",
        )
    return folds


def _without_validation(
    backend: ModuleType,
    folds: Sequence[Fold],
    teaching: CellDataset,
    settings: Any,
    folder: Path,
    step: float,
    base: Path | None,
) -> Path | None:
    """Return what another network may start from whose validation images are to be unseen: of a short run without them.

    Such a run is that of the fold which all of them are held back in, where there is one.
    """
    apart = next((fold for fold in folds if fold.lasts), None)
    if apart is not None:
        start, tuned = weights_of(apart)
        between = checkpoint_at(start, tuned, step, folder / HANDED_ON)
        return copy_checkpoint(tuned, folder / HANDED_ON / tuned.stem) if between == tuned else between
    train = teaching.select("train")
    if not train.cells:
        return base
    LOG.info("a short run without the validation images, for networks that start from this one and are judged by them")
    tuned = backend.train(train, train.subset([]), fold_settings(settings), folder)
    return checkpoint_at(base, tuned, step, folder / HANDED_ON)


def _whole_image(
    regime: Regime,
    folds: Sequence[Fold],
    founds: Sequence[Found],
    nested: dict[int, int],
    steps: Sequence[float],
    step: float,
) -> dict[str, dict[str, Instances]]:
    """Return what was found in the one labelled image: in each quarter, by the run that did not see it."""
    boxes = [fold.box for fold in folds]
    of = {"base": [0.0] * len(folds), "tuned": [steps[nested[k]] if k in nested else step for k in range(len(folds))]}
    return {
        name: {regime.judges[0]: joined(boxes, [found[at][0] for found, at in zip(founds, each, strict=True)])}
        for name, each in of.items()
        if all(at in founds[0] for at in each)
    }


def _said(scores: np.ndarray, steps: Sequence[float], who: str) -> float:
    """Return the step that scores best, and say what each scored."""
    step = steps[best_step(scores)]
    each = (
        ", ".join(f"{one:g}: {mean:.3f}" for one, mean in zip(steps, scores.mean(axis=0), strict=True))
        if len(scores)
        else "none"
    )
    if len(steps) > 1:
        LOG.info(f"step from base to tuned {step:g}, by MAP IoU on {who} ({each})")
    return step


def _of_step(verdict: Verdict, step: float) -> Verdict:
    """Return the verdict; "base" where no step away from it scored better on the images that choose."""
    if step or verdict.gain is None:
        return verdict
    text = "kept: base. On the images that choose, no step away from it scored better, so the rule was not asked."
    return replace(verdict, kept="base", text=text, change="")


def _named(images: CellDataset, found: Sequence[Instances]) -> dict[str, Instances]:
    return dict(zip([record.image_id for record in images.records], found, strict=True))
