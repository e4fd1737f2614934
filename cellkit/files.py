"""Files written whole or not at all, and known by their content; CSV among them, safe to open in a spreadsheet."""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from cellkit.errors import UserError, of_place
from cellkit.log import LOG

if TYPE_CHECKING:
    import pandas as pd

PACKAGE = Path(__file__).parent


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced to disk and takes the place of `path`.

    On any error the temporary file is removed and `path` stays as it was. The suffix is kept, because libraries
    choose a format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None and of_place(error):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, busy: str, remedy: str = "", wait: bool = False) -> Iterator[None]:
    """Hold a lock file, whose folder is made where it is missing; with `wait` say that it is `busy`, and wait for it.

    Raises
    ------
    UserError
        Another process holds it (`busy`, `remedy`), or the folder cannot be made or written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise UserError(busy, remedy) from None
        LOG.info(busy)
        lock.acquire()
    except OSError as error:
        why = f"{path.parent} cannot be written: {error.strerror or error}"
        raise UserError(why, "choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8, atomically; return the path."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def write_json(path: str | Path, value: Any, indent: int | None = None) -> Path:
    """Write `value` as JSON (no NaN, keys in the order given), atomically; return the path."""
    return write_text(path, json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; see `decoded`."""
    return json.loads(decoded(Path(path).read_bytes()))


def read_stored(
    path: str | Path, parts: Mapping[str, type] | None = None, needed: Sequence[str] = (), remedy: str = ""
) -> dict[str, Any]:
    """Read a JSON file that cellkit wrote: an object, whose `parts` are of their kinds where they are there and not null.

    Parameters
    ----------
    parts : mapping of str to type, optional
    needed : sequence of str
        Parts that have to be there.
    remedy : str
        What to do where the file is damaged.

    Raises
    ------
    UserError
        The file is damaged: no JSON, or of another kind than it is written.
    """
    try:
        found = read_json(path)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is no JSON", remedy) from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it holds no object of JSON", remedy)
    for name, kind in (parts or {}).items():
        value = found.get(name)
        if not isinstance(value, kind) and (name in needed or value is not None):
            why = f"its part {name} is {type(value).__name__}" if name in found else f"it has no part {name}"
            raise UserError(f"{path} is damaged: {why}", remedy)
    return found


def decoded(content: bytes, errors: str = "strict") -> str:
    r"""Return the text of a file: UTF-8, or UTF-16 or UTF-32 where it begins with their mark, as Windows writes them.

    Raises
    ------
    UnicodeDecodeError
        It is none of these.

    Examples
    --------
    >>> decoded("\xb5m".encode("utf-8-sig")) == decoded("\xb5m".encode("utf-16")) == "\xb5m"
    True
    """
    marks = {"utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)}
    named = next((name for name, own in marks.items() if content.startswith(own)), "utf-8-sig")
    return content.decode(named, errors)


def sha256_file(path: str | Path) -> str:
    """Return the sha256 of a file's bytes, as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


ZARR_NAMES = {".zarray", ".zattrs", ".zgroup", ".zmetadata"}  # hidden, and read: axes, channels, sizes
OF_SYSTEM = {"thumbs.db", "desktop.ini", "@eadir", "__macosx"}  # left behind by whoever looks into a folder


def names_below(folder: str | Path) -> list[str]:
    """Return the sorted relative names of the files below a folder that somebody may read.

    Hidden names, but for those of a Zarr store, and the system's own are left out. Links to folders are followed, as they
    are where a path leads through one; a loop of links ends.
    """
    found: list[str] = []

    def walk(place: str, name: str, above: tuple[str, ...]) -> None:
        real = os.path.realpath(place)
        if real in above:
            return
        with suppress(PermissionError):  # who may not look in cannot read it either
            for one in os.listdir(place):
                if one.startswith(".") and one not in ZARR_NAMES or one.lower() in OF_SYSTEM:
                    continue
                if os.path.isdir(path := os.path.join(place, one)):
                    walk(path, f"{name}{one}/", (*above, real))
                elif os.path.isfile(path):
                    found.append(f"{name}{one}")

    walk(str(folder), "", ())
    return sorted(found)


def sha256_each(folder: str | Path) -> dict[str, str]:
    """Return the sha256 of every file of `names_below`, by name."""
    return {name: sha256_file(Path(folder, name)) for name in names_below(folder)}


def sha256_listing(listing: Mapping[str, str]) -> str:
    """Return the sha256 of names and their files' sha256, in the order given."""
    digest = hashlib.sha256()
    for name, sha256 in listing.items():
        digest.update(f"{name}\0{sha256}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def sha256_tree(path: str | Path) -> str:
    """Return the sha256 of a file, or of the names and contents of a folder's files (`names_below`).

    Raises
    ------
    FileNotFoundError
        Neither a file nor a folder is at `path`.
    """
    path = Path(path)
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no file or folder at {path}")
    return sha256_listing(sha256_each(path))


def sizes_and_times(path: str | Path) -> list[tuple[str, int, int]]:
    """Return name, bytes and time of change (ns) of a file, or of a folder's files: cheap, to see a change in passing."""
    path = Path(path)
    names = names_below(path) if path.is_dir() else [""]
    found = []
    for name in names:
        with suppress(OSError):
            about = os.stat(path / name)
            found.append((name, about.st_size, about.st_mtime_ns))
    return found


READ_AT_ONCE = 2**20


def sync(paths: Iterable[Path]) -> None:
    """Make sure that files are on the disk, not only in memory."""
    for path in paths:
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def crc32_of(content: Any, start: int = 0) -> int:
    """Return the CRC-32 of bytes or an array; zlib-ng's, where it is there, is ten times as fast and the same number."""
    import imagecodecs

    if imagecodecs.ZLIBNG.available:
        return imagecodecs.zlibng_crc32(content, start)
    import zlib

    return zlib.crc32(content, start)


def content_of(path: Path) -> tuple[int, int]:
    """Return the bytes and CRC-32 of a file, or of the names and contents of all files in a folder (OME-Zarr)."""
    total = crc = 0
    if not path.is_dir():
        with open(path, "rb", buffering=0) as file:
            while part := file.read(READ_AT_ONCE):
                total += len(part)
                crc = crc32_of(part, crc)
        return total, crc
    for child in sorted(child for child in path.rglob("*") if child.is_file()):
        size, own = content_of(child)
        total += size
        crc = crc32_of(f"{child.relative_to(path).as_posix()}\0{size}\0{own}\n".encode("utf-8", "surrogateescape"), crc)
    return total, crc


# ---- tables as CSV -------------------------------------------------------------------------------------------------
class UnixLines:
    """Ends lines with a line feed only; csv's own ``lineterminator`` would leave a carriage return in a name unquoted."""

    def __init__(self, file: TextIO):
        self.file = file

    def write(self, line: str) -> None:
        """Write one line that ends with CR LF."""
        self.file.write(line.removesuffix("\r\n") + "\n")


def write_table(path: str | Path, rows: Sequence[dict]) -> Path:
    """Write rows as CSV, atomically; text a spreadsheet would run as a formula gets a leading apostrophe."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(UnixLines(file), columns)
        writer.writerow({name: as_cell(name) for name in columns})
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return Path(path)


def _cell(value):
    if isinstance(value, str):
        return as_cell(value)
    return round(value, 6) if isinstance(value, float) else value


# What a spreadsheet would run, in the wide letters of East Asia too, or what stands for it here.
FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def as_cell(text: str) -> str:
    """Return text as it may stand in a table that a spreadsheet opens; `from_cell` takes it back.

    OWASP's rule against CSV injection: an apostrophe before = + - @ TAB, CR, LF and the wide forms of the signs.

    Examples
    --------
    >>> as_cell("=1+1"), from_cell(as_cell("=1+1")), as_cell("plain")
    ("'=1+1", '=1+1', 'plain')
    """
    return f"'{text}" if FORMULA.match(text) else text


def write_frame(path: str | Path, frame: pd.DataFrame) -> Path:
    """Write a table as CSV, atomically and without its index; text that would run as a formula is escaped by `as_cell`."""
    import pandas as pd

    texts = [name for name in frame if not pd.api.types.is_numeric_dtype(frame[name])]
    safe = frame.assign(**{name: [as_cell(x) if isinstance(x, str) else x for x in frame[name]] for name in texts})
    safe = safe.rename(columns=as_cell)
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        safe.to_csv(UnixLines(file), index=False, lineterminator="\r\n")
    return Path(path)


def from_cell(text: str) -> str:
    """Return what `as_cell` was given."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text
