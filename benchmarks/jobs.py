"""Many trainings at once, each in a process with one thread, until the time is up; what is finished is a row of a CSV.

A row that is there is not made again: kill and repeat a command as you like. Jobs begin in the order given, so that what is
there when the time is up is the beginning of that order, but for the few that were under way.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Job = TypeVar("Job")
ONE_THREAD = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OPENCV_FOR_THREADS_NUM",
)
DEVICES = ("auto", "cpu", "cuda")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add how many jobs at once, where, and for how long."""
    parser.add_argument("--workers", type=int, default=1, help="processes, each with one thread (default 1)")
    parser.add_argument(
        "--device", choices=DEVICES, default="auto", help="auto: the GPU, shared by all, where there is one"
    )
    minutes = {"dest": "stop_after", "metavar": "MINUTES", "type": float, "default": 0.0}
    parser.add_argument("--minutes", **minutes, help="stop then with what there is (default 0: never)")


def prepare(device: str) -> None:
    """Let this process and those it starts use one thread each, and the GPU or not; call it before torch is imported.

    Raises
    ------
    SystemExit
        There is no GPU, and one was asked for.
    """
    os.environ |= dict.fromkeys(ONE_THREAD, "1")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            sys.exit("--device cuda, and torch sees no GPU here")


class _Caught:
    """Calls a function on one job; returns (job, result, "") or (job, None, what went wrong)."""

    def __init__(self, work: Callable):
        self.work = work

    def __call__(self, job: Any) -> tuple[Any, Any, str]:
        try:
            return job, self.work(job), ""
        except Exception:
            return job, None, traceback.format_exc()


def run_all(work: Callable[[Job], Any], jobs: Sequence[Job], workers: int, until: float) -> Iterator[tuple[Job, Any]]:
    """Yield (job, result) as jobs end; what fails is printed and left out; what is under way when time is up is given up.

    Parameters
    ----------
    work : callable
        One job in, one result out; picklable.
    workers : int
        1 = in this process: then the job that is under way is finished.
    until : float
        Of `time.monotonic`; 0 = no limit.
    """
    ends = map(_Caught(work), jobs) if workers == 1 else _in_processes(work, jobs, workers, until)
    begun, failed = time.monotonic(), 0
    for number, (job, result, problem) in enumerate(ends, 1):
        if problem:
            failed += 1
            print(f"{job} failed:\n{problem}", file=sys.stderr, flush=True)
        else:
            yield job, result
        seconds = time.monotonic() - begun
        print(
            f"{number} of {len(jobs)} jobs, {seconds:.0f} s, {seconds / number:.1f} s each", file=sys.stderr, flush=True
        )
        if until and time.monotonic() > until:
            break
    if failed:
        print(f"{failed} job(s) failed; the others are in the table", file=sys.stderr, flush=True)


def _in_processes(work: Callable, jobs: Sequence, workers: int, until: float) -> Iterator[tuple[Any, Any, str]]:
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(
        workers, maxtasksperchild=50
    ) as pool:  # leaving it ends the processes
        ends = pool.imap_unordered(_Caught(work), jobs)
        for _ in jobs:
            try:
                yield ends.next(max(until - time.monotonic(), 0.01) if until else None)
            except multiprocessing.TimeoutError:
                print("the time is up", file=sys.stderr, flush=True)
                return


def until_of(minutes: float) -> float:
    """Return when the time is up, of `time.monotonic`; 0 = never."""
    return time.monotonic() + 60 * minutes if minutes else 0.0


# ---- rows ----------------------------------------------------------------------------------------------------------
def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows that are there; one that was cut off by a kill is left out."""
    if not Path(path).is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if None not in row and None not in row.values()]


def add_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows that belong together, whole and on the disk; the last column must not be empty.

    One process writes a table: the one that gave out the jobs.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    there = path.read_bytes() if path.is_file() else b""
    with open(path, "a", newline="", encoding="utf-8") as file:
        if there and not there.endswith(b"\n"):
            file.write("\n")
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if not there:
            writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())
