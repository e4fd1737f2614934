"""What room there is: memory that the machine, its control groups and its limits allow, and file systems to write to.

Swap is no memory to work in: what needs it crawls. It is told apart, as what keeps a process from being ended.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cellkit.errors import UserError

UNLIMITED_BYTES = 2**60  # what control groups of version 1 say where there is no limit is larger
IN_MEMORY = {"tmpfs", "ramfs"}  # file systems where room that is reserved is memory
LIMITS = ("Max address space", "Max data size")  # ulimit -v, ulimit -d
WORKER = "the memory of a worker (cluster.memory)"
_WORKER_BYTES: list[int] = []  # of this process, where it is a worker of a cluster


# ---- memory ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Memory:
    """Memory in bytes: all there is for this process, what is free of it, swap that is free, and who sets the limit."""

    total: int
    free: int
    swap: int = 0
    limited_by: str = "this computer"


def memory_of(root: Path = Path("/")) -> Memory:
    """Return the memory of the machine, or of the control group or limit that allows less; of a worker no more than its own.

    Parameters
    ----------
    root : Path
        Where ``proc`` and ``sys`` are; another tree than that of the system for tests.

    Returns
    -------
    Memory
        Free of a control group is what is left of its limit; pages of files that it holds and can drop count as free.
    """
    found = _machine_memory(root)
    for level in _groups(root):
        if level.total < found.total or level.free < found.free:
            by = level.limited_by if level.free < found.free else found.limited_by
            swap = min(found.swap, level.swap)
            found = Memory(min(level.total, found.total), min(level.free, found.free), swap, by)
    for name, limit in _limits(root):
        if limit < found.free:
            found = Memory(min(limit, found.total), limit, 0, f"the limit of this process ({name.lower()})")
    for limit in _WORKER_BYTES:
        if (free := max(limit - held_bytes(), 0)) < found.free:
            found = Memory(min(limit, found.total), free, 0, WORKER)
    return found


def limit_worker(most_bytes: int | None) -> None:
    """Let this process, a worker, count on no more memory than that, with what it holds already; None = no limit of its own."""
    _WORKER_BYTES[:] = [most_bytes] if most_bytes else []


def is_limited_worker() -> bool:
    """Tell whether this process is a worker that is ended when it holds more than its share."""
    return bool(_WORKER_BYTES)


def held_bytes() -> int:
    """Return the memory that this process holds now, less what it keeps but does not use, which it gives back first.

    A worker keeps what networks free for their next arrays (`machine.keep_freed_memory`).
    """
    import ctypes
    import platform

    import psutil

    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss


def _machine_memory(root: Path) -> Memory:
    told = _numbers(root / "proc/meminfo", 1024)
    if {"MemTotal", "MemAvailable"} <= set(told):
        return Memory(told["MemTotal"], told["MemAvailable"], told.get("SwapFree", 0))
    import psutil

    machine = psutil.virtual_memory()
    return Memory(machine.total, machine.available, psutil.swap_memory().free)


def _groups(root: Path) -> Iterator[Memory]:
    """Yield what the control groups of this process allow, version 2 and 1, from its own up to the outermost."""
    groups = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines() or ["0::/"]:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            for top in (groups, groups / "unified"):
                names = ("memory.max", "memory.current", "inactive_file", "memory.swap.max", "memory.swap.current")
                yield from _levels(top, path, names)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "", "")
            yield from _levels(groups / "memory", path, names)


def _levels(top: Path, path: str, names: tuple[str, str, str, str, str]) -> Iterator[Memory]:
    most, used, droppable, most_swap, used_swap = names
    own = top / path.strip("/")
    inside = ".." not in Path(path).parts  # else that of a container whose groups are another tree
    for folder in (own, *own.parents) if inside else (top,):
        if not folder.is_relative_to(top):
            break
        limit = _number(folder / most)
        if limit is None or limit >= UNLIMITED_BYTES:
            continue
        taken = (_number(folder / used) or 0) - _numbers(folder / "memory.stat").get(droppable, 0)
        swap = UNLIMITED_BYTES  # version 1 counts swap with the memory: what is free of it is not told apart
        if most_swap and (most_of_swap := _number(folder / most_swap)) is not None:
            swap = max(most_of_swap - (_number(folder / used_swap) or 0), 0)
        yield Memory(limit, max(limit - max(taken, 0), 0), swap, "the control group (container, job) of this process")


def _limits(root: Path) -> Iterator[tuple[str, int]]:
    text = _text(root / "proc/self/limits")
    for name in LIMITS:
        if found := re.search(rf"^{name}\s+(\d+)\s", text, re.M):
            yield name, int(found[1])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """Return the number that a file holds; None where there is no such file, or it holds another word ("max")."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _numbers(path: Path, unit: int = 1) -> dict[str, int]:
    """Return the numbers of a file of lines such as ``MemFree: 12 kB`` or ``inactive_file 12``."""
    return {name: int(count) * unit for name, count in re.findall(r"^(\w+):?\s+(\d+)", _text(path), re.M)}


# ---- disks -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Disk:
    """The file system of a folder.

    Attributes
    ----------
    what : str
        What the folder is: "the run folder", "the folder of temporary files", "the cache".
    folder : Path
        It, or the first above it that is there.
    device : int
        Number of the file system.
    free_bytes : int
        `UNLIMITED_BYTES` where it does not say its size, as some that reach over a network do not.
    free_files : int or None
        How many more files it takes; None where it sets no limit of its own.
    read_only : bool
    """

    what: str
    folder: Path
    device: int
    free_bytes: int
    free_files: int | None = None
    read_only: bool = False


def disk_of(what: str, folder: str | Path) -> Disk:
    """Return the file system that a folder is on, or will be.

    Raises
    ------
    UserError
        There is no such drive.
    """
    place = Path(folder).absolute()
    there = next((one for one in (place, *place.parents) if os.path.isdir(one)), None)
    if there is None:
        raise UserError(f"{what} ({place}): there is no '{place.anchor}'", "name a folder on a drive that is there")
    device = there.stat().st_dev
    if not hasattr(os, "statvfs"):
        return Disk(what, there, device, free_on(there))
    about = os.statvfs(there)
    files = about.f_favail if about.f_files else None
    read_only = bool(about.f_flag & os.ST_RDONLY)
    free = about.f_bavail * about.f_frsize if about.f_blocks else UNLIMITED_BYTES
    return Disk(what, there, device, free, files, read_only)


def free_on(folder: str | Path) -> int:
    """Return the bytes that are free on the disk of a folder that is there; `UNLIMITED_BYTES` where it does not say its size."""
    about = shutil.disk_usage(folder)
    return about.free if about.total else UNLIMITED_BYTES


def reserved(folder: Path, needed_bytes: int) -> bool:
    """Tell whether a file of that size can be had, by having it for a moment: quotas of users are told in no other way.

    True as well where the file system does not reserve without writing, and where what it reserves is memory. How large a
    single file may be says nothing: many are written.
    """
    if kind_of(folder) in IN_MEMORY:
        return True
    try:
        import ctypes

        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    except (ImportError, OSError, AttributeError, TypeError):  # TypeError: on Windows
        return True
    import errno

    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
        size = ctypes.c_longlong(needed_bytes)
        if fallocate(file.fileno(), 0, ctypes.c_longlong(0), size) != 0:
            return ctypes.get_errno() not in (errno.ENOSPC, errno.EDQUOT)
    return True


def kind_of(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Return the kind of the file system of a folder, such as "ext4"; "" where the machine does not tell."""
    if not hasattr(os, "major"):
        return ""
    device = folder.stat().st_dev
    lines = (line.split() for line in _text(mounts).splitlines())
    number = f"{os.major(device)}:{os.minor(device)}"
    return next((line[line.index("-") + 1] for line in lines if "-" in line and line[2] == number), "")


def check_disks(needs: list[tuple[Disk, float, int]], remedy: str) -> None:
    """Refuse where a file system cannot take what is to be written.

    Parameters
    ----------
    needs : list of (Disk, bytes, files)
        What each place needs; places on one file system share what is free there.
    remedy : str
        What would fit.

    Raises
    ------
    UserError
        Naming every place, what is free there, and what is needed.
    """
    for disk in (disk for disk, size, _ in needs if disk.read_only and size):
        raise UserError(
            f"{disk.what} is on a read-only file system ({disk.folder})", "make it writable, or name another"
        )
    for device in dict.fromkeys(disk.device for disk, _, _ in needs):
        here = [one for one in needs if one[0].device == device and one[1]]
        wanted, files = sum(size for _, size, _ in here), sum(count for *_, count in here)
        if not here:
            continue
        first = here[0][0]
        named = " and ".join(f"{disk.what} ({disk.folder})" for disk, _, _ in here)
        if wanted > first.free_bytes:
            raise UserError(
                f"{named} {'need' if len(here) > 1 else 'needs'} about {size_text(wanted)}, {size_text(first.free_bytes)} "
                "are free on that disk",
                remedy,
            )
        if first.free_files is not None and files > first.free_files:
            raise UserError(
                f"{named}: about {files:,} files are to be written, the file system takes {first.free_files:,} more",
                "use another file system, or fewer images",
            )


def size_text(count: float) -> str:
    """Return a number of bytes in words.

    Examples
    --------
    >>> size_text(340e6), size_text(2.14e9), size_text(12_000)
    ('340 MB', '2.1 GB', '0.01 MB')
    """
    if count >= 999.5e6:
        return f"{count / 1e9:,.1f} GB"
    return (
        f"{count / 1e6:.0f} MB"
        if count >= 9.5e6
        else f"{count / 1e6:.1f} MB"
        if count >= 95e3
        else f"{count / 1e6:.2f} MB"
    )
