"""What runs on a worker: it is made ready once, then does its part of the items and sends the results back as bytes."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from cellkit.errors import StopAll, UserError, of_place, place_fault
from cellkit.machine import keep_freed_memory
from cellkit.room import limit_worker

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
MARK = ".cellkit-shared-"  # a file by which a worker sees that a folder is the same folder
TOLD_S = 0.05
IS_WORKER = False  # this process is a worker: loops in it do not go to a cluster
_ALONE = threading.Lock()  # held while a part is done: folder, variables and the model that is kept are the process's


class Guarded:
    """Calls `fn` on one item and returns (result, None) or (None, reason)."""

    def __init__(self, fn: Callable):
        self.fn = fn

    def __call__(self, item: Any) -> tuple[Any, str | None]:
        """Return what came of an item; raises `StopAll` where no item is at fault."""
        keep_freed_memory()  # in whichever process this is: arrays of one image serve the next
        try:
            return self.fn(item), None
        except StopAll:
            raise
        except Exception as error:  # any bad item is left out and reported, whatever its library raises
            if of_place(error):  # no item is at fault, and the others would fail alike
                raise StopAll(str(place_fault(error))) from error
            return None, f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Expected:
    """What a worker has to be like.

    Attributes
    ----------
    version, code : str
        Of cellkit: its version and the hash of its files.
    folder : str
        The current folder, from which relative names count.
    marks : tuple of str
        Files that were just made in the folders that are written to.
    environ : tuple of (name, value)
        The variables of cellkit.
    threads : int
        That libraries may use.
    """

    version: str
    code: str
    folder: str
    marks: tuple[str, ...]
    environ: tuple[tuple[str, str], ...]
    threads: int


@dataclass(frozen=True)
class Answer:
    """What came of a part: the pairs of `Guarded`, the seconds it took, input files that this worker does not see.

    `refused` is why the worker is not fit for the work, `raised` an error that ends the loop.
    """

    pairs: tuple[tuple[Any, str | None], ...] = ()
    seconds: float = 0.0
    unseen: tuple[str, ...] = ()
    host: str = ""
    refused: UserError | None = None
    raised: BaseException | None = None


def run_part(work: bytes, items: bytes, expected: bytes, topic: str = "", part: int = 0) -> bytes:
    """Do a part of a loop on a worker; one at a time, whatever threads the worker has.

    Parameters
    ----------
    work : bytes
        The function, pickled. What it was unpickled to is kept from part to part: a model that it loads, it loads once.
    items : bytes
        A list of items, pickled.
    expected : bytes
        An `Expected`, pickled.
    topic, part : str and int
        Under which it is told that the part begins: of items that a worker died over, to know whether it is their doing.

    Returns
    -------
    bytes
        An `Answer`, pickled.
    """
    with _ALONE:
        return _part_done(work, items, expected, topic, part)


def _part_done(work: bytes, items: bytes, expected: bytes, topic: str, part: int) -> bytes:
    host = socket.gethostname()
    refused = _made_ready(expected)
    if refused is not None:
        return pickle.dumps(Answer(refused=refused, host=host))
    begun, pairs, unseen = time.perf_counter(), [], []
    try:
        guarded = _loaded(work)
        if topic:
            _tell(topic, part)
        for item in pickle.loads(items):
            pairs.append(guarded(item))
            if pairs[-1][1] is not None:
                unseen += [path for path in files_in(item) if not os.path.exists(path)]
    except BaseException as error:  # StopAll, an interrupt: the loop ends where it began, as it would there
        return pickle.dumps(Answer(raised=error, host=host))
    return pickle.dumps(Answer(tuple(pairs), time.perf_counter() - begun, tuple(unseen), host), protocol=5)


def _tell(topic: str, part: int) -> None:
    """Tell that a part begins, and wait until that is on its way: what follows may be the end of this process."""
    from distributed import get_worker

    get_worker().log_event(topic, part)
    time.sleep(TOLD_S)


@lru_cache(maxsize=2)
def _loaded(work: bytes) -> Guarded:
    return Guarded(pickle.loads(work))


@lru_cache(maxsize=1)  # of the last alone: between its parts another command's may have been done here
def _made_ready(expected: bytes) -> UserError | None:
    """Make this process like the one that asks, until another does; return why it cannot be."""
    global IS_WORKER
    IS_WORKER = True
    from cellkit import __version__

    wanted: Expected = pickle.loads(expected)
    where = f"the worker on {socket.gethostname()}"
    if (__version__, own_code()) != (wanted.version, wanted.code):
        other = "other code of the same version" if __version__ == wanted.version else f"cellkit {__version__}"
        return UserError(
            f"{where} has {other} ({Path(__file__).parents[1]}), here is cellkit {wanted.version}",
            "let workers use this environment: the same path on all machines, or the same version installed on each",
        )
    try:
        os.chdir(wanted.folder)
    except OSError as error:
        return not_shared(wanted.folder, socket.gethostname(), error.strerror or "")
    for mark in wanted.marks:
        if not os.path.exists(mark):
            return not_shared(os.path.dirname(mark), socket.gethostname(), "another folder of that name")
    for name in [name for name in os.environ if name.startswith("CELLKIT_")]:
        del os.environ[name]
    os.environ.update(wanted.environ)
    set_threads(wanted.threads)
    limit_worker(memory_of_worker())
    return None


def memory_of_worker() -> int | None:
    """Return the bytes that this worker may hold before Dask gives it nothing more to do; None where it has no limit."""
    from distributed import get_worker

    try:
        manager = get_worker().memory_manager
    except (ValueError, AttributeError):  # this process is no worker
        return None
    return int(manager.memory_limit * (manager.memory_pause_fraction or 1)) if manager.memory_limit else None


@lru_cache
def own_code() -> str:
    """Return the hash of the files of this package, as this process found them first."""
    from cellkit.manifest import package_sha256

    return package_sha256()


def not_shared(path: str, host: str, why: str = "") -> UserError:
    """Return the error of a place that is here and not on another machine."""
    return UserError(
        f"'{path}' is here, and not on {host}{f' ({why})' if why else ''}: no file system that both share",
        "put images and results where all machines see them under the same name, and start the command there",
    )


def set_threads(count: int) -> None:
    """Let libraries of this process use so many threads: those loaded already, and those that will be."""
    for name in THREADS:
        os.environ[name] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(count)


def files_in(value: Any, depth: int = 3) -> list[str]:
    """Return the paths that an item, or the arguments of a partial function, hold; plain text is not taken for a path.

    Examples
    --------
    >>> files_in(("a", Path("b.tif"), [Path("c.tif")]))
    ['b.tif', 'c.tif']
    """
    if isinstance(value, Path):
        return [str(value)]
    if depth == 0:
        return []
    if isinstance(value, partial):
        inner: Sequence = [*value.args, *value.keywords.values()]
    elif is_dataclass(value) and not isinstance(value, type):
        inner = [getattr(value, one.name, None) for one in fields(value)]
    elif isinstance(value, tuple | list):
        inner = value[:16]
    else:
        return []
    return [path for one in inner for path in files_in(one, depth - 1)]
