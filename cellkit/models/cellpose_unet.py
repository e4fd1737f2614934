"""Cellpose's residual U-Net (generations 1 to 3): trains on a CPU in minutes, runs the published checkpoints.

The training loop is ours: best checkpoint by whole-image score, early stop, resume, stop at the first loss that is not finite,
cached flows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from cellkit.cells.instances import Instances
from cellkit.finding import opens_again
from cellkit.log import LOG
from cellkit.models.map_cache import FOLDER, cache_in
from cellkit.models.shared import diameter
from cellkit.models.shared.contract import (
    SMALLEST,
    Area,
    Channels,
    Computed,
    Diameter,
    KeepsMaps,
    Schedule,
    Segmenter,
    Share,
    SharesBatches,
    merged,
)
from cellkit.models.shared.cost import BATCH, Cost, timed_cost
from cellkit.models.shared.diameter import FARTHEST
from cellkit.models.shared.fine_tuning import (
    SEARCHED_ON,
    chosen_by,
    images_to_search,
    refuse_small,
    refuse_untrainable,
    save_base,
    save_tuned,
    scored_along,
)
from cellkit.models.shared.flow_loss import FlowLoss, prepare
from cellkit.models.shared.inputs import CELL_PX, Doubts, ask_for_memory, bytes_for
from cellkit.models.shared.live import Live, of_maps
from cellkit.models.shared.processes import check_processes, place, train_shared
from cellkit.models.shared.thresholds import AS_CELLPOSE, FlowError, Logit, stricter  # noqa: F401 - stricter: an ability
from cellkit.models.training import fingerprint, fit, plan_of, random_state_kept
from cellkit.models.unet_batches import (
    SCRATCH,
    UNSET,
    in_processes,
    loss_of,
    refuse_frozen_scratch,
    scaled_by,
    uncalibrated,
)
from cellkit.models.unet_ceiling import ceiling  # noqa: F401 - an ability of this backend
from cellkit.models.unet_maps import maps_to_read, segment_image
from cellkit.models.unet_search import DEFAULTS, GRID, SEARCHED, search_settings
from cellkit.models.unet_style import style  # noqa: F401 - an ability of this backend
from cellkit.models.unet_validation import Scorer
from cellkit.models.unet_windows import unet_in_windows
from cellkit.models.weights import licence_from, parents_of
from cellkit.settings import Number, Percentiles, as_yaml, weights_field

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset

NAME = "cellpose_unet"
TITLE = "Cellpose U-Net"
REQUIRES = ("torch", "cellpose")
BYTES_PER_PX = 110  # of memory, at network scale; measured, 1024 and 2048 px: 101 bytes more a pixel
FROM_SCRATCH = {"learning_rate": 1e-3}  # weights that know something move less: a slow rate keeps it


class Settings(Computed):
    """What may change from prediction to prediction; null = as the checkpoint's card says."""

    diameter_px: Diameter | None = Field(None, description="typical cell diameter (px); null = estimated")
    channels: Channels | None = Field(
        None,
        description="what the network is shown; null = as it was trained; the starter weights outline nuclei when shown "
        "nuclei alone",
    )
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
    diameter_of: Literal["batch", "image"] | None = Field(
        None,
        description="whose diameter an image is scaled by: diameter_px, or in further passes that of the cells found before; "
        "null = the model's own",
    )


class TrainSettings(Schedule, Settings, KeepsMaps, SharesBatches):
    """Settings of a training."""

    base: str = weights_field(
        "starter", "weights to start from: starter, a name of the registry, a path, or scratch", NAME
    )
    diameter_px: Diameter | None = Field(None, description="typical cell diameter (px); null = from the labels")
    channels: Channels = Field(
        "both", description="what the network is shown; the starter weights outline nuclei when shown nuclei alone"
    )
    flow_threshold: FlowError | None = Field(
        None, description="largest error of a mask's flows; 0 = no check; null = best on training images"
    )
    cellprob_threshold: Logit | None = Field(
        None, description="logit above which a pixel belongs to a cell; null = best on training images"
    )
    min_area_px: Area | None = Field(None, description=f"{SMALLEST}; null = best on training images")
    normalise: Percentiles | None = Field(
        None,
        description="percentiles of a channel that the network is shown as 0 and 1; null = 1 and 99",
    )
    diameter_of: Literal["batch", "image"] | None = Field(
        None,
        description="whose diameter an image is scaled by: diameter_px, or its own, in further passes that of the cells found "
        "before; null = what is better on training images where their cells differ in diameter by half and more, else batch",
    )
    learning_rate: Number = Field(
        2e-4, gt=0, le=1, description=f"largest learning rate; unless set, {FROM_SCRATCH['learning_rate']} from scratch"
    )
    average_steps: int = Field(
        20,
        ge=0,
        le=10**6,
        description="steps over which the weights are averaged, exponentially, to be scored and kept; 0 = not averaged",
    )
    frozen_levels: int = Field(
        0,
        ge=0,
        le=8,
        description="levels of the network that stay as they are, from the input on: 4 = the encoder, 7 = all but the last",
    )
    fixed_norms: bool = Field(
        True,
        description="the means and variances that batch norm divides by stay those of the base, which a few crops tell "
        "badly; scratch learns them",
    )
    replay_share: Share = Field(
        0.0,
        description="of the crops, those of drawn cells as the starter weights know them, so that less is forgotten",
    )
    balance_types: bool = Field(
        True,
        description="deal crops evenly over the cell types, however many images each has, and to mixed images as many as "
        "to others; false = over the images",
    )
    rotate: bool = Field(True, description="turn crops by any angle; false = only flip and zoom them")
    intensities: Literal["mild", "strong"] = Field(
        "mild", description="how crops vary: gamma, gain, noise; strong = more of it, and offset, blur and inversion"
    )
    search_images: int = Field(
        SEARCHED_ON,
        ge=1,
        description="most training images that thresholds and least area are searched on, in each run; fewer take less time",
    )
    outside_counts: bool = Field(
        True,
        description="what a crop shows beyond the edge of its image trains as background; false = it does not count",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_scratch(cls, given: Any) -> Any:
        """Fill in what weights that know nothing need, and nobody set."""
        scratch = isinstance(given, Mapping) and given.get("base") == SCRATCH
        return FROM_SCRATCH | dict(given) if scratch else given


# ---- the contract --------------------------------------------------------------------------------------------------
@opens_again
def load(checkpoint: Path, settings: Settings | None = None) -> Segmenter:
    """Return a function from a stream of (H, W, 3) uint8 images to their cells, in order.

    Parameters
    ----------
    checkpoint : Path
        Ours (safetensors with a card) or a published one of Cellpose 1 to 3.
    settings : Settings, optional
        What is None comes from the card; the diameter is then that of the cells the network was trained on.

    Raises
    ------
    UserError
        No checkpoint there, or one of another network.
    """
    from cellkit.models.unet_network import load_network

    network, card = load_network(checkpoint, getattr(settings, "precision", None))
    used = _read_with(settings, card)
    if used["diameter_px"] is None:
        used["diameter_px"] = float(network.diam_labels.item())
    kept = (Path(checkpoint).parent / FOLDER).is_dir()  # so it is while the stage that made the checkpoint is under way
    cache = cache_in(Path(checkpoint).parent, network, card.get("map_cache_gb", 0)) if kept else None
    doubts = Doubts(used["channels"], ("both", "cytoplasm", "nuclei"))

    def find(image: np.ndarray, left_out: Counter[str]) -> Instances:
        found = segment_image(network, image, **used, left_out=left_out, cache=cache)
        doubts.note(image, found, left_out)
        return found

    return Segmenter(find, used, _bytes_with(used, network), lambda whole: unet_in_windows(network, whole, **used))


def live(checkpoint: Path, settings: Settings | None = None) -> Live:
    """Return the same network, whose thresholds can be moved when it has seen an image; otherwise as `load`."""
    from cellkit.models.unet_network import load_network

    network, card = load_network(checkpoint, getattr(settings, "precision", None))
    used = _read_with(settings, card)
    if used["diameter_px"] is None:
        used["diameter_px"] = float(network.diam_labels.item())
    shown = {key: used[key] for key in ("diameter_px", "channels", "normalise", "diameter_of")}
    doubts = Doubts(used["channels"], ("both", "cytoplasm", "nuclei"))
    return of_maps(lambda image: maps_to_read(network, image, **shown), used, _bytes_with(used, network), doubts.note)


def _bytes_with(used: Mapping[str, Any], network) -> Callable[[tuple[int, int]], int]:
    """Return the function (height, width) -> bytes of memory that finding the cells of an image takes."""
    cell_px = float(network.diam_mean.item())
    return lambda shape: bytes_for(shape, _smallest_px(used), BYTES_PER_PX, cell_px)


def _smallest_px(used: Mapping[str, Any]) -> float:
    """Return the smallest diameter that an image may be scaled by."""
    return used["diameter_px"] / (FARTHEST if used["diameter_of"] == "image" else 1)


@random_state_kept()
def train(train: CellDataset, val: CellDataset, config: TrainSettings, out: Path) -> Path:
    """Fine-tune on the labelled images of `train`; whole images of `val` choose the weights where there are enough.

    Which of `val` choose, and that none does while there are few, is `cellkit.models.gate.choosers`'s; the others are not
    looked at, so that they can judge. Where none chooses, all are scored along the way to be watched, and the last weights kept.
    `val` may hold no image: then nothing is scored.

    Parameters
    ----------
    config : TrainSettings
        ``base`` is a path, or "scratch".
    out : Path
        Folder for the resume state, ``history.csv`` and the checkpoint.

    Returns
    -------
    Path
        ``cellpose_tuned.safetensors``; its card holds the diameter, the thresholds and the validation score.

    Raises
    ------
    UserError
        Nothing to train on, nothing in the channels that the network is shown, or no weights to start from.
    """
    from cellkit.models.unet_network import cell_px_of

    refuse_untrainable(train, "min_area_px")
    out = Path(out)
    if config.gpus > place()[1]:
        return train_shared(NAME, TrainSettings, train, val, config, out)
    settings = uncalibrated(train, config)
    diameter_px = settings["diameter_px"]
    if config.min_area_px is not None:
        refuse_small(train, config.min_area_px, "finetune.min_area_px")
    each_px = [scaled_by(cells, settings) for cells in train.instances]
    ask_for_memory(train, val, each_px, 20, BYTES_PER_PX, _smallest_px(settings), cell_px_of(config.base))
    loss_at = loss_of(train, config, settings, out / "flows")
    network, shared = loss_at.network, in_processes(loss_at)
    scored, choosing = scored_along(val, config.val_images)
    pairs = [val[i] for i in scored]
    scorer = Scorer(network, pairs, settings, Path(config.base).stem, out, config.map_cache_gb)
    if searched := _searched(config, settings):
        at = ", ".join(f"{key} {as_yaml(settings[key])}" for key in GRID)
        LOG.info(
            f"scores during training are read at {at}; {', '.join(searched)} of the result are searched afterwards"
        )
    plan = plan_of(config, NAME)
    rest = (settings, config.precision, loss_at.recipe, config.frozen_levels, config.fixed_norms, scored, choosing)
    items = [item.arrays for item in (*loss_at.items, *loss_at.replay)]
    stamp = fingerprint(network, [*items, *chosen_by(pairs, choosing)], plan, *rest)
    history = fit(network, shared, scorer, plan, out, stamp, NAME, choosing, val.compared_by("validation score"))
    network.diam_labels.data.fill_(diameter_px)
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
        licence=licence_from(config.base),
        base=Path(config.base).stem,
        parents=parents_of(config.base),
        read_at={key: settings[key] for key in GRID},
        searched=searched,
    )


def calibrate(train: CellDataset, config: TrainSettings, to: Path) -> Path:
    """Copy the weights that a training starts from, and note in their card how they are best read on these cells.

    Diameter and thresholds come from the training images, as those of `train` do, so that two models are compared each at
    its best; what is set in `config` stays.

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
    from cellkit.models.unet_network import load_start

    network = load_start(config.base, config.seed, precision=config.precision)
    read_with, searched = _calibrated(network, train, config, Path(to).parent)
    return save_base(Path(config.base), to, NAME, network, read_with, searched)


def check(config: TrainSettings) -> None:
    """Refuse weights of another kind of network, or that diverged; and more processes than can share a batch."""
    from cellkit.models.unet_network import load_network

    refuse_frozen_scratch(config)
    check_processes(config.gpus, config.batch_size)
    if config.base != SCRATCH:
        load_network(config.base)


def cost(config: TrainSettings, image: np.ndarray, truth: Instances) -> Cost:
    """Return what a training costs here, timed on an image whose cells are about 30 px wide."""
    from cellkit.models.unet_network import load_start

    network = load_start(config.base, config.seed, precision=config.precision)
    network.freeze(config.frozen_levels, config.fixed_norms and config.base != SCRATCH)
    settings = merged(config, UNSET, DEFAULTS) | {"diameter_px": CELL_PX}
    item = prepare(image, truth, CELL_PX, channels=config.channels)
    return timed_cost(
        network,
        FlowLoss(network, [item], BATCH, config.crop_px, config.seed),
        image.shape[:2],
        lambda: prepare(image, truth, CELL_PX, channels=config.channels),
        lambda: segment_image(network, image, **settings),
        lambda: search_settings(network, [(image, truth)], settings, _searched(config, settings)),
        searches=2,
    )


def _calibrated(network, train: CellDataset, config: TrainSettings, folder: Path) -> tuple[dict[str, Any], dict]:
    """Return the settings to predict with, and what the card says of their search on training images.

    Parameters
    ----------
    folder : Path
        Where the checkpoint will lie; the network's maps are kept there in a folder of their own.
    """
    settings = uncalibrated(train, config)
    labelled, called = images_to_search(train, most=config.search_images)
    cache = cache_in(folder, network, config.map_cache_gb)
    found = search_settings(network, labelled, settings, _searched(config, settings), called, cache)
    kept = {"precision": config.precision, "map_cache_gb": config.map_cache_gb}
    return {**settings, **found.settings, **network.config, **kept}, found.card


def _read_with(settings: Settings | None, card: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a network is read with: as set, else as its card says; a diameter that is set is every image's."""
    given = {} if getattr(settings, "diameter_px", None) is None else {"diameter_of": "batch"}
    return merged(settings, {**card, **given}, DEFAULTS)


def _searched(config: TrainSettings, settings: Mapping[str, Any]) -> list[str]:
    """Return the settings that are not set, and so are searched; whose diameter where images were given their own."""
    whose = ["diameter_of"] if config.diameter_of is None and settings["diameter_of"] == "image" else []
    return whose + [key for key in SEARCHED if getattr(config, key) is None]


# ---- images in, cells out ------------------------------------------------------------------------------------------


def estimate_diameter(checkpoint: Path, images: Sequence[np.ndarray], settings: Settings | None = None) -> float:
    """Estimate the cell diameter in px of images without labels, a `diameter.First` where they differ; say where it is doubtful.

    Where the checkpoint has Cellpose's size model beside it, that is used, and the median over the images taken; else that
    diameter on which the network agrees with itself, see `diameter.estimate`. Both look at crops of large images.

    Parameters
    ----------
    images : sequence of (H, W, 3) uint8
        A few of them are enough.
    settings : Settings, optional
        As for `load`; the diameter and the least area in it do not count.

    Raises
    ------
    UserError
        No checkpoint there, one of another network, or a size model that is none.
    """
    from cellkit.models.size_model import by_size_model, size_model_beside
    from cellkit.models.unet_network import load_network

    network, card = load_network(checkpoint, getattr(settings, "precision", None))
    read_with = _read_with(settings, card) | {"min_area_px": diameter.LEAST_AREA_PX, "diameter_of": "batch"}
    del read_with["diameter_px"]
    if beside := size_model_beside(checkpoint):
        return by_size_model(network, beside, images, read_with | {"min_area_px": DEFAULTS["min_area_px"]})
    return diameter.estimate(lambda image, px: segment_image(network, image, px, **read_with), images)
