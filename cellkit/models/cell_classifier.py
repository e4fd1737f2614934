"""Which line a cell belongs to: a small network on a cut-out around each cell, beside a detector.

A detector's shared features learn what is a cell; what tells two lines apart is often elsewhere: texture, and what surrounds
the cell. A network of its own, on pixels, learns it in a tenth of the steps. Source of the idea: Cheng, Wei, Shi, Feris, Xiong,
Huang, "Revisiting RCNN: On Awakening the Classification Power of Faster RCNN", ECCV 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from cellkit.cells.instances import Instances
from cellkit.models.cell_regression import NAMES, Regression, learn
from cellkit.models.cell_texture import ALONE, FEATURES, texture_of_cells
from cellkit.models.class_shares import hold_one_class
from cellkit.models.gate import unit_of
from cellkit.models.shared.inputs import vary

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset

SIZE_PX = 80  # at network scale, where a cell is about 30 px wide
CELLS_PER_STEP = 48
WIDTHS = (16, 32, 64, 64)
CHUNK = 128


class CellClassifier(nn.Module):
    """Four levels of two convolutions, the mean over the cut-out, one output per class.

    Parameters
    ----------
    classes : int
    """

    def __init__(self, classes: int):
        super().__init__()
        self.levels = nn.Sequential(*(down_level(a, b) for a, b in zip((3, *WIDTHS[:-1]), WIDTHS, strict=True)))
        self.dropout, self.last = nn.Dropout(0.3), nn.Linear(WIDTHS[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, 3, SIZE_PX, SIZE_PX) to (B, classes) logits."""
        return self.last(self.dropout(self.levels(x).mean(dim=(2, 3))))


def down_level(inputs: int, outputs: int) -> nn.Sequential:
    """Return two 3 x 3 convolutions with batch normalisation; the first halves the picture."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class TextureVote(nn.Module):
    """What the texture of a cell says of its class: a regression, learned from labels alone, that goes with a detector.

    Parameters
    ----------
    classes : int
    alone : bool
        By the cell alone, without its surroundings.
    """

    def __init__(self, classes: int, alone: bool = False):
        super().__init__()
        self.columns = ALONE if alone else slice(None)
        count = len(ALONE) if alone else FEATURES
        for name, shape in zip(NAMES, ((count,), (count,), (count, classes), (classes,)), strict=True):
            self.register_buffer(name, torch.ones(shape) if name == "spread" else torch.zeros(shape))

    def votes(self, texture: np.ndarray) -> np.ndarray:
        """Return log probabilities (N, K) of cells by their texture, see `texture_of_cells`."""
        chances = Regression.of(dict(self.named_buffers())).chances(texture[:, self.columns])
        return np.log(chances + 1e-6)


def texture_votes(train: CellDataset, diameter_px: float, places: Sequence[int]) -> list[TextureVote]:
    """Learn what texture says of the class of cells; nothing where there are not two classes, each with a cell.

    Parameters
    ----------
    places : sequence of int
        Of the training images to learn from.

    Returns
    -------
    list
        The vote; and where every image holds one class that of the cell alone, see `class_shares`.
    """
    labelled = [train.instances[index].class_ids for index in places]
    taught = np.concatenate([np.zeros(0, np.int64), *(ids[ids > 0] for ids in labelled)])
    if len(train.classes) < 2 or len(np.unique(taught)) < len(train.classes):
        return []
    told, units = [], []
    for index in places:
        image, cells = train[index]
        known = cells[np.flatnonzero(cells.class_ids > 0)]
        told.append(texture_of_cells(image, known, diameter_px))
        units += [unit_of(train.records[index])] * len(known)
    texture, groups = np.concatenate(told), np.unique(units, return_inverse=True)[1]
    votes = [TextureVote(len(train.classes), alone) for alone in (False, True)[: 1 + hold_one_class(labelled)]]
    for vote in votes:
        learned = learn(texture[:, vote.columns], taught, groups, len(train.classes))
        vote.load_state_dict(learned.regression.tensors())
    return votes


# ---- cut-outs ------------------------------------------------------------------------------------------------------
def cut_out(picture: np.ndarray, centre_xy: Sequence[float], rng: np.random.Generator | None = None) -> np.ndarray:
    """Cut a square around a cell; outside the image it is 0.

    Parameters
    ----------
    picture : (H, W, 3) float32
        At network scale.
    centre_xy : pair of float
        In px; pixel (row, column) covers [column, column + 1) x [row, row + 1).
    rng : Generator, optional
        Turn, flip, zoom (0.8 to 1.25), shift (up to 4 px) and vary the intensities at random, for training.

    Returns
    -------
    (3, SIZE_PX, SIZE_PX) float32
    """
    import cv2

    x, y = np.subtract(centre_xy, 0.5)
    turned = np.eye(2)
    if rng is not None:
        angle, zoom, flip = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.25), 1 - 2 * rng.integers(2)
        x, y = (x, y) + rng.uniform(-4, 4, 2)
        cos, sin = np.cos(angle), np.sin(angle)
        turned = zoom * np.array([[cos * flip, -sin], [sin * flip, cos]])
    shift = (SIZE_PX - 1) / 2 - turned @ np.array([x, y])
    warp = np.column_stack([turned, shift])
    cut = cv2.warpAffine(picture, warp, (SIZE_PX, SIZE_PX), flags=cv2.INTER_LINEAR).transpose(2, 0, 1)
    return vary(cut, rng) if rng is not None else np.ascontiguousarray(cut)


def classify(network: CellClassifier, planes: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
    """Return the likeliest class, 1..K, of the cell in each box, (N,) int64; parameters as for `class_logits`."""
    return class_logits(network, planes, boxes_xyxy).argmax(axis=1) + 1


def class_logits(network: CellClassifier, planes: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
    """Return what the network says of the cell in each box.

    Parameters
    ----------
    planes : (3, H, W) float32
        The whole image at network scale.
    boxes_xyxy : (N, 4) float
        In px of `planes`.

    Returns
    -------
    (N, K) float32
        Logits of the classes 1..K.
    """
    picture = np.ascontiguousarray(planes.transpose(1, 2, 0))
    centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    device = next(network.parameters()).device
    found = [np.zeros((0, network.last.out_features), np.float32)]
    for first in range(0, len(centres), CHUNK):
        cuts = np.stack([cut_out(picture, centre) for centre in centres[first : first + CHUNK]])
        with torch.no_grad():
            found.append(network(torch.from_numpy(cuts).to(device)).cpu().numpy())
    return np.concatenate(found)


# ---- training ------------------------------------------------------------------------------------------------------
class ClassLoss:
    """(generator) -> cross-entropy on cut-outs of cells of known class, drawn so that every class comes as often.

    Parameters
    ----------
    network : CellClassifier
    items : sequence of (planes, labels, class_of)
        As `shared.detector_batches.scaled` gives them.
    cells_per_step : int
        Cut-outs of a batch.
    """

    def __init__(
        self,
        network: CellClassifier,
        items: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
        cells_per_step: int = CELLS_PER_STEP,
    ):
        self.network, self.cells_per_step = network, cells_per_step
        self.pictures = [np.ascontiguousarray(planes.transpose(1, 2, 0)) for planes, *_ in items]
        rows = [row for k, (_, labels, class_of, *_) in enumerate(items) for row in _cells(k, labels, class_of)]
        rows = np.array(rows, float).reshape(-1, 4)
        self.of_class = [rows[rows[:, 3] == c] for c in np.unique(rows[:, 3])]

    def __call__(self, rng: np.random.Generator, cells: int | None = None) -> torch.Tensor:
        """Return the loss of one batch of cut-outs; of so many, where it is a share of one."""
        device = next(self.network.parameters()).device
        if not self.of_class:  # no cell of known class: nothing to learn
            return torch.zeros((), device=device)
        drawn = [self.of_class[k] for k in rng.integers(len(self.of_class), size=cells or self.cells_per_step)]
        rows = [own[rng.integers(len(own))] for own in drawn]
        cuts = np.stack([cut_out(self.pictures[int(row[0])], row[1:3], rng) for row in rows])
        wanted = torch.tensor([int(row[3]) - 1 for row in rows], device=device)
        return F.cross_entropy(self.network(torch.from_numpy(cuts).to(device)), wanted, label_smoothing=0.05)


def _cells(index: int, labels: np.ndarray, class_of: np.ndarray) -> list[tuple[float, float, float, float]]:
    """Return (index, centre x, centre y, class) of every cell of known class."""
    labels = np.where(labels < len(class_of), labels, 0)  # what several cells share tells no class
    cells = Instances.from_labels(labels)
    ids = np.unique(labels)
    boxes = cells.boxes_xywh
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    known = zip(centres, class_of[ids[ids > 0]], strict=True)
    return [(index, *centre, class_id) for centre, class_id in known if class_id > 0]
