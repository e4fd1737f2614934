"""Cellpose's flows: labels to flows, and flows to masks.

Flows and the reconstruction of masks come from the cellpose package (4.2, dynamics.py).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.labels import relabel
from cellkit.cells.leftout import too_small
from cellkit.files import atomic_path
from cellkit.machine import one_thread

LARGEST_SHARE = 1.0  # of the image that one cell may cover
STEPS, FAR_PX, STILL_PX = 200, 60, 5  # along the flows: Cellpose's number; a pixel that came this far may need more


def masks_of(
    maps: np.ndarray,
    shape: tuple[int, int],
    flow_threshold: float,
    cellprob_threshold: float,
    min_area_px: int,
    left_out: Counter[str] | None = None,
) -> Instances:
    """Follow the flows to masks (cellpose.dynamics), at network scale; draw the outline at the image's own scale.

    The outline follows the cell probability resized bilinearly, so that an enlarged mask has no staircase; which cell a
    pixel belongs to is decided at network scale. A cell may fill the image (cellpose drops those above 40 % of it).
    """
    import cv2
    from cellpose import utils
    from skimage.segmentation import expand_labels

    logit = maps[2]
    labels = _along_flows(maps[:2], logit > cellprob_threshold, flow_threshold)
    if labels.shape != tuple(shape):
        size = (shape[1], shape[0])
        grown = expand_labels(labels, distance=2)
        labels = cv2.resize(grown.astype(np.float64), size, interpolation=cv2.INTER_NEAREST_EXACT).astype(np.int32)
        logit = cv2.resize(logit, size, interpolation=cv2.INTER_LINEAR)
        labels[logit <= cellprob_threshold] = 0
    if left_out is not None and min_area_px > 0 and labels.any():
        small = int((np.unique(labels[labels > 0], return_counts=True)[1] < min_area_px).sum())
        left_out.update({too_small(min_area_px): small} if small else {})
    labels = utils.fill_holes_and_remove_small_masks(labels, min_size=min_area_px).astype(np.int32)
    found = Instances.from_labels(labels)
    probability = 1 / (1 + np.exp(-np.clip(logit, -30, 30)))
    total = (
        np.bincount(labels.ravel(), probability.ravel())[np.unique(labels[labels > 0])] if len(found) else np.zeros(0)
    )
    return found.with_scores(np.clip(total / np.maximum(found.areas_px, 1), 0, 1)) if len(found) else found


def _along_flows(flows: np.ndarray, inside: np.ndarray, flow_threshold: float) -> np.ndarray:
    """Return the label image (h, w) int32 of pixels that meet when they follow their flows: cellpose's compute_masks.

    Cellpose takes 200 steps of at most a pixel; a cell whose edge is farther from its middle falls apart there. Here, pixels
    that have come far go on until they stand still.
    """
    import torch
    from cellpose import dynamics

    if not inside.any():
        return np.zeros(inside.shape, np.int32)
    device, places, steps = torch.device("cpu"), np.nonzero(inside), flows * inside / 5
    with one_thread(), torch.sparse.check_sparse_tensor_invariants(enable=False):  # said aloud, or torch warns
        ends = dynamics.follow_flows(steps, places, niter=STEPS, device=device).numpy()
        _go_on(steps, np.stack(places), ends)
        found = dynamics.get_masks_torch(
            torch.from_numpy(ends).int(), places, inside.shape, max_size_fraction=LARGEST_SHARE
        )
        if flow_threshold and found.any():
            found = dynamics.remove_bad_flow_masks(found, flows, threshold=flow_threshold, device=device)
    return found.astype(np.int32)


def _go_on(steps: np.ndarray, places: np.ndarray, ends: np.ndarray) -> None:
    """Move the ends (2, n) of ways that began at `places` on, where they have come far and still move; in place."""
    import torch
    from cellpose import dynamics

    far = np.flatnonzero(np.hypot(*(ends - places)) > FAR_PX)
    for _ in range(sum(steps.shape[1:]) // STEPS):
        if not far.size:
            return
        before = ends[:, far]
        ends[:, far] = dynamics.follow_flows(steps, tuple(before), niter=STEPS, device=torch.device("cpu")).numpy()
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
    import torch
    from cellpose import dynamics

    labels = relabel(labels)[0]
    name = hashlib.sha256(np.ascontiguousarray(labels).tobytes() + str(labels.shape).encode()).hexdigest()[:24] + ".npy"
    if cache is not None and (cache / name).is_file():
        flows = np.load(cache / name, allow_pickle=False).astype(np.float32)
    else:
        with one_thread():
            flows = dynamics.masks_to_flows_gpu(labels, device=torch.device("cpu"))[0].astype(np.float32)
        if cache is not None:
            with atomic_path(cache / name) as temporary:
                np.save(temporary, flows.astype(np.float16))
    return np.concatenate([5 * flows.astype(np.float16).astype(np.float32), (labels > 0)[None]]).astype(np.float32)
