"""The executed copies of notebooks in a run folder, known by their sha256: one that a person has written into is kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cellkit.files import sha256_file, write_json
from cellkit.manifest import MANIFEST, NOTEBOOKS, clear_place, read_manifest

COPIES = "copies"  # in the manifest: {name of the file: sha256 as the runner left it}


def copies_of(folder: Path, stage: str) -> tuple[Path, Path]:
    """Return where the executed copy of a stage's notebook lies, and where the one that is being written."""
    return folder / NOTEBOOKS / f"{stage}.ipynb", folder / NOTEBOOKS / f"{stage}.unfinished.ipynb"


def clear_unfinished(folder: Path, stage: str) -> None:
    """Make room for a new attempt's copy: keep apart what was written into that of the last one after it ended."""
    _, partial = copies_of(folder, stage)
    if partial.name in read_manifest(folder).get(COPIES, {}):  # one that was killed left none to compare with
        _clear(folder, partial)


def note_unfinished(folder: Path, stage: str) -> None:
    """Note the copy of an attempt that failed as it is now."""
    _, partial = copies_of(folder, stage)
    if partial.is_file():
        _note(folder, {partial.name: sha256_file(partial)})


def keep_finished(folder: Path, stage: str) -> None:
    """Put the copy of a finished stage in its place, and keep apart a former one that was changed by hand."""
    copy, partial = copies_of(folder, stage)
    _clear(folder, copy)
    _note(folder, {partial.name: None, copy.name: sha256_file(partial)})
    os.replace(partial, copy)


def forget_copies(folder: Path, stages: Iterable[str]) -> None:
    """Delete the copies of these stages, and nothing else that lies beside them; keep apart what was changed by hand."""
    for stage in stages:
        copy, partial = copies_of(folder, stage)
        clear_unfinished(folder, stage)
        partial.unlink(missing_ok=True)
        _clear(folder, copy)
    with contextlib.suppress(OSError):  # something else is there
        (folder / NOTEBOOKS).rmdir()


def _clear(folder: Path, path: Path) -> None:
    noted = read_manifest(folder).get(COPIES, {}).get(path.name)
    clear_place(folder, f"{NOTEBOOKS}/{path.name}", {f"{NOTEBOOKS}/{path.name}": noted} if noted else {})


def _note(folder: Path, found: dict[str, str | None]) -> None:
    """Note files of copies by their sha256; None: there is none any more."""
    manifest: dict[str, Any] = read_manifest(folder)
    known = manifest.get(COPIES, {}) | found
    manifest[COPIES] = {name: sha for name, sha in known.items() if sha}
    write_json(folder / MANIFEST, manifest, indent=1)
