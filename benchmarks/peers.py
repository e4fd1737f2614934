"""The published evaluators, each through its real package, and the label images they are compared on.

The benchmarks time them, `tests/test_parity.py` compares their numbers with ours.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from cellkit.cells.instances import Instances

COCO_PACKAGES = ("pycocotools", "faster_coco_eval")


# ---- label images --------------------------------------------------------------------------------------------------
def draw(shape: tuple[int, int], cells: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw touching discs, and a prediction of them: shifted by a pixel, a tenth missing, some merged; (H, W) int32 each."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(shape, np.int32)
    step = np.sqrt(shape[0] * shape[1] / cells)
    columns = max(1, round(shape[1] / step))
    for k in range(cells):
        y, x = (k // columns + 0.5) * step + rng.normal(), (k % columns + 0.5) * shape[1] / columns + rng.normal()
        radius = step * rng.uniform(0.35, 0.55)
        top, left = (max(0, int(v - radius - 1)) for v in (y, x))
        window = truth[top : int(y + radius + 2), left : int(x + radius + 2)]
        rows, cols = np.ogrid[top : top + window.shape[0], left : left + window.shape[1]]
        window[(rows - y) ** 2 + (cols - x) ** 2 < radius**2] = k + 1
    change = np.arange(cells + 1)
    change[rng.random(cells + 1) < 0.1] = 0
    merged = rng.random(cells) < 0.03
    change[1:][merged] = change[:-1][merged]
    return sequential(truth), sequential(change[np.roll(truth, (1, 1), (0, 1))])


def sequential(labels: np.ndarray) -> np.ndarray:
    """Renumber 1..n, as cellpose and the Kaggle kernels need it; background stays 0."""
    ids, inverse = np.unique(labels, return_inverse=True)
    return (inverse.reshape(labels.shape) + (0 if ids[0] == 0 else 1)).astype(np.int32)


# ---- evaluators of label images ------------------------------------------------------------------------------------
def cellpose_counts(truth: np.ndarray, found: np.ndarray, thresholds: Sequence[float]) -> tuple[np.ndarray, ...]:
    """Return `cellpose.metrics.average_precision`: AP, hits, inventions, misses, each (T,)."""
    from cellpose.metrics import average_precision

    with np.errstate(invalid="ignore", divide="ignore"):
        return average_precision(truth, found, list(thresholds))


def has_stardist() -> bool:
    """Tell whether `stardist.matching` is there; it needs no deep-learning stack."""
    return all(map(find_spec, ("stardist", "csbdeep", "numba")))


def stardist_matching(truth, found, thresholds: Sequence[float], by_image: bool | None = None) -> tuple:
    """Return `stardist.matching.matching` of a pair, or with `by_image` `matching_dataset` of two lists; one per threshold."""
    kept = warnings.formatwarning
    from stardist.matching import matching, matching_dataset

    warnings.formatwarning = kept  # importing stardist replaces it for the whole process
    if by_image is None:
        return matching(truth, found, thresh=tuple(thresholds))
    return matching_dataset(truth, found, thresh=tuple(thresholds), by_image=by_image, show_progress=False)


def kernel_iou(truth: np.ndarray, found: np.ndarray, bins: tuple[int, int] | None = None) -> np.ndarray:
    """Return the (G, P) table of IoU as most Kaggle kernels compute it: `np.histogram2d`, one bin per id.

    `bins` are the numbers of bins, ids and background; without them each id from 0 to the largest has a bin of its own.
    """
    edges = [np.arange(side.max() + 2) - 0.5 for side in (truth, found)] if bins is None else bins
    table = np.histogram2d(truth.ravel(), found.ravel(), bins=edges)[0]
    union = table.sum(1, keepdims=True) + table.sum(0, keepdims=True) - table
    return (table / np.maximum(union, 1))[1:, 1:]


def kernel_score(iou: np.ndarray, threshold: float) -> float:
    """Score an IoU table as the copied kernels do: one match per row is a hit; two identical predictions count as one."""
    match = iou > threshold
    tp, fp, fn = (match.sum(1) == 1).sum(), (match.sum(0) == 0).sum(), (match.sum(1) == 0).sum()
    return float(tp / max(tp + fp + fn, 1))


# ---- COCO ----------------------------------------------------------------------------------------------------------
def coco_data(
    truths: Sequence[Instances],
    founds: Sequence[Instances],
    crowd: Sequence[np.ndarray] | None = None,
    first_id: int = 1,
) -> tuple[dict, list[dict]]:
    """Return a COCO data set and a results list, the class ids as categories, annotation ids from `first_id`."""
    crowd = crowd or [np.zeros(len(truth), bool) for truth in truths]
    classes = sorted({int(k) for side in (*truths, *founds) for k in side.class_ids})
    images, annotations, results = [], [], []
    for image_id, (truth, found, crowded) in enumerate(zip(truths, founds, crowd, strict=True), 1):
        images.append(
            {"id": image_id, "file_name": f"{image_id}.png", "height": truth.shape[0], "width": truth.shape[1]}
        )
        for k, entry in enumerate(_entries(truth, image_id)):
            about = {"id": len(annotations) + first_id, "iscrowd": int(crowded[k]), "area": int(truth.areas_px[k])}
            annotations.append(entry | about)
        scores = found.scores.tolist()
        results += [entry | {"score": scores[k]} for k, entry in enumerate(_entries(found, image_id))]
    categories = [{"id": k, "name": str(k)} for k in classes]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def _entries(cells: Instances, image_id: int) -> list[dict]:
    parts = zip(cells.to_coco_rle(), cells.class_ids.tolist(), cells.boxes_xywh.tolist(), strict=True)
    return [{"image_id": image_id, "category_id": k, "segmentation": rle, "bbox": box} for rle, k, box in parts]


def coco_curves(
    package: str, truth: dict | str | Path, results: list[dict] | str | Path, most: int = 100, areas=((0, 1e10),)
) -> tuple[np.ndarray, np.ndarray]:
    """Evaluate masks with pycocotools or faster-coco-eval, from files or from what is in them (which is left as it is).

    Returns
    -------
    precision, recall : (10, 101, K, A), (10, K, A) float64
        Of `most` detections per image and category; -1 where undefined.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        if package == "pycocotools":
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
        else:
            from faster_coco_eval import COCO
            from faster_coco_eval import COCOeval_faster as COCOeval
        if isinstance(truth, dict):
            known = COCO()
            known.dataset = {**truth, "annotations": [dict(entry) for entry in truth["annotations"]]}
            known.createIndex()
            results = [dict(entry) for entry in results]
        else:
            known, results = COCO(str(truth)), str(results)
        quiet = {} if package == "pycocotools" else {"print_function": lambda *_: None}
        run = COCOeval(known, known.loadRes(results), "segm", **quiet)
        run.params.maxDets = [1, 2, most]
        run.params.areaRng = [list(area) for area in areas]
        run.params.areaRngLbl = [str(k) for k in range(len(areas))]
        run.evaluate()
        run.accumulate()
    return np.asarray(run.eval["precision"])[..., 2], np.asarray(run.eval["recall"])[..., 2]


def mean_defined(values: np.ndarray) -> float | None:
    """Return the mean of what is not -1, as COCOeval.summarize does."""
    values = values[values > -1]
    return float(values.mean()) if values.size else None
