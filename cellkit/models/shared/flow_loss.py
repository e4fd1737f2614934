"""Crops of labelled images, and Cellpose's loss of flows and cell probability on a batch of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.models.shared.flows import target_of
from cellkit.models.shared.inputs import (
    CELL_PX,
    NORMALISE,
    random_warp,
    to_network_scale,
    two_channels,
    vary,
    vary_strongly,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Prepared:
    """One training image at network scale.

    Parameters
    ----------
    planes : (C, h, w) float32
        As many channels as the network is shown.
    target : (3, h, w) float32
        Flows times 5, cell or not.
    known : (h, w) bool, optional
        Where somebody said what is a cell and what is not; None = everywhere.
    """

    planes: np.ndarray
    target: np.ndarray
    known: np.ndarray | None = None

    def __post_init__(self):
        """Keep all of it as one array, (h, w, C + 3 or 4), which is what crops are cut from; the others become views."""
        channels = len(self.planes)
        parts = [self.planes, self.target] + ([] if self.known is None else [self.known[None]])
        together = np.ascontiguousarray(np.concatenate(parts, dtype=np.float32).transpose(1, 2, 0))
        object.__setattr__(self, "together", together)
        object.__setattr__(self, "planes", together[..., :channels].transpose(2, 0, 1))
        object.__setattr__(self, "target", together[..., channels : channels + 3].transpose(2, 0, 1))

    @property
    def arrays(self) -> list[np.ndarray]:
        """What a training depends on."""
        return [self.planes, self.target] + ([] if self.known is None else [self.known])


def prepare(
    image: np.ndarray,
    truth: Instances,
    diameter_px: float,
    cache: Path | None = None,
    channels: str = "both",
    normalise: tuple[float, float] = NORMALISE,
    cell_px: float = CELL_PX,
) -> Prepared:
    """Bring one labelled image to network scale and make its target.

    Parameters
    ----------
    image : (H, W, 3) uint8
    truth : Instances
        What it does not annotate is not known.
    cache : Path, optional
        As for `target_of`.
    normalise : (float, float)
        As for `two_channels`.
    cell_px : float
        Width of a cell at network scale: the network's ``diam_mean``.
    """
    planes, labels = to_network_scale(two_channels(image, channels, normalise), truth, diameter_px, 8, cell_px)
    return with_target(planes, labels, cache)


def with_target(planes: np.ndarray, labels: np.ndarray, cache: Path | None = None) -> Prepared:
    """Make the target of an image at network scale: planes (C, h, w) float32, labels (h, w) int32, -1 = not annotated."""
    known = labels >= 0 if (labels < 0).any() else None
    return Prepared(planes, target_of(np.maximum(labels, 0), cache), known)


class Crop(NamedTuple):
    """One training example: planes (C, s, s) and target (3, s, s) float32, and known (s, s) bool or None = everywhere."""

    planes: np.ndarray
    target: np.ndarray
    known: np.ndarray | None


@dataclass(frozen=True)
class Variation:
    """How crops differ from the image they are cut from.

    Parameters
    ----------
    rotate : bool
        Turn them by any angle; else they are flipped and zoomed only.
    strong : bool
        Vary intensities as `vary_strongly` does, not as `vary`.
    outside : bool
        Whether what a crop shows beyond the edge of its image counts, as background; else it is not known.
    """

    rotate: bool = True
    strong: bool = False
    outside: bool = True


def crop(item: Prepared, rng: np.random.Generator, size_px: int, variation: Variation = Variation()) -> Crop:
    """Draw a turned, flipped, scaled crop of an image and its target; flows turn with it."""
    import cv2

    warp, turned = random_warp(item.target[2], rng, size_px, variation.rotate)
    both = cv2.warpAffine(item.together, warp, (size_px, size_px), flags=cv2.INTER_LINEAR).transpose(2, 0, 1)
    channels = len(item.planes)
    flow_y, flow_x, cell = both[channels], both[channels + 1], both[channels + 2] > 0.5
    turned_y = turned[1, 0] * flow_x + turned[1, 1] * flow_y
    turned_x = turned[0, 0] * flow_x + turned[0, 1] * flow_y
    known = None if item.known is None else both[channels + 3] > 0.5
    if known is not None or not variation.outside:
        inside = _inside(item.target.shape[1:], warp, size_px)
        known = (inside if known is None else inside & known) | (~inside & variation.outside)
    planes = (vary_strongly if variation.strong else vary)(both[:channels], rng)
    return Crop(planes, np.stack([turned_y, turned_x, cell]).astype(np.float32), known)


def _inside(shape: tuple[int, int], warp: np.ndarray, size_px: int) -> np.ndarray:
    """Tell which pixels of a crop, (size, size) bool, lie in the image that it is cut from."""
    import cv2

    back, at = cv2.invertAffineTransform(warp), np.arange(size_px)
    x, y = (row[0] * at + row[1] * at[:, None] + row[2] for row in back)
    return (x >= 0) & (x <= shape[1] - 1) & (y >= 0) & (y <= shape[0] - 1)


def flow_loss(maps: torch.Tensor, target: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
    """Return Cellpose's loss (train.py): 0.5 mean((flow - 5 flow_true)^2) + binary cross entropy of the probability.

    Parameters
    ----------
    maps, target : (B, 3, h, w) float32
    known : (B, h, w) bool or float32, optional
        What each pixel counts; None = all alike. Where none counts the loss is 0.
    """
    from torch.nn import functional as F

    if known is None:
        flows = 0.5 * F.mse_loss(maps[:, :2], target[:, :2])
        return flows + F.binary_cross_entropy_with_logits(maps[:, 2], target[:, 2])
    each = 0.25 * (maps[:, :2] - target[:, :2]).square().sum(dim=1)
    each = each + F.binary_cross_entropy_with_logits(maps[:, 2], target[:, 2], reduction="none")
    counted = known.to(each.dtype)
    return (each * counted).sum() / counted.sum().clamp_min(1e-6)


def dealt(kinds: Sequence[str], count: int, rng: np.random.Generator) -> list[int]:
    """Draw so many images, evenly from each kind, and of a kind none a second time before all were drawn once.

    Which kinds get one more, where the number cannot be shared evenly, is drawn too. Images of no kind are drawn as often as
    if all were drawn evenly.

    Parameters
    ----------
    kinds : sequence of str
        Of each image; "" = of none.

    Examples
    --------
    >>> dealt(["a", "a", "a", "b"], 6, np.random.default_rng(0))
    [3, 2, 3, 0, 3, 1]
    """
    drawn = rng.permutation(len(kinds))
    places: dict[str, list[int]] = {}
    for place in drawn:
        places.setdefault(kinds[place], []).append(int(place))
    others = places.pop("", []) if len(places) > 1 else []
    first = int(count * len(others) / len(kinds) + rng.random()) if others else 0
    each = list(places.values())
    if len(each) > 1:
        each = [each[k] for k in rng.permutation(len(each))]
    rounds = ((own, k // len(each)) for k, own in zip(range(count - first), itertools.cycle(each), strict=False))
    return [others[k % len(others)] for k in range(first)] + [own[turn % len(own)] for own, turn in rounds]


class FlowLoss:
    """Step number -> loss: half the squared error of the flows plus the cross entropy of the cell probability.

    The batch of the next step is drawn in the background while the network computes; it depends on its step number alone.

    Parameters
    ----------
    network : torch.nn.Module
    items : sequence of Prepared
    batch_size : int
        Crops of each step.
    crop_px, seed : int
    variation : Variation
    replay : sequence of Prepared
        Images of another kind, of which a share of each batch is cut.
    replay_share : float
        Of the crops: of 8 crops a share of 0.2 is two in three of five steps, else one.
    kinds : sequence of str
        Of each image; crops are dealt evenly over them, however many images each has. "" = of none; without it all are of one.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        items: Sequence[Prepared],
        batch_size: int,
        crop_px: int,
        seed: int,
        variation: Variation = Variation(),
        replay: Sequence[Prepared] = (),
        replay_share: float = 0.0,
        kinds: Sequence[str] = (),
    ):
        self.network, self.items, self.batch_size, self.crop_px, self.seed = network, items, batch_size, crop_px, seed
        self.variation, self.replay, self.replay_share = variation, replay, replay_share if len(replay) else 0.0
        self.kinds = list(kinds) if len({*kinds} - {""}) > 1 else [""] * len(items)
        self._drawing = ThreadPoolExecutor(1)
        self._next: dict[int, Future[Crop]] = {}

    @property
    def recipe(self) -> tuple:
        """What, beside the images, the batches depend on."""
        kinds = (self.kinds,) if any(self.kinds) else ()
        return self.batch_size, self.crop_px, self.seed, self.variation, self.replay_share, *kinds

    def choose(self, rng: np.random.Generator) -> Iterable[Prepared]:
        """Choose the images of a batch, one for each crop."""
        chosen = [self.items[i] for i in dealt(self.kinds, self.batch_size, rng)]
        if self.replay_share:
            others = int(self.replay_share * self.batch_size + rng.random())
            places = rng.integers(len(self.replay), size=others)
            chosen[self.batch_size - others :] = [self.replay[i] for i in places]
        return chosen

    def batch(self, step: int) -> Crop:
        """Draw the batch of a step: planes (B, C, s, s), targets (B, 3, s, s), and known (B, s, s) or None."""
        rng = np.random.default_rng([self.seed, step])
        crops = [crop(item, rng, self.crop_px, self.variation) for item in self.choose(rng)]
        known = None
        if any(one.known is not None for one in crops):
            everywhere = np.ones((self.crop_px, self.crop_px), bool)
            known = np.stack([everywhere if one.known is None else one.known for one in crops])
        return Crop(np.stack([one.planes for one in crops]), np.stack([one.target for one in crops]), known)

    def drawn(self, step: int) -> Crop:
        """Return the batch of a step, and begin to draw that of the next."""
        drawn = self._next.pop(step).result() if step in self._next else self.batch(step)
        self._next = {step + 1: self._drawing.submit(self.batch, step + 1)}
        return drawn

    def __call__(self, step: int) -> torch.Tensor:
        """Return the loss tensor of a step."""
        import torch

        arithmetic = self.network.arithmetic
        planes, target, known = (
            None if x is None else torch.from_numpy(x).to(arithmetic.device) for x in self.drawn(step)
        )
        with arithmetic.autocast():  # convolutions follow the order in memory of their weights
            maps = self.network(planes)
        return flow_loss(maps.float(), target, known)
