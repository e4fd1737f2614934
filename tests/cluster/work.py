"""What the tests let a cluster do: functions that workers find by their module."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from cellkit.errors import StopAll, UserError
from cellkit.machine import check_memory


def ask_for(size: int) -> int:
    """Ask whether there is room for so many bytes."""
    check_memory(Path("image.tif"), size, "finding the cells of")
    return size


def halve(number: int) -> int:
    if number % 2:
        raise UserError(f"{number} is odd", "give an even number")
    return number // 2


def kill_at_five(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
    return number


def die_once(item: tuple[int, Path]) -> int:
    """Kill the worker where no other was killed over this item before."""
    number, folder = item
    if number % 4 == 1 and not (folder / str(number)).exists():
        (folder / str(number)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def stop_at_three(number: int) -> int:
    if number == 3:
        raise StopAll("the disk is full", "free space")
    return number


def where(number: int) -> tuple[int, str | None, str, str | None]:
    return os.getpid(), os.environ.get("OMP_NUM_THREADS"), os.getcwd(), os.environ.get("CELLKIT_DATA")


def size_of(path: Path) -> int:
    return path.stat().st_size


def slowly(number: int) -> int:
    time.sleep(0.5)
    return number


_UNDER_WAY: list[int] = []


def together(number: int) -> int:
    """Return how many of these calls were under way in this process at once."""
    _UNDER_WAY.append(number)
    time.sleep(0.02)
    seen = len(_UNDER_WAY)
    _UNDER_WAY.remove(number)
    return seen
