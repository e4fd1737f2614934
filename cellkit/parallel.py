"""The one loop over many items: in order, with progress, a failing item reported, the same for any number of workers.

It runs in this process, in several (joblib), or on the cluster that is open (`cellkit.cluster`); nobody else needs to know.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple, TypeVar

from cellkit.cluster.loop import pairs_on
from cellkit.cluster.opened import current
from cellkit.cluster.remote import Guarded
from cellkit.errors import Quarantined, StopAll, UserError, of_place, place_fault
from cellkit.log import LOG
from cellkit.machine import in_jupyter

T = TypeVar("T")
R = TypeVar("R")
__all__ = ["LOG_EVERY_S", "StopAll", "map_all", "map_items", "progress"]
LOG_EVERY_S = 10.0


def progress(items: Iterable[T], desc: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Yield the items: a tqdm bar in JupyterLab, otherwise a plain line in the log every ten seconds.

    Parameters
    ----------
    items : iterable
    desc : str
        What is being done, in a word or two.
    total : int, optional
        How many there are, when `items` has no length.
    """
    total = len(items) if total is None and hasattr(items, "__len__") else total
    if in_jupyter():
        from tqdm.auto import tqdm

        yield from tqdm(items, desc=desc, total=total, unit=unit)
        return
    yield from _logged(items, desc, total)


def _logged(items: Iterable[T], desc: str, total: int | None) -> Iterator[T]:
    begun = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last >= LOG_EVERY_S:
            last = now
            left = f", about {(now - begun) / done * (total - done):.0f} s left" if total and done else ""
            LOG.info(f"{desc}: {done}{f' of {total}' if total else ''}{left}")
        yield item


def map_items(
    fn: Callable[[T], R],
    items: Iterable[T],
    desc: str,
    workers: int | None = None,
    name: Callable[[T], str] = str,
    then: Callable[[T, R], object] | None = None,
) -> tuple[list[R | None], list[Quarantined]]:
    """Apply `fn` to every item, in order; leave out and report the items that raise.

    Parameters
    ----------
    fn : callable
        One item in, one result out. Where `workers` is given it is picklable and small: paths instead of weights, which it
        loads once (a worker of a cluster keeps it from item to item).
    workers : int, optional
        Processes. Where a cluster is open (`cellkit.cluster.opened.cluster_of`), any number is those of the cluster. None:
        this process alone, there too.
    name : callable
        What an item that was left out is called in the report.
    then : callable, optional
        Called here with each item and its result as soon as it is there, in the order of the items: to write down what is
        done while the rest is under way.

    Returns
    -------
    results : list
        One entry per item, in the order of the items; None where it was left out.
    quarantined : list of Quarantined

    Raises
    ------
    StopAll
        `fn` or `then` raised it.
    UserError
        A worker process was killed; of a cluster: it cannot be had, or its workers are not fit for the work.
    """
    items: Sequence[T] = list(items)
    results: list[R | None] = []
    quarantined: list[Quarantined] = []
    with closing(_pairs(fn, items, desc, workers)) as pairs:
        for item, (result, reason) in zip(items, pairs, strict=True):
            results.append(result)
            if reason is not None:
                quarantined.append(Quarantined(name(item), reason))
            elif then is not None:
                then(item, result)
    return results, quarantined


def map_all(
    fn: Callable[[T], R],
    items: Iterable[T],
    desc: str,
    workers: int | None = None,
    name: Callable[[T], str] = str,
    then: Callable[[T, R], object] | None = None,
) -> list[R]:
    """Apply `fn` to every item, in order, as `map_items` does, where none may be left out: what one raises ends the loop.

    Raises
    ------
    Exception
        What `fn` raised first; of another process as a `StopAll` that says it.
    """
    strict = _Strict(fn, name)

    def note(item: T, result: R | _Fault) -> None:
        if isinstance(result, _Fault):  # told in the order of the items, whichever process failed first
            raise strict.error or StopAll(result.problem, result.remedy)
        if then is not None:
            then(item, result)

    results, lost = map_items(strict, items, desc, workers, name, note)
    if lost:  # it took its worker with it
        raise StopAll(f"{lost[0].item}: {lost[0].reason}")
    return results


class _Fault(NamedTuple):
    """Why an item failed."""

    problem: str
    remedy: str = ""


class _Strict:
    """Calls `fn` on one item; returns its result, or why it failed, and keeps what it raised here."""

    def __init__(self, fn: Callable, name: Callable[[Any], str]):
        self.fn, self.name = fn, name
        self.error: Exception | None = None

    def __call__(self, item: Any) -> Any:
        try:
            return self.fn(item)
        except Exception as error:
            self.error = self.error or error
            if isinstance(error, UserError):
                return _Fault(error.problem, error.remedy)
            place = str(place_fault(error)) if of_place(error) else ""
            return _Fault(place or f"{self.name(item)}: {type(error).__name__}: {error}")


def _pairs(fn: Callable, items: Sequence, desc: str, workers: int | None) -> Iterator[tuple[Any, str | None]]:
    """Yield (result, None) or (None, reason) of every item, in order."""
    cluster = None if workers is None else current()
    if cluster is not None:
        with closing(pairs_on(cluster, fn, items)) as stream:
            yield from progress(stream, desc, total=len(items))
        return
    if workers in (None, 1):
        yield from map(Guarded(fn), progress(items, desc))
        return
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import BrokenProcessPool

    # A worker that holds much more memory than at its start is replaced. joblib warns of it in a thread of its own; where
    # warnings are errors that thread would end, and its results would be waited for in vain.
    warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
    stream = Parallel(n_jobs=workers, return_as="generator")(delayed(Guarded(fn))(item) for item in items)
    try:
        yield from progress(stream, desc, total=len(items))
    except BrokenProcessPool as error:
        if "un-serialize" in str(error):
            last = str(error.__cause__).rstrip('"\n').rpartition("\n")[2]
            raise UserError(f"{desc}: a worker process could not begin: {last}", "see to it, and repeat") from error
        raise UserError(
            f"{desc}: a worker process was killed, perhaps for want of memory", "use fewer workers and repeat"
        ) from error
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # joblib's: that work under way was given up
            stream.close()
