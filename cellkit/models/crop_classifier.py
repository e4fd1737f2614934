"""Which class a cell has: a strided network on a cut-out around it, for the cells of any model.

Source of the design: Kit115/SegmentationBasedCellClassification, README at 1d49b3d: cut-outs of 224 x 224 px at the scale of the
file, five convolutions that halve the picture. Here it is also shown which of the pixels are the cell's, and the picture as the
other networks see it, beside the picture as it is: how bright cells are may tell classes apart, or only how long was exposed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.files import PACKAGE
from cellkit.models import weights
from cellkit.models.cell_classes import MOST_CELLS, chances_by, images_that_teach, learn_votes
from cellkit.models.cell_regression import log_loss, right_share, softmax
from cellkit.models.shared.contract import Computed, Schedule
from cellkit.models.shared.cost import BATCH, Cost, Course, timed_cost
from cellkit.models.shared.fine_tuning import chosen_by, scored_along
from cellkit.models.shared.inputs import NORMALISE, vary
from cellkit.models.shared.whole_light import percentiles
from cellkit.models.training import fingerprint, fit, plan_of, random_state_kept
from cellkit.settings import Number

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset

NAME = "crop_classifier"
SHIFT_PX = 12  # by which a cut-out is moved at most
WIDTHS = (16, 32, 64, 96, 128)
STARTER = PACKAGE / "starter" / "starter_light.safetensors"  # no image of the user taught it
NETWORK, RING_PX = "network.", 12
PLANES = 6  # red, green and blue as they are; green and blue between their percentiles; the cell's mask
CHUNK = 64
TIMED_PX = 30.0  # the diameter of the cells of the image that is timed
BYTES_PER_PX = 80  # of memory, of an image: U-Net features and texture of its cells
KEPT_BYTES = 6  # of memory, of a pixel of a cut-out that teaches: four planes, and the margin by which it is moved
CLASSES_AT_MOST = 4  # that are counted on: of each, so many cells teach at most
FINDS_WITH = (
    "recipes.coordinates",
    "finetune",
    "maskrcnn",
)  # sections whose models find the cells of held-out images anew


class Settings(Schedule, Computed):
    """Settings of a training."""

    steps: int = Field(1000, ge=1, description="most optimiser steps")
    batch_size: int = Field(32, ge=1, description="cut-outs per step")
    crop_px: int = Field(
        224, ge=32, multiple_of=8, description="height and width of a cut-out, at the scale of the image (px)"
    )
    learning_rate: Number = Field(2e-3, gt=0, le=1, description="largest learning rate")
    weight_decay: Number = Field(1e-2, ge=0, le=1, description="AdamW weight decay")
    average_steps: int = Field(
        100,
        ge=0,
        le=10**6,
        description="steps over which the weights are averaged, exponentially, to be scored and kept; 0 = not averaged",
    )
    eval_every: int = Field(250, ge=1, description="steps between two scores on validation images")
    min_area_px: int = Field(15, ge=0, le=10**9, description="smaller cells do not teach (px)")
    input_px: int = Field(
        112, ge=32, multiple_of=8, description="height and width that a cut-out is brought to for the network (px)"
    )
    mask: bool = Field(True, description="show the network which pixels of the cut-out are the cell's")
    votes: Literal["cut_outs", "all"] = Field(
        "all",
        description="who tells the class: the network on cut-outs alone; or, each with as much of a say, the texture of the cell "
        "and what the starter's U-Net sees of it, too",
    )
    views: int = Field(4, ge=1, le=8, description="turned and flipped views of a cut-out whose chances are averaged")


TrainSettings = Settings  # as that of a backend is called


class RecipeSettings(Settings):
    """Settings of recipe 22."""

    test_folder: str | None = Field(
        None,
        description="folder of labelled images kept aside, laid out as the data, to judge the finished models; null = none",
    )


# ---- the network -----------------------------------------------------------------------------------------------------
def _network(classes: int) -> Any:
    """Return a network (B, PLANES, S, S) -> (B, classes) logits, of random numbers."""
    from torch import nn

    layers: list = []
    for k, (inputs, outputs) in enumerate(zip((PLANES, *WIDTHS[:-1]), WIDTHS, strict=True)):
        size = 5 if k < 2 else 3
        layers += [nn.Conv2d(inputs, outputs, size, stride=2, padding=size // 2), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(WIDTHS[-1], classes)
    )


# ---- cut-outs --------------------------------------------------------------------------------------------------------
def cut_outs(image: np.ndarray, cells: Instances, side_px: int, shown_px: int) -> np.ndarray:
    """Cut a square around the middle of each cell's box, with its mask as a fourth plane; outside the image it is 0.

    Parameters
    ----------
    image : (H, W, 3) uint8
    cells : Instances
    side_px : int
        Of the square, at the scale of the image; even.
    shown_px : int
        Height and width that it is brought to.

    Returns
    -------
    (N, shown_px, shown_px, 4) uint8
        Red, green, blue; the mask, 255 in the cell.
    """
    import cv2

    half, how = side_px // 2, cv2.INTER_AREA if shown_px < side_px else cv2.INTER_LINEAR
    wide = np.pad(image, ((half, half), (half, half), (0, 0)))
    found = np.zeros((len(cells), shown_px, shown_px, 4), np.uint8)
    for number, (x, y, width, height) in enumerate(cells.boxes_xywh.reshape(-1, 4).tolist()):
        window = slice(row := int(y + height / 2), row + side_px), slice(column := int(x + width / 2), column + side_px)
        mask = 255 * np.pad(cells.mask(number).astype(np.uint8), half)[window]
        found[number] = cv2.resize(np.dstack([wide[window], mask]), (shown_px, shown_px), interpolation=how)
    return found


def levels_of(image: np.ndarray) -> np.ndarray:
    """Return the 1st and 99th percentile of green and of blue, (2, 2) float32."""
    return np.stack([percentiles(image[..., k], k, NORMALISE) for k in (1, 2)], axis=1).astype(np.float32)


def shown(cut: np.ndarray, levels: np.ndarray, mask: bool) -> np.ndarray:
    """Return what the network is shown of a cut-out, (PLANES, S, S) float32.

    Parameters
    ----------
    cut : (S, S, 4) uint8
    levels : (2, 2) float32
        Of its image, see `levels_of`.
    mask : bool
        Whether the mask is shown; else that plane is 0.
    """
    low, high = levels
    planes = cut.transpose(2, 0, 1).astype(np.float32)
    stretched = (planes[1:3] - low[:, None, None]) / np.maximum(high - low, 1)[:, None, None]
    return np.concatenate([planes[:3] / 255, np.clip(stretched, -1, 4), planes[3:] / 255 * mask])


def varied(planes: np.ndarray, shown_px: int, rng: np.random.Generator) -> np.ndarray:
    """Cut (C, shown_px, shown_px) out of larger planes, moved, scaled a little, turned and flipped; vary the brightness."""
    import cv2

    size = planes.shape[1]
    most = (size - shown_px) / 2
    zoom, (x, y) = np.exp(rng.uniform(-0.16, 0.16)), (size - 1) / 2 + rng.uniform(-most, most, 2)
    middle = (shown_px - 1) / 2
    warp = np.array([[zoom, 0, middle - zoom * x], [0, zoom, middle - zoom * y]])
    cut = cv2.warpAffine(np.ascontiguousarray(planes.transpose(1, 2, 0)), warp, (shown_px, shown_px))
    cut = view_of(cut.transpose(2, 0, 1), int(rng.integers(8)))
    return np.concatenate([vary(cut[:-1], rng), cut[-1:]])


def view_of(planes: np.ndarray, number: int) -> np.ndarray:
    """Return one of the eight views of a square: turned by a quarter `number` times, from 4 on flipped; (C, S, S)."""
    turned = np.rot90(planes, number % 4, axes=(1, 2))
    return np.ascontiguousarray(turned[..., ::-1] if number >= 4 else turned)


class CropLoss:
    """Step number -> cross-entropy on cut-outs of cells of known class, drawn so that every class comes as often.

    Parameters
    ----------
    network : torch.nn.Module
    cuts : list of (S, S, 4) uint8
        Larger than what the network is shown, by `SHIFT_PX` of the image on each side.
    levels : list of (2, 2) float32
        Of the image of each.
    classes : (N,) int
        1..K.
    config : Settings
    """

    def __init__(self, network, cuts: Sequence[np.ndarray], levels: Sequence, classes: np.ndarray, config: Settings):
        self.network, self.cuts, self.levels, self.classes, self.config = network, cuts, levels, classes, config
        self.of_class = [np.flatnonzero(classes == k) for k in np.unique(classes)]

    def __call__(self, step: int) -> Any:
        """Return the loss of a step, a scalar tensor."""
        import torch

        rng = np.random.default_rng([self.config.seed, step])
        drawn = [self.of_class[k] for k in rng.integers(len(self.of_class), size=self.config.batch_size)]
        rows = [int(own[rng.integers(len(own))]) for own in drawn]
        seen = [shown(self.cuts[row], self.levels[row], self.config.mask) for row in rows]
        batch = torch.from_numpy(np.stack([varied(planes, self.config.input_px, rng) for planes in seen]))
        on = self.network.arithmetic
        with on.autocast():
            logits = self.network(on.placed(batch))
        wanted = torch.from_numpy(self.classes[rows] - 1).to(on.device)
        return torch.nn.functional.cross_entropy(logits.float(), wanted, label_smoothing=0.05)


# ---- training --------------------------------------------------------------------------------------------------------
@random_state_kept()
def train_crop_classifier(train: CellDataset, val: CellDataset, config: Settings, out: Path) -> Path:
    """Learn the class of cells from the cells of known class in training images; some of `val` choose the weights.

    Which of them do, `cellkit.models.shared.fine_tuning.scored_along` says. Cells of unknown class neither teach nor punish.

    Returns
    -------
    Path
        ``crop_classifier.safetensors`` with its card.

    Raises
    ------
    UserError
        Fewer than two classes, or no training cell of one that is large enough to teach.
    """
    out = Path(out)
    _refuse_untaught(train, config)
    cuts, levels, classes = _taught(train, config)
    network = placed(len(train.classes), config)
    loss_at = CropLoss(network, cuts, levels, classes, config)
    scored, choosing = scored_along(val, config.val_images)
    pairs = [(image, known) for image, cells in map(val.__getitem__, scored) if len(known := _known(cells, config))]
    tell = Teller(network, config)
    score = lambda: -_log_loss(tell, pairs) if pairs else np.nan  # noqa: E731
    plan = plan_of(config, NAME)
    how = (config.batch_size, config.input_px, config.mask, config.seed, scored, choosing)
    items = [*zip(cuts, levels, strict=True), (classes,), *chosen_by(pairs, choosing)]
    stamp = fingerprint(network, items, plan, how)
    history = fit(network, loss_at, score, plan, out, stamp, NAME, choosing and bool(pairs), "minus log loss")
    votes = learn_votes(train, STARTER, RING_PX) if config.votes == "all" else None
    metrics = {
        "cells": {name: int((classes == k).sum()) for k, name in enumerate(train.classes, 1)},
        "class_right_validation": round(_right(tell, pairs), 4) if pairs else None,
        "chosen_by": [val.records[i].image_id for i in scored] if choosing and pairs else [],
        "step": history.best_step,
        "others": votes.metrics if votes else None,
        "arithmetic": str(network.arithmetic),
    }
    read_with = ("crop_px", "input_px", "mask", "views", "votes", "precision")
    kept = {name: getattr(config, name) for name in read_with} | {"others": votes.config if votes else None}
    tensors = {f"{NETWORK}{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= votes.tensors if votes else {}
    return weights.save_checkpoint(
        out / f"{NAME}.safetensors", tensors, NAME, classes=train.classes, config=kept, metrics=metrics,
        licence="of your images",
    )  # fmt: skip


def placed(classes: int, config: Settings) -> Any:
    """Return the network of random numbers from the seed, where it is computed."""
    import torch

    from cellkit.machine import arithmetic

    torch.manual_seed(config.seed)
    network = _network(classes)
    network.arithmetic = arithmetic(config.precision)
    return network.arithmetic.placed(network)


def _refuse_untaught(train: CellDataset, config: Settings) -> None:
    taught = np.concatenate([np.zeros(0, np.int64), *(_known(cells, config).class_ids for cells in train.instances)])
    lacking = [name for k, name in enumerate(train.classes, 1) if not (taught == k).any()]
    if len(train.classes) < 2 or lacking:
        what = f"no training cell of {', '.join(lacking)}" if lacking else "fewer than two classes"
        raise UserError(
            f"{what}: there is nothing to tell apart",
            f"label cells of every class in training images; those below min_area_px, {config.min_area_px}, do not teach",
        )


def _known(cells: Instances, config: Settings) -> Instances:
    """Return the cells of known class that are not too small."""
    return cells[(cells.class_ids > 0) & (cells.areas_px >= max(config.min_area_px, 1))]


def _taught(train: CellDataset, config: Settings) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Return cut-outs, levels of their images and classes of the cells that teach."""
    from cellkit.parallel import progress

    cuts, levels, classes, side_px = [], [], [], config.crop_px + 2 * SHIFT_PX
    for index in progress(images_that_teach(train.instances, len(train.classes)), "cut-outs"):
        image, cells = train[index]
        known = _known(cells, config)
        cuts += list(cut_outs(image, known, side_px, round(config.input_px * side_px / config.crop_px)))
        levels += [levels_of(image)] * len(known)
        classes.append(known.class_ids)
    return cuts, levels, np.concatenate(classes)


def _log_loss(tell: Teller, pairs: Sequence[tuple[np.ndarray, Instances]]) -> float:
    chances = np.concatenate([tell(image, cells) for image, cells in pairs])
    return log_loss(chances, np.concatenate([cells.class_ids for _, cells in pairs]))


def _right(tell: Teller, pairs: Sequence[tuple[np.ndarray, Instances]]) -> float:
    chances = np.concatenate([tell(image, cells) for image, cells in pairs])
    return right_share(chances, np.concatenate([cells.class_ids for _, cells in pairs]))


# ---- what it costs: as a backend tells it, see `cellkit.models` ------------------------------------------------------
def seen_px(shape: tuple[int, int], config: Settings, cells: float = 0) -> float:
    """Return how many pixels the network sees of an image: those of a cut-out of each cell."""
    return cells * config.input_px**2


def course_of(config: Settings, images: int) -> Course:
    """Return what recipe 22 does: it names the cells of two models; the texture of all cells that teach is looked at."""
    return Course(answers=2, searched=True, most_mpx=CLASSES_AT_MOST * MOST_CELLS * config.input_px**2 / 1e6)


def cost(config: Settings, image: np.ndarray, truth: Instances) -> Cost:
    """Return what a training costs here, timed on an image with its cells; a megapixel is one of cut-outs."""
    from cellkit.models.cell_features import features_of_cells
    from cellkit.models.cell_texture import texture_of_cells
    from cellkit.models.unet_network import load_network

    side_px, classes = config.crop_px + 2 * SHIFT_PX, 1 + np.arange(len(truth)) % 2
    taught_px = round(config.input_px * side_px / config.crop_px)
    cuts, network = list(cut_outs(image, truth, side_px, taught_px)), placed(2, config)
    few, encoder = config.model_copy(update={"batch_size": BATCH}), load_network(STARTER)[0]
    tell = Teller(network, config)

    def describe() -> None:
        if config.votes == "all":
            features_of_cells(encoder, image, truth, TIMED_PX, "both", RING_PX)
            texture_of_cells(image, truth, TIMED_PX)

    return timed_cost(
        network,
        CropLoss(network, cuts, [levels_of(image)] * len(cuts), classes, few),
        (len(truth) * config.input_px, config.input_px),
        lambda: cut_outs(image, truth, side_px, taught_px),
        lambda: tell(image, truth),
        describe,
    )


# ---- use -------------------------------------------------------------------------------------------------------------
class Teller:
    """(image (H, W, 3) uint8, cells) -> the chances of the classes 1..K of each cell, (N, K) float64."""

    def __init__(self, network: Any, config: Any):
        self.network, self.config = network, config

    def __call__(self, image: np.ndarray, cells: Instances) -> np.ndarray:
        """Return the mean over the views of each cut-out."""
        import torch

        on, config = self.network.arithmetic, self.config
        classes, levels = self.network[-1].out_features, levels_of(image)
        told = [np.zeros((0, classes))]
        for first in range(0, len(cells), CHUNK):
            some = cut_outs(image, cells[first : first + CHUNK], config.crop_px, config.input_px)
            seen = [shown(cut, levels, config.mask) for cut in some]
            views = np.stack([view_of(planes, k) for planes in seen for k in range(config.views)])
            with torch.no_grad(), on.autocast():
                logits = self.network(on.placed(torch.from_numpy(views))).float().cpu().numpy()
            told.append(softmax(logits.astype(np.float64)).reshape(len(seen), config.views, classes).mean(axis=1))
        return np.concatenate(told)


@random_state_kept()
def crop_namer(checkpoint: str | Path) -> Callable[[np.ndarray, Instances], Instances]:
    """Return the function (image (H, W, 3) uint8, cells) -> the same cells, each with the likeliest class.

    Raises
    ------
    UserError
        No checkpoint there, or one of another kind.
    """
    card, tensors = weights.card_for(checkpoint, NAME), weights.load_tensors(checkpoint)
    others = card.told("others", checkpoint)
    config = Settings(**{name: value for name, value in card.config.items() if name != "others"})
    network = placed(len(card.classes), config)
    network.load_state_dict({k.removeprefix(NETWORK): t for k, t in tensors.items() if k.startswith(NETWORK)})
    tell, ask = Teller(network.eval(), config), chances_by(tensors, others) if others else None

    def named(image: np.ndarray, cells: Instances) -> Instances:
        if not len(cells):
            return cells
        chances = tell(image, cells)
        if ask is not None:
            chances = chances + len(others["votes"]) * ask(image, cells)
        return cells.with_classes(chances.argmax(axis=1) + 1)

    return named
