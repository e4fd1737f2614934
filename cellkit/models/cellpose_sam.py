"""Cellpose-SAM, the vision transformer of Cellpose 4: a foundation model of 305 million parameters, for a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.finding import opens_again
from cellkit.log import LOG
from cellkit.machine import gpu_peak_bytes
from cellkit.models import weights
from cellkit.models.map_cache import FOLDER, cache_in
from cellkit.models.sam_maps import (
    DEFAULTS,
    KEPT_AS,
    TILE_PX,
    Squares,
    at_network_scale,
    followed_on,
    predict_maps,
    segment_images,
)
from cellkit.models.sam_training import (
    Adaptation,
    check_lora,
    check_shape,
    high_rate,
    how_adapted,
    loss_of,
    steps_of,
    where_parts_matter,
)
from cellkit.models.sam_windows import sam_in_windows
from cellkit.models.shared import diameter
from cellkit.models.shared.contract import SMALLEST, Area, BatchSegmenter, Computed, Diameter, KeepsMaps, merged
from cellkit.models.shared.cost import Cost, clock, timed_cost
from cellkit.models.shared.fine_tuning import (
    chosen_by,
    images_to_search,
    map_iou,
    refuse_small,
    refuse_untrainable,
    save_base,
    save_tuned,
    scored_along,
)
from cellkit.models.shared.flow_loss import Prepared, with_target
from cellkit.models.shared.flows import masks_of
from cellkit.models.shared.inputs import CELL_PX, SHOWN, Doubts, ask_for_memory, bytes_for, labels_at, refuse_empty
from cellkit.models.shared.inputs import CHANNELS as CHOICES
from cellkit.models.shared.live import Live, of_maps
from cellkit.models.shared.processes import check_processes, of_first, place, train_shared
from cellkit.models.shared.threshold_search import THRESHOLDS, Searched, grid_of, score_maps, search_maps
from cellkit.models.shared.thresholds import AS_CELLPOSE, FlowError, Logit, stricter  # noqa: F401 - stricter: an ability
from cellkit.models.training import fingerprint, fit, plan_of, random_state_kept
from cellkit.settings import Percentiles, weights_field

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset

NAME = "cellpose_sam"
TITLE = "Cellpose-SAM"
REQUIRES = ("torch", "cellpose", "segment_anything")
BYTES_PER_PX = 150  # of memory, at network scale; measured, 1024 and 2048 px with few cells: 62 bytes more a pixel
LIGHTER = "cellpose_unet"  # the backend that does the same without a GPU
SLOW_S = 10.0  # for an image: from there on it is said that a GPU is missing
KEPT_BYTES = 24  # of a pixel of a training image
UNSET = {"flow_threshold": 0.0, "cellprob_threshold": 0.0}  # while training, where none is set: every mask counts
CHANNELS = (
    "what the network is shown, in any order, each channel as the run's channel map has it: all three, both = cytoplasm and "
    "nuclei, or one"
)


class Settings(Computed):
    """What may change from prediction to prediction; null = as the checkpoint's card says."""

    diameter_px: Diameter | None = Field(
        None, description="typical cell diameter (px), which becomes 30; null = images are taken as they are"
    )
    channels: Literal["all", "both", "nuclei", "cytoplasm"] | None = Field(None, description=CHANNELS)
    flow_threshold: FlowError | None = Field(
        None, description="largest error of a mask's flows; 0 = no check; null = the model's own"
    )
    cellprob_threshold: Logit | None = Field(
        None, description="logit above which a pixel belongs to a cell; null = the model's own"
    )
    min_area_px: Area | None = Field(None, description=SMALLEST)
    normalise: Percentiles | None = Field(
        None, description="percentiles of a channel that the network is shown as 0 and 1; null = the model's own"
    )
    squares_at_once: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="squares of 256 px that the network is shown together; null = 1 on a processor, 32 on a GPU",
    )


class TrainSettings(Adaptation, Settings, KeepsMaps):
    """Settings of a training."""

    base: str = weights_field("cpsam_v2", "weights to start from: cpsam_v2, cpsam, a path, or scratch", NAME)
    diameter_px: Diameter | None = Field(
        None, description="typical cell diameter (px), which becomes 30; null = images are taken as they are"
    )
    channels: Literal["all", "both", "nuclei", "cytoplasm"] = Field("all", description=CHANNELS)
    flow_threshold: FlowError | None = Field(
        None, description="largest error of a mask's flows; 0 = no check; null = best on training images"
    )
    cellprob_threshold: Logit | None = Field(
        None, description="logit above which a pixel belongs to a cell; null = best on training images"
    )
    min_area_px: Area | None = Field(None, description=f"{SMALLEST}; null = best on training images")
    normalise: Percentiles | None = Field(
        None, description="percentiles of a channel that the network is shown as 0 and 1; null = 1 and 99"
    )


# ---- the contract --------------------------------------------------------------------------------------------------
@opens_again
def load(checkpoint: Path, settings: Settings | None = None) -> BatchSegmenter:
    """Return a function from a stream of (H, W, 3) uint8 images to their cells, in order.

    On a GPU images are taken ahead, until there are squares enough for the network.

    Parameters
    ----------
    checkpoint : Path
        Ours (safetensors with a card) or one of Cellpose 4.
    settings : Settings, optional
        What is None comes from the card.

    Raises
    ------
    UserError
        No checkpoint there, or one of another network.
    """
    from cellkit.models.sam_network import applied_only, load_network

    network, card = load_network(checkpoint, getattr(settings, "precision", None))
    used = merged(settings, card, DEFAULTS)
    kept = (Path(checkpoint).parent / FOLDER).is_dir()  # so it is while the stage that made the checkpoint is under way
    cache = cache_in(Path(checkpoint).parent, network, card.get("map_cache_gb", 0), KEPT_AS) if kept else None
    network = applied_only(network)
    at_once, doubts = getattr(settings, "squares_at_once", None), Doubts(used["channels"], tuple(CHOICES))

    slow = network.arithmetic.device.type == "cpu"

    def find_each(images: Iterable[np.ndarray]) -> Iterator[tuple[Instances, Counter[str]]]:
        nonlocal slow
        begun = clock()
        for image, found, left_out in segment_images(network, images, **used, cache=cache, at_once=at_once):
            if slow and (seconds := clock() - begun) > SLOW_S:
                LOG.info(
                    f"{TITLE} takes {seconds:.0f} s for an image here: it is made for a GPU. {LIGHTER} takes seconds"
                )
                slow = False
            doubts.note(image, found, left_out)
            yield found, left_out
            begun = clock()

    diameter_px = used["diameter_px"] or CELL_PX
    size = lambda shape: bytes_for(shape, diameter_px, BYTES_PER_PX)  # noqa: E731
    in_windows = lambda whole: sam_in_windows(network, whole, at_once=at_once, **used)  # noqa: E731
    return BatchSegmenter(find_each, used, size, in_windows)


def live(checkpoint: Path, settings: Settings | None = None) -> Live:
    """Return the same network, whose thresholds can be moved when it has seen an image; otherwise as `load`."""
    from cellkit.models.sam_network import applied_only, load_network

    network, card = load_network(checkpoint, getattr(settings, "precision", None))
    used, network = merged(settings, card, DEFAULTS), applied_only(network)
    at_once, doubts = getattr(settings, "squares_at_once", None), Doubts(used["channels"], tuple(CHOICES))
    shown = {key: used[key] for key in ("diameter_px", "channels", "normalise")}
    diameter_px = used["diameter_px"] or CELL_PX

    def maps_of(image: np.ndarray) -> np.ndarray:
        return next(predict_maps(network, [image], **shown, at_once=at_once))

    size = lambda shape: bytes_for(shape, diameter_px, BYTES_PER_PX)  # noqa: E731
    return of_maps(maps_of, used, size, doubts.note, followed_on(network))


def published(tensors: Mapping[str, Any]) -> bool:
    """Tell whether the tensors of a checkpoint without a card are those of Cellpose 4, by their names."""
    return "W2" in tensors and any(name.startswith("encoder.") for name in tensors)


@random_state_kept()
def train(train: CellDataset, val: CellDataset, config: TrainSettings, out: Path) -> Path:
    """Adapt to the labelled images of `train`; whole images of `val` choose the weights where there are enough.

    Who chooses, and what is left where nobody does, is as for every backend, see `cellkit.models.gate.choosers`.

    Parameters
    ----------
    config : TrainSettings
        ``base`` is a path, or "scratch".
    out : Path
        Folder for the resume state, ``history.csv`` and the checkpoint.

    Returns
    -------
    Path
        ``cellpose_tuned.safetensors``: a plain Cellpose-SAM, low-rank parts merged; its card says how it was adapted.

    Raises
    ------
    UserError
        Nothing to train on, nothing in the channels that the network is shown, no weights to start from, too little memory.
    """
    from cellkit.models.sam_network import load_start
    from cellkit.models.sam_ways import merge_lora, trained_numbers

    refuse_untrainable(train, "min_area_px")
    if place()[0] == 0 and (high := high_rate(config)):
        LOG.warning(": ".join(high))
    if config.gpus > place()[1]:
        return train_shared(NAME, TrainSettings, train, val, config, out)
    out, settings = Path(out), merged(config, UNSET, DEFAULTS)
    if config.min_area_px is not None:
        refuse_small(train, config.min_area_px, "finetune.min_area_px")
    ask_for_memory(train, val, [settings["diameter_px"] or CELL_PX], KEPT_BYTES, BYTES_PER_PX)
    network = load_start(config.base, config.seed, precision=config.precision)
    loss_at = loss_of(network, _items(train, settings, out / "flows"), config)
    adapted = {**how_adapted(config), "trained": trained_numbers(network)[0]}
    LOG.info(f"{NAME}: {config.way}, {adapted['trained'] / 1e6:.3g} million numbers are trained")
    scored, choosing = scored_along(val, config.val_images)
    pairs = [val[i] for i in scored]

    def score() -> float:
        cache = cache_in(out, network, config.map_cache_gb, KEPT_AS)
        found = segment_images(network, [image for image, _ in pairs], **settings, cache=cache)
        return of_first(map_iou((truth, cells) for (_, truth), (_, cells, _) in zip(pairs, found, strict=True)))

    plan = replace(plan_of(config, NAME), steps=steps_of(config, len(train)))
    rest = (
        settings,
        config.precision,
        loss_at.loss_at.recipe,
        how_adapted(config),
        scored,
        choosing,
        *where_parts_matter(config),
    )
    items = [*(item.arrays for item in loss_at.loss_at.items), *chosen_by(pairs, choosing)]
    stamp = fingerprint(network, items, plan, *rest)
    history = fit(network, loss_at, score, plan, out, stamp, NAME, choosing, val.compared_by("validation score"))
    merge_lora(network)
    network.diam_labels.data.fill_(diameter.diameter_of(train.instances))
    read_with, searched = _calibrated(network, train, config, out)
    return save_tuned(
        out / "cellpose_tuned.safetensors",
        NAME,
        network,
        read_with,
        history,
        val,
        scored if choosing else [],
        "map_iou_validation",
        "kaggle, mean of whole validation images",
        licence=weights.licence_from(config.base),
        base=Path(config.base).stem,
        read_at={key: settings[key] for key in THRESHOLDS},
        searched=searched,
        adapted=adapted,
    )


def calibrate(train: CellDataset, config: TrainSettings, to: Path) -> Path:
    """Copy the weights that a training starts from, and note in their card how they are best read on these cells.

    Thresholds come from the training images, as those of `train` do, so that two models are compared each at its best; what is
    set in `config` stays.

    Parameters
    ----------
    config : TrainSettings
        ``base`` is a path, or "scratch".
    to : Path
        Of the copy, without suffix.

    Returns
    -------
    Path
        ``<to>.safetensors``.
    """
    from cellkit.models.sam_network import load_start

    network = load_start(config.base, config.seed, precision=config.precision)
    read_with, searched = _calibrated(network, train, config, Path(to).parent)
    return save_base(Path(config.base), to, NAME, network, read_with, searched)


def check(config: TrainSettings) -> None:
    """Refuse, before a run begins, what a training would refuse at its turn.

    That is weights of another kind of network, more late blocks than it has, crops larger than it sees, LoRA or several GPUs
    without the package that they need, more GPUs than there are, and a learning rate far above that of the way.

    Raises
    ------
    UserError
        With what is wrong, and how to mend it.
    """
    if high := high_rate(config):
        raise UserError(*high)
    if config.way == "lora":
        check_lora()
    check_processes(config.gpus)
    base = Path(config.base)
    if base.suffix == ".safetensors":
        weights.card_for(base, NAME)
    if base.is_file():
        from cellkit.models.sam_network import network_of

        check_shape(network_of(weights.load_tensors(base), base), config)


def ceiling(labelled: CellDataset, config: TrainSettings, most: int = 4) -> float:
    """Return MAP IoU (kaggle) of decode(encode(labels)) against the labels, on up to `most` images: what no training beats."""
    settings = merged(config, UNSET, DEFAULTS)
    read_at = merged(config, {}, AS_CELLPOSE)
    if config.min_area_px is not None:
        refuse_small(labelled, config.min_area_px, "finetune.min_area_px")
    some, pairs = labelled.sample(most), []
    for k in range(len(some)):
        maps = _item(*some[k], settings).target.copy()
        maps[2] = np.where(maps[2] > 0, 6, -6)
        pairs.append((some.instances[k], masks_of(maps, some.instances[k].shape, **read_at)))
    return map_iou(pairs)


def cost(config: TrainSettings, image: np.ndarray, truth: Instances) -> Cost:
    """Return what a training costs here, timed on an image that is one square: on a processor once, on a GPU twice."""
    from cellkit.models.sam_network import load_start
    from cellkit.models.sam_ways import trained_numbers

    network = load_start(config.base, config.seed, precision=config.precision)
    settings, on = merged(config, UNSET, DEFAULTS) | {"diameter_px": None}, network.arithmetic.device.type
    item = _item(image, truth, settings)
    loss_at = loss_of(network, [item], config.model_copy(update={"batch_size": 1, "at_once": 1}))
    side, maps = network.shape.tile_px, [item.target]

    def find() -> None:
        maps[0] = next(predict_maps(network, [image], channels=settings["channels"], normalise=settings["normalise"]))
        masks_of(maps[0], truth.shape, 0.0, settings["cellprob_threshold"], 0, device=followed_on(network))

    def search() -> None:
        grid = grid_of(settings, [key for key in THRESHOLDS if getattr(config, key) is None], [truth])
        score_maps(maps[0], truth, *grid.values(), device=followed_on(network))

    once = 1 if on == "cpu" else 2
    found = timed_cost(network, loss_at, (side, side), lambda: _item(image, truth, settings), find, search, 2, 1, once)
    trained, parameters = trained_numbers(network)
    step_bytes = found.step_bytes if on == "cpu" else max(gpu_peak_bytes() - 4 * (parameters + trained), 0)
    more = {"parameters": parameters, "trained": trained, "device": on}
    return replace(found, search_s=found.search_s + found.find_s, step_bytes=step_bytes, **more)


def seen_px(shape: tuple[int, int], config: Settings | TrainSettings, cells: float = 0) -> int:
    """Return how many pixels the network sees of an image (height, width): those of all its squares, which overlap.

    Examples
    --------
    >>> seen_px((240, 240), Settings()) // 256**2, seen_px((240, 240), Settings(diameter_px=15)) // 256**2
    (1, 9)
    """
    scale = CELL_PX / config.diameter_px if getattr(config, "diameter_px", None) else 1
    at_scale = (max(1, int(shape[0] * scale)), max(1, int(shape[1] * scale)))
    return len(Squares(at_scale, TILE_PX).corners) * TILE_PX**2


def _items(train: CellDataset, settings: Mapping[str, Any], cache: Path) -> list[Prepared]:
    """Return the training images with their targets, which are computed once; refuse images of which nothing is shown."""
    from cellkit.parallel import progress

    items = [_item(*train[k], settings, cache) for k in progress(range(len(train)), "flows of training images")]
    refuse_empty([item.planes for item in items], train, SHOWN[settings["channels"]], "finetune.channels")
    return items


def _item(image: np.ndarray, truth: Instances, settings: Mapping[str, Any], cache: Path | None = None) -> Prepared:
    planes = at_network_scale(image, settings["diameter_px"], settings["channels"], settings["normalise"])
    return with_target(planes, labels_at(truth, planes.shape[1:]), cache)


def _calibrated(network: Any, train: CellDataset, config: TrainSettings, folder: Path) -> tuple[dict[str, Any], dict]:
    """Return the settings to predict with, and what the card says of their search on up to six training images.

    The network's maps are kept in a folder of their own in `folder`, where the checkpoint will lie.
    """
    settings = merged(config, UNSET, DEFAULTS)
    pairs, called = images_to_search(train)
    searched = [key for key in THRESHOLDS if getattr(config, key) is None]
    found = Searched({}, {})
    if searched:
        shown = (settings["diameter_px"], settings["channels"], settings["normalise"])
        cache = cache_in(folder, network, config.map_cache_gb, KEPT_AS)
        each = predict_maps(network, [image for image, _ in pairs], *shown, cache)
        maps = {id(image): one for (image, _), one in zip(pairs, each, strict=True)}
        grid, device = grid_of(settings, searched, [truth for _, truth in pairs]), followed_on(network)
        found = search_maps(
            pairs,
            grid,
            searched,
            lambda image, truth: score_maps(maps[id(image)], truth, *grid.values(), device=device),
            lambda image: maps[id(image)],
            called,
            "Try another way, more images, or finetune.diameter_px",
        )
    return {
        **settings,
        **found.settings,
        "precision": config.precision,
        "map_cache_gb": config.map_cache_gb,
    }, found.card
