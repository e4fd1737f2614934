"""A training in two processes, one of which is killed on the way: for the tests of every backend that shares batches."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def rank_of(process: psutil.Process) -> str | None:
    try:
        environ = process.environ()
    except psutil.Error:
        return None
    return environ.get("RANK")


def one_is_killed(train: Callable[[], Path], out: Path, after_rows: int) -> list[dict[str, str]]:
    """Kill one of two processes when the history has more rows than that: all end, within a minute; return its rows."""
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(train)
        while not ((out / "history.csv").is_file() and len(rows(out)) > after_rows):
            assert not killed.done(), killed.exception()
            time.sleep(0.02)
        ranks = [one for one in psutil.Process().children(recursive=True) if rank_of(one) is not None]
        assert {os.readlink(f"/proc/{one.pid}/fd/0").partition(":")[0] for one in ranks} == {"pipe"}, "ours: see below"
        next(one for one in ranks if rank_of(one) == "1").kill()
        with pytest.raises(RuntimeError, match="a process of the training ended with exit status"):
            killed.result(timeout=60)
    assert len(ranks) == 2 and not psutil.wait_procs(ranks, timeout=5)[1], "all have ended"
    return rows(out)
