"""A U-Net whose classes of pixels are background, cell and touching border, on an encoder of any name; a watershed makes cells.

The encoder is one of segmentation-models-pytorch. Where the cells have classes there is an interior for each, and a cell is of
the class that most of its pixels vote for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from cellkit.cells.instances import Instances
from cellkit.finding import opens_again
from cellkit.log import LOG
from cellkit.models.border_batches import LEAST_PX, Balance, BorderLoss, Prepared, prepare
from cellkit.models.border_maps import GRID, READ, SHOWN, Scorer, predict_maps, search_settings, segment_image
from cellkit.models.border_target import decode, encode, one_hot
from cellkit.models.shared import diameter
from cellkit.models.shared.contract import (
    SMALLEST,
    Area,
    Computed,
    Diameter,
    Schedule,
    Segmenter,
    Share,
    SharesCrops,
    merged,
)
from cellkit.models.shared.cost import BATCH, Cost, timed_cost
from cellkit.models.shared.fine_tuning import (
    SEARCHED_ON,
    chosen_by,
    images_to_search,
    map_iou,
    refuse_small,
    refuse_untrainable,
    save_tuned,
    scored_along,
)
from cellkit.models.shared.inputs import (
    CELL_PX,
    CHANNELS,
    Doubts,
    ask_for_memory,
    bytes_for,
    labels_at,
    network_shape,
    refuse_empty,
)
from cellkit.models.shared.inputs import SHOWN as CHANNELS_IN_WORDS
from cellkit.models.shared.live import AREA, Live, Range, Read, Reading
from cellkit.models.shared.processes import check_processes, place, train_shared
from cellkit.models.shared.shares import as_many, in_shares
from cellkit.models.training import fingerprint, fit, plan_of, random_state_kept
from cellkit.settings import Number, Percentiles

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset

NAME = "unet_border"
DEFAULTS = {**SHOWN, **READ}  # of settings that nothing sets
TITLE = "U-Net with touching border"
REQUIRES = ("torch", "segmentation_models_pytorch", "skimage")
INSTALL = 'pip install "segmentation-models-pytorch>=0.5" "timm>=1.0"'
BYTES_PER_PX = 460  # of memory, at network scale; measured, 1024 px, efficientnet-b3: 452 bytes more a pixel
STRICTER = 0.2  # of a probability
PROBABILITY = Range(0, 1, 0.02)
RANGES = {
    "border_weight": Range(0, 4, 0.1),
    "seed_threshold": PROBABILITY,
    "cell_threshold": PROBABILITY,
    "min_area_px": AREA,
}
LEAST_BORDER = 1e-3  # share of the pixels, below which there is next to no touching border to learn


class Settings(Computed):
    """What may change from prediction to prediction; null = as the checkpoint's card says."""

    diameter_px: Diameter | None = Field(None, description="typical cell diameter (px); null = of the cells trained on")
    border_weight: Number | None = Field(
        None, ge=0, le=10, description="times the border's probability taken from the interior's to find seeds"
    )
    seed_threshold: Share | None = Field(
        None, description="interior minus weighted border above which a pixel is a seed's; null = the model's own"
    )
    cell_threshold: Share | None = Field(
        None, description="probability above which a pixel belongs to a cell; null = the model's own"
    )
    min_area_px: Area | None = Field(None, description=SMALLEST)
    normalise: Percentiles | None = Field(
        None, description="percentiles of a channel that the network is shown as 0 and 1; null = the model's own"
    )


class TrainSettings(Schedule, Settings, SharesCrops):
    """Settings of a training; thresholds that are null are searched on training images."""

    encoder: str = Field(
        "efficientnet-b3",
        description="encoder of segmentation-models-pytorch, or tu- and a name of timm; resnet18 is small enough for a CPU",
    )
    encoder_weights: str | None = Field(
        None, description="what the encoder has learned from, such as imagenet, which is fetched; null = nothing"
    )
    encoder_depth: int = Field(5, ge=3, le=5, description="times that the encoder halves height and width")
    decoder_width: int = Field(
        16, ge=2, le=128, description="channels of the decoder at full resolution; twice as many at each level below"
    )
    diameter_px: Diameter | None = Field(None, description="typical cell diameter (px); null = from the labels")
    channels: Literal[tuple(CHANNELS)] = Field("both", description="what the network is shown; all = red too")
    border_share: Share = Field(
        0.1, gt=0, le=0.5, description="how near to another cell its border begins, as a share of the diameter"
    )
    balance: Balance = Field(
        "frequency_and_dice",
        description="what keeps the rare border from getting lost: nothing, weights of the classes by frequency or of "
        "pixels by distance, a focal loss, Dice's overlap of each class beside the cross entropy, or weights and Dice",
    )
    average_steps: int = Field(
        50, ge=0, le=10**6, description="steps over which the weights are averaged, to be scored and kept; 0 = none"
    )
    rotate: bool = Field(True, description="turn crops by any angle; false = only flip and zoom them")
    intensities: Literal["mild", "strong"] = Field(
        "mild", description="how crops vary: gamma, gain, noise; strong = more of it, and offset, blur and inversion"
    )
    search_images: int = Field(
        SEARCHED_ON, ge=1, description="most training images that thresholds and least area are searched on"
    )


# ---- the contract --------------------------------------------------------------------------------------------------
@opens_again
def load(checkpoint: Path, settings: Settings | None = None) -> Segmenter:
    """Return a function from a stream of (H, W, 3) uint8 images to their cells, in order.

    Parameters
    ----------
    checkpoint : Path
        What `train` wrote; nothing is fetched to open it.
    settings : Settings, optional
        What is None comes from the card.

    Raises
    ------
    UserError
        No checkpoint there, or one of another network.
    """
    model = live(checkpoint, settings)

    def find(image: np.ndarray, left_out: Counter[str]) -> Instances:
        return model.look(image)({}, left_out, False).cells

    return Segmenter(find, model.settings, model.bytes_for)


def live(checkpoint: Path, settings: Settings | None = None) -> Live:
    """Return the same network, whose thresholds can be moved when it has seen an image; otherwise as `load`."""
    from cellkit.models.border_network import load_network

    network, card = load_network(checkpoint, NAME, getattr(settings, "precision", None))
    used = merged(settings, card.config, DEFAULTS)
    shown, several = [used[key] for key in SHOWN], len(card.classes or ()) > 1
    doubts = Doubts(used["channels"], tuple(CHANNELS))

    def look(image: np.ndarray) -> Read:
        maps = predict_maps(network, image, *shown)

        def read(changed: Mapping[str, Any], left_out: Counter[str], quick: bool) -> Reading:
            now = (changed.get(key, used[key]) for key in READ)
            found = decode(maps, image.shape[:2], *now, left_out=left_out)
            doubts.note(image, found, left_out)
            return Reading(found if several else found.with_classes(int(bool(card.classes))))

        return read

    return Live(look, used, RANGES, lambda shape: bytes_for(shape, used["diameter_px"], BYTES_PER_PX))


@random_state_kept()
def train(train: CellDataset, val: CellDataset, config: TrainSettings, out: Path) -> Path:
    """Train on the labelled images of `train`; whole images of `val` choose the weights where there are enough.

    Which of `val` choose is `cellkit.models.gate.choosers`'s; the others are not looked at, so that they can judge. Where none
    chooses, all are scored along the way to be watched, and the last weights kept.

    Parameters
    ----------
    out : Path
        Folder for the resume state, ``history.csv``, with the IoU of each class of pixels, and the checkpoint.

    Returns
    -------
    Path
        ``unet_border.safetensors``; its card holds the encoder, the diameter, the thresholds and the validation score.

    Raises
    ------
    UserError
        Nothing to train on, nothing in the channels that the network is shown, or no such encoder or weights.
    """
    from cellkit.models.border_network import start_network

    refuse_untrainable(train, "min_area_px")
    if config.min_area_px is not None:
        refuse_small(train, config.min_area_px, "min_area_px")
    if config.gpus > place()[1]:
        check(config)
        return train_shared(NAME, TrainSettings, train, val, config, out)
    classes = classes_of(train)
    shape, settings = _shape(config, len(classes)), _uncalibrated(train, config)
    ask_for_memory(train, val, [settings["diameter_px"]], 8 * len(CHANNELS[config.channels]), BYTES_PER_PX)
    network = start_network(config.encoder_weights, config.seed, config.precision, shape)
    kinds = ("background", *classes, "border")
    loss_at = _loss(network, train, config, settings, kinds)
    scored, choosing = scored_along(val, config.val_images)
    pairs = [val[k] for k in scored]
    targets = [_prepared(*pair, config, settings, len(classes)) for pair in pairs]
    scorer = Scorer(network, pairs, targets, settings, kinds)
    plan = plan_of(config, NAME)
    items, rest = [one.arrays for one in loss_at.items], (settings, config.precision, loss_at.recipe, scored, choosing)
    stamp = fingerprint(network, [*items, *chosen_by(pairs, choosing)], plan, shape, *rest, *as_many())
    history = fit(
        network,
        in_shares(loss_at, network),
        scorer,
        plan,
        Path(out),
        stamp,
        NAME,
        choosing,
        val.compared_by("validation score"),
    )
    labelled, called = images_to_search(train, most=config.search_images)
    found = search_settings(network, labelled, settings, _searched(config), called)
    return save_tuned(
        Path(out) / f"{NAME}.safetensors",
        NAME,
        network,
        {**settings, **found.settings, **shape, "border_share": config.border_share, "precision": config.precision},
        history,
        val,
        scored if choosing else [],
        "map_iou_validation",
        "kaggle, mean of whole validation images",
        classes=train.classes if any(truth.class_ids.any() for truth in train.instances) else (),
        encoder_weights=config.encoder_weights,
        searched=found.card,
    )


def together(checkpoints: Sequence[Path], out: Path) -> Path:
    """Write ``unet_border.safetensors`` in the folder `out`: several networks that were trained alike, and answer together."""
    from cellkit.models.border_network import join_checkpoints

    return join_checkpoints(checkpoints, Path(out) / f"{NAME}.safetensors", NAME)


def ceiling(labelled: CellDataset, config: TrainSettings, most: int = 4) -> float:
    """Return MAP IoU (kaggle) of decode(encode(labels)) against the labels, on up to `most` images: what no training beats."""
    some, diameter_px = labelled.sample(most), config.diameter_px or diameter.diameter_of(labelled.instances)
    read = merged(config, {"min_area_px": 0}, READ)
    return map_iou((truth, coded(truth, diameter_px, config.border_share, read)) for truth in some.instances)


def coded(
    truth: Instances, diameter_px: float, border_share: float, read: Mapping[str, Any] | None = None
) -> Instances:
    """Return the cells of an image made a target at network scale and cells again.

    Parameters
    ----------
    read : mapping, optional
        Thresholds as `READ` names them; without it the defaults, and every area.
    """
    labels = labels_at(truth, network_shape(truth.shape, diameter_px, LEAST_PX))
    read = read or READ | {"min_area_px": 0}
    return decode(one_hot(encode(labels, border_share * CELL_PX), 1), truth.shape, *(read[key] for key in READ))


def check(config: TrainSettings) -> None:
    """Refuse an encoder or weights of it that are not known, or GPUs that there are not, before anything is run."""
    from cellkit.models.border_network import check_encoder

    check_processes(config.gpus, config.batch_size, "gpus")
    check_encoder(config.encoder, config.encoder_weights)


def stricter(settings: Settings, used: Mapping[str, Any]) -> Settings:
    """Return settings with a threshold that fewer pixels pass: what cells this changes are in doubt."""
    return settings.model_copy(update={"cell_threshold": min(used["cell_threshold"] + STRICTER, 1.0)})


def cost(config: TrainSettings, image: np.ndarray, truth: Instances) -> Cost:
    """Return what a training costs here, timed on an image whose cells are about 30 px wide."""
    from cellkit.models.border_network import start_network

    network = start_network(None, config.seed, config.precision, _shape(config, 1))
    settings = merged(config, {}, DEFAULTS) | {"diameter_px": CELL_PX}
    item = _prepared(image, truth, config, settings, 1)
    loss_at = BorderLoss(network, [item], 3, BATCH, config.crop_px, config.seed, config.balance)
    return timed_cost(
        network,
        loss_at,
        image.shape[:2],
        lambda: _prepared(image, truth, config, settings, 1),
        lambda: segment_image(network, image, settings),
        lambda: search_settings(network, [(image, truth)], settings, _searched(config)),
    )


def classes_of(train: CellDataset) -> tuple[str, ...]:
    """Return the classes that interiors are told apart by: those of the cells, where they are two or more and some are known."""
    known = any(truth.class_ids.any() for truth in train.instances)
    return tuple(train.classes) if known and len(train.classes) > 1 else ("cell",)


def _shape(config: TrainSettings, classes: int) -> dict[str, Any]:
    """Return what a card says of the network, and what it is built by."""
    return {
        "encoder": config.encoder,
        "encoder_depth": config.encoder_depth,
        "decoder_width": config.decoder_width,
        "channels": config.channels,
        "kinds": classes + 2,
    }


def _uncalibrated(train: CellDataset, config: TrainSettings) -> dict[str, Any]:
    """Return the settings while training: the diameter of the labels, thresholds at their defaults where none is set."""
    diameter_px = config.diameter_px or diameter.diameter_of(train.instances)
    return {**merged(config, {}, DEFAULTS), "diameter_px": diameter_px}


def _searched(config: TrainSettings) -> list[str]:
    """Return the settings that are not set, and so are searched."""
    return [key for key in GRID if getattr(config, key) is None]


def _prepared(
    image: np.ndarray, truth: Instances, config: TrainSettings, settings: Mapping[str, Any], classes: int
) -> Prepared:
    shown = (settings["channels"], settings["normalise"])
    return prepare(image, truth, settings["diameter_px"], config.border_share, classes, *shown, config.balance)


def _loss(
    network: Any, train: CellDataset, config: TrainSettings, settings: Mapping[str, Any], kinds: Sequence[str]
) -> BorderLoss:
    """Return the loss of a training's steps; say how rare each class of pixels is.

    Raises
    ------
    UserError
        The images have nothing in the channels that the network is shown.
    """
    from cellkit.parallel import progress

    each = progress(range(len(train)), "targets of training images")
    items = [_prepared(*train[k], config, settings, len(kinds) - 2) for k in each]
    refuse_empty([item.planes for item in items], train, CHANNELS_IN_WORDS[config.channels], "channels")
    crops = (config.batch_size, config.crop_px, config.seed)
    loss = BorderLoss(network, items, len(kinds), *crops, config.balance, config.rotate, config.intensities == "strong")
    shares = ", ".join(f"{kind} {share:.1%}" for kind, share in zip(kinds, loss.shares, strict=True))
    few = "; hardly any cells touch, and the border has little to learn from" * bool(loss.shares[-1] < LEAST_BORDER)
    LOG.info(f"pixels of training images: {shares}{few}")
    return loss
