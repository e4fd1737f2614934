"""Mask R-CNN on torchvision: finds cells, outlines them and says which line each belongs to.

The encoder is the fine-tuned Cellpose U-Net (the adaptation carries over where no other weights can be had) or a ResNet-50.
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
from cellkit.machine import arithmetic
from cellkit.models.maskrcnn_detect import TILE_PX, detect_image
from cellkit.models.shared.contract import SMALLEST, Area, Computed, Diameter, Schedule, Segmenter, Share, merged
from cellkit.models.shared.cost import BATCH, Cost, timed_cost
from cellkit.models.shared.diameter import diameter_of
from cellkit.models.shared.fine_tuning import (
    class_score,
    images_to_search,
    map_iou,
    refuse_small,
    refuse_untrainable,
    save_tuned,
    scored_along,
    search,
)
from cellkit.models.shared.inputs import (
    CELL_PX,
    ask_for_memory,
    bytes_for,
    planes_of,
    random_warp,
    refuse_empty,
    to_network_scale,
    vary,
)
from cellkit.models.training import fingerprint, fit, plan_of, random_state_kept
from cellkit.settings import Number, weights_field

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset

TITLE = "Mask R-CNN"
REQUIRES = ("torch", "torchvision")
BYTES_PER_PX = 110  # of memory, at network scale; measured, 1024 and 2048 px: 101 bytes more a pixel
NAME = "maskrcnn_torchvision"
SCRATCH, TUNED, UNET = "scratch", "tuned", "cellpose_unet"
Most = Annotated[int, Field(ge=1, le=100_000)]
Iou = Annotated[Number, Field(gt=0, le=1)]
Inner = Annotated[Number, Field(gt=0, lt=1)]
MASK = "mask probability above which a pixel is the cell's"
GRID = {"score_threshold": (0.5, 0.4, 0.3, 0.6), "nms_threshold": (0.5, 0.4, 0.3)}  # searched when not set
LOOSEST = {"score_threshold": 0.3}  # keeps what a higher one keeps
DEFAULTS = {
    "backbone": "cellpose_unet",
    "shown": "both",
    "diameter_px": None,
    "fpn_channels": 96,
    "freeze_backbone": True,
    "boxes_per_image": 64,
    "max_detections": None,
    "tile_detections": 1000,
    "score_threshold": 0.5,
    "nms_threshold": 0.5,
    "mask_threshold": 0.5,
    "min_area_px": 15,
    "precision": "auto",
}


class Settings(Computed):
    """What may change from prediction to prediction; null = as the checkpoint's card says."""

    diameter_px: Diameter | None = Field(None, description="cells are scaled to this diameter (px)")
    max_detections: Most | None = Field(
        None, description="most cells found in one image; null = from the densest training image, tile by tile"
    )
    score_threshold: Share | None = Field(None, description="objects scored lower are dropped")
    nms_threshold: Iou | None = Field(None, description="box IoU above which the lower score is dropped")
    mask_threshold: Inner | None = Field(None, description=MASK)
    min_area_px: Area | None = Field(None, description=SMALLEST)


class TrainSettings(Schedule, Settings):
    """Settings of a training."""

    backbone: Literal["cellpose_unet", "resnet50_fpn_v2"] = Field("cellpose_unet", description="image encoder")
    start: str = weights_field(
        TUNED, "encoder weights: tuned = this run's fine-tuned checkpoint, or a model", UNET, NAME, "torchvision"
    )
    steps: int = Field(400, ge=1, description="most optimiser steps")
    batch_size: int = Field(4, ge=1, description="crops per step")
    crop_px: int = Field(192, ge=32, multiple_of=8, description="height and width of a crop (px)")
    diameter_px: Diameter | None = Field(
        None, description="cells are scaled to this diameter (px); null = from training labels"
    )
    eval_every: int = Field(100, ge=1, description="steps between two scores on validation images")
    fpn_channels: int = Field(96, ge=8, le=512, description="width of the feature pyramid (channels)")
    boxes_per_image: int = Field(64, ge=8, description="boxes per image that train the heads")
    score_threshold: Share | None = Field(
        None, description="objects scored lower are dropped; null = best on training images"
    )
    nms_threshold: Iou | None = Field(
        None, description="box IoU above which the lower score is dropped; null = best on training images"
    )
    mask_threshold: Inner = Field(0.5, description=MASK)
    freeze_backbone: bool = Field(True, description="train the heads only")
    ignore_unknown: bool = Field(True, description="objects of unknown class neither train nor punish the class head")


# ---- the contract --------------------------------------------------------------------------------------------------
def load(checkpoint: Path, settings: Settings | None = None) -> Segmenter:
    """Return a function from a stream of (H, W, 3) uint8 images to their cells, in order.

    Parameters
    ----------
    checkpoint : Path
        What `train` wrote.
    settings : Settings, optional
        What is None comes from the card.

    Raises
    ------
    UserError
        No checkpoint there, or one of another backend.
    """
    from cellkit.models import weights
    from cellkit.models.maskrcnn_network import build

    card = weights.card_for(checkpoint, NAME)
    used = merged(settings, card.config, DEFAULTS)
    used |= {k: card.config[k] for k in ("backbone", "shown", "fpn_channels")}
    model = build(used | {"widths": card.config.get("widths")}, len(card.classes))
    model.load_state_dict(weights.load_tensors(checkpoint))
    model = model.to(arithmetic().device).eval()

    def find(image: np.ndarray, left_out: Counter[str]) -> Instances:
        return detect_image(model, image, used, left_out)

    return Segmenter(find, used, lambda shape: bytes_for(shape, used["diameter_px"], BYTES_PER_PX))


@random_state_kept()
def train(train: CellDataset, val: CellDataset, config: TrainSettings, out: Path) -> Path:
    """Train the detector; whole images of `val` choose the weights by the mean of the classes' MAP IoU.

    Which of them choose, and that none does while there are few, is as in `cellpose_unet.train`.

    Parameters
    ----------
    config : TrainSettings
        ``start`` is a path, or "scratch".
    out : Path
        Folder for the resume state, ``history.csv`` and the checkpoint.

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
    settings = merged(config, {}, DEFAULTS)
    settings["diameter_px"] = settings["diameter_px"] or diameter_of(train.instances)
    diameter_px = settings["diameter_px"]
    refuse_small(train, settings["min_area_px"], "maskrcnn.min_area_px")
    ask_for_memory(train, val, diameter_px, 28, BYTES_PER_PX)
    settings["tile_detections"] = room_for(train.instances, diameter_px)
    model = _start(config, settings, len(train.classes))
    items = [scaled(*train[i], diameter_px) for i in range(len(train))]
    refuse_empty([item[0] for item in items], train, "any colour", "convert.channels")
    scored, choosing = scored_along(val, config.val_images)
    scorer = _Scorer(model, [val[i] for i in scored], train.classes, settings)
    plan = plan_of(config, NAME)
    rest = (settings, config.batch_size, config.crop_px, config.seed, config.ignore_unknown, scored, choosing)
    stamp = fingerprint(model, items, plan, *rest)
    loss_at = _Loss(model, items, config)
    history = fit(model, loss_at, scorer, plan, Path(out), stamp, NAME, choosing, val.compared_by("validation score"))
    pairs, called = images_to_search(train)
    settings |= best_thresholds(model, pairs, settings, _searched(config), called)
    return save_tuned(
        Path(out) / "maskrcnn.safetensors",
        NAME,
        model,
        settings,
        history,
        val,
        scored if choosing else [],
        "class_map_iou_validation",
        "kaggle, mean over classes and whole validation images",
        train.classes,
        start=Path(config.start).stem,
    )


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


def check(config: TrainSettings) -> None:
    """Refuse what cannot be the start of an encoder, as far as its name and card tell; nothing is loaded.

    Parameters
    ----------
    config : TrainSettings
        ``start`` is a path, "scratch", or "tuned" = the Cellpose network that notebook 03 keeps.

    Raises
    ------
    UserError
        Random weights that would stay frozen, weights of another kind of network, or bfloat16 for a ResNet-50.
    """
    from cellkit.models import weights

    start, backbone = config.start, config.backbone
    other = "set maskrcnn.start to weights of a ResNet-50, or scratch, or maskrcnn.backbone: cellpose_unet"
    if start == SCRATCH and backbone == UNET and config.freeze_backbone:
        raise UserError("maskrcnn.start is scratch and freeze_backbone is true", "set maskrcnn.freeze_backbone: false")
    if start == TUNED and backbone != UNET:
        raise UserError(f"maskrcnn.start is tuned, a Cellpose network, and maskrcnn.backbone is {backbone}", other)
    if config.precision == "bfloat16" and backbone != UNET:
        raise UserError(
            f"maskrcnn.precision is bfloat16, and {backbone} computes in float32", "set it to auto or float32"
        )
    if Path(start).suffix == ".safetensors":
        if backbone == UNET:
            weights.card_for(start, UNET)
        elif (made_by := weights.read_card(start).backend) not in (NAME, "torchvision"):
            raise UserError(f"maskrcnn.start is weights of {made_by}, and maskrcnn.backbone is {backbone}", other)


def _start(config: TrainSettings, settings: dict[str, Any], classes: int) -> Any:
    """Build the detector, put the start weights into its encoder, and note in `settings` what that was trained on."""
    import torch

    from cellkit.models.maskrcnn_network import build, load_encoder
    from cellkit.models.unet_network import load_network

    check(config)
    network = None
    settings["precision"] = config.precision if config.backbone == UNET else "float32"
    if settings["backbone"] == UNET and config.start != SCRATCH:
        network, card = load_network(config.start)
        settings |= {"shown": card.get("channels", "both"), **network.config}
    torch.manual_seed(config.seed)
    model = build(settings, classes)
    if network is not None:
        model.backbone.unet.load_state_dict(network.state_dict())
    elif config.start != SCRATCH:
        load_encoder(model, Path(config.start))
    return model.to(arithmetic().device)


def cost(config: TrainSettings, image: np.ndarray, truth: Instances) -> Cost:
    """Return what a training costs here, timed on an image whose cells are about 30 px wide.

    ``start`` is the path of what the encoder will begin from, or of weights of the same kind.
    """
    settings = merged(config, {}, DEFAULTS) | {"diameter_px": CELL_PX, "max_detections": len(truth)}
    model = _start(config, settings, int(truth.class_ids.max()))
    model.roi_heads.score_thresh = 0.0  # as many boxes as there are cells, of a detector that has learned nothing yet
    timed = config.model_copy(update={"batch_size": BATCH})
    return timed_cost(
        model,
        _Loss(model, [scaled(image, truth, CELL_PX)], timed),
        image.shape[:2],
        lambda: scaled(image, truth, CELL_PX),
        lambda: detect_image(model, image, settings),
        lambda: [detect_image(model, image, settings) for key in _searched(config) for _ in GRID[key]],
    )


def _searched(config: TrainSettings) -> list[str]:
    return [key for key in GRID if getattr(config, key) is None]


# ---- training ------------------------------------------------------------------------------------------------------
def scaled(image: np.ndarray, truth: Instances, diameter_px: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bring one labelled image to network scale.

    Returns
    -------
    planes : (3, h, w) float32
    labels : (h, w) int32
        0 = background, -1 = not annotated.
    class_of : (N + 1,) int64
        Class of each label; 0 = unknown.
    """
    planes, labels = to_network_scale(planes_of(image), truth, diameter_px, least_px=16)
    return planes, labels, np.r_[0, truth.class_ids]


def crop(item, rng: np.random.Generator, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a turned, flipped, scaled crop: planes (3, size, size) float32 and labels (size, size) int32."""
    import cv2

    planes, labels, _ = item
    warp, _ = random_warp(np.maximum(labels, 0), rng, size_px)
    size = (size_px, size_px)
    turned = cv2.warpAffine(np.ascontiguousarray(planes.transpose(1, 2, 0)), warp, size, flags=cv2.INTER_LINEAR)
    ids = cv2.warpAffine(labels.astype(np.float64), warp, size, flags=cv2.INTER_NEAREST)
    return vary(turned.transpose(2, 0, 1), rng), ids.astype(np.int32)


class _Loss:
    """Step number -> sum of torchvision's five losses over a batch of crops, and of the classifier's over one of cells.

    A crop without a labelled cell of which some is not annotated is left out: perhaps nothing in it is known.
    """

    def __init__(self, model, items: Sequence, config: TrainSettings):
        from cellkit.models.cell_classifier import ClassLoss

        self.model, self.items, self.config = model, items, config
        self.class_loss = ClassLoss(model.cell_classifier, items)

    def __call__(self, step: int):
        import torch

        from cellkit.models.maskrcnn_network import target

        rng = np.random.default_rng([self.config.seed, step])
        chosen = np.resize(rng.permutation(len(self.items)), self.config.batch_size)
        device = next(self.model.parameters()).device
        planes, targets = [], []
        for index in chosen:
            picture, labels = crop(self.items[index], rng, self.config.crop_px)
            made = target(labels, self.items[index][2], self.config.ignore_unknown)
            if "unknown" in made and not len(made["boxes"]):
                continue
            planes.append(torch.from_numpy(np.ascontiguousarray(picture)).to(device))
            targets.append({k: v.to(device) for k, v in made.items()})
        if not targets:
            return 0 * sum(p.sum() for p in self.model.parameters() if p.requires_grad) + self.class_loss(rng)
        return sum(self.model(planes, targets).values()) + self.class_loss(rng)


def best_thresholds(
    model,
    pairs: Sequence[tuple[np.ndarray, Instances]],
    settings: dict,
    searched: Sequence[str] = tuple(GRID),
    called: str = "MAP IoU",
) -> dict[str, float]:
    """Search thresholds one after the other by MAP IoU (kaggle, whatever the class) on labelled images, and set them.

    Give training images: validation images are to judge by. Of equal values the first in `GRID` is taken.
    """
    names = {"score_threshold": "score_thresh", "nms_threshold": "nms_thresh"}
    best = {key: getattr(model.roi_heads, name) for key, name in names.items()}

    def score(key: str, value: float) -> float:
        for name, found in {**best, key: value}.items():
            setattr(model.roi_heads, names[name], found)
        return map_iou((truth, detect_image(model, image, settings)) for image, truth in pairs)

    remedy = (
        "Train longer (maskrcnn.steps), or try another maskrcnn.start or maskrcnn.diameter_px "
        f"(now {settings['diameter_px']:.3g})."
    )
    chosen = search(score, {key: GRID[key] for key in searched}, best, len(pairs), called, LOOSEST, remedy)
    for key, value in best.items():
        setattr(model.roi_heads, names[key], value)
    return chosen


class _Scorer:
    """() -> mean over classes of the MAP IoU (kaggle) of each class by itself, on whole validation images."""

    def __init__(self, model, pairs: Sequence[tuple[np.ndarray, Instances]], classes: Sequence[str], settings: dict):
        self.model, self.pairs, self.classes, self.settings = model, pairs, classes, settings

    def __call__(self) -> float:
        found = [detect_image(self.model, image, self.settings) for image, _ in self.pairs]
        return class_score([truth for _, truth in self.pairs], found, self.classes)
