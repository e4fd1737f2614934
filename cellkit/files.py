"""Files written whole or not at all, and known by their content."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
    finally:
        temporary.unlink(missing_ok=True)


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
    """Read a UTF-8 JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8-sig"))


def sha256_file(path: str | Path) -> str:
    """Return the sha256 of a file's bytes, as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tree(path: str | Path) -> str:
    """Return the sha256 of a file, or of a folder's sorted relative names and contents (hidden names left out).

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
    digest = hashlib.sha256()
    names = sorted(child.relative_to(path).as_posix() for child in path.rglob("*") if child.is_file())
    for name in names:
        if not any(part.startswith(".") for part in name.split("/")):
            digest.update(f"{name}\0{sha256_file(path / name)}\n".encode())
    return digest.hexdigest()
