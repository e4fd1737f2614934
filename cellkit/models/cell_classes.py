"""A class for the cells of any model that has masks: what a U-Net sees of them, and a logistic regression on top.

Unlike the detector's classifier it needs no training of a network. Where the run has trained a detector, the answer of the
network that looks at cut-outs around its cells (`cell_classifier`) counts as much.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.models import weights
from cellkit.models.gate import unit_of
from cellkit.models.shared.contract import BatchSegmenter, Segmenter
from cellkit.settings import Frozen

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset

NAME = "cell_classes"
MOST_CELLS = 2000  # of a class that teach
STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)  # of the penalty on large weights; the first of equally good ones
FOLDS, DEFAULT_STRENGTH = 5, 0.03
MOST_SPREADS = 6.0  # a feature further from the mean of the training cells counts as this far
CUT_OUTS, ENCODER = "cell_classifier.", "encoder."  # before the names of the tensors of two networks


class Settings(Frozen):
    """How the cells of Cellpose, which tells no classes apart, get one."""

    train: bool = Field(True, description="give them a class, where there are two classes or more")
    ring_px: int = Field(
        12,
        ge=1,
        le=60,
        description="ring around a cell that counts as its surroundings, where a cell is 30 px wide (px)",
    )
    cut_outs: bool = Field(
        True, description="let the detector's network on cut-outs around cells vote too, where it has one"
    )


# ---- training --------------------------------------------------------------------------------------------------------
def train(
    train: CellDataset, segmenter: Path, encoder: Path, settings: Settings, out: Path, detector: Path | None = None
) -> Path:
    """Learn from the cells of known class in training images which class a cell has; every class counts the same.

    Cells of unknown class neither teach nor punish. How strongly large weights are held back is chosen by leaving out training
    images, or groups of them, in turn. Nothing is drawn at random.

    Parameters
    ----------
    train : CellDataset
        With at least two classes, each with a cell.
    segmenter : Path
        Checkpoint of the model whose cells get a class; it is copied to lie beside the result.
    encoder : Path
        Checkpoint of a Cellpose U-Net, whose features describe the cells.
    out : Path
        Folder for the checkpoint.
    detector : Path, optional
        Checkpoint of a detector of the same classes, for its network on cut-outs.

    Returns
    -------
    Path
        ``cellpose_classes.safetensors``, self-contained but for the segmenter beside it, and a card.
    """
    import torch

    from cellkit.models.shared.diameter import diameter_of
    from cellkit.models.unet_network import load_network
    from cellkit.parallel import progress

    network, about = load_network(encoder)
    diameter_px, channels = diameter_of(train.instances), about.get("channels", "both")
    rows, classes, groups = [], [], []
    units: dict[str, int] = {}  # what is left out as a whole
    for index in progress(images_that_teach(train.instances, len(train.classes)), "cells"):
        image, cells = train[index]
        known = cells.class_ids > 0
        told = _features(network, image, cells, diameter_px, channels, settings.ring_px)[known]
        rows.append(told)
        classes.append(cells.class_ids[known])
        groups += [units.setdefault(unit_of(train.records[index]), len(units))] * int(known.sum())
    features, classes = np.concatenate(rows).astype(np.float64), np.concatenate(classes)
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    near = _standardised(features, mean, spread)
    strength, right = choose_strength(near, classes, np.array(groups), len(train.classes))
    weight, bias = fit(near, classes, len(train.classes), strength)
    tensors = {"weight": weight, "bias": bias, "mean": mean, "spread": spread}
    saved = {name: torch.tensor(values, dtype=torch.float32) for name, values in tensors.items()}
    saved |= {f"{ENCODER}{name}": tensor.contiguous() for name, tensor in network.cpu().state_dict().items()}
    cut_outs = _cut_outs_of(detector, train.classes) if settings.cut_outs else {}
    saved |= {name: tensor for name, tensor in cut_outs.items() if name.startswith(CUT_OUTS)}
    beside = _beside(segmenter, Path(out) / "cellpose_classes_cells")
    config = {
        **dict(settings),
        **network.config,
        "segmenter": beside.name,
        "segmenter_sha256": weights.sha256_file(beside),
        "encoder": Path(encoder).stem,
        "channels": channels,
        "precision": about.get("precision", "auto"),
        "diameter_px": diameter_px,
        "cut_outs_diameter_px": cut_outs.get("diameter_px"),
        "strength": strength,
    }
    taught = {name: int((classes == k).sum()) for k, name in enumerate(train.classes, 1)}
    metrics = {"cells": taught, "class_right_left_out_training_images": right}
    path = Path(out) / "cellpose_classes.safetensors"
    return weights.save_checkpoint(path, saved, NAME, classes=train.classes, config=config, metrics=metrics)


def images_that_teach(instances: Sequence[Instances], classes: int) -> list[int]:
    """Return the places of the images to learn from: spread over all, until each class has `MOST_CELLS` cells.

    Examples
    --------
    >>> images_that_teach([Instances.from_labels(np.eye(2, dtype=int), class_ids=[1])] * 3, 1)
    [0, 1, 2]
    """
    order = np.argsort(
        [int(f"{k:032b}"[::-1], 2) for k in range(len(instances))], kind="stable"
    )  # halves, quarters, ...
    counts, chosen = np.zeros(classes + 1, np.int64), []
    for index in order.tolist():
        own = np.bincount(instances[index].class_ids, minlength=classes + 1)
        if (own[1:] * (counts[1:] < MOST_CELLS)).any():
            counts += own
            chosen.append(index)
    return sorted(chosen)


def fit(features: np.ndarray, classes: np.ndarray, count: int, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Fit a logistic regression in which every class counts the same, by L-BFGS in float64 from zeros.

    Parameters
    ----------
    features : (N, F) float64
    classes : (N,) int
        1 to `count`.
    strength : float
        Of the penalty on the squares of the weights.

    Returns
    -------
    weight : (F, count) float64
    bias : (count,) float64
    """
    import torch

    x, wanted = torch.tensor(features), torch.tensor(classes - 1)
    share = 1 / np.maximum(np.bincount(classes, minlength=count + 1), 1)[classes]
    share = torch.tensor(share / share.sum())
    weight = torch.zeros((features.shape[1], count), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    stepper = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        stepper.zero_grad()
        each = torch.nn.functional.cross_entropy(x @ weight + bias, wanted, reduction="none")
        total = (share * each).sum() + strength * weight.square().sum()
        total.backward()
        return total

    stepper.step(loss)
    return weight.detach().numpy(), bias.detach().numpy()


def choose_strength(
    features: np.ndarray, classes: np.ndarray, groups: np.ndarray, count: int
) -> tuple[float, float | None]:
    """Choose the strength of the penalty by leaving out training images in turn, in up to five parts.

    Parameters
    ----------
    groups : (N,) int
        The image of each cell, or the group (plate, well, donor) of images.

    Returns
    -------
    strength : float
        That of the least balanced log loss; a fixed one where a part left out takes a whole class with it.
    right : float or None
        How often the class of a cell of the images left out is right, at that strength: mean over classes.
    """
    images = np.unique(groups)
    part = np.searchsorted(images, groups) % min(FOLDS, len(images))
    splits = [part == k for k in range(part.max() + 1)]
    if len(splits) < 2 or any(set(classes[~held]) != set(classes) for held in splits):
        return DEFAULT_STRENGTH, None
    share = 1 / np.bincount(classes, minlength=count + 1)[classes]
    best: tuple[float, float, float] | None = None
    for strength in STRENGTHS:
        chance = np.zeros((len(classes), count))
        for held in splits:
            weight, bias = fit(features[~held], classes[~held], count, strength)
            chance[held] = softmax(features[held] @ weight + bias)
        loss = float(-(share * np.log(chance[np.arange(len(classes)), classes - 1] + 1e-12)).sum())
        right = float((share * (chance.argmax(axis=1) + 1 == classes)).sum() / share.sum())
        if best is None or loss < best[0] - 1e-9:
            best = loss, strength, right
    return best[1], round(best[2], 4)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities, (N, K), from logits.

    Examples
    --------
    >>> softmax(np.array([[0.0, 0.0]])).tolist()
    [[0.5, 0.5]]
    """
    raised = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return raised / raised.sum(axis=1, keepdims=True)


def _standardised(features: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    return np.clip((features - mean) / spread, -MOST_SPREADS, MOST_SPREADS)


def _features(
    network: Any, image: np.ndarray, cells: Instances, diameter_px: float, channels: str, ring_px: int
) -> np.ndarray:
    from cellkit.models.cell_features import features_of_cells

    return features_of_cells(network, image, cells, diameter_px, channels, ring_px)


def _cut_outs_of(detector: Path | None, classes: Sequence[str]) -> dict[str, Any]:
    """Return the tensors of a detector's network on cut-outs, and its diameter; {} where it has none or other classes."""
    if detector is None or Path(detector).suffix != ".safetensors":
        return {}
    card = weights.read_card(detector)
    tensors = {name: t for name, t in weights.load_tensors(detector).items() if name.startswith(CUT_OUTS)}
    known = tensors and tuple(card.classes) == tuple(classes) and card.config.get("diameter_px")
    return {**tensors, "diameter_px": card.config["diameter_px"]} if known else {}


def _beside(segmenter: Path, to: Path) -> Path:
    """Let the segmenter's checkpoint and card lie beside the classes: as another name of the same file where that can be."""
    import os

    beside = Path(f"{to}{Path(segmenter).suffix}")
    try:
        beside.unlink(missing_ok=True)
        os.link(segmenter, beside)
    except OSError:
        return weights.copy_checkpoint(segmenter, to)
    card = Path(segmenter).with_suffix(".json")
    if card.is_file():
        weights.write_json(beside.with_suffix(".json"), weights.read_json(card), indent=1)
    return beside


# ---- use -------------------------------------------------------------------------------------------------------------
def segmenter_of(checkpoint: str | Path) -> Path:
    """Return the checkpoint of the model whose cells get a class, which lies beside.

    Raises
    ------
    UserError
        It is not there, or another one.
    """
    card = weights.card_for(checkpoint, NAME)
    path = Path(checkpoint).parent / card.config["segmenter"]
    if not path.is_file() or weights.sha256_file(path) != card.config["segmenter_sha256"]:
        what = "is not the file its card names (sha256 differs)" if path.is_file() else "is missing"
        raise UserError(
            f"{path}, the model whose cells get a class, {what}", "copy it together with the classes, or train again"
        )
    return path


def load(checkpoint: str | Path) -> Callable[[np.ndarray, Instances], Instances]:
    """Return the function (image (H, W, 3) uint8, cells) -> the same cells, each with the likeliest class.

    Raises
    ------
    UserError
        No checkpoint there, or one of another kind.
    """
    from cellkit.models.unet_network import WIDTHS, CellposeUNet, placed

    card, tensors = weights.card_for(checkpoint, NAME), weights.load_tensors(checkpoint)
    config = card.config
    network = CellposeUNet(widths=config.get("widths", WIDTHS))
    network.load_state_dict({k.removeprefix(ENCODER): t for k, t in tensors.items() if k.startswith(ENCODER)})
    network = placed(network, config["precision"]).eval()
    weight, bias, mean, spread = (
        tensors[name].numpy().astype(np.float64) for name in ("weight", "bias", "mean", "spread")
    )
    looked_at = {k.removeprefix(CUT_OUTS): t for k, t in tensors.items() if k.startswith(CUT_OUTS)}
    vote = _votes_on_cut_outs(looked_at, len(card.classes), config["cut_outs_diameter_px"]) if looked_at else None

    def named(image: np.ndarray, cells: Instances) -> Instances:
        if not len(cells):
            return cells
        told = _features(network, image, cells, config["diameter_px"], config["channels"], config["ring_px"])
        chance = softmax(_standardised(told.astype(np.float64), mean, spread) @ weight + bias)
        if vote is not None:
            chance = chance + vote(image, cells)
        return cells.with_classes(chance.argmax(axis=1) + 1)

    return named


def _votes_on_cut_outs(
    tensors: dict, classes: int, diameter_px: float
) -> Callable[[np.ndarray, Instances], np.ndarray]:
    """Return the function (image, cells) -> probabilities (N, K) of the network on cut-outs."""
    from cellkit.models.cell_classifier import CellClassifier, class_logits
    from cellkit.models.shared.inputs import CELL_PX, network_shape, planes_of, resized

    network = CellClassifier(classes)
    network.load_state_dict(tensors)
    network = network.eval()

    def vote(image: np.ndarray, cells: Instances) -> np.ndarray:
        shape = network_shape(image.shape[:2], diameter_px, 16)
        planes = resized(planes_of(image), shape, diameter_px > CELL_PX)
        boxes = cells.boxes_xywh.astype(np.float64)
        boxes[:, 2:] += boxes[:, :2]
        scale = np.divide(shape, image.shape[:2])[[1, 0, 1, 0]]
        return softmax(class_logits(network, planes, boxes * scale).astype(np.float64))

    return vote


def with_cell_classes(segmenter: Segmenter, checkpoint: str | Path) -> Segmenter:
    """Return a segmenter that finds the same cells, each with a class."""
    named = load(checkpoint)

    def find_each(images: Iterable[np.ndarray]) -> Iterator[tuple[Instances, Counter[str]]]:
        waiting: deque[np.ndarray] = deque()

        def noted() -> Iterator[np.ndarray]:
            for image in images:
                waiting.append(image)
                yield image

        for found in segmenter(noted()):
            counts = Counter(segmenter.left_out)
            segmenter.left_out.clear()
            yield named(waiting.popleft(), found), counts

    return BatchSegmenter(find_each, segmenter.settings, segmenter.bytes_for)
