"""Minutes of a stage, counted from what a training step and a megapixel cost: trainings, scores on the way, searches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cellkit.evaluate.folds import fold_settings
from cellkit.evaluate.halving import PARTS
from cellkit.forecast.costing import course_of, steps_of, told
from cellkit.forecast.images import RunImages
from cellkit.forecast.speed import Speed
from cellkit.models.gate import NOBODY, QUARTERS, THREE_PARTS, choosers
from cellkit.models.interpolation import STEPS
from cellkit.models.shared.contract import Schedule
from cellkit.models.shared.cost import Cost, Course
from cellkit.models.shared.diameter import MEASURED, tried_mpx
from cellkit.models.shared.fine_tuning import SEARCHED_ON

STARTS = {"convert": 2, "label": 2, "finetune": 2, "coco": 2, "maskrcnn": 2, "evaluate": 4}  # times all imports
OTHERS_MPX = 0.2  # of the cells of other kinds that 03 scores its models on
FLOOR = "threshold"  # finds cells in notebook 02, beside the backend that is named


def seconds_of_stage(run: RunImages, section: str, speed: Speed, floor: Speed) -> float:
    """Return the seconds of a stage, by what its backend costs, and the floor beside it."""
    seconds = STARTS.get(section, STARTS["maskrcnn"]) * speed.start_s
    if section == "convert":
        return seconds + run.sample.convert_s * sum(run.px) / 1e6 / run.shared(section)
    if section == "label":
        some = run.cfg.label.use == "truth" and not run.cfg.label.teacher
        asked = run.cfg.label.preview / max(len(run.records), 1) if some else 1
        seen = sum(run.found_sizes(section).values()) * min(asked, 1)
        measured = told(run.cfg.label, "estimate_diameter")
        seen += diameter_mpx(run) if measured and not getattr(run.cfg.label, "diameter_px", 0) else 0
        judged = ("val", "test") if run.cfg.label.use == "truth" else ("train", "val", "test")
        floor_s = floor.cost.find_s * sum(run.file_mpx(split) for split in judged)
        return seconds + (speed.cost.find_s * seen + floor_s) / run.shared(section)
    config = run.section(section)
    if section not in ("coco", "evaluate") and isinstance(config, Schedule):  # else nothing is trained step by step
        seconds += (_adapting_s if section == "finetune" else training_s)(run, section, config, speed.cost)
    return seconds


def diameter_mpx(run: RunImages) -> float:
    """Return the megapixels that are looked at to estimate the diameter of cells, on a few training images."""
    tried = [tried_mpx(shape) for shape, one in zip(run.shapes, run.records, strict=True) if one.split == "train"]
    tried = tried or [tried_mpx(shape) for shape in run.shapes]
    return sum(tried) / max(len(tried), 1) * min(len(tried), MEASURED)


def training_s(run: RunImages, section: str, config: Any, cost: Cost) -> float:
    """Return the seconds of a training that takes all its steps, and of what is predicted with it and its base."""
    val, sizes = run.mpx(section, "val"), run.sizes(section)
    train = [sizes[one.image_id] for one in run.records if one.split == "train"]
    chosen = len(choosers([one for one in run.records if one.split == "val"])) or run.count("val")
    scored = min(chosen, config.val_images or chosen) / max(run.count("val"), 1)
    course = course_of(config, len(train))
    scores = (-(-steps_of(config, len(train)) // (course.networks * config.eval_every)) + 1) * course.networks
    seconds = one_training_s(train, config, cost, cost.searches * run.times_searched(section), course)
    seconds += cost.find_s * val * scored * scores * course.scored + cost.find_s * course.unseen * sum(train)
    found = run.found_sizes(section)
    held_out = sum(found[one.image_id] for one in run.records if one.split in ("val", "test"))
    return seconds + cost.searches * course.answers * cost.find_s * held_out


def seconds_of_trial(run: RunImages, section: str, config: Any, cost: Cost, share: float) -> float:
    """Return the seconds of one training of a search, for a share of its steps, and of finding the cells it is compared by.

    Those are of the validation images that choose, else of a fourth of the training images, which do not teach then.
    """
    size = run.sizes(section)
    train = [size[one.image_id] for one in run.records if one.split == "train"]
    held = [size[name] for name in choosers([one for one in run.records if one.split == "val"])]
    if not held:
        aside = max(round(len(train) / PARTS), 1)
        train, held = train[aside:], train[:aside]
    points = len(STEPS) if cost.searches > 1 else 1
    seconds = cost.find_s * points * sum(held)
    if not isinstance(config, Schedule):
        return seconds
    return seconds + one_training_s(
        train, fold_settings(config, share), cost, cost.searches, course_of(config, len(train))
    )


def _adapting_s(run: RunImages, section: str, config: Any, cost: Cost) -> float:
    """Return the seconds of `cellkit.evaluate.adaptation.adapt`, and of what is predicted afterwards."""
    labelled, regime = run.labelled, run.regime
    size, found, points = run.sizes(section), run.found_sizes(section), len(STEPS) if cost.searches > 1 else 1
    seconds, searches = cost.find_s * cost.searches * OTHERS_MPX, cost.searches * run.times_searched(section)
    if regime.name in (THREE_PARTS, NOBODY):
        seconds += cost.find_s * points * sum(found[name] for name in regime.choosers)
        return seconds + training_s(run, section, config, cost)
    teach = {
        record.image_id: record.split
        for record, cells in zip(labelled.records, labelled.instances, strict=True)
        if record.split in ("train", "val") and len(cells) >= regime.least
    }
    short, whole = fold_settings(config), 1 - 1 / QUARTERS
    for held in regime.folds or (regime.judges,) * QUARTERS:
        taught = [size[name] * (whole if name in held else 1) for name in teach if not regime.folds or name not in held]
        seconds += one_training_s(taught, short, cost, searches)
        seconds += cost.find_s * points * sum(found[name] for name in held)
    seconds += one_training_s([size[name] for name in teach], config, cost, searches)
    val = {name for name, split in teach.items() if split == "val"}
    if val and not any(val <= set(held) for held in regime.folds):  # a run without validation images is one more
        seconds += one_training_s([size[name] for name in teach if name not in val], short, cost, 1)
    seen = set(regime.judges)
    others = [record.image_id for record in run.records if record.split in ("val", "test")]
    return seconds + cost.find_s * cost.searches * sum(found[name] for name in others if name not in seen)


def one_training_s(
    sizes: Sequence[float], config: Any, cost: Cost, searches: int, course: Course | None = None
) -> float:
    """Return the seconds of one training, with its searches, on images of these sizes (megapixels at network scale)."""
    course = course or Course()
    seen = min(sum(sizes), course.most_mpx)
    gpus = getattr(config, "gpus", 1) if cost.device == "cuda" else 1  # processes on a processor share its cores
    share = -(-config.batch_size // gpus)
    seconds = cost.prepare_s * course.prepared * seen + cost.step_s * share * steps_of(config, len(sizes))
    searched = len(sizes) if course.searched else getattr(config, "search_images", SEARCHED_ON)
    return seconds + searches * cost.search_s * seen * min(searched / max(len(sizes), 1), 1)
