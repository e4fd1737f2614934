"""What a command over many images will take: from headers, from what such work took here before, or from one image, timed.

Headers of a few images and of the largest file tell pixels, and so memory and disk. Seconds a megapixel are kept in the user's
cache after every such command; where none are known, one small image is timed, if there are many. Small work is not forecast,
but what cannot fit is refused all the same.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from cellkit.cells.dataset import evenly_spaced
from cellkit.cluster.opened import current
from cellkit.errors import UserError, counted
from cellkit.fetch.registry import cache_folder
from cellkit.files import read_json, write_json
from cellkit.forecast.fits import GO_ON
from cellkit.forecast.learned import LAST
from cellkit.forecast.speed import machine_key
from cellkit.forecast.words import time_text
from cellkit.log import LOG
from cellkit.machine import RESERVE_BYTES, peak_bytes
from cellkit.manifest import sha256_json
from cellkit.microscope.frames import Frame
from cellkit.microscope.open import inspect_file
from cellkit.room import Memory, check_disks, disk_of, memory_of, reserved, size_text

KEPT_IN = "loops.json"
HEADERS = 32  # that are read, of how many images there may be
WORTH_MPX = 8.0  # less is not forecast: it is done before that is read
TRIAL_FROM = 20  # images: of fewer, one that is timed beforehand is a large part of the work
WORKER_BYTES = 250e6  # of a process that shares a loop: Python and what it imports
DISK_BOUNDS = (0.1, 3.0)  # of a correction of the bytes that are written


@dataclass(frozen=True)
class Sizes:
    """Pictures in the files of a loop: how many, their pixels together, of the largest and of the smallest that was looked at."""

    pictures: float
    px: float
    largest_px: int
    smallest: Frame | None


def sizes_of(frames: Sequence[Frame], every_picture: bool = False, axes: str | None = None) -> Sizes:
    """Return the sizes of images by the headers of a few of them, and of the largest file.

    Parameters
    ----------
    every_picture : bool
        A frame stands for its whole file, with all its scenes and times.
    axes : str, optional
        Of files that do not state them.
    """
    chosen = [frames[k] for k in evenly_spaced(len(frames), HEADERS)]
    largest = max(frames, key=lambda frame: _file_bytes(frame.path), default=None)
    pictures, px, seen = 0, 0, 0
    most, least = 0, (0, None)
    for frame in dict.fromkeys([*chosen, *filter(None, [largest])]):
        with contextlib.suppress(Exception):  # whatever a reader raises: it is left out when its turn comes
            info = inspect_file(frame.path, axes)
            scenes = [scene for scene, _, _ in info.frames()] if every_picture else [frame.scene]
            sizes = [info.series[scene].size("Y") * info.series[scene].size("X") for scene in scenes]
            most = max(most, *sizes)
            if frame in chosen:
                seen, pictures, px = seen + 1, pictures + len(sizes), px + sum(sizes)
                least = min(least, (sum(sizes), frame), key=lambda one: one[0]) if least[1] else (sum(sizes), frame)
    share = len(frames) / max(seen, 1)
    return Sizes(pictures * share, px * share, most, least[1])


def _file_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


@dataclass
class Loop:
    """A command over many images, before and after.

    Attributes
    ----------
    command : str
        "convert", "predict", "measure".
    about : sequence
        What its speed depends on, as plain values: model, settings.
    memory_of_px : callable
        Pixels of an image -> bytes that working on it takes.
    disk_of_px : callable
        (pictures, pixels, cells) -> {place: bytes} that will be written; cells are 0 where they are not known.
    trial : callable, optional
        Works on one image, writes nothing, and returns how many bytes that would be: is timed where no speed is known.
    release : callable, optional
        Lets go of what `memory_of_px` and `trial` opened, such as a model: the loop opens its own.
    workers : int
        Processes; 1 = this one. On a cluster as many as it is asked for.
    worker_bytes : float
        Of memory, of such a process before it takes an image: what it imports, and a model of its own.
    force : bool
        Begin although it does not fit.
    computes : bool
        It computes far more than it reads: on one thread the processor's seconds count, which no other program disturbs.
    every_picture, axes
        As in `sizes_of`.
    """

    command: str
    about: Sequence[Any]
    memory_of_px: Callable[[float], float]
    disk_of_px: Callable[[float, float, float], Mapping[Path, float]]
    trial: Callable[[Frame], int] | None = None
    release: Callable[[], None] | None = None
    workers: int = 1
    worker_bytes: float = WORKER_BYTES
    force: bool = False
    every_picture: bool = False
    axes: str | None = None
    computes: bool = False
    told: dict[str, float] = field(default_factory=dict)
    began: float = 0.0
    began_cpu: float = 0.0
    held: float = 0.0  # by this process beside the image, as earlier work of the kind has shown (bytes)

    @property
    def key(self) -> str:
        """What its speed is kept under."""
        return f"{self.command} {sha256_json([*self.about, machine_key()])[:24]}"

    def begin(self, frames: Sequence[Frame], done: int = 0, cells: int = 0) -> None:
        """Say what the loop will take; refuse what cannot fit.

        Parameters
        ----------
        done : int
            Images of these that an earlier call has done.
        cells : int
            In all images, where that is known.

        Raises
        ------
        UserError
            What is needed, what is free, and what would fit.
        """
        cluster = current()
        self.workers = min(cluster.workers if cluster else self.workers, max(len(frames), 1))
        elsewhere = cluster is not None and cluster.is_elsewhere
        here = 1 if elsewhere else self.workers  # processes of this machine
        sizes = sizes_of(frames, self.every_picture, self.axes)
        share = max(len(frames) - done, 0) / max(len(frames), 1)
        mpx, known = sizes.px * share / 1e6, _kept().get(self.key, {})
        if mpx >= WORTH_MPX and not known:
            known = self._tried(frames, sizes, cells)
        self.held = median(known["held"]) if known.get("held") else 0.0
        shared = max(self.workers if elsewhere else min(self.workers, os.cpu_count() or 1), 1)
        by = _bounded(known.get("disk", []))
        disk = {place: size * share * by for place, size in self.disk_of_px(sizes.pictures, sizes.px, cells).items()}
        if not self.force:
            self._check_memory(sizes, memory_of(), here)
            self._check_disk(disk, round(sizes.pictures * share) + 2)
        self.told = {"mpx": mpx, "shared": shared, "disk_bytes": sum(disk.values()), "factor": by}
        if mpx >= WORTH_MPX:
            self.told["image_bytes"] = self.memory_of_px(sizes.largest_px)
            self.told["peak_bytes"] = self.memory(sizes.largest_px, here)
            if known.get("seconds"):
                self.told["seconds"] = median(known["seconds"]) * mpx / shared
            left = counted(len(frames) - done, "file" if self.every_picture else "image")
            LOG.info(f"forecast: {left}, {self.in_words()}")
        if self.release is not None:
            self.release()
        self.began, self.began_cpu = time.monotonic(), time.process_time()

    def undisturbed(self, seconds: float, of_processor: float) -> float:
        """Return the seconds that count: the clock's, or the processor's, which are what it takes where nothing else runs."""
        torch = sys.modules.get("torch")
        threads = 1 if torch is None else 2 if torch.cuda.is_available() else torch.get_num_threads()
        here = self.workers == threads == 1 and current() is None
        return of_processor if self.computes and here else seconds

    def in_words(self) -> str:
        """Return what it will take in a line."""
        told, parts = self.told, []
        if "seconds" in told:
            parts.append(f"about {time_text(told['seconds'])}")
        parts.append(f"{size_text(told['peak_bytes'])} of memory")
        return ", ".join([*parts, f"{size_text(told['disk_bytes'])} of disk on this computer"])

    def memory(self, px: float, workers: int) -> float:
        """Return the bytes of memory with so many workers, each at an image of so many pixels."""
        processes = workers * self.worker_bytes if workers > 1 else 0
        return max(peak_bytes(), self.held) + processes + workers * self.memory_of_px(px)

    def end(self, written: Iterable[Path]) -> None:
        """Say what it took beside what was said, and keep it for the next forecast.

        Parameters
        ----------
        written : iterable of Path
            Files and folders that were written.
        """
        seconds, size = time.monotonic() - self.began, sum(map(_written_since(self.began), written))
        if self.told.get("mpx", 0) < WORTH_MPX:
            return
        alone = self.undisturbed(seconds, time.process_time() - self.began_cpu)
        busy = seconds > max(1.3 * alone, 20)
        beside = f" ({time_text(alone)} of the processor, beside other work)" * busy
        took = f"{time_text(seconds)}{beside}, {size_text(peak_bytes())} of memory, {size_text(size)} of disk"
        LOG.info(f"took: {took}; forecast: {self.in_words()}")
        kept = _kept()
        own = kept.setdefault(self.key, {})
        new = {"seconds": alone * self.told["shared"] / self.told["mpx"]}
        if self.workers == 1:
            new["held"] = max(peak_bytes() - self.told["image_bytes"], 0.0)
        if size and self.told["disk_bytes"]:
            new["disk"] = size / (self.told["disk_bytes"] / self.told["factor"])
        for name, value in new.items():
            own[name] = [*own.get(name, []), round(value, 4)][-LAST:]
        with contextlib.suppress(OSError, UserError):
            (cache_folder()).mkdir(parents=True, exist_ok=True)
            write_json(cache_folder() / KEPT_IN, kept, indent=1)

    def _tried(self, frames: Sequence[Frame], sizes: Sizes, cells: int) -> dict[str, list[float]]:
        """Return seconds a megapixel and the ratio of the bytes written, of one small image; {} where there are few images."""
        if self.trial is None or len(frames) < TRIAL_FROM or sizes.smallest is None:
            return {}
        one = sizes_of([sizes.smallest], self.every_picture, self.axes)
        with contextlib.suppress(Exception):  # whatever is wrong with that image is said when its turn comes
            self.trial(sizes.smallest)  # the first time sets up
            began, began_cpu = time.monotonic(), time.process_time()
            written = self.trial(sizes.smallest)
            took_s = self.undisturbed(time.monotonic() - began, time.process_time() - began_cpu)
            seconds = took_s / max(one.px / 1e6, 1e-6)
            counted_bytes = sum(self.disk_of_px(one.pictures, one.px, cells).values())
            return {"seconds": [seconds], "disk": [written / counted_bytes] if written and counted_bytes else []}
        return {}

    def _check_memory(self, sizes: Sizes, memory: Memory, workers: int) -> None:
        """Refuse more workers than the memory holds; an image that does not fit alone is left to its turn."""
        room = memory.free + memory.swap
        if workers == 1 or (needed := self.memory(sizes.largest_px, workers)) <= room:
            return
        fitting = next((count for count in range(workers, 0, -1) if self.memory(sizes.largest_px, count) <= room), 0)
        fits = f"it fits with --workers {fitting}" if fitting else "it fits with no number of workers: use --workers 1"
        raise UserError(
            f"{self.command} with {workers} workers takes about {size_text(needed)} of memory, {size_text(room)} are free",
            f"{fits}; {GO_ON}",
        )

    def _check_disk(self, disk: Mapping[Path, float], files: int) -> None:
        """Refuse what the disks have no room for."""
        needs = [
            (disk_of(f"'{place}'", place), size + RESERVE_BYTES * (size > 0), files) for place, size in disk.items()
        ]
        if sum(disk.values()) < RESERVE_BYTES:  # so little is begun without a look, but for a quota or a full disk
            needs = [(place, size, 0) for (place, _, _), size in zip(needs, disk.values(), strict=True)]
        remedy = (
            f"free space, name another place or fewer images, then repeat the command: what is done is kept; {GO_ON}"
        )
        check_disks(needs, remedy)
        for place, size, _ in needs:
            if size > RESERVE_BYTES and not reserved(place.folder, int(size)):
                raise UserError(
                    f"{place.what} needs about {size_text(size)}, which a quota there does not give", remedy
                )


def _bounded(ratios: Sequence[float]) -> float:
    low, high = DISK_BOUNDS
    return min(max(median(ratios), low), high) if ratios else 1.0


def _kept() -> dict[str, dict[str, list[float]]]:
    with contextlib.suppress(OSError, ValueError):
        known = read_json(cache_folder() / KEPT_IN)
        return known if isinstance(known, dict) else {}
    return {}


def _written_since(began: float) -> Callable[[Path], int]:
    """Return a function: the bytes of the files at a path that were written since then (a time of `time.monotonic`)."""
    since = time.time() - (time.monotonic() - began) - 2  # file systems keep seconds

    def size(place: Path) -> int:
        files = [place] if place.is_file() else place.rglob("*") if place.is_dir() else []
        about = [file.stat() for file in files if file.is_file()]
        return sum(one.st_size for one in about if one.st_mtime >= since)

    return size
