"""A network that is shown an image and a coordinate, and says whether a cell is there.

Three things go into an answer: what a small encoder tells of the whole image, a patch of 8 x 8 features around the coordinate,
and the coordinate itself as sines and cosines. Source of the design: Kit115/SegmentationBasedCellClassification, README at
1d49b3d; the patch is pooled as regions are in Ren et al., "Faster R-CNN", NeurIPS 2015.

The first layer of the head is linear in all three, so what it makes of a patch is a convolution of the features: a whole map
of coordinates costs one pass of the encoders, not one per coordinate (`CoordinateNetwork.map`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from cellkit.cells.instances import Instances
from cellkit.machine import Arithmetic, arithmetic
from cellkit.models.cell_features import centres_at
from cellkit.models.shared.inputs import labels_at, resized, two_channels, vary

PLANES = 2  # cytoplasm and nuclei
STRIDE = 4  # px of the map that a local feature is wide
PATCH = 8  # local features on each side of the patch around a coordinate
LOCAL, WIDTHS, GLOBAL_WIDTHS = 8, (16, 32), (8, 16, 32, 48, 64)
HIDDEN, OCTAVES = 128, 6
POSITIVES, NEGATIVES = 192, 256  # coordinates of an image in a training step
NEAR_PX = 5  # around cells, of the map: where half of the negatives are


class CoordinateNetwork(nn.Module):
    """Image and coordinates -> a logit for each: is a cell there?"""

    arithmetic: Arithmetic

    def __init__(self) -> None:
        super().__init__()
        first, second = WIDTHS
        self.local = nn.Sequential(
            _halved(PLANES, first), _halved(first, second), _Residual(second), _Residual(second),
            nn.Conv2d(second, LOCAL, 1),
        )  # fmt: skip
        pairs = zip((PLANES, *GLOBAL_WIDTHS[:-1]), GLOBAL_WIDTHS, strict=True)
        self.whole = nn.Sequential(*(_halved(*pair) for pair in pairs))
        self.of_patch = nn.Conv2d(LOCAL, HIDDEN, PATCH, padding=PATCH // 2)
        self.of_whole = nn.Linear(GLOBAL_WIDTHS[-1], HIDDEN, bias=False)
        self.of_place = nn.Sequential(nn.Linear(4 * OCTAVES, 64), nn.GELU(), nn.Linear(64, HIDDEN, bias=False))
        self.last = nn.Linear(HIDDEN, 1)

    def forward(self, planes: torch.Tensor, points_xy: torch.Tensor) -> torch.Tensor:
        """Answer for some coordinates.

        Parameters
        ----------
        planes : (B, 2, S, S) float32
        points_xy : (B, N, 2) float32
            In [0, 1] of width and height.

        Returns
        -------
        (B, N) float32
            Logits.
        """
        features = self.local(planes)
        count, side = points_xy.shape[:2], features.shape[2]
        step = torch.arange(PATCH, device=planes.device) - (PATCH - 1) / 2
        around = torch.stack(torch.meshgrid(step, step, indexing="ij")[::-1], dim=-1).reshape(-1, 2)  # x, y
        places = points_xy[:, :, None] * side - 0.5 + around  # in px of the features
        grid = (places + 0.5) * 2 / side - 1
        patches = F.grid_sample(features, grid, padding_mode="zeros", align_corners=False)  # (B, LOCAL, N, 64)
        patches = patches.permute(0, 2, 1, 3).reshape(*count, -1)
        hidden = patches @ self.of_patch.weight.reshape(HIDDEN, -1).T + self.of_patch.bias
        return self._answer(hidden, planes, self.of_place(embedded(points_xy)))

    def map(self, planes: torch.Tensor, places: torch.Tensor | None = None) -> torch.Tensor:
        """Answer for every pixel of the images, (B, S, S) float32 logits; the same as `forward` for their centres.

        Parameters
        ----------
        planes : (B, 2, S, S) float32
        places : (S * S, HIDDEN) float32, optional
            `place_table` of this size, where it is at hand.
        """
        size = planes.shape[-1]
        places = self.place_table(size) if places is None else places
        at = self.of_patch(self.local(planes))  # patches centred between features: one more on each axis
        grid = 2 * (pixel_centres(size, planes.device) * (size / STRIDE) + 0.5) / at.shape[-1] - 1
        grid = grid.reshape(1, size, size, 2).expand(len(planes), -1, -1, -1)
        hidden = F.grid_sample(at, grid, padding_mode="border", align_corners=False)
        hidden = hidden.permute(0, 2, 3, 1).reshape(len(planes), size * size, HIDDEN)
        return self._answer(hidden, planes, places).reshape(-1, size, size)

    def place_table(self, size: int) -> torch.Tensor:
        """Return what the centres of the pixels of a map give to the head, (size * size, HIDDEN) float32."""
        return self.of_place(embedded(pixel_centres(size, self.last.weight.device)))

    def _answer(self, of_patch: torch.Tensor, planes: torch.Tensor, of_place: torch.Tensor) -> torch.Tensor:
        """Return the logits of coordinates, (B, N), from what patches and places give to the head."""
        seen = self.of_whole(self.whole(planes).mean(dim=(2, 3)))
        return self.last(F.gelu(of_patch + seen[:, None] + of_place))[..., 0]


class Together(nn.Module):
    """Several networks whose answers are averaged, as probabilities."""

    arithmetic: Arithmetic

    def __init__(self, networks: Sequence[CoordinateNetwork]) -> None:
        super().__init__()
        self.networks, self.arithmetic = nn.ModuleList(networks), networks[0].arithmetic

    def map(self, planes: torch.Tensor, places: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """Answer for every pixel of the images, (B, S, S) float32 logits; as `CoordinateNetwork.map`."""
        places = self.place_table(planes.shape[-1]) if places is None else places
        logits = [one.map(planes, own) for one, own in zip(self.networks, places, strict=True)]
        return torch.stack(logits).float().sigmoid().mean(dim=0).logit(eps=1e-6)

    def place_table(self, size: int) -> list[torch.Tensor]:
        """Return what the centres of the pixels of a map give to the head of each network."""
        return [one.place_table(size) for one in self.networks]


def _halved(inputs: int, outputs: int) -> nn.Sequential:
    """Return a 3 x 3 convolution of stride 2 with batch normalisation."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.GELU())


class _Residual(nn.Module):
    """A 3 x 3 convolution whose result is added to what it was given."""

    def __init__(self, width: int):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block(x)


def pixel_centres(size: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the coordinates (x, y) of the pixels of a square map, row by row: (size * size, 2) float32 in (0, 1).

    Examples
    --------
    >>> pixel_centres(2).tolist()
    [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    """
    at = (torch.arange(size, device=device) + 0.5) / size
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def embedded(points_xy: torch.Tensor) -> torch.Tensor:
    """Return coordinates (..., 2) in [0, 1] as sines and cosines of 1/2, 1, 2 ... periods, (..., 4 * OCTAVES)."""
    angles = points_xy[..., None] * (np.pi * 2.0 ** torch.arange(OCTAVES, device=points_xy.device))
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def built(seed: int, precision: str) -> CoordinateNetwork:
    """Return a network of random numbers from `seed`, where it is computed."""
    from cellkit.models.training import random_state_kept

    with random_state_kept():
        torch.manual_seed(seed)
        return _placed(CoordinateNetwork(), precision)


def opened(tensors: dict[str, torch.Tensor], precision: str) -> CoordinateNetwork | Together:
    """Return the network with the weights of a checkpoint, or several together, where it is computed, to predict."""
    together = {name.split(".")[1] for name in tensors if name.startswith("networks.")}
    members = [_placed(CoordinateNetwork(), precision) for _ in together or [None]]
    network = Together(members) if together else members[0]
    network.load_state_dict(tensors)
    return network.eval()


def _placed(network: CoordinateNetwork, precision: str) -> CoordinateNetwork:
    network.arithmetic = arithmetic(precision)
    return network.to(network.arithmetic.device)


# ---- training ------------------------------------------------------------------------------------------------------
class Item(NamedTuple):
    """A training image as the network sees it.

    planes : (2, S, S) float32
    labels : (S, S) int32, 0 = background, -1 = not annotated
    """

    planes: np.ndarray
    labels: np.ndarray


def squared(image: np.ndarray, channels: str, size: int) -> np.ndarray:
    """Return cytoplasm and nuclei of an image (H, W, 3) uint8, brought to a square: (2, size, size) float32."""
    return resized(two_channels(image, channels), (size, size), max(image.shape[:2]) > size)


def prepare(image: np.ndarray, truth: Instances, channels: str, size: int) -> Item:
    """Return a labelled image as the network learns from it; a cell too small for a pixel of its own has that of its middle."""
    labels = labels_at(truth, (size, size))
    lost = np.setdiff1d(np.arange(1, len(truth) + 1), labels)
    y, x = centres_at(truth, (size, size))[lost - 1].T
    labels[y, x] = lost
    return Item(squared(image, channels, size), labels)


class CoordinateLoss:
    """Step number -> cross-entropy of coordinates in turned, flipped, scaled training images.

    Parameters
    ----------
    network : CoordinateNetwork
    items : sequence of Item
    batch_size : int
        Images of a step.
    seed : int
    depth : bool
        What is asked of a coordinate in a cell: true = 0.5 at its edge to 1 in its middle, so that cells that touch have a peak
        each; false = 1.
    """

    def __init__(self, network: CoordinateNetwork, items: Sequence[Item], batch_size: int, seed: int, depth: bool):
        self.network, self.items, self.batch_size, self.seed, self.depth = network, items, batch_size, seed, depth

    def __call__(self, step: int) -> torch.Tensor:
        """Return the loss of a step."""
        rng = np.random.default_rng([self.seed, step])
        drawn = [self._drawn(self.items[rng.integers(len(self.items))], rng) for _ in range(self.batch_size)]
        on = self.network.arithmetic
        planes, points, wanted = (torch.from_numpy(np.stack(each)).to(on.device) for each in zip(*drawn, strict=True))
        with on.autocast():
            logits = self.network(planes, points)
        return F.binary_cross_entropy_with_logits(logits.float(), wanted)

    def _drawn(self, item: Item, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return planes, coordinates (N, 2) and what is to be said of them (N,), all float32, of one image."""
        planes, labels = turned(item, rng)
        if not (labels >= 0).any():  # all that is annotated was turned out of sight
            planes, labels = item
        size = labels.shape[0]
        places = drawn_places(labels, rng)
        inside = labels.ravel()[places] > 0
        wanted = inside.astype(np.float32)
        if self.depth:
            wanted = np.where(inside, 0.5 + 0.5 * depths(labels).ravel()[places], 0).astype(np.float32)
        y, x = np.divmod(places, size)
        points = (np.stack([x, y], axis=1) + rng.uniform(0.25, 0.75, (len(places), 2))) / size
        return vary(planes, rng), points.astype(np.float32), wanted


def turned(item: Item, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return planes and labels flipped, turned by any angle, scaled by 0.8 to 1.25 and shifted; outside is background."""
    import cv2

    size = item.labels.shape[0]
    angle, zoom, flip = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.25), 1 - 2 * rng.integers(2)
    cos, sin, middle = np.cos(angle), np.sin(angle), (size - 1) / 2
    matrix = zoom * np.array([[cos * flip, -sin], [sin * flip, cos]])
    shift = middle + rng.uniform(-0.1, 0.1, 2) * size - matrix @ (middle, middle)
    warp, sides = np.column_stack([matrix, shift]), (size, size)
    planes = cv2.warpAffine(np.ascontiguousarray(item.planes.transpose(1, 2, 0)), warp, sides, flags=cv2.INTER_LINEAR)
    labels = cv2.warpAffine(item.labels.astype(np.float64), warp, sides, flags=cv2.INTER_NEAREST)
    return planes.transpose(2, 0, 1), labels.astype(np.int32)


def drawn_places(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw pixels: in cells, every cell as often; around cells; and anywhere else. None is drawn that is not annotated.

    Returns
    -------
    (POSITIVES + NEGATIVES,) int64
        Of the flat map. Where there is no cell, all are elsewhere; where there is nothing else, all in cells.
    """
    import cv2

    flat = labels.ravel()
    order = np.argsort(flat, kind="stable")
    ids, first, counts = np.unique(flat[order], return_index=True, return_counts=True)
    first, counts = first[ids > 0], counts[ids > 0]
    near = cv2.dilate((labels > 0).astype(np.uint8), np.ones((2 * NEAR_PX + 1,) * 2, np.uint8)).ravel() > 0
    background = np.flatnonzero(flat == 0)
    close = background[near[background]]
    total = POSITIVES + NEGATIVES
    positives = total if not len(background) else POSITIVES if len(first) else 0
    parts = []
    if positives:
        cell = rng.integers(len(first), size=positives)
        parts.append(order[first[cell] + (rng.random(positives) * counts[cell]).astype(np.int64)])
    by_cells = (total - positives) // 2 if len(close) else 0
    for among, count in ((close, by_cells), (background, total - positives - by_cells)):
        parts += [among[rng.integers(len(among), size=count)]] if count else []
    return np.concatenate(parts)


def depths(labels: np.ndarray) -> np.ndarray:
    """Return how far from the edge of its cell each pixel is, over the farthest of that cell: (S, S) float32 in [0, 1]."""
    import cv2

    inner = (labels > 0).astype(np.uint8)
    for one, other in (((slice(1, None),), (slice(-1),)), ((slice(None), slice(1, None)), (slice(None), slice(-1)))):
        edge = labels[one] != labels[other]
        inner[one][edge] = inner[other][edge] = 0
    far = cv2.distanceTransform(np.pad(inner, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    ids = np.maximum(labels, 0)
    most = np.zeros(ids.max() + 1, np.float32)
    np.maximum.at(most, ids.ravel(), far.ravel())
    thin = (most == 0)[ids] & (labels > 0)  # nothing but edge
    return np.where(thin, 1, far / np.maximum(most, 1e-6)[ids]).astype(np.float32)
