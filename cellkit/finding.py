"""A loaded model on one item after another, for the one loop: opened once in each process, on as many threads as are its share.

`Finder` is what `cellkit.parallel.map_items` calls: in one process it gives a model that looks at several images together those
ahead; in several each opens the model for itself, from its checkpoint.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from cellkit.cluster.opened import current
from cellkit.errors import counted
from cellkit.log import LOG
from cellkit.machine import GB, memory, note_elsewhere

T = TypeVar("T")
Load = TypeVar("Load", bound=Callable[..., Any])
_OPENED: dict[str, Any] = {}  # in a worker: the model it has open, by its key; one at a time


class Found(NamedTuple):
    """What a model found in one item.

    Attributes
    ----------
    about : object
        What `read` told of the item.
    cells : Instances
    left_out : Counter
        Cells by the reason why they were left out, cut or doubtful.
    elsewhere_s : float
        CPU seconds that a process other than the one that asks spent on it.
    """

    about: Any
    cells: Any
    left_out: Counter[str]
    elsewhere_s: float = 0.0


class Finder(Generic[T]):
    """A loaded model as a function of one item, to be called with each in turn.

    When a model that takes several images fails, each that it holds is tried alone, so that only the one at fault is lost.

    Parameters
    ----------
    segment : callable
        A stream of (H, W, 3) uint8 images -> the cells of each. For other processes a `Segmenter` with an ``opener``.
    read : callable
        Item -> (image, what else is to be told of it); picklable likewise.
    items : sequence
        Those that it will be called with, in their order; other processes need not know.
    workers : int
        Processes that share the work, and the threads of this machine.

    Raises
    ------
    Exception
        Called with an item: what `read` or the model raised on it.
    """

    def __init__(
        self, segment: Callable, read: Callable[[T], tuple[Any, Any]], items: Iterable[T] = (), workers: int | None = 1
    ):
        self.segment, self.read = segment, read
        self.threads = threads_each(workers) if workers and workers > 1 else 0
        self.place, self.is_away = os.getcwd(), False
        self._begin(items)

    def _begin(self, items: Iterable[T]) -> None:
        self._ahead: Iterator[tuple[int, T]] = enumerate(items)
        self._waiting: deque[tuple[int, Any, Any]] = deque()  # position, image, about
        self._made: dict[int, Found | Exception] = {}
        self._stream: Iterator[Any] | None = None
        self._called = 0

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs: all but the items ahead."""
        return {name: getattr(self, name) for name in ("segment", "read", "threads", "place")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, is_away=True)
        self._begin(())

    def __call__(self, item: T) -> Found:
        """Return what is found in an item."""
        if self.is_away:
            began = time.process_time()
            self._settle()
            self._begin([item])
            return self._answer()._replace(elsewhere_s=time.process_time() - began)
        return self._answer()

    def _answer(self) -> Found:
        position, self._called = self._called, self._called + 1
        while position not in self._made:
            if not self._advance() and position not in self._made:
                raise RuntimeError("the model gave no answer")
        made = self._made.pop(position)
        if isinstance(made, Exception):
            raise made
        return made

    def _advance(self) -> bool:
        """Take what the model answers next; where it fails, each image it holds is tried alone. False: there is no more."""
        self._stream = self._stream or iter(self.segment(self._images()))
        try:
            cells = next(self._stream)
        except StopIteration:
            return False
        except Exception:
            if not self._waiting:
                raise
            self._stream = None
            self._try_each()
        else:
            position, _, about = self._waiting.popleft()
            self._made[position] = self._found(about, cells)
        return True

    def _images(self) -> Iterator[Any]:
        for position, item in self._ahead:
            try:
                image, about = self.read(item)
            except Exception as error:  # whatever a reader raises on a damaged file: told when its turn comes
                self._made[position] = error
                continue
            self._waiting.append((position, image, about))
            yield image

    def _try_each(self) -> None:
        while self._waiting:
            position, image, about = self._waiting.popleft()
            try:
                (cells,) = self.segment([image])
            except Exception as error:
                self._made[position] = error
            else:
                self._made[position] = self._found(about, cells)

    def _found(self, about: Any, cells: Any) -> Found:
        counts = getattr(self.segment, "left_out", None)
        left_out = Counter(counts or {})
        if counts:
            counts.clear()
        return Found(about, cells, left_out)

    def _settle(self) -> None:
        """Be in the folder that relative paths count from, and use no more threads than are this process's share."""
        if os.getcwd() != self.place and Path(self.place).is_dir():
            os.chdir(self.place)
        torch = sys.modules.get("torch")
        if torch is not None and self.threads and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)


def take_over(found: Found) -> None:
    """Count what another process spent as spent by this one."""
    note_elsewhere(found.elsewhere_s)


# ---- one model in several processes ----------------------------------------------------------------------------------
def opens_again(load: Load) -> Load:
    """Let what a backend's ``load`` returns be opened in other processes: by the same call, once in each.

    For a function of a module, with picklable arguments; paths may be relative.
    """

    @wraps(load)
    def opened(*arguments: Any, **named: Any) -> Any:
        segmenter = load(*arguments, **named)
        segmenter.opener = Opener(opened, arguments, named)
        return segmenter

    return opened


class Opener:
    """A call that opens a model, kept to be done again."""

    def __init__(self, load: Callable[..., Any], arguments: Sequence[Any], named: dict[str, Any] | None = None):
        self.load, self.arguments, self.named = load, tuple(arguments), named or {}

    def __call__(self) -> Any:
        """Open it."""
        return self.load(*self.arguments, **self.named)


def opened_here(opener: Callable[[], Any], key: str, place: str) -> Any:
    """Return the model of a key in this process: opened the first time it is asked for, instead of the one before."""
    if key not in _OPENED:
        _OPENED.clear()  # the memory of the one before
        if os.getcwd() != place and Path(place).is_dir():
            os.chdir(place)
        _OPENED[key] = opener()
    return _OPENED[key]


def processes_for(segment: Any, workers: int, desc: str) -> int | None:
    """Return how many processes share the images of a model, as `map_items` takes it; fewer than asked for is said.

    None, this process alone, where the model cannot be opened again; one where it is on the GPU of this machine. On a cluster 1:
    as many as it has.
    """
    on_cluster = current() is not None
    if getattr(segment, "opener", None) is None:
        if on_cluster or workers > 1:
            LOG.info(f"{desc}: in one process, as this model cannot be opened in others (its load lacks @opens_again)")
        return None
    if on_cluster:
        return 1
    if workers > 1 and on_gpu():
        LOG.info(
            f"{desc}: in one process, not {workers}: each would hold the model on the GPU, and they take turns there"
        )
        return 1
    return workers


def on_gpu() -> bool:
    """Tell whether networks are computed on a GPU here; False while nothing has loaded one."""
    torch = sys.modules.get("torch")
    return torch is not None and (torch.cuda.is_available() or torch.backends.mps.is_available())


def processes_that_fit(workers: int, needed_bytes: Sequence[int], desc: str) -> int:
    """Return how many processes may work at once on items that take so much memory each; fewer than asked for is said.

    Examples
    --------
    >>> processes_that_fit(8, [10, 10], "find")
    8
    """
    largest = sorted(needed_bytes, reverse=True)[:workers]
    free = memory()["free_gb"] * GB if sum(largest) > GB / 2 else float("inf")
    fit = workers
    while fit > 1 and sum(largest[:fit]) > free:
        fit -= 1
    if fit < workers:
        LOG.warning(
            f"{desc}: {counted(fit, 'process', 'processes')}, not {workers}, which would take about "
            f"{sum(largest) / GB:.1f} GB of memory; {free / GB:.1f} GB are free"
        )
    return fit


def threads_each(workers: int) -> int:
    """Return the threads of each of several processes: together no more than the processors that are granted.

    OMP_NUM_THREADS, where it is less, holds.
    """
    from joblib import cpu_count

    share = max(1, cpu_count() // workers)
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(told)) if told.isdecimal() and int(told) else share
