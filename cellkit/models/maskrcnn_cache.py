"""What a frozen encoder makes of training images, computed once and cut into many crops.

A view is a window of a training image, turned, flipped, scaled and varied in its intensities. It is shown to the encoder once;
crops of its features train the heads, and cost no convolution of the encoder. After a while other views take its place.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cellkit.log import LOG
from cellkit.machine import GB, memory
from cellkit.models.shared.inputs import nearest, resized, vary
from cellkit.models.shared.processes import place

ZOOMS = (0.8, 1.0, 1.25)
TURNS = 8  # quarter turns, and each of them flipped
USES = 8  # crops of a view, about, before another takes its place
AT_ONCE = 2  # views of an image that crops are drawn from
MOST_VIEWS = 64  # that crops are drawn from; of the usual U-Net and crop they take 1.9 GB
VARIED = 0.5  # share of the views whose intensities are varied
LARGEST_HALF = 60_000.0  # beyond, numbers of 16 bits are infinite
SHARE_OF_MEMORY = 0.25  # of what is free


@dataclass(frozen=True)
class View:
    """A window of a training image, and its features.

    Attributes
    ----------
    planes : (3, h, w) float32
    labels : (h, w) int32
        0 = background, -1 = not annotated.
    features : tuple of (1, C, h / stride, w / stride) tensors
        On the CPU.
    """

    planes: np.ndarray
    labels: np.ndarray
    features: tuple[torch.Tensor, ...]

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        features = sum(x.numel() * x.element_size() for x in self.features)
        return self.planes.nbytes + self.labels.nbytes + features


def turned(array: np.ndarray, turn: int) -> np.ndarray:
    """Return an array (..., H, W) turned by `turn` quarters, and flipped left to right where `turn` is 4 or more.

    Examples
    --------
    >>> turned(np.array([[1, 2], [3, 4]]), 1).tolist(), turned(np.array([[1, 2], [3, 4]]), 4).tolist()
    ([[2, 4], [1, 3]], [[2, 1], [4, 3]])
    """
    array = np.rot90(array, turn % 4, axes=(-2, -1))
    return array[..., ::-1] if turn >= 4 else array


class EncodedViews:
    """(image, step) -> a crop of one of the views that the image has at that step, with its features.

    Which views there are follows from the seed and the step alone, and what a view holds from its name: a training that was
    killed and goes on computes again what it needs, to the same numbers. So it is where the memory does not hold all views.
    A large view that is gone when it is wanted again costs more than the crops that it serves. So of more than `MOST_VIEWS`
    images a view is no larger than a crop, and serves one.

    Parameters
    ----------
    encode : callable
        (1, 3, H, W) float32 -> features, tensors (1, C, H / stride, W / stride), strides up to 8.
    items : sequence of (planes, labels, class_of, ...)
        At network scale, as `shared.detector_batches.scaled` gives them.
    crop_px : int
        Height and width of a crop, a multiple of 8.
    batch : int
        Crops of a step.
    steps : int
        Of the training while the encoder is frozen.
    device : torch.device
        Where the encoder is.
    number_type : torch.dtype
        That features are kept in.
    most_bytes : int, optional
        Memory that views may take; None = a quarter of what is free when the first is made, of all processes of a training
        together.
    """

    def __init__(
        self,
        encode: Callable[[torch.Tensor], Sequence[torch.Tensor]],
        items: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
        crop_px: int,
        batch: int,
        steps: int,
        seed: int,
        device: torch.device,
        number_type: torch.dtype = torch.float16,
        most_bytes: int | None = None,
    ):
        self.encode, self.items, self.crop_px, self.seed = encode, items, crop_px, seed
        self.device, self.number_type, self.most_bytes = device, number_type, most_bytes
        draws = steps * batch / len(items)  # of each image
        self.at_once = min(max(int(draws / USES), 1), AT_ONCE, max(MOST_VIEWS // len(items), 1))
        self.uses = min(max(draws / self.at_once, 1.0), USES) if len(items) <= MOST_VIEWS else 1.0
        self.steps_each = max(round(self.uses * self.at_once * len(items) / batch), 1)
        self.kept: OrderedDict[tuple[int, int], View] = OrderedDict()
        self.bytes, self.encoded, self.said = 0, 0, False

    @property
    def side_px(self) -> int:
        """Largest height and width of a view: it has no more pixels than the crops that it serves."""
        return int(self.crop_px * min(self.uses**0.5, 2.0)) // 8 * 8

    def draw(
        self, index: int, step: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, list[torch.Tensor]]:
        """Return a crop of an image: planes (3, c, c) float32, labels (c, c) int32 and features, (C, c / stride, c / stride)."""
        view = self.view(index, step // self.steps_each * self.at_once + int(rng.integers(self.at_once)))
        size = self.crop_px
        top, left = near_a_cell(view.labels, rng, size, 8)
        features = []
        for level in view.features:
            stride = view.labels.shape[0] // level.shape[-2]
            y, x, n = top // stride, left // stride, size // stride
            features.append(level[0, :, y : y + n, x : x + n].to(self.device, torch.float32))
        window = (slice(top, top + size), slice(left, left + size))
        return view.planes[:, *window], view.labels[window], features

    def view(self, index: int, number: int) -> View:
        """Return a view of an image, from memory where it is there."""
        key = (index, number)
        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key]
        view = self._encoded(*self.window(index, number))
        if self.most_bytes is None:
            self.most_bytes = int(SHARE_OF_MEMORY * memory()["free_gb"] * GB / place()[1])
        self.kept[key] = view
        self.bytes += view.bytes
        while self.bytes > self.most_bytes and len(self.kept) > 1:
            (_, was), gone = self.kept.popitem(last=False)
            self.bytes -= gone.bytes
            if was // self.at_once == number // self.at_once:
                self._say_once()
        return view

    def window(self, index: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return what a view shows: planes (3, h, w) and labels (h, w), multiples of 8 px and no smaller than a crop."""
        planes, labels, *_ = self.items[index]
        turn = int(np.random.default_rng([self.seed, index]).permutation(TURNS)[number % TURNS])
        rng = np.random.default_rng([self.seed, index, number])
        zoom = ZOOMS[rng.integers(len(ZOOMS))]
        source = round(self.side_px / zoom)
        top, left = near_a_cell(labels, rng, source)
        part = (slice(top, top + source), slice(left, left + source))
        planes, labels = turned(planes[:, *part], turn), turned(labels[part], turn)
        shape = tuple(min(max(round(n * zoom), 1), self.side_px) for n in labels.shape)
        planes, labels = resized(planes, shape, zoom < 1), nearest(labels, shape)
        if rng.random() < VARIED:
            planes = vary(planes, rng)
        more = [(0, max(-(-n // 8) * 8, self.crop_px) - n) for n in shape]
        return np.pad(planes, [(0, 0), *more]), np.pad(labels, more)

    def _encoded(self, planes: np.ndarray, labels: np.ndarray) -> View:
        with torch.no_grad():
            found = self.encode(torch.from_numpy(planes[None]).to(self.device))
        self.encoded += 1
        return View(planes, labels, tuple(self._as_kept(level) for level in found))

    def _as_kept(self, level: torch.Tensor) -> torch.Tensor:
        """Return features on the CPU in the type that they are kept in, or in float32 where that cannot hold them."""
        level = level.float()
        fits = self.number_type != torch.float16 or bool(level.abs().max() < LARGEST_HALF)
        return level.to("cpu", self.number_type if fits else torch.float32).contiguous()

    def _say_once(self) -> None:
        if not self.said:
            self.said = True
            LOG.info(
                f"the features of {len(self.items)} training images take more than {self.most_bytes / 1e6:.0f} MB, "
                f"{SHARE_OF_MEMORY:.0%} of the free memory: those used longest ago are computed again when needed"
            )


def near_a_cell(labels: np.ndarray, rng: np.random.Generator, size_px: int, step_px: int = 1) -> tuple[int, int]:
    """Draw where a window begins, (top, left), within labels (H, W); seven in ten lie around a cell."""
    height, width = labels.shape
    inside = np.flatnonzero(labels > 0) if rng.random() < 0.7 else np.zeros(0, int)
    if inside.size:
        y, x = np.divmod(inside[rng.integers(inside.size)], width)
        y, x = (v + rng.uniform(-0.3, 0.3) * size_px for v in (y, x))
    else:
        y, x = rng.uniform(0, height), rng.uniform(0, width)
    starts = (np.clip(v - size_px / 2, 0, max(n - size_px, 0)) for v, n in ((y, height), (x, width)))
    top, left = (int(start) // step_px * step_px for start in starts)
    return top, left
