"""What killed commands left: keys go at once, job logs after a week, and nothing of a process that lives."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from cellkit.cluster.leftovers import LOGS_KEPT_S, here, owned, sweep_keys, sweep_marks
from cellkit.cluster.remote import MARK


def ended() -> str:
    """Return the beginning of a name of a process that is no more."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return f"{here()}+{process.pid}-"


def test_keys_of_ended_processes_go_and_logs_stay_for_a_week(tmp_path):
    dead = ended()
    names = {
        "keys": dead + "a",
        "logs": dead + "b",
        "old": dead + "c",
        "mine": owned() + "d",
        "other": "host+1-e",
        "container": dead.replace("+", "0+")
        + "f",  # on this machine, under its name, where another process has that number
        "x": "x",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / ".dask-jobqueue.worker.key.1").touch()
    for name in (names["logs"], names["old"]):
        (tmp_path / name / "dask.err").touch()
    old = tmp_path / names["old"] / "dask.err"
    os.utime(old, (0, old.stat().st_mtime - LOGS_KEPT_S - 60))
    sweep_keys(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        names[one] for one in ("logs", "mine", "other", "container", "x")
    }
    assert [path.name for path in (tmp_path / names["logs"]).iterdir()] == ["dask.err"]
    assert len(list((tmp_path / names["mine"]).iterdir())) == 1


def test_marks_of_ended_processes_go(tmp_path):
    kept = [owned(MARK) + "a", f"{MARK}other-host+1-b", "image.tif"]
    for name in (*kept, MARK + ended() + "c"):
        (tmp_path / name).touch()
    sweep_marks(str(tmp_path), MARK)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    sweep_marks(str(tmp_path / "nowhere"), MARK)


def test_a_machine_is_told_from_its_containers():
    """One with the network of the machine has its name too, and other numbers of processes."""
    node = platform.node()
    assert here() == (f"{node}-{Path('/proc/self/ns/pid').stat().st_ino}" if sys.platform == "linux" else node)
