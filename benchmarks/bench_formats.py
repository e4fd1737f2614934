"""Time the mask formats against their peers, all in one run: `python benchmarks/bench_formats.py [--quick] [--repeats N]`.

Label images the size of LIVECell (520 x 704 px) with 320 and 1,500 cells, and one of 4096 x 4096 px with 20,000; `--quick`
leaves the large one out and repeats less. Every line is the median of N rounds in ms per image, the peers interleaved so that
a busy machine slows all alike. The ratio is ours over that peer (below 1: ours is faster). A peer that goes mask by mask is
timed on some of the cells, evenly spaced, and its time scaled up to all; that they write the same text is checked first.
Tables are markdown.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib import metadata

import numpy as np
import shapely
from bench_scores import Jobs, arguments_of, medians_ms, peak_mib, show
from peers import draw
from pycocotools import mask as coco_mask

from cellkit.cells.instances import Instances
from cellkit.cells.outlines import simple_polygons

MOST_MASK_PX = 64 * 520 * 704  # pixels of all the masks that a peer is timed on
TARGETS = {
    "labels -> COCO RLE": 1 / 20,
    "labels -> Kaggle RLE, row-major": 1 / 15,
    "labels -> Kaggle RLE, column-major": 1 / 15,
}


# ---- the peers, one mask at a time ---------------------------------------------------------------------------------
def kernel_encode(mask: np.ndarray) -> str:
    """Write a Kaggle text as most kernels do."""
    pixels = np.concatenate([[0], mask.flatten(), [0]])
    runs = np.flatnonzero(np.diff(pixels)) + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(x) for x in runs)


def lean_encode(mask: np.ndarray) -> str:
    """Write the same with booleans throughout: the most that can be had mask by mask."""
    flat = np.concatenate([[False], mask.ravel(), [False]])
    runs = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs[1::2] -= runs[::2]
    return " ".join(map(str, runs.tolist()))


def kernel_decode(text: str, shape: tuple[int, int]) -> np.ndarray:
    """Read a Kaggle text (row-major) as most kernels do."""
    numbers = np.array(text.split(), int)
    flat = np.zeros(shape[0] * shape[1], np.uint8)
    for start, length in zip(numbers[::2] - 1, numbers[1::2], strict=True):
        flat[start : start + length] = 1
    return flat.reshape(shape)


def coco_encode(mask: np.ndarray) -> str:
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()


def union_of_pixels(mask: np.ndarray):
    """Outline a mask by joining the squares of its pixels: exact too."""
    y, x = np.nonzero(mask)
    return shapely.union_all(shapely.box(x, y, x + 1, y + 1))


def some_of(count: int, size_px: int) -> list[int]:
    """Return the positions of the cells a peer is timed on: at least 4, fewer in a large image."""
    most = min(count, max(4, MOST_MASK_PX // size_px))
    return np.unique(np.linspace(0, count - 1, most).astype(int)).tolist()


# ---- jobs ----------------------------------------------------------------------------------------------------------
def encoding_jobs(labels: np.ndarray) -> dict[str, Jobs]:
    """Return the jobs of each format, ours first, after a look that all write the same."""
    chosen = some_of(int(labels.max()), labels.size)
    masks = [labels == k + 1 for k in chosen]
    ready = [np.asfortranarray(mask, np.uint8) for mask in masks]
    turned = [np.ascontiguousarray(mask.T) for mask in masks]
    cells = Instances.from_labels(labels)
    written = {
        "coco": [rle["counts"] for rle in cells.to_coco_rle()],
        "row": cells.to_kaggle_rle("row-major"),
        "column": cells.to_kaggle_rle("column-major"),
    }
    outlined = simple_polygons(cells)
    for k, mask in zip(chosen, masks, strict=True):
        drawn = shapely.MultiPolygon([shapely.Polygon(shell, holes) for shell, *holes in outlined[k]])
        assert shapely.equals(drawn, union_of_pixels(mask))
    for k, mask, other in zip(chosen, masks, turned, strict=True):
        assert written["coco"][k] == coco_encode(mask)
        assert (written["row"][k], written["column"][k]) == (kernel_encode(mask), kernel_encode(other))
    return {
        "labels -> COCO RLE": {
            "cellkit": lambda: Instances.from_labels(labels).to_coco_rle(),
            "pycocotools, mask by mask": lambda: [coco_encode(labels == k + 1) for k in chosen],
            "pycocotools, masks ready": lambda: [coco_mask.encode(mask) for mask in ready],
        },
        "labels -> Kaggle RLE, row-major": {
            "cellkit": lambda: Instances.from_labels(labels).to_kaggle_rle("row-major"),
            "flatnonzero of diff, mask by mask": lambda: [kernel_encode(labels == k + 1) for k in chosen],
            "flatnonzero of diff, masks ready": lambda: [kernel_encode(mask) for mask in masks],
            "the same, lean, masks ready": lambda: [lean_encode(mask) for mask in masks],
        },
        "labels -> Kaggle RLE, column-major": {
            "cellkit": lambda: Instances.from_labels(labels).to_kaggle_rle("column-major"),
            "flatnonzero of diff, mask by mask": lambda: [kernel_encode((labels == k + 1).T) for k in chosen],
            "flatnonzero of diff, masks ready": lambda: [kernel_encode(mask) for mask in turned],
            "the same, lean, masks ready": lambda: [lean_encode(mask) for mask in turned],
        },
        "labels -> outlines (GeoJSON)": {
            "cellkit": lambda: simple_polygons(Instances.from_labels(labels)),
            "shapely, union of pixels, mask by mask": lambda: [union_of_pixels(labels == k + 1) for k in chosen],
        },
    }


def decoding_jobs(labels: np.ndarray) -> dict[str, Jobs]:
    cells = Instances.from_labels(labels)
    chosen, shape = some_of(len(cells), labels.size), labels.shape
    rles, texts = cells.to_coco_rle(), cells.to_kaggle_rle("row-major")
    np.testing.assert_array_equal(Instances.from_coco_rle(rles, shape).paint(), labels)

    def paint(masks) -> np.ndarray:
        painted = np.zeros(shape, np.int32)
        for k, mask in enumerate(masks, 1):
            painted[mask > 0] = k
        return painted

    return {
        "COCO RLE -> labels": {
            "cellkit": lambda: Instances.from_coco_rle(rles, shape).paint(),
            "pycocotools, mask by mask": lambda: paint(coco_mask.decode(rles[k]) for k in chosen),
        },
        "Kaggle RLE -> labels": {
            "cellkit": lambda: Instances.from_kaggle_rle(texts, shape, "row-major").paint(),
            "slice by slice, mask by mask": lambda: paint(kernel_decode(texts[k], shape) for k in chosen),
        },
    }


def compare(title: str, jobs: Jobs, count: int, size_px: int, repeats: int) -> None:
    scale = count / len(some_of(count, size_px))
    times = {name: ms * (1 if name == "cellkit" else scale) for name, ms in medians_ms(jobs, repeats).items()}
    wanted = {name: TARGETS[title] for name in times if title in TARGETS and name.endswith("mask by mask")}
    show(f"{title}, {count} cells", times, "cellkit", wanted)


# ---- memory and growth ---------------------------------------------------------------------------------------------
def memory(labels: np.ndarray) -> None:
    cells = Instances.from_labels(labels)
    both = Instances.concatenate([cells, cells[::2]])
    rles, texts = cells.to_coco_rle(), cells.to_kaggle_rle("column-major")
    jobs: dict[str, Callable[[], object]] = {
        "from_labels": lambda: Instances.from_labels(labels),
        "to_coco_rle": lambda: cells.to_coco_rle(),
        "to_kaggle_rle row-major": lambda: cells.to_kaggle_rle("row-major"),
        "to_kaggle_rle column-major": lambda: cells.to_kaggle_rle("column-major"),
        "paint": lambda: cells.paint(),
        "paint, overlapping": lambda: both.paint(),
        "from_coco_rle": lambda: Instances.from_coco_rle(rles, labels.shape),
        "from_kaggle_rle column-major": lambda: Instances.from_kaggle_rle(texts, labels.shape, "column-major"),
    }
    image = labels.nbytes / 2**20
    print(f"\n| peak memory, results included (wanted: <= 3 label images of {image:.1f} MiB) | MiB | label images |")
    print("|---|---:|---:|")
    for name, job in jobs.items():
        peak = peak_mib(job)
        print(f"| {name} | {peak:.1f} | {peak / image:.2f} |")


def growth(repeats: int) -> None:
    """Print how the time to write grows with the image at equal crowding, and with the cells in one image."""
    rows = [((side, side), side * side // 1100) for side in (256, 512, 1024, 2048)]
    rows += [((1024, 1024), cells) for cells in (60, 240, 960, 3840)]
    jobs, runs = {}, {}
    for shape, count in rows:
        labels, _ = draw(shape, count, 0)
        name = f"{shape[0]} x {shape[1]} px, {count} cells"
        jobs[name] = lambda labels=labels: Instances.from_labels(labels).to_coco_rle()
        runs[name] = len(Instances.from_labels(labels).starts)
    print("\n| growth, labels -> COCO RLE | ms | runs | ns per run |\n|---|---:|---:|---:|")
    for name, ms in medians_ms(jobs, repeats).items():
        print(f"| {name} | {ms:.2f} | {runs[name]} | {1e6 * ms / runs[name]:.0f} |")


def main() -> None:
    given = arguments_of(__doc__.splitlines()[0])
    warnings.filterwarnings("ignore", "__array__", DeprecationWarning)  # pycocotools 2.0.11 on NumPy 2
    print(
        f"python {sys.version.split()[0]}, "
        + ", ".join(f"{n} {metadata.version(n)}" for n in ("numpy", "pycocotools", "shapely"))
    )
    for shape, cells in given.sizes:
        labels, _ = draw(shape, cells, 0)
        count = int(labels.max())
        print(f"\n{shape[0]} x {shape[1]} px, {count} cells")
        for title, jobs in (encoding_jobs(labels) | decoding_jobs(labels)).items():
            compare(title, jobs, count, labels.size, given.repeats)
        memory(labels)
    growth(given.repeats)


if __name__ == "__main__":
    main()
