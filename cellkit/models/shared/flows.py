"""Cellpose's flows: labels to flows, and flows to masks.

Flows and the reconstruction of masks come from the cellpose package (4.2, dynamics.py). With the same weights, diameter and
thresholds our masks are not those of `CellposeModel.eval` (3.1.1.3, whose U-Net this is):

- the network sees whole images up to 1,120 px, larger ones in tiles of 1,024 px (`unet_maps`);
  Cellpose shows it tiles of 224 px, each with a style of its own; zeros are around the image in both, as in a training's crops;
- images are made smaller by area, so that nothing aliases; Cellpose takes the nearest pixels' bilinear mean;
- flows are followed at network scale, 200 steps and on while a far pixel moves; Cellpose enlarges the maps to the image's scale
  and takes 200 steps times diameter / 30. So a cell needs more than 10 meeting pixels of network scale, there of the image;
- which cell a pixel belongs to is resized here, and the outline follows the probability resized bilinearly; there masks are made
  at the image's scale, or, without `resample`, resized to the nearest pixel;
- a flow's error is measured at network scale here, at the image's scale there;
- a cell may fill the image; Cellpose drops one above 40 % of it.

Alike are the 1st and 99th percentile of each whole channel (Cellpose takes every k-th pixel of images above 11 million), the
batch norm's running means, holes that are filled, `min_size` in px of the image, after resizing; and cells at the border stay.
`benchmarks/bench_cellpose_masks.py` scores both.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.labels import relabel
from cellkit.cells.leftout import too_small
from cellkit.files import atomic_path
from cellkit.machine import one_thread
from cellkit.models.shared.heat import spread

LARGEST_SHARE = 1.0  # of the image that one cell may cover
KEPT_READINGS = 8  # thresholds whose masks are kept of an image
STEPS, FAR_PX, STILL_PX = 200, 60, 5  # along the flows: Cellpose's number; a pixel that came this far may need more


def masks_of(
    maps: np.ndarray,
    shape: tuple[int, int],
    flow_threshold: float,
    cellprob_threshold: float,
    min_area_px: int,
    left_out: Counter[str] | None = None,
    device: Any = "cpu",
) -> Instances:
    """Follow the flows to masks (cellpose.dynamics), at network scale; draw the outline at the image's own scale.

    The outline follows the cell probability resized bilinearly, so that an enlarged mask has no staircase; which cell a
    pixel belongs to is decided at network scale. A cell may fill the image (cellpose drops those above 40 % of it). The
    area that decides whether a mask is too small is that with its holes filled.

    Parameters
    ----------
    maps : (3, h, w) float32
        Flow y, flow x and cell probability (logit), at network scale.
    shape : (int, int)
        Height and width of the image.
    left_out : Counter, optional
        Takes the number of masks below `min_area_px`.
    device : torch.device or str
        Where flows are followed. A GPU rounds differently: it may move single pixels.
    """
    return FollowedMaps(maps, shape, device).cells(flow_threshold, cellprob_threshold, min_area_px, left_out)


class FollowedMaps:
    """The maps of one image, read with one threshold after another: what was followed and measured once is kept.

    Parameters
    ----------
    maps, shape, device
        As for `masks_of`.
    """

    def __init__(self, maps: np.ndarray, shape: tuple[int, int], device: Any = "cpu"):
        self.maps, self.shape, self.device = maps, tuple(shape), device
        self._labels: dict[float, np.ndarray] = {}  # threshold of the cell probability -> masks at network scale
        self._errors: dict[float, tuple[np.ndarray, np.ndarray]] = {}  # these masks, and how far their flows are off

    def cells(
        self,
        flow_threshold: float,
        cellprob_threshold: float,
        min_area_px: int,
        left_out: Counter[str] | None = None,
    ) -> Instances:
        """Return what `masks_of` finds."""
        followed = self._labels.get(cellprob_threshold)
        if followed is None:
            followed = follow(self.maps, cellprob_threshold, self.device)
            for old in list(self._labels)[: 1 - KEPT_READINGS]:
                self._labels.pop(old, None)
                self._errors.pop(old, None)
            self._labels[cellprob_threshold] = followed
        labels = self._good(followed, cellprob_threshold, flow_threshold)
        return _large(outline(labels, self.maps[2], self.shape, cellprob_threshold), min_area_px, left_out)

    def nearly(self, flow_threshold: float, cellprob_threshold: float, min_area_px: int) -> Instances | None:
        """Return cells that were followed at the nearest threshold, without the pixels below this one; None before the first.

        That takes a tenth of the time of following once more. A cell that this threshold would cut in two stays one here.
        """
        known = dict(self._labels)  # another thread may follow flows meanwhile
        if not known:
            return None
        nearest = min(known, key=lambda other: (abs(other - cellprob_threshold), other))
        good = self._good(known[nearest], nearest, flow_threshold)
        labels = np.where(self.maps[2] > cellprob_threshold, good, 0).astype(np.int32)
        return _large(outline(labels, self.maps[2], self.shape, cellprob_threshold), min_area_px, None)

    def has(self, cellprob_threshold: float) -> bool:
        """Tell whether flows were followed at this threshold, so that `cells` comes at once."""
        return cellprob_threshold in self._labels

    def _good(self, labels: np.ndarray, cellprob_threshold: float, flow_threshold: float) -> np.ndarray:
        """Return the masks of a threshold, without those whose flows are off."""
        if not flow_threshold:
            return labels
        of, errors = self._errors.get(cellprob_threshold, (None, None))
        if of is not labels:
            errors = flow_errors(labels, self.maps, self.device)
            self._errors[cellprob_threshold] = labels, errors
        return without(labels, errors > flow_threshold)


def _large(found: Instances, min_area_px: int, left_out: Counter[str] | None) -> Instances:
    """Return the cells that are large enough, and count the others."""
    large = found.areas_px >= min_area_px
    if left_out is not None and not large.all():
        left_out.update({too_small(min_area_px): int((~large).sum())})
    return found[large]


@dataclass(frozen=True)
class Place:
    """Where a window of maps lies in those of the whole image: the row and column it begins at, and their height and width."""

    corner: tuple[int, int]
    whole: tuple[int, int]


def follow(maps: np.ndarray, cellprob_threshold: float, device: Any = "cpu", place: Place | None = None) -> np.ndarray:
    """Return the label image (h, w) int32 of pixels that meet when they follow their flows; as cellpose's compute_masks.

    Cellpose takes 200 steps of at most a pixel; a cell whose edge is farther from its middle falls apart there. Here, pixels
    that have come far go on until they stand still.

    Parameters
    ----------
    maps : (3, h, w) float32
    place : Place, optional
        The maps are a window: pixels go where they go in the whole image.
    """
    import torch
    from cellpose import dynamics

    inside = maps[2] > cellprob_threshold
    if not inside.any():
        return np.zeros(inside.shape, np.int32)
    places, steps = np.nonzero(inside), maps[:2] * inside / 5
    device = torch.device(device)
    threads = one_thread() if device.type == "cpu" else nullcontext()
    with threads, torch.sparse.check_sparse_tensor_invariants(enable=False):  # said aloud, or torch warns
        ends = _moved(steps, places, device, place)
        _go_on(steps, np.stack(places), ends, device, place)
        found = dynamics.get_masks_torch(
            torch.from_numpy(ends).to(device).int(), places, inside.shape, max_size_fraction=LARGEST_SHARE
        )
    return found.astype(np.int32)


def flow_errors(labels: np.ndarray, maps: np.ndarray, device: Any = "cpu") -> np.ndarray:
    """Return how far the flows of each mask are from the flows that its shape would have, (N,) float64.

    The number is cellpose's flow_error (dynamics.py, 4.2): heat spreads within each mask from its middle, the flows of the
    shape point up the heat, and the error is the mean squared distance to the network's, in units of a flow's length.

    Parameters
    ----------
    labels : (h, w) int32
        Masks 1 ... N at network scale.
    maps : (3, h, w) float32
    """
    if not labels.any():
        return np.zeros(0)
    inside = labels > 0
    away = np.square(flows_of(labels, device)[:, inside] - maps[:2][:, inside] / 5).sum(axis=0)
    return np.bincount(labels[inside], away)[1:] / np.bincount(labels[inside])[1:]


def flows_of(labels: np.ndarray, device: Any = "cpu") -> np.ndarray:
    """Return the flows of each mask, unit vectors y and x, 0 outside: up the heat that spreads within it from its middle.

    As cellpose's masks_to_flows_gpu (dynamics.py, 4.2), with its steps done as `cellkit.models.shared.heat` says.

    Parameters
    ----------
    labels : (h, w) int32
        Masks 1 ... N.

    Returns
    -------
    (2, h, w) float64
    """
    flows = np.zeros((2, *labels.shape))
    if not labels.any():
        return flows
    padded = np.pad(labels, 1)
    places, warm = np.flatnonzero(padded), spread(padded, device).ravel()
    own = np.stack([warm[places + step] - warm[places - step] for step in (padded.shape[1], 1)])
    flows[:, labels > 0] = own / (1e-60 + np.hypot(*own))
    return flows


def without(labels: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """Return a label image (h, w) int32 without the masks of which `dropped`, (N,) bool, is true; the others keep their numbers.

    Examples
    --------
    >>> without(np.array([[1, 2, 0, 3]]), np.array([True, False, False]))
    array([[0, 2, 0, 3]])
    """
    kept = np.arange(len(dropped) + 1, dtype=labels.dtype)
    kept[1:][dropped] = 0
    return kept[labels]


def outline(labels: np.ndarray, logit: np.ndarray, shape: tuple[int, int], cellprob_threshold: float) -> Instances:
    """Return the masks of a label image at the image's own scale, their holes filled; score = mean cell probability.

    Parameters
    ----------
    labels : (h, w) int32
        At network scale, as is `logit`, (h, w) float32.
    shape : (int, int)
        Height and width of the image.
    """
    import cv2
    from cellpose import utils
    from skimage.segmentation import expand_labels

    if labels.shape != tuple(shape):
        size = (shape[1], shape[0])
        grown = expand_labels(labels, distance=2)
        labels = cv2.resize(grown.astype(np.float64), size, interpolation=cv2.INTER_NEAREST_EXACT).astype(np.int32)
        logit = cv2.resize(logit, size, interpolation=cv2.INTER_LINEAR)
        labels[logit <= cellprob_threshold] = 0
    labels = utils.fill_holes_and_remove_small_masks(labels.copy(), min_size=0).astype(np.int32)
    found = Instances.from_labels(labels)
    if not len(found):
        return found
    probability = 1 / (1 + np.exp(-np.clip(logit, -30, 30)))
    total = np.bincount(labels.ravel(), probability.ravel())[np.unique(labels[labels > 0])]
    return found.with_scores(np.clip(total / np.maximum(found.areas_px, 1), 0, 1))


def _moved(steps: np.ndarray, places: Sequence[np.ndarray], device: Any, place: Place | None) -> np.ndarray:
    """Return where points (y, x) are after `STEPS` steps, (2, n) float32.

    cellpose (dynamics.steps_interp, 4.2) reads the flow of a point p of a side of L px at p L / (L - 1) - 1/2, so up to half a
    pixel beside it, by its place in the image. In a window it is read where the whole image has it.
    """
    import torch
    from cellpose import dynamics

    if place is None:
        return dynamics.follow_flows(steps, tuple(places), niter=STEPS, device=device).cpu().numpy()
    tensor = lambda values: torch.as_tensor(np.asarray(values, np.float32), device=device)  # noqa: E731
    corner, whole, size = (tensor(pair)[:, None] for pair in (place.corner, place.whole, steps.shape[1:]))
    field, at = tensor(steps)[None], tensor(np.stack(places))
    for _ in range(STEPS):
        read = at * whole / (whole - 1) + corner / (whole - 1) - 0.5
        grid = ((2 * read + 1) / size - 1).flip(0).T[None, None]
        at = at + torch.nn.functional.grid_sample(field, grid, align_corners=False)[0, :, 0]
        at = torch.minimum(torch.maximum(at, -corner), whole - 1 - corner)
    return at.cpu().numpy()


def _go_on(steps: np.ndarray, places: np.ndarray, ends: np.ndarray, device: Any, place: Place | None = None) -> None:
    """Move the ends (2, n) of ways that began at `places` on, where they have come far and still move; in place."""
    far = np.flatnonzero(np.hypot(*(ends - places)) > FAR_PX)
    for _ in range(sum(steps.shape[1:]) // STEPS):
        if not far.size:
            return
        before = ends[:, far]
        ends[:, far] = _moved(steps, before, device, place)
        far = far[np.hypot(*(ends[:, far] - before)) > STILL_PX]


def target_of(labels: np.ndarray, cache: Path | None = None) -> np.ndarray:
    """Return the training target of a label image: flow y, flow x (unit vectors times 5) and 1 inside cells.

    Parameters
    ----------
    labels : (H, W) int32
    cache : Path, optional
        Folder where targets are kept by the sha256 of their labels.

    Returns
    -------
    (3, H, W) float32
    """
    labels = relabel(labels)[0]
    name = hashlib.sha256(np.ascontiguousarray(labels).tobytes() + str(labels.shape).encode()).hexdigest()[:24] + ".npy"
    if cache is not None and (cache / name).is_file():
        flows = np.load(cache / name, allow_pickle=False).astype(np.float32)
    else:
        flows = flows_of(labels).astype(np.float32)
        if cache is not None:
            with atomic_path(cache / name) as temporary:
                np.save(temporary, flows.astype(np.float16))
    return np.concatenate([5 * flows.astype(np.float16).astype(np.float32), (labels > 0)[None]]).astype(np.float32)
