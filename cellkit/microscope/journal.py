"""What a batch has done, item by item, so that one that was killed goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cellkit import __version__
from cellkit.errors import UserError
from cellkit.files import content_of, crc32_of
from cellkit.microscope.png import TEMPORARY
from cellkit.parallel import StopAll

JOURNAL = ".conversion.jsonl"
LOCK = ".conversion.lock"
FORMAT = 2  # of the journal and the pictures: another one, or another version of the package, makes everything anew


class Journal:
    """What a batch has done so far: one JSON line per item, added by the main process; a torn last line counts as none.

    Parameters
    ----------
    path : Path
        Read when it exists.
    how : object
        What the results depend on besides the items; lines made in another way are not used.
    """

    def __init__(self, path: Path, how: Any):
        self.path = path
        ground = json.dumps([FORMAT, __version__, how], sort_keys=True, default=str)
        self.how = crc32_of(ground.encode())
        self.done: dict[str, dict] = {}
        for line in path.read_bytes().split(b"\n") if path.is_file() else ():
            entry = self._entry(line)
            if entry is not None:
                self.done[entry["item"]] = entry

    def _entry(self, line: bytes) -> dict | None:
        try:
            check, text = line.split(b" ", 1)
            entry = json.loads(text) if int(check, 16) == crc32_of(text) else None
        except ValueError:
            return None
        return entry if entry and entry["how"] == self.how else None

    def __enter__(self) -> Journal:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = self.path.is_file() and self.path.read_bytes()[-1:] not in (b"", b"\n")
            self._file = open(self.path, "ab")  # noqa: SIM115  closed by __exit__
            self._file.write(b"\n" if torn else b"")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self.path.parent} cannot be written: {error.strerror}", "choose another folder"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, item: str, entry: Mapping[str, Any]) -> None:
        """Note that an item is done, at once."""
        text = json.dumps({"item": item, "how": self.how, **entry}, ensure_ascii=True).encode()
        try:
            self._file.write(b"%08x %s\n" % (crc32_of(text), text))
            self._file.flush()
        except OSError as error:
            raise StopAll(
                f"{self.path} cannot be written: {error.strerror}", "free space, then repeat the command"
            ) from error

    def forget(self) -> None:
        """Remove the journal: what it was kept for is finished."""
        self.path.unlink(missing_ok=True)


def still_there(folder: Path, files: Mapping[str, Sequence[int]]) -> bool:
    """Tell whether files are what was written: {name: (bytes, CRC-32)}."""
    try:
        return all(list(content_of(folder / name)) == list(known) for name, known in files.items())
    except OSError:
        return False


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the lock of an output folder, and remove what a killed process left half-written in it.

    Raises
    ------
    UserError
        The folder cannot be made or written, or another conversion writes to it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(f"another conversion writes to {folder}", "wait for it, or choose another folder") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}", "choose another folder") from error
    try:
        remove_remains(folder)
        yield
    finally:
        lock.release()


def remove_remains(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder."""
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)
