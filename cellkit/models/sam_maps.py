"""Cellpose-SAM applied to images: squares of many images go through the network together, and are put together to maps again.

Squares, zeros around an image, how overlapping squares are weighed, scaling and percentiles are those of `CellposeModel.eval`
(cellpose 4.2.1.1, core.run_net), so with the same weights the maps are its maps. Not the same:

- percentiles are of the whole channel; Cellpose takes every k-th pixel of images above 11 million;
- a channel with a few bright pixels on nothing is shown from its darkest to its brightest pixel; Cellpose shows nothing of it.

The masks are those of `cellkit.models.shared.flows`, which says how they differ. With images taken as they are, they are
Cellpose's, but for a cell above 40 % of its image, which is kept, and one whose edge is more than 60 px from its middle, which
does not fall apart. With a diameter, flows are followed at network scale, and not at the image's.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.log import LOG
from cellkit.models.shared.flows import masks_of
from cellkit.models.shared.inputs import CELL_PX, NORMALISE, resized, three_channels
from cellkit.models.shared.thresholds import AS_CELLPOSE

if TYPE_CHECKING:
    import torch

    from cellkit.models.map_cache import MapCache

OVERLAP = 0.1  # of a square, on each side
AT_ONCE = {"cpu": 1, "cuda": 32, "mps": 8}  # squares; a processor gains nothing from more
TILE_PX = 256  # of Cellpose-SAM; other networks say their own
KEPT_AS = "float32"  # maps in a cache
DEFAULTS: dict[str, Any] = {"diameter_px": None, "channels": "all", "normalise": NORMALISE, **AS_CELLPOSE}
WORKERS = 4  # threads that follow flows while the network sees the next images, on a GPU
SOFT_PX, EDGE_PX = 7.5, 20  # where the weight of a square's pixels falls from 1 to 0, and how far from its edge


@dataclass(frozen=True)
class Squares:
    """How an image at network scale, of `shape`, is cut into squares, with zeros around it."""

    shape: tuple[int, int]
    tile_px: int

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """Return rows above and below, columns left and right, that are added."""
        (above, below), (left, right) = (self._added(side) for side in self.shape)
        return above, below, left, right

    def _added(self, side: int) -> tuple[int, int]:
        """Return what is added before and after: 8 px, and up to a multiple of 16, or to a square where the image is smaller."""
        more = -side % 16 if side >= self.tile_px else max(0, self.tile_px - side - 16)
        return 8 + more // 2, 8 + more - more // 2

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Return the row and the column at which each square begins, in the padded image."""
        above, below, left, right = self.pads
        sides = self.shape[0] + above + below, self.shape[1] + left + right
        rows, columns = (self._starts(side) for side in sides)
        return [(row, column) for row in rows for column in columns]

    def _starts(self, side: int) -> list[int]:
        count = 1 if side <= self.tile_px else int(np.ceil((1 + 2 * OVERLAP) * side / self.tile_px))
        return np.linspace(0, side - self.tile_px, count).astype(int).tolist()

    def cut(self, planes: torch.Tensor) -> list[torch.Tensor]:
        """Return the squares of planes (3, h, w)."""
        from torch.nn.functional import pad

        above, below, left, right = self.pads
        padded = pad(planes, (left, right, above, below))
        return [padded[:, y : y + self.tile_px, x : x + self.tile_px] for y, x in self.corners]

    def joined(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Return maps (3, h, w) of the image from those of its squares, each of (3, tile_px, tile_px)."""
        import torch

        above, below, left, right = self.pads
        weight = torch.from_numpy(taper(self.tile_px)).to(maps[0].device)
        height, width = self.shape[0] + above + below, self.shape[1] + left + right
        out, total = maps[0].new_zeros((len(maps[0]), height, width)), weight.new_zeros((height, width))
        for (y, x), one in zip(self.corners, maps, strict=True):
            window = (slice(y, y + self.tile_px), slice(x, x + self.tile_px))
            out[:, *window] += one * weight
            total[window] += weight
        return (out / total)[:, above : height - below, left : width - right]


def taper(tile_px: int) -> np.ndarray:
    """Return how much each pixel of a square counts, (tile_px, tile_px) float32: 1 in the middle, less near the edge.

    Source: cellpose 4.2.1.1, transforms._taper_mask.

    Examples
    --------
    >>> taper(256)[[128, 128, 0], [128, 4, 0]].round(2)
    array([1.  , 0.11, 0.  ], dtype=float32)
    """
    side = max(224, tile_px)
    away = np.abs(np.arange(side) - (side - 1) / 2)
    line = (1 / (1 + np.exp((away - (side / 2 - EDGE_PX)) / SOFT_PX)))[side // 2 - tile_px // 2 :][:tile_px]
    return np.outer(line, line).astype(np.float32)


@dataclass
class _Image:
    """An image on its way: the squares the network has not seen, and the maps of those it has; or maps kept from before."""

    place: Any = None
    squares: Squares | None = None
    found: list = field(default_factory=list)
    maps: np.ndarray | None = None

    @property
    def done(self) -> bool:
        return self.maps is not None or len(self.found) == len(self.squares.corners)


def segment_images(
    network: Any,
    images: Iterable[np.ndarray],
    diameter_px: float | None,
    flow_threshold: float,
    cellprob_threshold: float,
    min_area_px: int,
    channels: str = "all",
    normalise: tuple[float, float] = NORMALISE,
    cache: MapCache | None = None,
    at_once: int | None = None,
) -> Iterator[tuple[np.ndarray, Instances, Counter[str]]]:
    """Yield each image, the cells found in it, and how many masks below `min_area_px` were left out; in order.

    On a GPU, flows are followed by a few threads while the network sees the next images.

    Parameters
    ----------
    images, diameter_px, channels, normalise, cache, at_once
        As for `predict_maps`.

    Yields
    ------
    image : (H, W, 3) uint8
    found : Instances
        Score = mean cell probability inside the mask; class unknown.
    left_out : Counter
    """
    device = followed_on(network)

    def read(image: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, Instances, Counter[str]]:
        left_out: Counter[str] = Counter()
        thresholds = flow_threshold, cellprob_threshold, min_area_px
        return image, masks_of(maps, image.shape[:2], *thresholds, left_out, device), left_out

    seen: deque[np.ndarray] = deque()
    stream = predict_maps(network, _noted(images, seen), diameter_px, channels, normalise, cache, at_once)
    if device.type != "cuda":
        yield from (read(seen.popleft(), maps) for maps in stream)
        return
    with ThreadPoolExecutor(WORKERS) as pool:
        under_way: deque[Future] = deque()
        for maps in stream:
            under_way.append(pool.submit(read, seen.popleft(), maps))
            while under_way and (under_way[0].done() or len(under_way) > 2 * WORKERS):
                yield under_way.popleft().result()
        for one in under_way:
            yield one.result()


def followed_on(network: Any) -> torch.device:
    """Return where the flows of a network's maps are followed: where it is computed, if that is CUDA."""
    import torch

    device = network.arithmetic.device
    return device if device.type == "cuda" else torch.device("cpu")


def _noted(images: Iterable[np.ndarray], seen: deque[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield images, and note each."""
    for image in images:
        seen.append(image)
        yield image


def predict_maps(
    network: Any,
    images: Iterable[np.ndarray],
    diameter_px: float | None = None,
    channels: str = "all",
    normalise: tuple[float, float] = NORMALISE,
    cache: MapCache | None = None,
    at_once: int | None = None,
) -> Iterator[np.ndarray]:
    """Yield flow y, flow x and cell probability (logit) of each image at network scale, (3, h, w) float32, in order.

    Images are taken until there are squares enough for the network; on a processor those of one image are.

    Parameters
    ----------
    images : iterable of (H, W, 3) uint8
    diameter_px : float, optional
        Of the cells; the image is scaled so that it becomes 30 px. None = the image is taken as it is.
    at_once : int, optional
        Squares that the network is shown together; None = 1 on a processor, 32 on a GPU.
    """
    at_once = at_once or AT_ONCE.get(network.arithmetic.device.type, 1)
    under_way: deque[_Image] = deque()
    waiting: deque[tuple[_Image, torch.Tensor]] = deque()
    for image in images:
        under_way.append(_begun(network, image, (diameter_px, channels, tuple(normalise)), cache, waiting))
        while len(waiting) >= at_once:
            _run(network, [waiting.popleft() for _ in range(at_once)])
        while under_way and under_way[0].done:
            yield _finished(under_way.popleft(), cache)
    while waiting:
        _run(network, [waiting.popleft() for _ in range(min(at_once, len(waiting)))])
    for one in under_way:
        yield _finished(one, cache)


def at_network_scale(
    image: np.ndarray, diameter_px: float | None, channels: str, normalise: tuple[float, float]
) -> np.ndarray:
    """Return what the network is shown of an image, (3, h, w) float32: scaled as Cellpose 4 does, bilinearly."""
    planes = three_channels(image, channels, normalise)
    return resized(planes, network_size(image.shape[:2], diameter_px), smaller=False)


def network_size(shape: tuple[int, int], diameter_px: float | None) -> tuple[int, int]:
    """Return height and width at network scale of an image with cells of that diameter.

    Examples
    --------
    >>> network_size((101, 200), 60.0), network_size((101, 200), None)
    ((50, 100), (101, 200))
    """
    if diameter_px is None:
        return tuple(shape)
    height, width = (max(1, int(side * CELL_PX / diameter_px)) for side in shape)
    return height, width


def _begun(network: Any, image: np.ndarray, settings: tuple, cache: MapCache | None, waiting: deque) -> _Image:
    """Return an image whose squares wait now, or whose maps are kept."""
    import torch

    place = cache.place(image, *settings, network.shape.tile_px, OVERLAP) if cache else None
    if cache and (kept := cache.read(place)) is not None:
        return _Image(maps=kept)
    planes = at_network_scale(image, *settings)
    one = _Image(place, Squares(planes.shape[1:], network.shape.tile_px))
    squares = one.squares.cut(torch.from_numpy(planes).to(network.arithmetic.device))
    waiting.extend((one, square) for square in squares)
    return one


def _run(network: Any, squares: list[tuple[_Image, torch.Tensor]]) -> None:
    """Let the network see squares, and add their maps to their images."""
    for (image, _), one in zip(squares, squares_seen(network, [square for _, square in squares]), strict=True):
        image.found.append(one)


def squares_seen(network: Any, squares: Sequence[Any]) -> list[torch.Tensor]:
    """Return the maps of squares (3, t, t), float32 arrays or tensors; half as many at a time where the memory is too small.

    Raises
    ------
    torch.OutOfMemoryError
        It does not hold a single one.
    """
    import torch

    maps = None
    try:
        with torch.no_grad(), network.arithmetic.autocast():
            maps = network(network.arithmetic.placed(torch.stack(list(map(torch.as_tensor, squares))))).float()
    except torch.OutOfMemoryError:
        if len(squares) == 1:
            raise
    if maps is None:  # here what the failed step held is gone
        torch.cuda.empty_cache()
        half = (len(squares) + 1) // 2
        LOG.warning(f"out of memory: {half} squares are looked at together, not {len(squares)}")
        return squares_seen(network, squares[:half]) + squares_seen(network, squares[half:])
    return list(maps)


def _finished(image: _Image, cache: MapCache | None) -> np.ndarray:
    """Return the maps of an image whose squares the network has seen, and keep them."""
    if image.maps is not None:
        return image.maps
    maps = image.squares.joined(image.found).cpu().numpy()
    if cache:
        cache.write(image.place, maps)
    return maps
