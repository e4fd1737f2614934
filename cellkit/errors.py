"""Errors that name the cause and the cure, and items of many that are left out."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

AGAIN = "then repeat the command: what is done is kept"
OF_PLACE = {  # errors of the place that is written to, whichever item was under way: what it is, what to do
    errno.ENOSPC: ("the disk is full", f"free space there, or name another place, {AGAIN}"),
    errno.EDQUOT: ("the quota of disk space is used up", f"free space there, or name another place, {AGAIN}"),
    errno.EROFS: ("the file system is read-only", f"make it writable, or name another place, {AGAIN}"),
    errno.EFBIG: ("a file became larger than the file system or a limit allows", f"name another place, {AGAIN}"),
    errno.EIO: ("the disk or network drive fails", f"check it, or name another place, {AGAIN}"),
    errno.ENAMETOOLONG: ("a name is longer than the file system takes", "give shorter names of folder and file"),
    errno.EMFILE: ("too many files are open", f"raise the limit (ulimit -n 4096) or use fewer workers, {AGAIN}"),
}


class UserError(Exception):
    """Bad usage, configuration or input: one line what came and what was wanted, one line what to do.

    The command line prints it without a traceback and exits with 2.

    Examples
    --------
    >>> print(UserError("data is 'cells.xyz', no such folder", "set data: in the config"))
    data is 'cells.xyz', no such folder
    set data: in the config
    """

    def __init__(self, problem: str, remedy: str = ""):
        super().__init__(problem if not remedy else f"{problem}\n{remedy}")
        self.problem, _, self.remedy = str(self).partition("\n")

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows of it: its two lines, as on the command line, and no traceback (IPython's hook)."""
        return [f"UserError: {self}"]


class StopAll(UserError):
    """No fault of the item: a full disk, a folder that cannot be written. The loop ends instead of trying the others."""


_COLLECTED: ContextVar[list[UserError] | None] = ContextVar("where problems are collected", default=None)


@contextmanager
def collected() -> Iterator[list[UserError]]:
    """Collect the errors given to `raise_or_collect` inside the block, instead of ending at the first: to list all at once.

    Examples
    --------
    >>> with collected() as found:
    ...     raise_or_collect(UserError("no image of HEK", "add some"))
    ...     raise_or_collect(UserError("no image of N2a", "add some"))
    >>> len(found)
    2
    """
    found: list[UserError] = []
    token = _COLLECTED.set(found)
    try:
        yield found
    finally:
        _COLLECTED.reset(token)


def raise_or_collect(*errors: UserError) -> None:
    """Raise the first of the errors; inside `collected` note them all and return, so that what else is wrong is found too.

    Raises
    ------
    UserError
        The first of the errors, outside `collected`.
    """
    found = _COLLECTED.get()
    if found is None and errors:
        raise errors[0]
    if found is not None:
        found.extend(errors)


def of_place(error: BaseException) -> bool:
    """Tell whether an error is the fault of a disk or folder, not of the item under way."""
    of_item = (errno.ENAMETOOLONG, errno.EIO)  # its name, or its own bad sector
    return isinstance(error, OSError) and error.errno in OF_PLACE and error.errno not in of_item


def place_fault(error: OSError, place: str | os.PathLike = "") -> UserError | None:
    """Return what to say of an error of the place that is written to; None for another error.

    Parameters
    ----------
    place : path
        What the command writes, where the error itself does not name a file.

    Examples
    --------
    >>> print(place_fault(OSError(errno.EROFS, "Read-only file system", "/cd/a.json")))
    '/cd/a.json': the file system is read-only
    make it writable, or name another place, then repeat the command: what is done is kept
    """
    if error.errno not in OF_PLACE:
        return None
    given = error.filename2 or error.filename  # of two names the one it was to get
    named = os.fspath(given) if isinstance(given, str | os.PathLike) else ""
    if os.path.basename(named).startswith(".tmp-"):
        named = os.path.dirname(named)
    problem, remedy = OF_PLACE[error.errno]
    where = named or os.fspath(place)
    shown = where if len(where) <= 160 else f"{where[:80]}...{where[-60:]}"
    return UserError(f"'{shown}': {problem}" if shown else problem, remedy)


@dataclass(frozen=True)
class Quarantined:
    """One item of many that could not be used: which, and why. The rest goes on; the run ends with exit code 3."""

    item: str
    reason: str

    def in_one_line(self) -> Quarantined:
        """Return the same item with its reason in one line, see `plain_reason`."""
        return Quarantined(self.item, plain_reason(self.reason))


def nearest(word: str, choices: Iterable[Any]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest choice, or an empty string.

    Examples
    --------
    >>> nearest("epocs", ["epochs", "batch_size"])
    " (did you mean 'epochs'?)"
    >>> nearest("zzz", ["epochs"])
    ''
    """
    from difflib import get_close_matches

    match = get_close_matches(str(word), [str(choice) for choice in choices], n=1, cutoff=0.6)
    return f" (did you mean '{match[0]}'?)" if match else ""


def counted(count: int, one: str, several: str = "") -> str:
    """Return a count with its noun (and verb): in the singular for 1, else `several`, by default `one` with an s.

    Examples
    --------
    >>> counted(1, "image"), counted(0, "image"), counted(2, "image has", "images have")
    ('1 image', '0 images', '2 images have')
    """
    return f"{count} {one if count == 1 else several or f'{one}s'}"


def readable(text: str) -> str:
    r"""Return text that can be written as UTF-8: bytes of a file name that are not UTF-8 become ``\xNN``.

    Examples
    --------
    >>> readable("caf\udce9.tif")
    'caf\\xe9.tif'
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character that stands for no byte
        return text.encode("utf-8", "backslashreplace").decode()


def plain_reason(reason: str) -> str:
    """Return the reason why an item was left out as one readable line, the same in every run: without addresses of memory.

    Examples
    --------
    >>> plain_reason("UserError: cannot identify image file <_io.BytesIO object at 0x7f42>\\nexport it again")
    'cannot identify image file; export it again'
    """
    reason = re.sub(r" ?<[\w.]+ object at 0x[0-9a-fA-F]+>", "", reason)
    return "; ".join(readable(reason.removeprefix("UserError: ")).splitlines())
