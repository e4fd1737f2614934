"""Archives from elsewhere: every member is checked before anything is written, then all appear at once or nothing does.

Faults met: members that leave the folder (CVE-2007-4559, and CVE-2025-4517 past the standard library's own filter), links
and devices, bombs, names that overwrite each other where upper and lower case are the same.
"""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cellkit.errors import UserError
from cellkit.log import LOG
from cellkit.machine import NoRoom, check_space

MAX_BYTES = 20_000_000_000
MAX_RATIO = 100.0  # a picture shrinks 10 times at best, label images 60 times
SMALL_BYTES = 10_000_000  # below this in all, any ratio is harmless
MAX_MEMBERS = 1_000_000
MAX_HEADER_BYTES = 1_000_000  # what one header of a tar may hold; its data is read in pieces of 16 kB
MAX_NAME_BYTES = 255
CHUNK_BYTES = 1_000_000
JUNK = re.compile(r"(^|/)(__MACOSX(/|$)|\.DS_Store$|\._[^/]*$)")  # what a Mac adds to a zip
BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, RuntimeError,
          LookupError)  # fmt: skip


class Member(NamedTuple):
    """One regular file of an archive: where it goes, how many bytes it says it has, and the library's own entry."""

    path: str
    size_bytes: int
    entry: Any


class Bad(Exception):
    """What is wrong with an archive, in words."""


def check_archive(path: str | Path, max_bytes: int = MAX_BYTES) -> dict[str, int]:
    """Read the directory of a zip or tar.gz, refuse anything odd, and return {member: bytes} of what would be written.

    Parameters
    ----------
    path : path
        ``.zip``, ``.tar.gz`` or ``.tgz``, known by its first bytes.
    max_bytes : int
        Most bytes all members may have together.

    Raises
    ------
    UserError
        No archive, a damaged one, or one with a member that is refused: named, with the reason. Nothing is written.
    """
    with _refusals(path), _opened(Path(path)) as archive:
        return {m.path: m.size_bytes for m in _checked(archive, Path(path), max_bytes)}


def unpack(path: str | Path, folder: str | Path, max_bytes: int = MAX_BYTES) -> dict[str, int]:
    """Check an archive, unpack it beside `folder` and move it there at once; return {member: bytes}.

    An archive that holds a single folder called as `folder` is unpacked without that level.

    Parameters
    ----------
    folder : path
        Must not exist yet.

    Raises
    ------
    UserError
        As `check_archive`; also when a member holds other bytes than the directory says, or the disk is too small.
    """
    path, folder = Path(path), Path(folder)
    if folder.exists():
        raise UserError(f"{folder} exists already", "move it away first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{folder.name}.unpacking-*"):
        shutil.rmtree(stale)
    with _refusals(path), _opened(path) as archive:
        members = _checked(archive, path, max_bytes)
        check_space(folder.parent, sum(member.size_bytes for member in members), f"to unpack {path.name}")
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.unpacking-"))
        try:
            for member in members:
                _write(archive, member, temporary)
            inner = temporary / folder.name
            nested = [child.name for child in temporary.iterdir()] == [folder.name] and inner.is_dir()
            os.chmod(temporary, 0o755)
            os.replace(inner if nested else temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    start = len(folder.name) + 1 if nested else 0
    return {member.path[start:]: member.size_bytes for member in members}


# ---- opening -------------------------------------------------------------------------------------------------------
@contextmanager
def _refusals(path: str | Path) -> Iterator[None]:
    """Turn whatever a broken or hostile archive raises into one sentence."""
    try:
        yield
    except Bad as error:
        raise UserError(
            f"{path} is refused: {error}", "nothing of it was unpacked; get it again from its publisher"
        ) from error
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise NoRoom(f"the disk is full while {path} is unpacked", "free some space and repeat") from error
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # of this disk, not of the archive
            raise
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(f"{path} is no whole archive: {reason}", "get it again") from error


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    with open(path, "rb") as file:
        magic = file.read(4)
        file.seek(0)
        if magic[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=file) as plain, tarfile.open(fileobj=_Bounded(plain), mode="r:") as archive:
                yield archive
        elif magic[:2] == b"PK":
            with zipfile.ZipFile(file) as archive:
                yield archive
        else:
            raise Bad("it is neither a zip nor a tar.gz")


class _Bounded:
    """A file from which nothing large is read at once: a tar's header says itself how long it is, and is read whole."""

    def __init__(self, file: BinaryIO):
        self.file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise Bad(f"a header of it claims {size:,} bytes")
        return self.file.read(size)

    def seek(self, *where: int) -> int:
        return self.file.seek(*where)

    def tell(self) -> int:
        return self.file.tell()


# ---- checking ------------------------------------------------------------------------------------------------------
def _checked(archive: Any, path: Path, max_bytes: int) -> list[Member]:
    members, names, total = [], _Names(), 0
    packed = max(path.stat().st_size, 1)
    most = min(max_bytes, max(MAX_RATIO * packed, SMALL_BYTES))
    for count, entry in enumerate(archive.infolist() if isinstance(archive, zipfile.ZipFile) else archive):
        if count >= MAX_MEMBERS:
            raise Bad(f"it has more than {MAX_MEMBERS:,} members")
        raw, size, is_folder = _of_zip(entry) if isinstance(entry, zipfile.ZipInfo) else _of_tar(entry)
        name = checked_name(raw)
        if not name or JUNK.search(name):
            continue
        names.add(name, is_folder)
        if is_folder:
            continue
        total += size
        if total > most:  # a tar says a member's size before its data is unpacked: stop here
            limit = f"{max_bytes:,} bytes" if most == max_bytes else f"{MAX_RATIO:g} times its own {packed:,} bytes"
            raise Bad(f"unpacked it is larger than {limit} (up to '{_shown(name)}')")
        members.append(Member(name, size, entry))
    if not members:
        raise Bad("it holds no file")
    if isinstance(archive, tarfile.TarFile):
        _check_end(archive)
    return members


def _check_end(archive: tarfile.TarFile) -> None:
    """Read what is behind the last member: zeros, or a header was damaged and the library stopped there without a word."""
    rest = 0
    archive.fileobj.seek(archive.offset)
    while chunk := archive.fileobj.read(CHUNK_BYTES):  # to the end: the checksum of the gzip is there
        rest += len(chunk)
        if chunk.strip(b"\0") or rest > SMALL_BYTES:
            raise Bad("it goes on behind its last readable member")


def _of_zip(entry: zipfile.ZipInfo) -> tuple[str, int, bool]:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a symbolic link" if kind == stat.S_IFLNK else "no regular file"
        raise Bad(f"member '{_shown(entry.filename)}' is {what}")
    if entry.flag_bits & 0x1:
        raise Bad(f"member '{_shown(entry.filename)}' is encrypted")
    return getattr(entry, "orig_filename", entry.filename), entry.file_size, entry.is_dir() or kind == stat.S_IFDIR


def _of_tar(entry: tarfile.TarInfo) -> tuple[str, int, bool]:
    if not (entry.isreg() or entry.isdir()):
        kinds = {tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a hard link", tarfile.FIFOTYPE: "a pipe"}
        raise Bad(f"member '{_shown(entry.name)}' is {kinds.get(entry.type, 'a device or another special file')}")
    return entry.name, entry.size, entry.isdir()


def checked_name(name: str) -> str:
    """Return the relative path of a member with forward slashes, or "" for the archive's own folder.

    Raises
    ------
    Bad
        It is absolute, climbs out, or cannot be a name on every system.

    Examples
    --------
    >>> checked_name("./images/a.png")
    'images/a.png'
    >>> checked_name("../a.png")
    Traceback (most recent call last):
    cellkit.fetch.archives.Bad: member '../a.png' would be written outside the folder
    """
    shown = _shown(name)
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise Bad(f"member '{shown}' is an absolute path")
    if "\\" in name or any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        raise Bad(f"member '{shown}' has a backslash or a control character in its name")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Bad(f"member '{shown}' would be written outside the folder")
    try:
        long = any(len(part.encode("utf-8")) > MAX_NAME_BYTES for part in parts)
    except UnicodeEncodeError:
        raise Bad(f"member '{shown}' has a name that is not text") from None
    if long or len(parts) > 50:
        raise Bad(f"member '{shown}' has a name too long to be written")
    return "/".join(parts)


def _shown(name: str) -> str:
    return name.encode("unicode_escape").decode("ascii")[:100]


class _Names:
    """The names taken so far, as a disk sees them that knows no upper and lower case."""

    def __init__(self):
        self.files: dict[str, str] = {}
        self.folders: dict[str, str] = {}

    def add(self, name: str, is_folder: bool) -> None:
        parts = name.split("/")
        inside = ["/".join(parts[: k + 1]) for k in range(len(parts) - (not is_folder))]
        for folder in inside:
            self._take(folder, self.folders, self.files)
        if not is_folder:
            key = _key(name)
            if key in self.files:
                raise Bad(f"members '{_shown(self.files[key])}' and '{_shown(name)}' would be the same file")
            self._take(name, self.files, self.folders)

    def _take(self, name: str, mine: dict[str, str], others: dict[str, str]) -> None:
        key = _key(name)
        if key in others or mine.setdefault(key, name) != name:
            other = others.get(key, mine.get(key, name))
            raise Bad(f"members '{_shown(other)}' and '{_shown(name)}' would be in each other's place")


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


# ---- writing -------------------------------------------------------------------------------------------------------
def _write(archive: Any, member: Member, root: Path) -> None:
    """Write one checked member below `root`; never more bytes than it was checked for."""
    target = (root / member.path).resolve()
    if root.resolve() not in target.parents:
        raise Bad(f"member '{_shown(member.path)}' would be written outside the folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    source = archive.open(member.entry) if isinstance(archive, zipfile.ZipFile) else archive.extractfile(member.entry)
    written = 0
    with source, open(target, "xb") as file:
        while chunk := source.read(min(CHUNK_BYTES, MAX_HEADER_BYTES)):
            written += len(chunk)
            if written > member.size_bytes:
                break
            file.write(chunk)
    if written != member.size_bytes:
        raise Bad(f"member '{_shown(member.path)}' has other bytes than it says ({member.size_bytes:,})")


# ---- what else a download may be -------------------------------------------------------------------------------------
def check_text(path: Path, begins: bytes, ends: bytes) -> None:
    """Refuse text that begins or ends as it cannot: cut off, or a page of HTML.

    Raises
    ------
    UserError
        It does.
    """
    with open(path, "rb") as file:
        first = file.read(100).lstrip()
        file.seek(max(0, path.stat().st_size - 100))
        last = file.read().rstrip()
    good = first and not first.startswith(b"<") and (not begins or (first[:1] in begins and last[-1:] in ends))
    if not good:
        raise UserError(f"{path} is no whole {path.suffix[1:]} file", "fetch it again")


def keep_old(folder: Path) -> None:
    """Move a folder that is incomplete or of other origin out of the way; nothing of it is deleted."""
    count = 1
    while os.path.lexists(kept := folder.with_name(f"{folder.name}.before-{count}")):
        count += 1
    os.replace(folder, kept)
    LOG.info(f"{folder} was there and is not complete: it is now {kept}")
