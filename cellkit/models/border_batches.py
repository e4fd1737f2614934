"""What the U-Net with touching border learns from, step by step; and its loss, which a rare class must not get lost in."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.models.border_target import NOT_KNOWN, SOME_CLASS, encode, weights_by_distance
from cellkit.models.shared.inputs import (
    CELL_PX,
    CHANNELS,
    labels_at,
    network_shape,
    random_warp,
    resized,
    three_channels,
    vary,
    vary_strongly,
)
from cellkit.models.shared.shares import own_rows

if TYPE_CHECKING:
    import torch

Balance = Literal["none", "frequency", "distance", "focal", "dice", "frequency_and_dice"]
BY_CLASS, WITH_DICE = ("frequency", "frequency_and_dice"), ("dice", "frequency_and_dice")
HEIGHT, SIGMA = 10.0, 1 / 6  # of Ronneberger's weights: 10, and a sixth of the diameter, which is 5 px at network scale
FOCUS = 2.0  # the exponent of the focal loss, Lin et al., ICCV 2017
LEAST_PX = 32


@dataclass(frozen=True, eq=False)
class Prepared:
    """One training image at network scale.

    Parameters
    ----------
    planes : (C, h, w) float32
    target : (h, w) uint8
        As `encode` returns it.
    weight : (h, w) float32, optional
        What each pixel counts; None = all alike.
    """

    planes: np.ndarray
    target: np.ndarray
    weight: np.ndarray | None = None

    @property
    def arrays(self) -> list[np.ndarray]:
        """What a training depends on."""
        return [self.planes, self.target] + ([] if self.weight is None else [self.weight])


class Crops(NamedTuple):
    """Planes (B, C, s, s) float32, targets (B, s, s) uint8, and weights (B, s, s) float32 or None."""

    planes: np.ndarray
    target: np.ndarray
    weight: np.ndarray | None


def planes_at(image: np.ndarray, diameter_px: float, channels: str, normalise: tuple[float, float]) -> np.ndarray:
    """Return what the network is shown of an image (H, W, 3) uint8, so large that its cells are 30 px wide: (C, h, w) float32."""
    shown = three_channels(image, channels, normalise)[list(CHANNELS[channels])]
    return resized(shown, network_shape(image.shape[:2], diameter_px, LEAST_PX), diameter_px > CELL_PX)


def prepare(
    image: np.ndarray,
    truth: Instances,
    diameter_px: float,
    border_share: float,
    classes: int,
    channels: str,
    normalise: tuple[float, float],
    balance: Balance = "none",
) -> Prepared:
    """Bring one labelled image to network scale and make its target, and its weights where the distance balances."""
    planes = planes_at(image, diameter_px, channels, normalise)
    labels = labels_at(truth, planes.shape[1:])
    weight = weights_by_distance(labels, HEIGHT, SIGMA * CELL_PX) if balance == "distance" else None
    return Prepared(planes, encode(labels, border_share * CELL_PX, truth.class_ids, classes), weight)


def crop(item: Prepared, rng: np.random.Generator, size_px: int, rotate: bool, strong: bool) -> Crops:
    """Draw a turned, flipped, scaled crop of an image and its target; what lies beyond the image is not known."""
    import cv2

    warp, _ = random_warp((item.target > 0) & (item.target != NOT_KNOWN), rng, size_px, rotate)
    size = (size_px, size_px)
    planes = np.stack([cv2.warpAffine(plane, warp, size, flags=cv2.INTER_LINEAR) for plane in item.planes])
    nearest = {"flags": cv2.INTER_NEAREST, "borderMode": cv2.BORDER_CONSTANT}
    target = cv2.warpAffine(item.target, warp, size, **nearest, borderValue=NOT_KNOWN)
    weight = None if item.weight is None else cv2.warpAffine(item.weight, warp, size, flags=cv2.INTER_LINEAR)
    return Crops((vary_strongly if strong else vary)(planes, rng), target, weight)


def frequencies(items: Sequence[Prepared], kinds: int) -> np.ndarray:
    """Return which share of the known pixels each class of pixels has, (kinds,) float64; a cell of no class is of all alike."""
    counts = sum(np.bincount(item.target.ravel(), minlength=256) for item in items)
    shares = counts[:kinds].astype(float)
    shares[1:-1] += counts[SOME_CLASS] / max(kinds - 2, 1)
    return shares / max(shares.sum(), 1)


def class_weights(shares: np.ndarray) -> np.ndarray:
    """Return a weight for each class of pixels, one over the root of its share; a pixel weighs 1 on average, 0 of no class.

    One over the share itself would let a class of 0.4 % outweigh so much that it is found where it is not.

    Examples
    --------
    >>> class_weights(np.array([0.64, 0.32, 0.04])).round(2)
    array([0.8 , 1.13, 3.19])
    """
    root = np.sqrt(shares)
    return np.divide(1, root * root.sum(), out=np.zeros(len(root)), where=root > 0)


def allowed(target: torch.Tensor, kinds: int) -> torch.Tensor:
    """Return which classes each pixel may have, (B, kinds, s, s) bool: a cell of no class any interior, what is not known any."""
    import torch

    every = torch.arange(kinds, device=target.device).view(1, -1, 1, 1)
    target = target[:, None]
    interior = (every > 0) & (every < kinds - 1)
    return (target == every) | ((target == SOME_CLASS) & interior) | (target == NOT_KNOWN)


def border_loss(
    logits: torch.Tensor, target: torch.Tensor, balance: Balance, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the cross entropy of the classes of pixels, balanced.

    - none: all pixels count alike;
    - frequency: a pixel counts the more the rarer its class is, `weight` is that of each class, (kinds,);
    - distance: a pixel counts the more the nearer it is to two cells, `weight` is that of each pixel, (B, s, s);
    - focal: a pixel counts the less the surer the network is of it (Lin et al., ICCV 2017);
    - dice: one minus the Dice overlap of each class that is there is added, mean over classes (Milletari et al., 3DV 2016). Alone
      it does not begin: where a class has next to no probability, its gradient has next to none too;
    - frequency_and_dice: both.

    Parameters
    ----------
    logits : (B, kinds, s, s) float32
    target : (B, s, s) uint8
        As `encode` returns it; where nothing is known, nothing counts.
    """
    import torch

    kinds = logits.shape[1]
    may, known = allowed(target, kinds), target != NOT_KNOWN
    log_p = torch.log_softmax(logits, dim=1)
    log_right = torch.logsumexp(log_p.masked_fill(~may, -torch.inf), dim=1)
    counts = known.float()
    if balance in BY_CLASS:
        right = (may * weight.view(1, -1, 1, 1)).sum(dim=1) / may.sum(dim=1)
        counts = counts * right
    elif balance == "distance":
        counts = counts * weight
    elif balance == "focal":
        counts = counts * (1 - log_right.exp()).clamp(0, 1) ** FOCUS
    loss = -(log_right * counts).sum() / known.sum().clamp_min(1)
    if balance not in WITH_DICE:
        return loss
    p, exact = log_p.exp() * known[:, None], (may & known[:, None]).float()
    exact = exact * (may.sum(dim=1, keepdim=True) == 1)
    p = p * (target != SOME_CLASS)[:, None]
    shared, both = (p * exact).sum(dim=(0, 2, 3)), (p + exact).sum(dim=(0, 2, 3))
    there = exact.sum(dim=(0, 2, 3)) > 0
    dice = 1 - (2 * shared + 1) / (both + 1)
    return loss + (dice * there).sum() / there.sum().clamp_min(1)


class BorderLoss:
    """Step number -> loss. The batch of the next step is drawn in the background; it depends on its step number alone.

    Of several processes each looks at its share of the crops, and returns its share of the loss.

    Parameters
    ----------
    network : BorderUNet
    items : sequence of Prepared
    kinds : int
        Classes of pixels.
    batch_size, crop_px, seed : int
    balance : str
        See `border_loss`.
    rotate, strong : bool
        How crops differ from their image.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        items: Sequence[Prepared],
        kinds: int,
        batch_size: int,
        crop_px: int,
        seed: int,
        balance: Balance = "none",
        rotate: bool = True,
        strong: bool = False,
    ):
        self.network, self.items, self.batch_size, self.crop_px, self.seed = network, items, batch_size, crop_px, seed
        self.balance, self.rotate, self.strong = balance, rotate, strong
        self.shares = frequencies(items, kinds)
        self._drawing = ThreadPoolExecutor(1)
        self._next: dict[int, Future[Crops]] = {}

    @property
    def recipe(self) -> tuple:
        """What, beside the images, the batches and the loss depend on."""
        return self.batch_size, self.crop_px, self.seed, self.balance, self.rotate, self.strong

    def batch(self, step: int) -> Crops:
        """Draw the batch of a step: crops of images, each image once before any comes again."""
        rng = np.random.default_rng([self.seed, step])
        places = rng.permutation(len(self.items))[: self.batch_size]
        items = [self.items[places[k % len(places)]] for k in range(self.batch_size)]
        crops = [crop(item, rng, self.crop_px, self.rotate, self.strong) for item in items]
        weight = np.stack([one.weight for one in crops]) if self.balance == "distance" else None
        return Crops(np.stack([one.planes for one in crops]), np.stack([one.target for one in crops]), weight)

    def drawn(self, step: int) -> Crops:
        """Return the batch of a step, and begin to draw that of the next."""
        drawn = self._next.pop(step).result() if step in self._next else self.batch(step)
        self._next = {step + 1: self._drawing.submit(self.batch, step + 1)}
        return drawn

    def __call__(self, step: int) -> torch.Tensor:
        """Return the loss tensor of a step."""
        import torch

        drawn, on = self.drawn(step), self.network.arithmetic
        whole = len(drawn.planes)
        drawn = Crops(*(None if one is None else own_rows(one) for one in drawn))
        weight = class_weights(self.shares).astype(np.float32) if self.balance in BY_CLASS else drawn.weight
        weight = None if weight is None else torch.from_numpy(weight).to(on.device)
        with on.autocast():
            logits = self.network(torch.from_numpy(drawn.planes).to(on.device))
        loss = border_loss(logits.float(), torch.from_numpy(drawn.target).to(on.device), self.balance, weight)
        return loss * (len(drawn.planes) / whole)
