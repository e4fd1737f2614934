"""What this machine has: memory and disk that are free, the device models run on, threads, whether a notebook is shown."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellkit.errors import UserError

GB = 1e9
RESERVE_BYTES = 50_000_000  # of a disk, left free
CHECK_MEMORY_FROM_BYTES = 500_000_000  # what takes less is begun without a look at the free memory

DATA_VARIABLE = "CELLKIT_DATA"  # names the folder of real data


def memory() -> dict[str, float]:
    """Return the memory of the machine, or of the container where that allows less, and what is free of it (GB)."""
    import psutil

    machine = psutil.virtual_memory()
    limit, used = (_number_in(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    total, free = machine.total, machine.available
    if limit is not None and limit < total:
        total, free = limit, min(free, limit - (used or 0))
    return {"total_gb": to_gb(total), "free_gb": to_gb(max(free, 0))}


def _number_in(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


def to_gb(count: float) -> float:
    """Return bytes as gigabytes, to one decimal."""
    return round(count / GB, 1)


def check_memory(path: Path, needed_bytes: int, what: str) -> None:
    """Refuse what would take more memory than is free, before it is begun.

    Parameters
    ----------
    path : Path
        The image.
    needed_bytes : int
        An estimate; nothing is checked below `CHECK_MEMORY_FROM_BYTES`.
    what : str
        What is about to be done: "converting", "finding the cells of".

    Raises
    ------
    UserError
        Naming the file, what it takes and what is free.
    """
    if needed_bytes < CHECK_MEMORY_FROM_BYTES:
        return
    free_gb = memory()["free_gb"]
    if needed_bytes > free_gb * GB:
        raise UserError(
            f"{what} {path.name} takes about {needed_bytes / GB:.1f} GB of memory, {free_gb:.1f} GB are free",
            "cut the image into tiles, use fewer workers, or a machine with more memory",
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: for many small operations, which several threads only slow down on a busy machine.

    Measured on two busy cores: following the flows of one 320 x 320 px image takes 6 s on one thread, 65 s on two.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_and_dtype():
    """Return the device to compute on, and bfloat16 where this processor multiplies it natively, else float32.

    Measured on an AVX-512-BF16 processor: one training step of the U-Net takes 0.4 of its float32 time.
    """
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda"), torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if torch.backends.mps.is_available():
        return torch.device("mps"), torch.float32
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.device("cpu"), torch.bfloat16 if native else torch.float32


def in_jupyter() -> bool:
    """Tell whether a person watches: a Jupyter kernel that was not started by the headless runner."""
    import os

    return "ipykernel" in sys.modules and "CELLKIT_HEADLESS" not in os.environ


class NoRoom(UserError):
    """The disk is too small: nothing is wrong with the file."""


def check_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Refuse when the disk of `folder` has no room for `needed_bytes` and a reserve.

    Raises
    ------
    NoRoom
    """
    free = shutil.disk_usage(folder).free
    if needed_bytes + RESERVE_BYTES > free:
        raise NoRoom(
            f"{folder} has {free / 1e6:,.0f} MB free, {what} takes {needed_bytes / 1e6:,.0f} MB",
            "free some space, or name a folder on another disk with --to",
        )


def here(path: str | Path) -> Path:
    """Return `path` counted from the current folder.

    In a notebook opened by hand the current folder is the notebook's own; when that is a folder called ``notebooks``
    beside ``configs``, relative paths count from the folder that holds both, as they do for ``cellkit run``.
    """
    path = Path(path).expanduser()
    if path.is_absolute() or not in_jupyter():
        return path
    for folder in (Path.cwd(), *Path.cwd().parents):
        if folder.name == "notebooks" and (folder.parent / "configs").is_dir():
            return folder.parent / path
    return path
