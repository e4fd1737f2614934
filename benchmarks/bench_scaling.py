"""What sharing images among processes costs: `python benchmarks/bench_scaling.py [--only convert measure] [--images 24]`.

Drawn z-stacks (`--size` px, two channels, eight planes, 16 bit) are converted; the cells of their pictures are found by the
starter model; the cells that were drawn are measured in the raw files; what was found is scored against what was drawn. Each
command is run by itself, in one process (`--workers 1`), in 2, 4 and 8 (joblib), and on a local cluster of 2 workers. Printed are
seconds of wall and processor (of the command and all its processes), the files being the same bytes.

An image's own cost is the slope between a fourth of the images and all of them: starting, importing and loading a model are
left out, and are the column "to start". The overhead is that of processor seconds an image against one process; where the
machine has fewer cores than workers they take turns, which the overhead counts too. float32, one thread a process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil
from chaos_cluster import files_of
from chaos_kills import ROOT

WAYS = ("1", "2", "4", "8", "cluster 2")
COMMANDS = ("convert", "measure", "predict", "score")


class Cost(NamedTuple):
    """Seconds of a command: of the wall, of all processors."""

    wall: float
    processor: float


def processor_seconds(running: subprocess.Popen) -> float:
    """Wait for a command; return the processor seconds of it and of all processes that it started."""
    seen: dict[tuple[int, float], float] = {}
    while running.poll() is None:
        try:
            whole = [psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)]
        except psutil.Error:
            break
        for one in whole:
            try:
                times = one.cpu_times()
                seen[one.pid, one.create_time()] = times.user + times.system
            except psutil.Error:
                continue
        time.sleep(0.1)
    running.wait()
    return sum(seen.values())


def cost_of(command: list, log: Path) -> Cost:
    """Run a command; return what it took. One that fails ends the benchmark."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    since, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(log, "ab") as file:
        line = [sys.executable, "-m", "cellkit", *map(str, command)]
        running = subprocess.Popen(line, stdout=file, stderr=file, cwd=ROOT, env=environ)
        asked = processor_seconds(running)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    waited = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if running.returncode:
        raise SystemExit(f"{' '.join(map(str, command[:2]))} failed, see {log}")
    return Cost(time.perf_counter() - since, max(asked, waited))


def way_of(way: str) -> list[str]:
    """Return the flags of a way."""
    if way.startswith("cluster"):
        return ["--cluster", json.dumps({"kind": "local", "workers": int(way.split()[1])})]
    return ["--workers", way]


def draw(folder: Path, count: int, part: int, size_px: int) -> None:
    """Draw `count` stacks (6 distinct ones, linked) with their labels: all of them and, beside them, the first `part`."""
    from cellkit.sources.drawn.files import write_fields

    made = write_fields(
        folder / "drawn", images_per_line=3, mixed_images=0, size_px=size_px, planes=8, defect_images_per_line=0
    )
    for name, number in (("all", count), ("part", part)):
        for what in ("stacks", "truth"):
            (folder / name / what).mkdir(parents=True)
        for k in range(number):
            one = made[k % len(made)]
            os.link(folder / "drawn" / one.path, folder / name / "stacks" / f"stack_{k:03d}.ome.tif")
            os.link(folder / "drawn" / one.truth, folder / name / "truth" / f"stack_{k:03d}.tif")


def line_of(command: str, of: Path, to: Path) -> list:
    """Return a command on the images of a folder, which writes to another."""
    return {
        "convert": ["convert", of / "stacks", "-o", to, "--nuclei", "DAPI", "--cytoplasm", "GFP"],
        "measure": ["measure", of / "stacks", of / "truth", "-o", to / "cells.csv"],
        "predict": [
            "predict",
            "starter",
            of / "images",
            "-o",
            to / "cells.json",
            "--labels",
            to / "labels",
            "--set",
            "precision=float32",
        ],
        "score": ["score", of / "truth", of / "found", "--bootstrap", "0"],
    }[command]


def rows_of(command: str, folder: Path, counts: tuple[int, int], ways: list[str]) -> list[dict]:
    """Time a command in all ways, the ways taking turns; check that all write the same bytes."""
    rows, written = [], {}
    for way in ways:
        costs = []
        for name in ("part", "all"):
            to = folder / "out" / command / way / name
            to.mkdir(parents=True)
            costs.append(cost_of([*line_of(command, folder / name, to), *way_of(way)], folder / f"{command}.log"))
            if name == "all":
                written[way] = files_of(to)
        images = counts[1] - counts[0]
        each = Cost(*((whole - some) / images for some, whole in zip(*costs, strict=True)))
        start = Cost(*(some - counts[0] * one for some, one in zip(costs[0], each, strict=True)))
        same = written[way] == written[ways[0]]
        rows.append({"command": command, "way": way, "each": each, "start": start, "whole": costs[1], "same": same})
        print_row(rows[-1], rows[0])
    return rows


def print_row(row: dict, one: dict) -> None:
    """Print a row: seconds an image and to start, and the overhead against one process."""
    over = 100 * (row["each"].processor / one["each"].processor - 1)
    numbers = [*row["each"], row["start"].processor, *row["whole"]]
    cells = [row["command"], row["way"], *(f"{number:.3f}" for number in numbers), f"{over:+.0f} %"]
    print("| " + " | ".join([*cells, "yes" if row["same"] else "NO"]) + " |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--size", type=int, default=640, metavar="PX", help="side of an image (default 640)")
    parser.add_argument("--images", type=int, default=48, help="images in all (default 48)")
    given = parser.parse_args()
    counts = (max(8, given.images // 4), given.images)
    same = True
    with tempfile.TemporaryDirectory(prefix="cellkit-scaling-") as place:
        folder = Path(place)
        draw(folder, counts[1], counts[0], given.size)
        for name in ("all", "part"):  # what later commands read, made by one process
            log, images = folder / "first.log", folder / name / "images"
            if {"predict", "score"} & set(given.only):
                cost_of(line_of("convert", folder / name, images), log)
            if "score" in given.only:
                found = folder / name / "found"
                cost_of(["predict", "threshold", images, "-o", folder / name / "found.json", "--labels", found], log)
        head = ["command", "workers", "wall an image (s)", "processor an image (s)", "processor to start (s)"]
        head += ["wall in all (s)", "processor in all (s)", "overhead", "same bytes"]
        print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
        for command in given.only:
            same &= all(row["same"] for row in rows_of(command, folder, counts, given.ways))
    print(f"{counts[1]} images; load of the machine at the end {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
