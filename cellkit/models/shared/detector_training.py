"""How a Mask R-CNN is trained, whichever library computes it: crops, loss, thresholds, score, cost.

The network is an argument, a torch module: `network(planes, targets)` gives its losses by name, `network([planes])` boxes, scores
and masks; its ``cell_classifier`` tells classes, its ``roi_heads`` hold the thresholds and count what the cap cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.errors import UserError, counted
from cellkit.log import LOG
from cellkit.models.cell_classes import images_that_teach
from cellkit.models.maskrcnn_detect import TILE_PX, detect_image, line_of, raw_detections
from cellkit.models.shared.contract import merged
from cellkit.models.shared.cost import BATCH, Cost, seconds_of, timed_cost
from cellkit.models.shared.detection_search import SEARCHED, loosest, readings, search_readings
from cellkit.models.shared.detector_anchors import anchor_sizes
from cellkit.models.shared.detector_batches import DetectorLoss, frozen_steps, say_untrainable, scaled
from cellkit.models.shared.detector_settings import DEFAULTS, Training
from cellkit.models.shared.diameter import diameter_of
from cellkit.models.shared.fine_tuning import (
    chosen_by,
    class_score,
    images_to_search,
    refuse_small,
    refuse_untrainable,
    save_tuned,
    scored_along,
)
from cellkit.models.shared.inputs import (
    CELL_PX,
    ask_for_memory,
    refuse_empty,
)
from cellkit.models.shared.shares import as_many, dealt_out, in_shares
from cellkit.models.shared.threshold_search import Searched
from cellkit.models.shared.tiles import Boxes
from cellkit.models.training import fingerprint, fit, plan_of
from cellkit.models.weights import licence_from

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset
LINE_IMAGES = 3  # of a class, at least, to search thresholds for it


def train_detector(
    train: CellDataset,
    val: CellDataset,
    config: Training,
    out: Path,
    name: str,
    start: Callable[[Training, dict[str, Any], Sequence[str]], Any],
    levels: Mapping[str, tuple[Sequence[int], int, float]],
    bytes_per_px: int,
) -> Path:
    """Train a detector; whole images of `val` choose the weights by the mean of the classes' MAP IoU.

    Which of them choose, and that none does while there are few, is as in `cellpose_unet.train`.

    Parameters
    ----------
    out : Path
        Folder for the resume state, ``history.csv`` and the checkpoint.
    name : str
        Of the backend.
    start : callable
        (config, settings, classes) -> the network on its device; what its encoder was trained on is noted in the settings.
    levels : mapping
        Backbone -> strides, sizes of a level and least size, as `detector_anchors.anchor_sizes` wants them.
    bytes_per_px : int
        Memory that finding the cells of an image takes, as `inputs.bytes_for` wants it.

    Returns
    -------
    Path
        ``maskrcnn.safetensors``.

    Raises
    ------
    UserError
        Nothing to train on, no class, or no weights to start from.
    """
    if not train.classes:
        raise UserError("there is no class to train", "name the classes in the config")
    refuse_untrainable(train, "coco.min_area_px")
    val = val.with_classes_of(train)
    settings = merged(config, {}, DEFAULTS)
    settings["diameter_px"] = settings["diameter_px"] or diameter_of(train.instances)
    diameter_px = settings["diameter_px"]
    refuse_small(train, settings["min_area_px"], "maskrcnn.min_area_px")
    ask_for_memory(train, val, [diameter_px], 28, settings["flips"] * bytes_per_px)
    settings["tile_detections"] = room_for(train.instances, diameter_px)
    if config.anchors == "data":
        settings["anchor_sizes"] = sizes = anchor_sizes(train.instances, diameter_px, *levels[config.backbone])
    model = start(config, settings, train.classes)
    learn_texture(model, train, settings)
    if config.anchors == "data" and settings["anchor_sizes"] is not sizes:
        LOG.info(f"{name}: anchors are those of {Path(config.start).name}, which it starts from, not from the labels")
    if settings["anchor_sizes"]:
        each = "; ".join(", ".join(f"{size:g}" for size in level) for level in settings["anchor_sizes"])
        LOG.info(f"{name}: anchors of {each} px at network scale")
    items = [scaled(*train[i], diameter_px, config.keep_overlaps) for i in range(len(train))]
    refuse_empty([item[0] for item in items], train, "any colour", "convert.channels")
    say_untrainable(items, train.records)
    scored, choosing = scored_along(val, config.val_images)
    looked_at = [val[i] for i in scored]
    scorer = ClassScorer(model, looked_at, train.classes, settings)
    plan = plan_of(config, name)
    rest = (
        settings,
        config.batch_size,
        config.crop_px,
        config.seed,
        config.ignore_unknown,
        scored,
        choosing,
        *as_many(),
    )
    stamp = fingerprint(
        model, [*items, *chosen_by(looked_at, choosing)], plan, *rest, config.unfreeze_after, config.cells_per_step
    )
    loss_at = in_shares(DetectorLoss(model, items, config), model)
    history = fit(model, loss_at, scorer, plan, Path(out), stamp, name, choosing, val.compared_by("validation score"))
    kind_of = (lambda truth: line_of(truth.class_ids)) if config.search_by_line else (lambda truth: "")
    pairs, called = images_to_search(train, kind_of)
    lines = train.classes if config.search_by_line else ()
    found = best_readings(model, pairs, settings, searched(config), called, lines)
    settings |= found.settings
    return save_tuned(
        Path(out) / "maskrcnn.safetensors",
        name,
        model,
        settings,
        history,
        val,
        scored if choosing else [],
        "class_map_iou_validation",
        "kaggle, mean over classes and whole validation images",
        train.classes,
        licence_from(config.start),
        start=Path(config.start).stem,
        searched=found.card,
    )


def learn_texture(model: Any, train: CellDataset, settings: dict[str, Any]) -> None:
    """Give a detector a vote on classes by the texture of labelled cells, and note it in the settings.

    Where the labels lack a class, or there is but one, it keeps what it started with.
    """
    from cellkit.models.cell_classifier import texture_votes

    places = images_that_teach(train.instances, len(train.classes))
    votes = texture_votes(train, settings["diameter_px"], places)
    if votes:
        device = next(model.parameters()).device
        model.cell_texture, model.cell_alone = (*(vote.to(device) for vote in votes), None)[:2]
        settings |= {"texture": True, "alone": model.cell_alone is not None}


def room_for(instances: Sequence[Instances], diameter_px: float) -> int:
    """Return how many cells a tile may report: three times the crowd of the densest labelled image, and at least 1000.

    Examples
    --------
    >>> crowd = Instances.from_labels(np.arange(1, 65 * 65 + 1).reshape(65, 65).repeat(4, 0).repeat(4, 1))
    >>> room_for([crowd], 10.0)  # cells of 4 x 4 px, 12 x 12 px at network scale
    12288
    """
    factor = CELL_PX / diameter_px
    areas = [x.shape[0] * x.shape[1] - x.unknown_px for x in instances]
    crowd = max((len(x) / (px * factor**2) for x, px in zip(instances, areas, strict=True) if px), default=0)
    return max(DEFAULTS["tile_detections"], round(3 * crowd * TILE_PX**2))


def detector_cost(
    config: Training,
    image: np.ndarray,
    truth: Instances,
    start: Callable[[Training, dict[str, Any], Sequence[str]], Any],
) -> Cost:
    """Return what a training costs here, timed on an image whose cells are about 30 px wide."""
    fixed = {"diameter_px": CELL_PX, "max_detections": len(truth), "score_threshold": 0.0}
    settings = merged(config, {}, DEFAULTS) | fixed
    model = start(config, settings, [str(k) for k in range(int(truth.class_ids.max()))])
    model.roi_heads.score_thresh = 0.0  # as many boxes as there are cells, of a detector that has learned nothing yet
    loss_at = DetectorLoss(model, [scaled(image, truth, CELL_PX)], config.model_copy(update={"batch_size": BATCH}))
    views, share = loss_at.views, frozen_steps(config) / config.steps

    def search() -> None:
        best_readings(model, [(image, truth)], settings, searched(config))
        model.roi_heads.score_thresh = 0.0

    found = timed_cost(
        model,
        loss_at,
        image.shape[:2],
        lambda: scaled(image, truth, CELL_PX),
        lambda: detect_image(model, image, settings),
        search,
    )
    if views is None:
        return found
    encode_s = seconds_of(lambda: views.view(0, views.at_once)) / views.uses  # that of the step was there already
    step_s = share * (found.step_s + encode_s)
    if share < 1:
        model.train()
        step_s += (1 - share) * seconds_of(lambda: loss_at(config.steps).backward()) / BATCH
    return replace(found, step_s=step_s)


def searched(config: Training) -> list[str]:
    """Return what is searched, since it is not set."""
    return [key for key in SEARCHED if getattr(config, key) is None]


# ---- thresholds and scores -------------------------------------------------------------------------------------------
def best_readings(
    model,
    pairs: Sequence[tuple[np.ndarray, Instances]],
    settings: dict,
    keys: Sequence[str] = SEARCHED,
    called: str = "MAP IoU",
    lines: Sequence[str] = (),
) -> Searched:
    """Search how detections are best read, by MAP IoU (kaggle, whatever the class) on labelled images, and set the network so.

    Give training images: validation images are to judge by. The network looks at each once. `lines` are the names of the
    classes, where the images of each are to be read in their own way.
    """
    if not keys:
        return Searched({}, {})
    grid = readings(settings, keys, [truth for _, truth in pairs])
    model.roi_heads.score_thresh = min(loosest(grid), model.roi_heads.score_thresh)
    model.roi_heads.nms_thresh = max(grid["nms_threshold"])
    remedy = (
        "Train longer (maskrcnn.steps), or try another maskrcnn.start or maskrcnn.diameter_px "
        f"(now {settings['diameter_px']:.3g})."
    )
    left_out: Counter[str] = Counter()

    def look(pair: tuple[np.ndarray, Instances]) -> tuple[Boxes, Counter[str]]:
        counts: Counter[str] = Counter()
        return raw_detections(model, pair[0], settings, counts)[0], counts

    raws = []
    for (_, truth), (raw, counts) in zip(pairs, dealt_out(pairs, look, "find to search"), strict=True):
        left_out.update(counts)
        raws.append((raw, truth))
    say_caps(left_out, "thresholds are searched")
    found = search_readings(raws, grid, keys, called, remedy)
    if lines and found.card:
        by_class = _by_line(raws, settings | found.settings, keys, called, lines)
        found = found._replace(settings=found.settings | {"by_line": by_class})
    model.roi_heads.score_thresh, model.roi_heads.nms_thresh = (
        (settings | found.settings)[key] for key in ("score_threshold", "nms_threshold")
    )
    return found


def say_caps(left_out: Mapping[str, int], when: str) -> None:
    """Say which caps were reached; of cells that are left out for other reasons nothing is said while a detector is trained.

    Parameters
    ----------
    left_out : mapping
        Reason -> cells, as `maskrcnn_detect.detect_image` counts them.
    when : str
        What was being done.
    """
    for why, cells in left_out.items():
        if "max_detections" in why:
            LOG.warning(f"while {when}: {counted(cells, 'cell')} {why}")


def _by_line(
    raws: Sequence, settings: dict, keys: Sequence[str], called: str, classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return, by its number as text, what is read otherwise in the images of each class that has `LINE_IMAGES` or more."""
    found = {}
    for line, name in ((str(k), name) for k, name in enumerate(classes, 1)):
        own = [(raw, truth) for raw, truth in raws if line_of(truth.class_ids) == line]
        if len(own) < LINE_IMAGES:
            LOG.info(f"class {name}: {counted(len(own), 'image')} to search on, so its images are read as all are")
            continue
        grid = readings(settings, keys, [truth for _, truth in own])
        grid = {key: tuple(dict.fromkeys([settings[key], *values])) for key, values in grid.items()}
        found[line] = search_readings(own, grid, keys, f"{called}, class {name}", "").settings
    return found


class ClassScorer:
    """() -> mean over classes of the MAP IoU (kaggle) of each class by itself, on whole validation images."""

    def __init__(self, model, pairs: Sequence[tuple[np.ndarray, Instances]], classes: Sequence[str], settings: dict):
        self.model, self.pairs, self.classes, self.settings = model, pairs, classes, settings

    def __call__(self) -> float:
        """Return the score of the images as they are found now."""

        def find(pair: tuple[np.ndarray, Instances]) -> tuple[Instances, Counter[str]]:
            counts: Counter[str] = Counter()
            return detect_image(self.model, pair[0], self.settings, counts), counts

        left_out, found = Counter(), []
        for cells, counts in dealt_out(self.pairs, find):
            left_out.update(counts)
            found.append(cells)
        say_caps(left_out, "validation images are scored")
        return class_score([truth for _, truth in self.pairs], found, self.classes)
