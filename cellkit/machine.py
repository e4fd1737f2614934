"""What this machine has: memory and disk that are free, the device models run on, threads, whether a notebook is shown."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cellkit.errors import UserError
from cellkit.log import LOG
from cellkit.room import free_on, is_limited_worker, memory_of

GB = 1e9
RESERVE_BYTES = 50_000_000  # of a disk, left free
CHECK_MEMORY_FROM_BYTES = 500_000_000  # what takes less is begun without a look at the free memory

KEPT_ARRAY_BYTES = 256 * 2**20  # arrays up to this size come from memory that the process keeps

DATA_VARIABLE = "CELLKIT_DATA"  # names the folder of real data


def memory() -> dict[str, float]:
    """Return the memory of the machine, or of the container or worker where that allows less, and what is free of it (GB)."""
    found = memory_of()
    return {"total_gb": to_gb(found.total), "free_gb": to_gb(found.free)}


def to_gb(count: float) -> float:
    """Return bytes as gigabytes, to one decimal."""
    return round(count / GB, 1)


def peak_bytes() -> int:
    """Return the most memory that this process has held so far; 0 where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


_ELSEWHERE_S = [0.0]  # CPU seconds that worker processes spent for this one


def processor_s() -> float:
    """Return the CPU seconds that this process has spent so far, and those that its workers told of."""
    return time.process_time() + _ELSEWHERE_S[0]


def note_elsewhere(seconds: float) -> None:
    """Count CPU seconds of a worker process as this one's."""
    _ELSEWHERE_S[0] += seconds


def gpu_peak_bytes() -> int:
    """Return the most memory of the GPU that this process has held so far; 0 without one."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def gpu_free_bytes() -> int:
    """Return how much memory of the GPU is free; 0 without one."""
    import torch

    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0


def check_memory(path: Path, needed_bytes: int, what: str) -> None:
    """Refuse what would take more memory than is free, before it is begun.

    Parameters
    ----------
    path : Path
        The image.
    needed_bytes : int
        An estimate; nothing is checked below `CHECK_MEMORY_FROM_BYTES`, but in a worker that has a limit of its own.
    what : str
        What is about to be done: "converting", "finding the cells of".

    Raises
    ------
    UserError
        Naming the file, what it takes and what is free.
    """
    if needed_bytes < CHECK_MEMORY_FROM_BYTES and not is_limited_worker():
        return
    free_gb = memory()["free_gb"]
    if needed_bytes > free_gb * GB:
        raise UserError(
            f"{what} {path.name} takes about {needed_bytes / GB:.1f} GB of memory, {free_gb:.1f} GB are free",
            "cut the image into tiles, raise cluster.memory, or do it without --cluster"
            if is_limited_worker()
            else "cut the image into tiles, use fewer workers, or a machine with more memory",
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


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Let this process keep memory that networks free for their next arrays, instead of giving it back to the system.

    glibc gives arrays back one by one, and each new one is a fault for every page of it: of 21.7 CPU seconds of a starter model
    that finds the cells of 20 images of 256 px, 1.9 are saved. Larger arrays than `KEPT_ARRAY_BYTES` are given back at once.

    Returns
    -------
    bool
        False where the allocator is another, or a person has set it (``GLIBC_TUNABLES``).
    """
    import ctypes
    import platform

    if platform.libc_ver()[0] != "glibc" or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mmap_threshold, trim_threshold = -3, -1  # malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(mmap_threshold, KEPT_ARRAY_BYTES) and mallopt(trim_threshold, 2 * KEPT_ARRAY_BYTES))


@dataclass(frozen=True)
class Arithmetic:
    """What a network computes in; as text, e.g. "float32 on cpu".

    Attributes
    ----------
    device : torch.device
    dtype : torch.dtype
        Of convolutions; weights and losses are float32.
    """

    device: Any
    dtype: Any

    def __str__(self) -> str:
        return f"{self.number_type} on {self.device.type}"

    @property
    def number_type(self) -> str:
        """The name of the number type, "float32"."""
        return str(self.dtype).removeprefix("torch.")

    def autocast(self) -> AbstractContextManager:
        """Return the context in which convolutions are computed in this number type."""
        import torch

        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def placed(self, what: Any) -> Any:
        """Return a tensor (B, C, H, W) or a network on the device, in the order of memory that convolutions are fastest in.

        That is channels last, always: a rule, for a choice by the clock would move the last digits from run to run. Measured
        for the U-Net (AVX2, one thread, processor seconds a megapixel, channels last / first): 9.2 / 10.4 for finding in
        images of 256 px, 11.3 / 14.2 in those of 512 px. Its training has a rule of its own, see `placed_to_train`.
        """
        import torch

        moved = what.to(self.device)
        if isinstance(moved, torch.Tensor):
            return moved.contiguous(memory_format=torch.channels_last)
        return moved.to(memory_format=torch.channels_last)


def arithmetic(precision: str = "auto") -> Arithmetic:
    """Return what networks compute in here.

    Parameters
    ----------
    precision : {"auto", "float32", "bfloat16"}
        auto = bfloat16 where this processor or GPU multiplies it in hardware, else float32. bfloat16 where it does not is
        computed all the same, slowly, which is said once.

    Notes
    -----
    Measured: on a processor with AVX-512-BF16 one training step of the U-Net takes 0.4 of its float32 time in bfloat16; on one
    with AVX2, which has to imitate it, finding cells takes 4 times as long.
    """
    import torch

    if torch.cuda.is_available():
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        device = torch.device("cuda")
        if (
            precision == "float32"
        ):  # else factors are rounded to 10 bits; cellpose.vit asks for that when it is imported
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    elif torch.backends.mps.is_available():
        has, device = False, torch.device("mps")
    else:
        has = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        device = torch.device("cpu")
    if precision == "bfloat16" and not has:
        _say_slow(device.type)
    chosen = precision if precision != "auto" else "bfloat16" if has else "float32"
    return Arithmetic(device, getattr(torch, chosen))


@lru_cache
def _say_slow(device: str) -> None:
    """Say, once, that bfloat16 is imitated."""
    LOG.warning(
        f"precision is bfloat16, which this {device} has to imitate: about 4 times slower; precision: auto is faster"
    )


def in_jupyter() -> bool:
    """Tell whether a person watches: a Jupyter kernel that was not started by the headless runner."""

    return "ipykernel" in sys.modules and "CELLKIT_HEADLESS" not in os.environ


class NoRoom(UserError):
    """The disk is too small: nothing is wrong with the file."""


def check_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Refuse when the disk of `folder` has no room for `needed_bytes` and a reserve.

    Raises
    ------
    NoRoom
    """
    free = free_on(folder)
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


def device_used() -> str:
    """Return what this process computes on: 'cpu', or the GPU that torch saw if torch was used."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name(0)}"
    return "cpu"


def arithmetic_used(precision: str) -> dict[str, Any]:
    """Return what decides the last digits of a result: number type, instructions, threads; {} if torch was not used."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    chosen = arithmetic(precision)
    return {
        "device": chosen.device.type,
        "number_type": chosen.number_type,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
