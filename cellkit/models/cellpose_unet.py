"""Cellpose's residual U-Net (generations 1 to 3): trains on a CPU in minutes, runs the published checkpoints.

The training loop is ours: best checkpoint by whole-image score, early stop, resume, stop at the first loss that is not finite,
cached flows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.log import LOG
from cellkit.models.shared import diameter
from cellkit.models.shared.contract import SMALLEST, Area, Channels, Computed, Diameter, Schedule, Segmenter, merged
from cellkit.models.shared.cost import BATCH, Cost, timed_cost
from cellkit.models.shared.fine_tuning import (
    images_to_search,
    map_iou,
    refuse_small,
    refuse_untrainable,
    save_tuned,
    scored_along,
)
from cellkit.models.shared.flow_loss import FlowLoss, Variation, prepare
from cellkit.models.shared.flows import masks_of
from cellkit.models.shared.inputs import (
    CELL_PX,
    SHOWN,
    ask_for_memory,
    bytes_for,
    lies_elsewhere,
    only_noise,
    refuse_empty,
)
from cellkit.models.training import fingerprint, fit, plan_of, random_state_kept
from cellkit.models.unet_maps import segment_image
from cellkit.models.unet_search import DEFAULTS, GRID, best_thresholds, unpromising
from cellkit.settings import Number, weights_field

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset

NAME, SCRATCH = "cellpose_unet", "scratch"
TITLE = "Cellpose U-Net"
REQUIRES = ("torch", "cellpose")
BYTES_PER_PX = 110  # of memory, at network scale; measured, 1024 and 2048 px: 101 bytes more a pixel
FlowError = Annotated[Number, Field(ge=0, le=100)]
Logit = Annotated[Number, Field(ge=-12, le=12)]
DOUBTFUL = "found in hardly more than noise, whose contrast was stretched: doubtful, look at them"


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


class TrainSettings(Schedule, Settings):
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
    frozen_levels: int = Field(
        0,
        ge=0,
        le=8,
        description="levels of the network that stay as they are, from the input on: 4 = the encoder, 7 = all but the last",
    )
    rotate: bool = Field(True, description="turn crops by any angle; false = only flip and zoom them")
    intensities: Literal["mild", "strong"] = Field(
        "mild", description="how crops vary: gamma, gain, noise; strong = more of it, and offset, blur and inversion"
    )
    outside_counts: bool = Field(
        True,
        description="what a crop shows beyond the edge of its image trains as background; false = it does not count",
    )


# ---- the contract --------------------------------------------------------------------------------------------------
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
    used = merged(settings, card, DEFAULTS)
    if used["diameter_px"] is None:
        used["diameter_px"] = float(network.diam_labels.item())
    warned: list[str] = []

    def find(image: np.ndarray, left_out: Counter[str]) -> Instances:
        channels = used["channels"]
        if not warned and lies_elsewhere(image, channels):
            warned.append(
                f"an image is empty in what the network is shown, {SHOWN[channels]}, and not in its other "
                "colours: nothing can be found there; set channels (both, cytoplasm or nuclei)"
            )
            LOG.info(warned[0])
        found = segment_image(network, image, **used, left_out=left_out)
        if len(found) and only_noise(image, channels):
            left_out[DOUBTFUL] += len(found)
        return found

    return Segmenter(find, used, lambda shape: bytes_for(shape, used["diameter_px"], BYTES_PER_PX))


@random_state_kept()
def train(train: CellDataset, val: CellDataset, config: TrainSettings, out: Path) -> Path:
    """Fine-tune on the labelled images of `train`; whole images of `val` choose the weights where there are enough.

    Which of `val` choose, and that none does while there are few, is `cellkit.models.gate.choosers`'s; the others are not
    looked at, so that they can judge. Where none chooses, all are scored along the way to be watched, and the last weights kept.

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
    refuse_untrainable(train, val, "min_area_px")
    out = Path(out)
    settings = _uncalibrated(train, config)
    diameter_px = settings["diameter_px"]
    refuse_small(train, settings["min_area_px"], "finetune.min_area_px")
    ask_for_memory(train, val, diameter_px, 20, BYTES_PER_PX)
    loss_at = loss_of(train, config, out / "flows")
    network = loss_at.network
    scored, choosing = scored_along(val, config.val_images)
    scorer = _Scorer(network, [val[i] for i in scored], settings, Path(config.base).stem)
    if searched := _searched(config):
        at = ", ".join(f"{key} {settings[key]:g}" for key in GRID)
        LOG.info(
            f"scores during training are read at {at}; {' and '.join(searched)} of the result are searched afterwards"
        )
    plan = plan_of(config, NAME)
    rest = (settings, config.precision, loss_at.recipe, config.frozen_levels, scored, choosing)
    stamp = fingerprint(network, [item.arrays for item in (*loss_at.items, *loss_at.replay)], plan, *rest)
    history = fit(network, loss_at, scorer, plan, out, stamp, NAME, choosing, val.compared_by("validation score"))
    network.diam_labels.data.fill_(diameter_px)
    return save_tuned(
        out / "cellpose_tuned.safetensors",
        NAME,
        network,
        _calibrated(network, train, config),
        history,
        val,
        scored if choosing else [],
        "map_iou_validation",
        "kaggle, mean of whole validation images",
        base=Path(config.base).stem,
        read_at={key: settings[key] for key in GRID},
    )


def loss_of(train: CellDataset, config: TrainSettings, cache: Path | None = None) -> FlowLoss:
    """Return the loss of a training's steps: it holds the network with the weights to start from, and what it learns from.

    Parameters
    ----------
    cache : Path, optional
        Folder of the flows of the training images.

    Raises
    ------
    UserError
        No weights to start from, or nothing in the channels that the network is shown.
    """
    from cellkit.models.unet_network import load_start
    from cellkit.parallel import progress

    _refuse_frozen_scratch(config)
    network = load_start(config.base, config.seed, precision=config.precision)
    network.freeze(config.frozen_levels)
    settings = _uncalibrated(train, config)
    each = progress(range(len(train)), "flows of training images")
    items = [prepare(*train[i], settings["diameter_px"], cache, settings["channels"]) for i in each]
    refuse_empty([item.planes for item in items], train, SHOWN[settings["channels"]], "finetune.channels")
    variation = Variation(config.rotate, config.intensities == "strong", config.outside_counts)
    return FlowLoss(network, items, config.batch_size, config.crop_px, config.seed, variation)


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
    from cellkit.models import weights
    from cellkit.models.unet_network import load_start

    network, base = load_start(config.base, config.seed, precision=config.precision), Path(config.base)
    card = weights.read_card(base) if base.suffix == ".safetensors" else None
    return weights.save_checkpoint(
        Path(f"{to}.safetensors"),
        network.state_dict(),
        NAME,
        config=_calibrated(network, train, config),
        metrics=card.metrics if card else {},
        licence=card.licence if card else "",
    )


def check(config: TrainSettings) -> None:
    """Refuse weights to start from that are of another kind of network; a torch file says so only when it is read."""
    from cellkit.models import weights
    from cellkit.models.unet_network import load_network

    _refuse_frozen_scratch(config)
    base = Path(config.base)
    if base.suffix == ".safetensors":
        weights.card_for(base, NAME)
    elif config.base != SCRATCH:
        load_network(base)


def cost(config: TrainSettings, image: np.ndarray, truth: Instances) -> Cost:
    """Return what a training costs here, timed on an image whose cells are about 30 px wide."""
    from cellkit.models.unet_network import load_start

    network = load_start(config.base, config.seed, precision=config.precision)
    network.freeze(config.frozen_levels)
    settings = merged(config, dict.fromkeys(GRID, 0.0), DEFAULTS) | {"diameter_px": CELL_PX}
    item = prepare(image, truth, CELL_PX, channels=config.channels)
    return timed_cost(
        network,
        FlowLoss(network, [item], BATCH, config.crop_px, config.seed),
        image.shape[:2],
        lambda: prepare(image, truth, CELL_PX, channels=config.channels),
        lambda: segment_image(network, image, **settings),
        lambda: best_thresholds(network, [(image, truth)], settings, _searched(config)),
        searches=2,
    )


def _refuse_frozen_scratch(config: TrainSettings) -> None:
    if config.base == SCRATCH and config.frozen_levels:
        problem = (
            f"finetune.base is scratch, and finetune.frozen_levels is {config.frozen_levels}: random weights would stay"
        )
        raise UserError(problem, "set frozen_levels: 0, or start from trained weights")


def _uncalibrated(train: CellDataset, config: TrainSettings) -> dict[str, Any]:
    """Return the settings while training: the diameter of the labels, thresholds at 0 where none is set."""
    diameter_px = config.diameter_px or diameter.diameter_of(train.instances)
    return {**merged(config, dict.fromkeys(GRID, 0.0), DEFAULTS), "diameter_px": diameter_px}


def _calibrated(network, train: CellDataset, config: TrainSettings) -> dict[str, Any]:
    """Return the settings to predict with; thresholds that are not set are searched on up to six training images."""
    settings = _uncalibrated(train, config)
    labelled, called = images_to_search(train)
    best = best_thresholds(network, labelled, settings, _searched(config), called)
    return settings | best | network.config | {"precision": config.precision}


def _searched(config: TrainSettings) -> list[str]:
    """Return the thresholds that are not set, and so are searched."""
    return [key for key in GRID if getattr(config, key) is None]


# ---- images in, cells out ------------------------------------------------------------------------------------------


def estimate_diameter(checkpoint: Path, images: Sequence[np.ndarray], settings: Settings | None = None) -> float:
    """Estimate the cell diameter in px of images without labels; say so where the estimate is doubtful.

    Parameters
    ----------
    images : sequence of (H, W, 3) uint8
        A few of them are enough.
    settings : Settings, optional
        As for `load`; the diameter and the least area in it do not count.
    """
    from cellkit.models.unet_network import load_network

    network, card = load_network(checkpoint, getattr(settings, "precision", None))
    read_with = merged(settings, card, DEFAULTS) | {"min_area_px": diameter.LEAST_AREA_PX}
    del read_with["diameter_px"]
    return diameter.estimate(lambda image, px: segment_image(network, image, px, **read_with), images)


# ---- training ------------------------------------------------------------------------------------------------------


def ceiling(labelled: CellDataset, config: TrainSettings, most: int = 4) -> float:
    """Return MAP IoU (kaggle) of decode(encode(labels)) against the labels, on up to `most` images: what no training beats.

    Encoding and decoding are those of training and prediction: to 30 px per cell, to flows, along the flows, and back.
    """
    settings = merged(config, {}, DEFAULTS)
    diameter_px = settings.pop("diameter_px") or diameter.diameter_of(labelled.instances)
    channels = settings.pop("channels")
    pairs = []
    refuse_small(labelled, settings["min_area_px"], "finetune.min_area_px")
    some = labelled.sample(most)
    for image, truth in (some[k] for k in range(len(some))):
        maps = prepare(image, truth, diameter_px, channels=channels).target.copy()
        maps[2] = np.where(maps[2] > 0, 6, -6)
        pairs.append((truth, masks_of(maps, truth.shape, **settings)))
    return map_iou(pairs)


class _Scorer:
    """() -> MAP IoU (kaggle convention, mean of whole images) of the network on the validation images."""

    def __init__(self, network, pairs: Sequence[tuple[np.ndarray, Instances]], settings: dict, base: str = ""):
        self.network, self.pairs, self.settings, self.base = network, pairs, settings, base

    def __call__(self) -> float:
        from cellkit.parallel import progress

        found = [segment_image(self.network, image, **self.settings) for image, _ in progress(self.pairs, "validation")]
        score = map_iou(zip([truth for _, truth in self.pairs], found, strict=True))
        if self.base not in ("", SCRATCH) and not score and any(len(truth) for _, truth in self.pairs):
            LOG.info(unpromising(self.base, sum(map(len, found)), len(self.pairs), self.settings))
        self.base = ""  # said once, of the weights that training starts from
        return score
