"""Time scoring against its peers, all in one run: `python benchmarks/bench_scores.py [--large] [--repeats N]`.

Label images the size of LIVECell (520 x 704 px) with 320 and 1,500 cells; `--large` adds one of 4096 x 4096 px with 20,000.
Every line is the median of N rounds in ms per image, the peers interleaved so that a busy machine slows all alike. The
ratio is ours over that peer (below 1: ours is faster), the floor is one comparison of the two arrays.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
import tracemalloc
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec

import numpy as np

from cellkit.instances import Instances
from cellkit.scores import THRESHOLDS, coco, count, overlap_images, overlaps, overlaps_of_labels

TEN = np.arange(0.5, 1, 0.05)
Jobs = dict[str, Callable[[], object]]


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
    return _renumbered(truth), _renumbered(change[np.roll(truth, (1, 1), (0, 1))].astype(np.int32))


def _renumbered(labels: np.ndarray) -> np.ndarray:
    ids, inverse = np.unique(labels, return_inverse=True)
    return (inverse.reshape(labels.shape) + (0 if ids[0] == 0 else 1)).astype(np.int32)


def medians_ms(jobs: Jobs, repeats: int, slow: float = 20.0) -> dict[str, float]:
    """Run all jobs in turn, `repeats` rounds after one to warm up; a job slower than `slow` seconds runs once."""
    spent: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(repeats + 1):
        for name, job in jobs.items():
            if round_ and spent[name][0] > slow:
                continue
            begun = time.perf_counter()
            job()
            spent[name].append(time.perf_counter() - begun)
    return {name: 1e3 * float(np.median(times[1:] or times)) for name, times in spent.items()}


def show(title: str, times: dict[str, float], ours: str) -> None:
    print(f"\n{title}")
    for name, ms in sorted(times.items(), key=lambda item: item[1]):
        ratio = "" if name == ours else f"  ours / this = {times[ours] / ms:8.3f}"
        print(f"  {name:<58}{ms:10.2f} ms{ratio}")


# ---- ten thresholds on a pair of label images ----------------------------------------------------------------------
def kernel_iou(truth: np.ndarray, found: np.ndarray) -> list[float]:
    """Score as most Kaggle kernels do: np.histogram2d, then a dense table per threshold."""
    bins = [np.arange(side.max() + 2) - 0.5 for side in (truth, found)]
    table = np.histogram2d(truth.ravel(), found.ravel(), bins=bins)[0]
    union = table.sum(1, keepdims=True) + table.sum(0, keepdims=True) - table
    iou = (table / np.maximum(union, 1))[1:, 1:]
    result = []
    for threshold in TEN:
        match = iou > threshold
        tp, fp, fn = (match.sum(1) == 1).sum(), (match.sum(0) == 0).sum(), (match.sum(1) == 0).sum()
        result.append(tp / max(tp + fp + fn, 1))
    return result


def label_jobs(truth: np.ndarray, found: np.ndarray) -> Jobs:
    from cellpose.metrics import average_precision

    sides = [Instances.from_labels(side) for side in (truth, found)]
    jobs: Jobs = {
        "floor: one comparison of the arrays": lambda: np.count_nonzero(truth != found),
        "cellkit: label images": lambda: count(overlaps_of_labels(truth, found), THRESHOLDS),
        "cellkit: Instances (overlap allowed)": lambda: count(overlaps(*sides), THRESHOLDS),
        "cellpose.metrics.average_precision": lambda: average_precision(truth, found, TEN),
    }
    if truth.max() < 5000:  # dense tables of float64
        jobs["histogram2d kernel (wrong on duplicates)"] = lambda: kernel_iou(truth, found)
    else:
        del jobs["cellpose.metrics.average_precision"]  # 20,000 x 20,000 dense: 3 GB and hours
    if find_spec("stardist") and find_spec("numba"):
        from stardist.matching import matching

        jobs["stardist.matching"] = lambda: matching(truth, found, thresh=tuple(TEN))
    return jobs


def check_equal(truth: np.ndarray, found: np.ndarray) -> None:
    """Say that the numbers timed are the same numbers (cellpose counts >=, in floats)."""
    from cellpose.metrics import average_precision

    exact = [0.5, 0.75]
    theirs = average_precision(truth, found, exact)[1]
    assert np.array_equal(theirs, count(overlaps_of_labels(truth, found), exact, strict=False).tp)


def peak_mib(job: Callable[[], object]) -> float:
    job()
    tracemalloc.start()
    job()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


# ---- COCO AP -------------------------------------------------------------------------------------------------------
def coco_files(truths: list[Instances], founds: list[Instances]) -> tuple[dict, list[dict]]:
    images, annotations, results = [], [], []
    for image_id, (truth, found) in enumerate(zip(truths, founds, strict=True), 1):
        images.append({"id": image_id, "height": truth.shape[0], "width": truth.shape[1]})
        for rle, area, box in zip(truth.to_coco_rle(), truth.areas_px.tolist(), truth.boxes_xywh.tolist(), strict=True):
            about = {"image_id": image_id, "category_id": 1, "segmentation": rle, "area": area, "bbox": box}
            annotations.append({"id": len(annotations) + 1, "iscrowd": 0, **about})
        for rle, score in zip(found.to_coco_rle(), found.scores.tolist(), strict=True):
            results.append({"image_id": image_id, "category_id": 1, "segmentation": rle, "score": score})
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}, results


def fresh(data: dict, results: list[dict]) -> tuple[dict, list[dict]]:
    """Copy what the evaluators write into."""
    annotations = [dict(annotation) for annotation in data["annotations"]]
    return {**data, "annotations": annotations}, [dict(result) for result in results]


def peer_ap(package: str, data: dict, results: list[dict], most: int) -> float:
    data, results = fresh(data, results)
    with contextlib.redirect_stdout(io.StringIO()):
        if package == "pycocotools":
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval

            known = COCO()
            known.dataset = data
            known.createIndex()
            run = COCOeval(known, known.loadRes(results), "segm")
        else:
            from faster_coco_eval import COCO, COCOeval_faster

            known = COCO(data)
            run = COCOeval_faster(known, known.loadRes(results), iouType="segm", print_function=lambda *_: None)
        run.params.maxDets = [1, 10, most]
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.evaluate()
        run.accumulate()
    precision = np.asarray(run.eval["precision"])[..., 2]
    return float(precision[precision > -1].mean())


def coco_jobs(truths: list[Instances], founds: list[Instances]) -> Jobs:
    data, results = coco_files(truths, founds)
    most = max(len(found) for found in founds)
    rles = [[side.to_coco_rle() for side in sides] for sides in (truths, founds)]

    def from_rle() -> float:
        read = [
            [Instances.from_coco_rle(r, s.shape, scores=s.scores) for r, s in zip(rle, side, strict=True)]
            for rle, side in zip(rles, (truths, founds), strict=True)
        ]
        return coco(overlap_images(*read))["score"]

    jobs: Jobs = {
        "cellkit: Instances": lambda: coco(overlap_images(truths, founds))["score"],
        "cellkit: decoded from the RLE too": from_rle,
        "pycocotools": lambda: peer_ap("pycocotools", data, results, most),
    }
    if find_spec("faster_coco_eval"):
        jobs["faster-coco-eval"] = lambda: peer_ap("faster_coco_eval", data, results, most)
    values = {name: job() for name, job in jobs.items()}
    assert np.ptp(list(values.values())) < 1e-9, values
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    packages = ("numpy", "scipy", "cellpose", "pycocotools", "faster-coco-eval")
    print(f"python {sys.version.split()[0]}, " + ", ".join(f"{name} {metadata.version(name)}" for name in packages))
    sizes = [((520, 704), 320), ((520, 704), 1500)] + ([((4096, 4096), 20_000)] if arguments.large else [])
    for shape, cells in sizes:
        truth, found = draw(shape, cells, 0)
        if cells < 5000:
            check_equal(truth, found)
        title = f"{shape[0]} x {shape[1]} px, {truth.max()} true and {found.max()} found cells"
        show(
            f"ten thresholds, {title}", medians_ms(label_jobs(truth, found), arguments.repeats), "cellkit: label images"
        )
        image = truth.nbytes / 2**20
        peak = peak_mib(lambda t=truth, f=found: count(overlaps_of_labels(t, f), THRESHOLDS))
        print(f"  peak memory of ours {peak:.1f} MiB = {peak / image:.2f} x one label image of {image:.1f} MiB")
    for cells in (320, 1500):
        pairs = [draw((520, 704), cells, seed) for seed in range(3)]
        rng = np.random.default_rng(0)
        truths = [Instances.from_labels(truth) for truth, _ in pairs]
        founds = [Instances.from_labels(found) for _, found in pairs]
        founds = [found.with_scores(rng.random(len(found)).round(3)) for found in founds]
        times = medians_ms(coco_jobs(truths, founds), arguments.repeats)
        show(
            f"COCO AP, 3 images of {cells} cells (per image)",
            {n: t / 3 for n, t in times.items()},
            "cellkit: Instances",
        )


if __name__ == "__main__":
    main()
