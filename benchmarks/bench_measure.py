"""Time the measurements of cells against regionprops_table, in one run: `python benchmarks/bench_measure.py [--quick]`.

1,500 cells in 1,024 x 1,024 px and 20,000 in 4,096 x 4,096 px, three channels of 16 bits; both begin with a label image. The
peer measures the 30 numbers per cell that both know (15 of shape, 5 of each channel), ours these and its other columns.
Seconds are of the processor (one thread), the median of the rounds, peers in turn. `--quick` leaves the large image out. The
numbers that were timed are compared with the peer's, to 1e-6.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from importlib import metadata

import numpy as np
from peers import draw

from cellkit.cells.instances import Instances
from cellkit.measure.table import measure

SIZES = (((1024, 1024), 1500), ((4096, 4096), 20_000))
SHAPE = ("label", "area", "equivalent_diameter_area", "centroid", "bbox", "perimeter", "eccentricity", "solidity",
         "axis_major_length", "axis_minor_length", "orientation")  # fmt: skip
BRIGHTNESS = ("intensity_mean", "intensity_median", "intensity_max", "intensity_min", "intensity_std")
SAME = {"area_px": "area", "perimeter_px": "perimeter", "eccentricity": "eccentricity", "solidity": "solidity",
        "major_axis_px": "axis_major_length", "mean_c": "intensity_mean-2", "median_c": "intensity_median-2",
        "max_c": "intensity_max-2", "sd_c": "intensity_std-2"}  # fmt: skip
MOST_OF_PEER, MOST_LARGE_S = 0.2, 3.0  # what is wanted


def ours(labels: np.ndarray, image: np.ndarray):
    channels = {name: image[k] for k, name in enumerate("abc")}
    return measure(Instances.from_labels(labels), channels, 0.5, labels=np.unique(labels)[1:])


def peer(labels: np.ndarray, image: np.ndarray) -> dict[str, np.ndarray]:
    from skimage.measure import regionprops_table

    return regionprops_table(labels, np.moveaxis(image, 0, 2), properties=(*SHAPE, *BRIGHTNESS))


def processor_seconds(jobs: dict, repeats: int) -> dict[str, float]:
    """Return the median seconds of the processor that each job takes; a job above 20 s runs once."""
    spent: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            if spent[name] and spent[name][0] > 20:
                continue
            begun = time.process_time()
            job()
            spent[name].append(time.process_time() - begun)
    return {name: float(np.median(times)) for name, times in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave the large image out")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds (default 5)")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)  # of hulls of a pixel
    print(f"python {sys.version.split()[0]}, numpy {np.__version__}, scikit-image {metadata.version('scikit-image')}")
    print("\n| cells | image | cellkit, columns | cellkit, s | regionprops_table, s | ours / peer | wanted |")
    print("|---:|---|---:|---:|---:|---:|---|")
    for shape, cells in SIZES[: 1 if given.quick else None]:
        labels, _ = draw(shape, cells, 0)
        image = np.random.default_rng(0).integers(0, 2**16, (3, *shape), np.uint16)
        table, theirs = ours(labels, image), peer(labels, image)
        for name, of_peer in SAME.items():
            np.testing.assert_allclose(table[name], theirs[of_peer], rtol=0, atol=1e-6, err_msg=name)
        jobs = {"ours": lambda a=labels, b=image: ours(a, b), "peer": lambda a=labels, b=image: peer(a, b)}
        found = processor_seconds(jobs, given.repeats)
        wanted = f"<= {MOST_LARGE_S:g} s" if cells > 1500 else f"<= {MOST_OF_PEER:g}"
        print(
            f"| {len(table)} | {shape[0]} x {shape[1]} px | {table.shape[1]} | {found['ours']:.3f} | {found['peer']:.2f} "
            f"| {found['ours'] / found['peer']:.3f} | {wanted} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
