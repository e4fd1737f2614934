"""Time scoring against its peers, all in one run: `python benchmarks/bench_scores.py [--quick] [--repeats N]`.

Label images the size of LIVECell (520 x 704 px) with 320 and 1,500 cells, and one of 4096 x 4096 px with 20,000; `--quick`
leaves the large one out and repeats less. Every line is the median of N rounds in ms per image, the peers interleaved so that
a busy machine slows all alike. The ratio is ours over that peer (below 1: ours is faster), the floor is one comparison of the
two arrays. Tables are markdown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from peers import (
    cellpose_counts,
    coco_curves,
    coco_data,
    draw,
    has_stardist,
    kernel_iou,
    kernel_score,
    mean_defined,
    stardist_matching,
)

from cellkit.cells.instances import Instances
from cellkit.files import write_json
from cellkit.formats.coco_reading import read_coco, read_results
from cellkit.scores.coco import coco
from cellkit.scores.iou import overlap_images, overlaps, overlaps_of_labels
from cellkit.scores.matching import THRESHOLDS, count

TEN = np.arange(0.5, 1, 0.05)
DENSE_CELLS = 5000  # a dense table of 20,000 x 20,000 would take 3 GB and the peers hours
LIVECELL = (520, 704)
FLOOR, PLAIN, RUNS = (
    "floor: one comparison of the arrays",
    "cellkit: label images",
    "cellkit: Instances (overlap allowed)",
)
CELLPOSE, KERNEL = "cellpose.metrics.average_precision", "histogram2d kernel (wrong on duplicates)"
FILES, FASTER = "cellkit: from files", "faster-coco-eval: from files"
Jobs = dict[str, Callable[[], object]]


# ---- timing and tables ---------------------------------------------------------------------------------------------
def medians_ms(jobs: Jobs, repeats: int, slow: float = 20.0) -> dict[str, float]:
    """Run all jobs in turn, `repeats` rounds after one to warm up.

    A round has several runs of a short job (up to 9, some 50 ms); a job slower than `slow` seconds runs once in all.
    """
    spent: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(repeats + 1):
        for name, job in jobs.items():
            once = spent[name][0] if round_ else slow
            if round_ and once > slow:
                continue
            for _ in range(min(9, 1 + int(0.05 / once))):
                begun = time.perf_counter()
                job()
                spent[name].append(time.perf_counter() - begun)
    return {name: 1e3 * float(np.median(times[1:] or times)) for name, times in spent.items()}


def show(title: str, times: dict[str, float], ours: str, wanted: dict[str, float] | None = None) -> None:
    """Print a table: each job, its time, ours over it, and the largest ratio wanted where there is one."""
    print(f"\n| {title} | ms | ours / this | wanted |\n|---|---:|---:|---:|")
    for name, ms in times.items():
        ratio = "" if name == ours else f"{times[ours] / ms:.4f}"
        target = (wanted or {}).get(name)
        print(f"| {name} | {ms:.2f} | {ratio} | {'' if target is None else f'<= {target:.4f}'} |")


def peak_mib(job: Callable[[], object]) -> float:
    job()
    tracemalloc.start()
    job()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def arguments_of(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="no large image, three rounds")
    parser.add_argument("--repeats", type=int, metavar="N", help="rounds (default 7)")
    given = parser.parse_args()
    given.repeats = given.repeats or (3 if given.quick else 7)
    given.sizes = [(LIVECELL, 320), (LIVECELL, 1500)] + ([] if given.quick else [((4096, 4096), 20_000)])
    return given


# ---- ten thresholds on a pair of label images ----------------------------------------------------------------------
def label_jobs(truth: np.ndarray, found: np.ndarray) -> Jobs:
    sides = [Instances.from_labels(side) for side in (truth, found)]
    jobs: Jobs = {
        FLOOR: lambda: np.count_nonzero(truth != found),
        PLAIN: lambda: count(overlaps_of_labels(truth, found), THRESHOLDS),
        RUNS: lambda: count(overlaps(*sides), THRESHOLDS),
    }
    if truth.max() < DENSE_CELLS:
        jobs[CELLPOSE] = lambda: cellpose_counts(truth, found, TEN)
        jobs[KERNEL] = lambda: [kernel_score(iou, t) for iou in [kernel_iou(truth, found)] for t in TEN]
        if has_stardist():
            jobs["stardist.matching"] = lambda: stardist_matching(truth, found, TEN)
    return jobs


def check_equal(truth: np.ndarray, found: np.ndarray) -> None:
    """Say that the numbers timed are the same numbers (cellpose and stardist count >=)."""
    exact = [float(t) for t in THRESHOLDS]
    ours = count(overlaps_of_labels(truth, found), THRESHOLDS, strict=False).tp
    assert np.array_equal(cellpose_counts(truth, found, exact)[1], ours)
    if has_stardist():
        assert [m.tp for m in stardist_matching(truth, found, exact)] == ours.tolist()


def growth(repeats: int) -> None:
    """Print how the time grows with the image at equal crowding, and with the cells in one image."""
    rows = [((side, side), side * side // 1100) for side in (256, 512, 1024, 2048)]
    rows += [((1024, 1024), cells) for cells in (60, 240, 960, 3840)]
    jobs, drawn = {}, {}
    for shape, cells in rows:
        truth, found = draw(shape, cells, 0)
        name = f"{shape[0]} x {shape[1]} px, {truth.max()} cells"
        jobs[name] = lambda t=truth, f=found: count(overlaps_of_labels(t, f), THRESHOLDS)
        drawn[name] = truth.size
    print("\n| growth, ten thresholds | ms | ns per px |\n|---|---:|---:|")
    for name, ms in medians_ms(jobs, repeats).items():
        print(f"| {name} | {ms:.2f} | {1e6 * ms / drawn[name]:.2f} |")


# ---- COCO AP -------------------------------------------------------------------------------------------------------
def coco_jobs(truths: list[Instances], founds: list[Instances], folder: Path, slow_too: bool) -> Jobs:
    """Return the jobs from objects in memory and from files, after a look that all give the same AP to 1e-9."""
    data, results = coco_data(truths, founds)
    paths = write_json(folder / "truth.json", data), write_json(folder / "results.json", results)
    most = max(len(found) for found in founds)

    def from_files() -> float:
        known = read_coco(paths[0])
        return coco(overlap_images(known.instances, read_results(paths[1], known)))["score"]

    jobs: Jobs = {
        "cellkit: Instances": lambda: coco(overlap_images(truths, founds))["score"],
        FILES: from_files,
    }
    if find_spec("faster_coco_eval"):
        jobs["faster-coco-eval: in memory"] = lambda: mean_defined(
            coco_curves("faster_coco_eval", data, results, most)[0]
        )
        jobs[FASTER] = lambda: mean_defined(coco_curves("faster_coco_eval", *paths, most)[0])
    peer = lambda: mean_defined(coco_curves("pycocotools", *paths, most)[0])  # noqa: E731
    values = {name: job() for name, job in (jobs | {"pycocotools: from files": peer}).items()}
    assert np.ptp(list(values.values())) < 1e-9, values
    return jobs | ({"pycocotools: from files": peer} if slow_too else {})


def main() -> None:
    given = arguments_of(__doc__.splitlines()[0])
    packages = ["numpy", "scipy", "cellpose", "pycocotools", "faster-coco-eval"] + ["stardist"] * has_stardist()
    print(f"python {sys.version.split()[0]}, " + ", ".join(f"{name} {metadata.version(name)}" for name in packages))
    for shape, cells in given.sizes:
        truth, found = draw(shape, cells, 0)
        if cells < DENSE_CELLS:
            check_equal(truth, found)
        title = f"{shape[0]} x {shape[1]} px, {truth.max()} true and {found.max()} found cells"
        times = medians_ms(label_jobs(truth, found), given.repeats)
        show(f"ten thresholds, {title}", times, PLAIN, {CELLPOSE: 1 / 8 if cells < 1000 else 1 / 25})
        image = truth.nbytes / 2**20
        peak = peak_mib(lambda t=truth, f=found: count(overlaps_of_labels(t, f), THRESHOLDS))
        print(
            f"\npeak memory of ours {peak:.1f} MiB = {peak / image:.2f} label images of {image:.1f} MiB (wanted: <= 3)"
        )
    growth(given.repeats)
    for cells in (320, 1500):
        sides = zip(*(draw(LIVECELL, cells, seed) for seed in range(3)), strict=True)
        truths, founds = ([Instances.from_labels(labels).with_classes(1) for labels in side] for side in sides)
        rng = np.random.default_rng(0)
        founds = [found.with_scores(rng.random(len(found)).round(3)) for found in founds]
        with tempfile.TemporaryDirectory() as folder:
            jobs = coco_jobs(truths, founds, Path(folder), slow_too=not given.quick)
            times = {name: ms / 3 for name, ms in medians_ms(jobs, given.repeats, slow=5.0).items()}
        show(f"COCO AP, 3 images of {cells} cells, per image", times, FILES, {FASTER: 1})


if __name__ == "__main__":
    main()
