"""Time the conversion of thousands of stacks against reading and writing them: `python benchmarks/bench_convert.py`.

The stacks are drawn by `cellkit.cells.drawn.field` (512 x 512 px, two channels, three planes, 16 bit, uncompressed OME-TIFF of
3.1 MB); 12 distinct ones are copied under other names until there are `--stacks` of them. The other side reads every stack
with tifffile.imread and writes it with tifffile.imwrite, shared among as many joblib processes. Both sides take turns, each
time over the whole batch, in a fresh folder on the same disk, from the start of the worker processes to the last file; each
is bound to as many cores as it has workers. What is written is flushed to disk between turns, outside the time. Printed is
the median of `--repeats` rounds, and the speed: the time of reading and writing over ours, wanted is 0.8 or more.

`--dsb2018 FOLDER` also times the 565 images of the 2018 Data Science Bowl into records and instances, on two processes:
wanted are 20 s or less. `--small N` adds a batch that fits the page cache, where writing costs little more than a copy.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import tifffile
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor

from cellkit.microscope.batch import convert_batch
from cellkit.microscope.convert import Conversion
from cellkit.sources.drawn.files import write_fields

RECIPE = Conversion({"nuclei": "DAPI", "cytoplasm": "GFP"})
WANTED_SPEED, WANTED_S = 0.8, 20.0


def draw_stacks(folder: Path, count: int) -> list[Path]:
    """Draw 12 stacks once; copy them (no links: each file has pages of its own) until there are `count`."""
    drawn = folder / "drawn"
    fields = write_fields(drawn, images_per_line=6, mixed_images=0, size_px=512, planes=3, defect_images_per_line=0)
    made = []
    for number in range(count):
        made.append(folder / "stacks" / f"stack_{number:05d}.ome.tif")
        made[-1].parent.mkdir(exist_ok=True)
        shutil.copyfile(drawn / fields[number % len(fields)].path, made[-1])
    return made


def read_and_write(path: Path, out: Path) -> None:
    tifffile.imwrite(out / path.name, tifffile.imread(path))


def with_tifffile(paths: list[Path], out: Path, workers: int) -> None:
    out.mkdir()
    if workers == 1:
        for path in paths:
            read_and_write(path, out)
    else:
        Parallel(n_jobs=workers)(delayed(read_and_write)(path, out) for path in paths)


def with_cellkit(paths: list[Path], out: Path, workers: int) -> None:
    done = convert_batch([(path, path.name.removesuffix(".ome.tif")) for path in paths], out, RECIPE, workers)
    assert len(done.written) == len(paths) and not done.quarantined and not done.resumed


@contextmanager
def on_cores(count: int):
    """Bind this process and those it starts to so many cores, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def timed(job: Callable, paths: list[Path], folder: Path, workers: int) -> float:
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    get_reusable_executor().shutdown(wait=True)  # both sides start their own processes
    os.sync()
    with on_cores(workers):
        begun = time.perf_counter()
        job(paths, out, workers)
        took = time.perf_counter() - begun
    shutil.rmtree(out)
    os.sync()
    return took


def compare(paths: list[Path], folder: Path, workers: list[int], repeats: int) -> None:
    print(f"\n### {len(paths)} stacks\n")
    print("| workers | read + write, ms each | convert, ms each | speed | wanted |\n|---|---|---|---|---|")
    for count in workers:
        times: dict[Callable, list[float]] = {with_tifffile: [], with_cellkit: []}
        for turn in range(repeats):
            for job in (with_tifffile, with_cellkit)[:: 1 if turn % 2 == 0 else -1]:
                times[job].append(timed(job, paths, folder, count))
        theirs, ours = (1000 * statistics.median(times[job]) / len(paths) for job in (with_tifffile, with_cellkit))
        print(f"| {count} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.2f} | {WANTED_SPEED} |", flush=True)


def time_convert_images(config, root: Path, folder: Path, title: str, wanted: str) -> None:
    """Print how long notebook 01 takes for a source: records, instances, pictures and quality."""
    from cellkit.sources.ingest import convert_images

    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    begun = time.perf_counter()
    made = convert_images(config, root, out)
    took = time.perf_counter() - begun
    shutil.rmtree(out)
    cells = sum(map(len, made.images.instances or ()))
    each = 1000 * took / len(made.images.records)
    print(
        f"| {title} | {len(made.images.records)} | {cells} | {config.workers} | {took:.1f} | {each:.1f} | {wanted} |",
        flush=True,
    )


def time_converting(paths: list[Path], folder: Path, dsb2018: Path | None, workers: int) -> None:
    from cellkit.config.sections import ConvertConfig

    print("\n### Notebook 01: records, instances, pictures and their quality\n")
    print("| source | images | cells | processes | s | ms each | wanted |\n|---|---|---|---|---|---|---|")
    told = {"source": "folder", "channels": {"nuclei": "DAPI", "cytoplasm": "GFP"}, "workers": workers}
    stacks = folder / "some"
    stacks.mkdir()
    for path in paths[:300]:
        os.link(path, stacks / path.name)
    time_convert_images(ConvertConfig(**told), stacks, folder, "drawn stacks, no truth", "")
    if dsb2018:
        nuclei = {"source": "dsb2018", "channels": {"nuclei": "red"}, "classes": ("nucleus",), "workers": workers}
        time_convert_images(ConvertConfig(**nuclei), dsb2018, folder, "2018 Data Science Bowl", f"{WANTED_S:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stacks", type=int, default=2000, help="a batch; 3.1 MB each, twice on the disk")
    parser.add_argument("--small", type=int, default=0, help="also a batch of so many")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dsb2018", type=Path, help="the set's folder, see data/README.md")
    parser.add_argument("--folder", type=Path, help="where to draw and write; default: the folder for temporary files")
    given = parser.parse_args()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("tifffile", "imagecodecs", "numpy", "joblib"))
    print(f"python {sys.version.split()[0]}, {versions}; {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        paths = draw_stacks(folder, max(given.stacks, given.small))
        if given.stacks:
            compare(paths[: given.stacks], folder, given.workers, given.repeats)
        if given.small:
            compare(paths[: given.small], folder, given.workers, given.repeats)
        time_converting(paths, folder, given.dsb2018, max(given.workers))


if __name__ == "__main__":
    main()
