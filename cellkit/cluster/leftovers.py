"""What a command that was killed left behind: keys, job logs, marks; the next one on the same machine removes them."""

from __future__ import annotations

import os
import platform
import shutil
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

LOGS_KEPT_S = 7 * 86400.0


@cache
def here() -> str:
    """Return the machine; of a container its own numbers of processes too: it may be called like the machine that it is on."""
    with suppress(OSError):  # Linux alone has it
        return f"{platform.node()}-{os.stat('/proc/self/ns/pid').st_ino}"
    return platform.node()


def owned(prefix: str = "") -> str:
    """Return the beginning of a name by which it is told later whose it is: machine and process.

    Examples
    --------
    >>> is_left(owned(".mark-") + "x1", ".mark-")
    False
    """
    return f"{prefix}{here()}+{os.getpid()}-"


def is_left(name: str, prefix: str = "") -> bool:
    """Return whether a name is that of a process of this machine which is no more.

    Examples
    --------
    >>> is_left("keys"), is_left("another-machine+1-x")
    (False, False)
    """
    import psutil

    host, _, rest = name.removeprefix(prefix).rpartition("+")
    pid = rest.partition("-")[0]
    return name.startswith(prefix) and host == here() and pid.isdecimal() and not psutil.pid_exists(int(pid))


def sweep_marks(folder: str, prefix: str) -> None:
    """Remove the files of ended processes that `owned` named so; what cannot be removed stays."""
    with suppress(OSError):
        for entry in os.scandir(folder):
            if entry.name.startswith(prefix) and is_left(entry.name, prefix):
                with suppress(OSError):
                    os.unlink(entry.path)


def sweep_keys(home: Path) -> None:
    """Remove what ended processes left in the folder of keys: keys at once, job logs when they are a week old."""
    for folder in home.iterdir():
        if not is_left(folder.name):
            continue
        logs = []
        with suppress(OSError):
            for path in folder.iterdir():
                if path.name.startswith("."):
                    path.unlink()
                elif time.time() - path.stat().st_mtime < LOGS_KEPT_S:
                    logs.append(path)
        if not logs:
            shutil.rmtree(folder, ignore_errors=True)
