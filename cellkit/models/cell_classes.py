"""A class for the cells of any model that has masks: by what a U-Net sees of them, and by their texture; a regression on each.

Unlike the detector's classifier it needs no training of a network. Where the run has trained a detector, the network that
looks at cut-outs around its cells (`cell_classifier`) may vote too.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import Field

from cellkit.cells.instances import Instances
from cellkit.cells.windows import Window
from cellkit.errors import UserError
from cellkit.finding import Opener
from cellkit.models import weights
from cellkit.models.cell_regression import Learned, Regression, learn, log_loss, right_share, softmax
from cellkit.models.class_shares import hold_one_class, told_together
from cellkit.models.gate import unit_of
from cellkit.models.shared.contract import BatchSegmenter, Segmenter
from cellkit.models.shared.in_windows import Changed, InWindows, WholeImage
from cellkit.models.shared.whole_light import in_light_of
from cellkit.settings import Frozen

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset

NAME = "cell_classes"
MOST_CELLS = 2000  # of a class that teach
CUT_OUTS, ENCODER = "cell_classifier.", "encoder."  # before the names of the tensors of two networks
FEATURES, TEXTURE = "features", "texture"  # what regressions are learned on
ALONE = "alone"  # the texture of a cell without that of its surroundings


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
        False, description="let the detector's network on cut-outs around cells have as much of a say, where it has one"
    )


# ---- training --------------------------------------------------------------------------------------------------------
def train(
    train: CellDataset, segmenter: Path, encoder: Path, settings: Settings, out: Path, detector: Path | None = None
) -> Path:
    """Learn from the cells of known class in training images which class a cell has; every class counts the same.

    Cells of unknown class neither teach nor punish. How strongly large weights are held back is chosen by leaving out training
    images, or groups of them, in turn. Where every training image holds one class, the cell without its surroundings is learned
    too, for images that hold several, see `class_shares`. Nothing is drawn at random.

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
    learned = learn_votes(train, encoder, settings.ring_px)
    cut_outs = _cut_outs_of(detector, train.classes) if settings.cut_outs else {}
    saved = learned.tensors | {name: tensor for name, tensor in cut_outs.items() if name.startswith(CUT_OUTS)}
    beside = _beside(segmenter, Path(out) / "cellpose_classes_cells")
    config = {
        **dict(settings),
        **learned.config,
        "segmenter": beside.name,
        "segmenter_sha256": weights.sha256_file(beside),
        "cut_outs_diameter_px": cut_outs.get("diameter_px"),
    }
    path = Path(out) / "cellpose_classes.safetensors"
    return weights.save_checkpoint(path, saved, NAME, classes=train.classes, config=config, metrics=learned.metrics)


class Votes(NamedTuple):
    """What regressions on features and texture have learned: tensors to save, how they are read, and how good they are."""

    tensors: dict[str, Any]
    config: dict[str, Any]
    metrics: dict[str, Any]


def learn_votes(train: CellDataset, encoder: Path, ring_px: int) -> Votes:
    """Learn from cells of known class what features and texture say of the class; parameters as for `train`."""
    from cellkit.models.cell_features import features_of_cells
    from cellkit.models.cell_texture import ALONE as OF_CELL
    from cellkit.models.cell_texture import texture_of_cells
    from cellkit.models.shared.diameter import diameter_of
    from cellkit.models.unet_network import load_network
    from cellkit.parallel import progress

    network, about = load_network(encoder)
    diameter_px = diameter_of(train.instances)
    told: dict[str, list[np.ndarray]] = {FEATURES: [], TEXTURE: []}
    taught, groups, places = [], [], []
    units: dict[str, int] = {}  # what is left out as a whole
    teach = images_that_teach(train.instances, len(train.classes))
    for index in progress(teach, "cells"):
        image, cells = train[index]
        known = cells.class_ids > 0
        told[FEATURES].append(features_of_cells(network, image, cells, diameter_px, "both", ring_px)[known])
        told[TEXTURE].append(texture_of_cells(image, cells, diameter_px)[known])
        taught.append(cells.class_ids[known])
        groups += [units.setdefault(unit_of(train.records[index]), len(units))] * int(known.sum())
        places += [index] * int(known.sum())
    classes = np.concatenate(taught)
    rows = {name: np.concatenate(parts) for name, parts in told.items()}
    learned = {name: learn(one, classes, np.array(groups), len(train.classes)) for name, one in rows.items()}
    votes, right = votes_kept(learned, classes)
    saying = votes
    if hold_one_class(train.instances[index].class_ids for index in teach):
        learned[ALONE] = learn(rows[TEXTURE][:, OF_CELL], classes, np.array(groups), len(train.classes))
        right, saying = _right_together(learned, votes, classes, np.array(places)), (*votes, ALONE)
    saved = {}
    for name in saying:
        saved |= learned[name].regression.tensors(f"{name}.")
    if FEATURES in votes:
        saved |= {f"{ENCODER}{name}": tensor.contiguous() for name, tensor in network.cpu().state_dict().items()}
    config = {
        "ring_px": ring_px,
        **network.config,
        "encoder": Path(encoder).stem,
        "precision": about.get("precision", "auto"),
        "diameter_px": diameter_px,
        "votes": list(votes),
        ALONE: ALONE in saying,
        "strength": {name: learned[name].strength for name in saying},
    }
    metrics = {
        "cells": {name: int((classes == k).sum()) for k, name in enumerate(train.classes, 1)},
        "class_right_left_out_training_images": right,
    }
    return Votes(saved, config, metrics)


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


def votes_kept(learned: Mapping[str, Learned], classes: np.ndarray) -> tuple[tuple[str, ...], float | None]:
    """Return whose chances are averaged, one alone or all, by what is best on images left out; and how often it is right.

    Parameters
    ----------
    learned : mapping
        Name -> what was learned; at least one.
    classes : (N,) int
        Of the cells that taught.

    Returns
    -------
    names : tuple of str
        Those that are right most often, of equal ones with the least log loss; all where no image can be left out.
    right : float or None
        Mean over classes.
    """
    every = tuple(learned)
    if any(one.left_out is None for one in learned.values()):
        return every, None
    means = {
        names: np.mean([learned[name].left_out for name in names], axis=0) for names in (every, *((n,) for n in every))
    }
    right = {names: round(right_share(mean, classes), 4) for names, mean in means.items()}
    best = min(means, key=lambda names: (-right[names], log_loss(means[names], classes)))
    return best, right[best]


def _right_together(
    learned: Mapping[str, Learned], votes: Sequence[str], classes: np.ndarray, places: np.ndarray
) -> float | None:
    """Return how often cells of images left out are right, mean over classes, when those of an image are told together."""
    of, alone = [learned[name].left_out for name in votes], learned[ALONE].left_out
    if alone is None or any(one is None for one in of):
        return None
    chances, surrounded = np.zeros_like(alone), np.mean(of, axis=0)
    for place in np.unique(places):
        own = places == place
        chances[own] = told_together(surrounded[own], alone[own])
    return round(right_share(chances, classes), 4)


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
    card = weights.card_file(segmenter)
    if card is not None:
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
    path = Path(checkpoint).parent / str(card.told("segmenter", checkpoint))
    if not path.is_file() or weights.sha256_file(path) != card.told("segmenter_sha256", checkpoint):
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
    card, tensors = weights.card_for(checkpoint, NAME), weights.load_tensors(checkpoint)
    config = card.config
    tell = chances_by(tensors, config)
    looked_at = {k.removeprefix(CUT_OUTS): t for k, t in tensors.items() if k.startswith(CUT_OUTS)}
    vote = _votes_on_cut_outs(looked_at, len(card.classes), config["cut_outs_diameter_px"]) if looked_at else None

    def named(image: np.ndarray, cells: Instances) -> Instances:
        if not len(cells):
            return cells
        chances = tell(image, cells)
        if vote is not None:
            chances = chances + vote(image, cells)
        return cells.with_classes(chances.argmax(axis=1) + 1)

    return named


def chances_by(tensors: Mapping[str, Any], config: Mapping[str, Any]) -> Callable[[np.ndarray, Instances], np.ndarray]:
    """Return the function (image, cells) -> chances of the classes (N, K), by what `learn_votes` has learned.

    They are the mean of its votes; where the cell alone is learned too, the cells of an image are told together.
    """
    from cellkit.models.cell_texture import ALONE as OF_CELL
    from cellkit.models.cell_texture import texture_of_cells

    votes = config.get("votes")
    prefixes = (
        {FEATURES: ""} if votes is None else {name: f"{name}." for name in votes}
    )  # once there were features alone
    diameter_px = config["diameter_px"]
    describe: dict[str, Callable[[np.ndarray, Instances], np.ndarray]] = {
        TEXTURE: lambda image, cells: texture_of_cells(image, cells, diameter_px)
    }
    if FEATURES in prefixes:
        describe[FEATURES] = _features_by(tensors, config)
    regressions = {name: Regression.of(tensors, prefix) for name, prefix in prefixes.items()}
    of_cell = Regression.of(tensors, f"{ALONE}.") if config.get(ALONE) else None

    def tell(image: np.ndarray, cells: Instances) -> np.ndarray:
        numbers = {name: describe[name](image, cells) for name in regressions}
        surrounded = np.mean([regressions[name].chances(one) for name, one in numbers.items()], axis=0)
        if of_cell is None or not len(cells):
            return surrounded
        texture = numbers[TEXTURE] if TEXTURE in numbers else describe[TEXTURE](image, cells)
        return told_together(surrounded, of_cell.chances(texture[:, OF_CELL]))

    return tell


def _features_by(
    tensors: Mapping[str, Any], config: Mapping[str, Any]
) -> Callable[[np.ndarray, Instances], np.ndarray]:
    """Return the function (image, cells) -> features (N, F) by the U-Net of a checkpoint."""
    from cellkit.models.cell_features import features_of_cells
    from cellkit.models.unet_network import WIDTHS, CellposeUNet, placed

    network = CellposeUNet(widths=config.get("widths", WIDTHS))
    network.load_state_dict({k.removeprefix(ENCODER): t for k, t in tensors.items() if k.startswith(ENCODER)})
    network = placed(network, config["precision"]).eval()
    return lambda image, cells: features_of_cells(
        network, image, cells, config["diameter_px"], config.get("channels", "both"), config["ring_px"]
    )


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
    named = named_by(segmenter, load(checkpoint))
    if segmenter.opener is not None:
        named.opener = Opener(_opened_with, (segmenter.opener, checkpoint))
    return named


def _opened_with(opener: Callable[[], Segmenter], checkpoint: str | Path) -> Segmenter:
    return with_cell_classes(opener(), checkpoint)


def named_by(segmenter: Segmenter, named: Callable[[np.ndarray, Instances], Instances]) -> Segmenter:
    """Return a segmenter that finds the same cells, each with the class that a function (image, cells) -> cells gives it."""

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

    def in_windows(whole: WholeImage) -> InWindows:
        def change(window: Window, found: Instances) -> Instances:
            with in_light_of(whole.light):
                return named(whole.part(window), found)

        return Changed(segmenter.in_windows(whole), change)

    return BatchSegmenter(find_each, segmenter.settings, segmenter.bytes_for, in_windows, segmenter.whole_only)
