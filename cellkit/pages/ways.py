"""Which way wins: every model of some runs on the same images, with its score, its classes, its counts and what it cost.

A way is a model of a run, however it was made. All is read from what the runs left: predictions, labels, manifests. Runs whose
labels are the same are compared with each other; other runs have a part of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import SPLIT_IMAGES
from cellkit.errors import Quarantined, UserError, counted, nearest
from cellkit.evaluate.classes import images_to_count, totals_by_class
from cellkit.evaluate.evaluation import decide, of_images, rejected_models, score_models, summarise
from cellkit.evaluate.verdict import images_to_decide
from cellkit.files import sha256_file
from cellkit.manifest import sha256_json
from cellkit.models import TEACHER, model_name
from cellkit.models.gate import judges
from cellkit.pages.costs import bounded, cost_of
from cellkit.pages.results import RunFiles
from cellkit.scores.conventions import compare_conventions, find_conventions, unranked
from cellkit.scores.intervals import BOOTSTRAP
from cellkit.scores.iou import overlaps
from cellkit.scores.matching import class_accuracy, match_pairs
from cellkit.scores.table import paired_bootstrap, per_image

if TYPE_CHECKING:
    import pandas

SPLITS = ("test", "val")


@dataclass(frozen=True)
class Way:
    """A model of a run.

    Attributes
    ----------
    name : str
        What it is called in a comparison: the model, with its run before it where several runs have one.
    run : RunFiles
    model : str
        As its predictions file.
    """

    name: str
    run: RunFiles
    model: str

    @property
    def title(self) -> str:
        """Its name in print."""
        return self.name.removesuffix(self.model) + model_name(self.model)


@dataclass(frozen=True)
class Comparison:
    """Runs of one set of labels, and what each of their models scores and costs.

    Attributes
    ----------
    runs : list of RunFiles
    split : str
        The images that are reported.
    ways : dict
        Name -> `Way`.
    rows : list of dict
        One per way: name, run, model, its scores and costs; plain values.
    chosen : str
        The way that the deciding images choose, against which the others are compared; "" where nothing can decide.
    decided_on : int
        How many images decided.
    images, interval_of : int, str
        How many images are reported; what the intervals are drawn from.
    classes : tuple of str
    labelled : dict
        Split -> how many of its images a person labelled, of those that teach, choose and decide.
    """

    runs: list[RunFiles]
    split: str
    ways: dict[str, Way]
    rows: list[dict[str, Any]]
    chosen: str
    decided_on: int
    images: int
    interval_of: str
    classes: tuple[str, ...]
    labelled: dict[str, int]

    @property
    def verdict(self) -> str:
        """Which way wins, in words: the chosen one, what is better or cannot be told from it, and the cheapest of those."""
        if not self.chosen:
            return "No image that chose no weights is labelled beside these: nothing decides which way wins."
        titles = {row["name"]: self.ways[row["name"]].title for row in self.rows}
        others = [row for row in self.rows if row["name"] != self.chosen]
        better, worse = ([titles[r["name"]] for r in others if r[key]] for key in ("better", "worse"))
        alike = [row for row in others if not (row["better"] or row["worse"])]
        where = SPLIT_IMAGES.get(self.split, self.split)
        text = [
            f"{titles[self.chosen]} is chosen by {counted(self.decided_on, 'validation image')} that chose no weights."
        ]
        text += (
            ["They are among those reported here, which flatters it."]
            if self.split == self.runs[0].choose_split
            else []
        )
        if untold := next((row["untold"] for row in others if row["untold"]), ""):
            return " ".join([*text, f"In the {where} nothing tells which way is better: {untold}."])
        text += [f"In the {where} better than it beyond doubt: {' / '.join(better) or 'none'}"]
        text[-1] += f"; cannot be told from it: {' / '.join(titles[r['name']] for r in alike) or 'none'}"
        text[-1] += f"; worse: {' / '.join(worse) or 'none'}."
        equals = [row for row in self.rows if row["name"] == self.chosen or row in alike]
        if alike and all(row["whole_s"] is not None for row in equals):
            least = min(equals, key=lambda row: (row["whole_s"], -row["score"]))
            took = f"{titles[least['name']]}, {bounded(least, 'whole_s')} CPU seconds in all"
            text += [f"Cheapest of those that cannot be told apart: {took}."]
        return " ".join(text)


def compare_runs(
    folders: Iterable[str | Path], split: str | None = None, bootstrap: int = BOOTSTRAP
) -> tuple[list[Comparison], list[Quarantined]]:
    """Compare every model of some runs with all others on the same images.

    Parameters
    ----------
    folders : iterable of path
        Run folders in which notebook 04 is finished, and at least one that finds cells.
    split : {"test", "val"}, optional
        The images that are reported; by default test images, where any is labelled.
    bootstrap : int
        Draws behind each interval.

    Returns
    -------
    comparisons : list of Comparison
        One per set of labels, in the order of the folders.
    left_out : list of Quarantined
        Runs that hold nothing to compare, each with what is missing; models of another state of a run, each with what differs.

    Raises
    ------
    UserError
        No such folder, another split, or no run that can be compared.
    """
    if split not in (None, *SPLITS):
        raise UserError(f"--split is '{split}'{nearest(str(split), SPLITS)}", f"use one of {', '.join(SPLITS)}")
    runs, left_out = [], []
    for folder in dict.fromkeys(map(str, folders)):
        run = RunFiles(folder)
        left_out += [Quarantined(f"{run.folder.name}:{name}", why) for name, why in sorted(run.unused.items())]
        if lack := lacking(run, split):
            left_out.append(Quarantined(run.folder.name, lack))
        else:
            runs.append(run)
    if not runs:
        each = "; ".join(f"{item.item}: {item.reason}" for item in left_out) or "no run is given"
        raise UserError(f"there is nothing to compare: {each}", "give run folders whose notebooks 01 to 05 have run")
    alike: dict[str, list[RunFiles]] = {}
    for run in runs:
        alike.setdefault(labels_sha256(run), []).append(run)
    return [compare(group, split, bootstrap) for group in alike.values()], left_out


def current_models(run: RunFiles) -> list[str]:
    """Return the models of a run but those that are not of its present state."""
    return [model for model in run.models if model not in run.unused]


def lacking(run: RunFiles, split: str | None = None) -> str:
    """Say what a run lacks to be compared; "" where nothing is missing."""
    if not current_models(run):
        return f"no model has found cells yet (finished: {', '.join(run.stages) or 'nothing'})"
    if not run.truths:
        return "neither 04_cells_to_coco nor a recipe has written the true cells"
    known = [one for one in SPLITS if one in run.scored_truths]
    if not known:
        return run.no_accuracy or "no validation or test image is labelled"
    return "" if split in (None, *known) else f"no image of the split '{split}' is labelled by a person"


def labels_sha256(run: RunFiles) -> str:
    """Return a hash of the images and true cells that models are scored against: the same in runs that can be compared."""
    outputs = {key: value for entry in run.stages.values() for key, value in entry["outputs"].items()}
    found = {key: run.path(f"{key.replace('_', '/')}.json") for key in ("coco_val", "coco_test")}
    return sha256_json(
        [outputs[key]["sha256"] if key in outputs else path and sha256_file(path) for key, path in found.items()]
    )


def compare(runs: Sequence[RunFiles], split: str | None = None, bootstrap: int = BOOTSTRAP) -> Comparison:
    """Compare the models of runs that have the same labels; see `compare_runs`."""
    first = runs[0]
    truths = first.scored_truths
    split = split or next(one for one in SPLITS if one in truths)
    ways = ways_of(runs)
    found = {name: way.run.predictions(way.model) for name, way in ways.items()}
    truth = truths[split]
    scores = score_models(found, {split: truth})
    table = summarise(scores, n=bootstrap).set_index("model")
    chosen, decided_on = chosen_of(ways, found, first)
    deciding = deciding_images(first)
    rows = []
    for name, way in ways.items():
        row = {"name": name, "run": way.run.folder.name, "model": way.model}
        row |= scored(scores[scores["model"] == name], table.loc[name])
        row |= against(scores, chosen, name, bootstrap)
        row |= conventions_of(truth, found[name])
        row |= {"counts": counts_of(found[name], first, split, deciding if split != first.choose_split else None)}
        rows.append(row | cost_of(way.run.stages, way.model))
    labelled = {one: len(first.truths[one].without_proposed()) for one in ("train", "val") if one in first.truths}
    units = str(table["interval_of"].iloc[0])
    return Comparison(list(runs), split, ways, rows, chosen, decided_on, len(truth), units, truth.classes, labelled)


def ways_of(runs: Sequence[RunFiles]) -> dict[str, Way]:
    """Return the models of runs by name, with their run where several have one; one that found the very same is listed once."""
    folders = [run.folder.absolute() for run in runs]
    names = [folder.name for folder in folders]
    kept, known = [], set()
    for run, folder in zip(runs, folders, strict=True):
        run_name = folder.name if names.count(folder.name) == 1 else f"{folder.parent.name}/{folder.name}"
        for model in current_models(run):
            made = (model, sha256_file(run.need(f"predictions/{model}.json")))
            kept += [] if made in known else [(run_name, run, model)]
            known.add(made)
    often = Counter(model for _, _, model in kept)
    ways = [Way(f"{name}: {model}" if often[model] > 1 else model, run, model) for name, run, model in kept]
    return {way.name: way for way in ways}


# ---- scores ----------------------------------------------------------------------------------------------------------
def deciding_images(run: RunFiles) -> CellDataset:
    """Return the labelled validation images that chose no weights: those that decide in notebook 06 what is handed in.

    Counts are corrected by them here; notebook 06, which chooses nothing by counts, corrects by those that chose weights too.
    """
    truth = run.scored_truths.get(run.choose_split)
    if truth is None:
        return run.images.subset([])
    decision = run.path("decision.json")
    return judges(images_to_decide(truth, {} if decision is None else {"decision": decision}))


def chosen_of(ways: Mapping[str, Way], found: Mapping[str, Mapping[str, Instances]], run: RunFiles) -> tuple[str, int]:
    """Return the way that the deciding images choose, as 06 chooses what is handed in, and how many they are; "", 0: none."""
    deciding = deciding_images(run)
    rejected = [name for name, way in ways.items() if way.model in (TEACHER, *rejected_of(way.run))]
    if not len(deciding) or not set(ways) - set(rejected):
        return "", 0
    ranked = summarise(score_models(dict(sorted(found.items())), {run.choose_split: deciding}), n=0)
    return decide(ranked, "best", run.choose_split, rejected), len(deciding)


def rejected_of(run: RunFiles) -> list[str]:
    """Return the models that 03 did not keep, see `rejected_models`."""
    outputs = run.stages.get("03_finetune_cellpose", {}).get("outputs", {})
    return rejected_models({key: Path(value["path"]) for key, value in outputs.items() if key.endswith("checkpoint")})


def scored(scores: pandas.DataFrame, line: Any) -> dict[str, Any]:
    """Return MAP IoU with its interval, and what is read from the same hits at IoU > 0.5."""
    at_half = per_image(scores)[["tp", "fp", "fn"]].sum()
    total = 2 * at_half["tp"] + at_half["fp"] + at_half["fn"]
    return {
        "score": float(line["score"]),
        "interval": [number(line["low"]), number(line["high"])],
        "ap50": number(line["ap50"]),
        "f1_50": number(2 * at_half["tp"] / total) if total else None,
        "truth_cells": int(line["truth_cells"]),
        "found_cells": int(line["found_cells"]),
    }


def against(scores: pandas.DataFrame, chosen: str, name: str, bootstrap: int) -> dict[str, Any]:
    """Return by how much a way scores higher than the chosen one, by drawing the same images for both; or why that is untold."""
    nothing = {"gain": None, "gain_interval": [None, None], "better": False, "worse": False, "untold": ""}
    if not chosen or name == chosen:
        return nothing
    one, other = scores[scores["model"] == chosen], scores[scores["model"] == name]
    gain = paired_bootstrap(one, other, n=bootstrap)
    return {
        "gain": number(gain.difference),
        "gain_interval": [number(gain.low), number(gain.high)],
        "better": bool(gain.better),
        "worse": bool(paired_bootstrap(other, one, n=bootstrap).better),
        "untold": gain.lacking,
    }


def conventions_of(truth: CellDataset, predictions: Mapping[str, Instances]) -> dict[str, Any]:
    """Return what other conventions say, and how often the class of a found cell is right; None where that is not defined.

    Where the true cells are boxes, some conventions are not; where a model tells no class, that of each class is not.
    """
    found, boxes = of_images(predictions, truth), any(cells.boxes_only for cells in truth.instances)
    classed = any(cells.class_ids.any() for cells in found)
    known = find_conventions()
    asked = [name for name in ("caicedo", "point", "voc") if known[name].ON_BOXES or not boxes]
    told = compare_conventions(truth.instances, found, classes=truth.classes, conventions=asked, bootstrap=0)[
        "conventions"
    ]
    accuracy, cells, _ = class_accuracy(truth.instances, found, truth.classes) if classed else (np.nan, 0, None)
    return {
        "caicedo": told.get("caicedo", {}).get("score"),
        "point": {key: told.get("point", {}).get(key) for key in ("recall", "precision")},
        "voc_ap50": told["voc"]["by_class"] if classed else None,
        "voc_ranked": not unranked(found),
        "class_right": number(accuracy),
        "class_cells": cells,
    }


def counts_of(
    predictions: Mapping[str, Instances], run: RunFiles, split: str, deciding: CellDataset | None
) -> list[dict[str, Any]]:
    """Return the cells of each class in the mixed images, beside the truth, and corrected by the deciding images' errors.

    What is found of a true cell of unknown class (IoU > 0.5) is left out: it belongs to none of the counts.

    Returns
    -------
    list of dict
        class_name, found, truth, off ((found - truth) / truth), corrected, corrected_off, images. Empty where the model names
        no class, or no such image is annotated whole.
    """
    truth = run.scored_truths[split]
    truth = truth.subset([not cells.unknown_px for cells in truth.instances])
    whole = {record.image_id for record in truth.records}
    images = images_to_count(run.images, split)
    images = images.subset([record.image_id in whole for record in images.records])
    known = {
        record.image_id: without_unknown(cells, found)
        for record, cells, found in zip(truth.records, truth.instances, of_images(predictions, truth), strict=True)
    }
    table = totals_by_class({"": {**predictions, **known}}, images, truth, deciding) if len(images) else []
    rows = []
    for line in table.to_dict("records") if len(table) else ():
        row = {"class_name": line["class_name"], "found": int(line["found"]), "truth": int(line["truth"])}
        row["corrected"] = number(line.get("corrected"))
        row |= {"off": off(row["found"], row["truth"]), "corrected_off": off(row["corrected"], row["truth"])}
        rows.append(row | {"images": len(images)})
    return rows


def without_unknown(truth: Instances, found: Instances) -> Instances:
    """Return the found cells without those that match a true cell of unknown class (IoU > 0.5)."""
    pairs = overlaps(truth, found)
    true, seen = match_pairs(pairs)
    kept = np.ones(len(found), bool)
    kept[seen[pairs.truth_classes[true] == 0]] = False
    return found[kept]


def off(found: float | None, true: int) -> float | None:
    """Return by what share of the truth a count is too high; None where there is no truth to share.

    Examples
    --------
    >>> off(103, 100), off(5, 0), off(None, 10)
    (0.03, None, None)
    """
    return None if found is None or not true else round((found - true) / true, 6)


def number(value: Any) -> float | None:
    """Return a number for JSON; None for what is missing or undefined.

    Examples
    --------
    >>> number(np.float64(0.5)), number(float("nan")), number(None)
    (0.5, None, None)
    """
    return None if value is None or not np.isfinite(value) else float(value)
