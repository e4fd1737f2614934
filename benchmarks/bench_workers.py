"""Measure what sharing images among processes gains: `python benchmarks/bench_workers.py [--images N] [--repeats R]`.

Drawn two-channel images of 256 x 256 px are labelled with the starter weights on as many processors as this process may use,
shared in every way: one process of all threads, two of half of them, ... Ways take turns, so that other work on the machine
disturbs them alike. The cells are compared: they have to be the same.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from joblib import cpu_count

from cellkit.cells.dataset import CellDataset, predict_all
from cellkit.cells.drawn.pictures import draw
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.fetch.find import find_weights
from cellkit.machine import processor_s
from cellkit.microscope.journal import png_parts, write_parts
from cellkit.models import cellpose_unet


def drawn(folder: Path, count: int) -> CellDataset:
    """Write so many drawn images."""
    records = []
    for k in range(count):
        image, _ = draw("two channels", k, 0)
        write_parts(folder / f"{k:03}.png", png_parts(image, float("nan")))
        records.append(ImageRecord(f"{k:03}", f"{k:03}.png", *image.shape[:2]))
    return CellDataset(records, [Instances.empty((r.height_px, r.width_px)) for r in records], root=folder)


def labelled(images: CellDataset, workers: int, threads: int) -> tuple[float, float, list[Instances]]:
    """Find the cells of all images; return seconds, CPU seconds and the cells."""
    import torch

    torch.set_num_threads(threads)
    segment = cellpose_unet.load(find_weights("starter"), cellpose_unet.Settings(precision="float32"))
    began, spent = time.monotonic(), processor_s()
    found = predict_all(segment, images, "label", workers)
    return time.monotonic() - began, processor_s() - spent, found


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    cores = cpu_count()
    ways = [(n, cores // n) for n in range(1, cores + 1) if cores % n == 0]
    took: dict[tuple[int, int], list[tuple[float, float]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        images = drawn(Path(folder), given.images)
        first = labelled(images, *ways[0])[2]
        for _ in range(given.repeats):
            for way in ways:
                seconds, spent, found = labelled(images, *way)
                assert found == first, "other cells"
                took[way].append((seconds, spent))
    print(f"{given.images} images of 256 x 256 px, {sum(map(len, first))} cells, starter, float32, {cores} processors")
    for (workers, threads), each in took.items():
        seconds, spent = np.array(each).T
        say = f"{workers} process(es) of {threads} thread(s): first {seconds[0]:5.1f} s, then {median(seconds[1:]):5.1f} s"
        print(f"{say}, {median(spent[1:]):5.1f} CPU s")


if __name__ == "__main__":
    main()
