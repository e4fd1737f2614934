"""Modules that are found by listing their folder: a new data set, format, model or the like is one new file.

A module is of a kind by what it states at its top level, and no table names it; other files of the folder are helpers. Files
of one's own may lie elsewhere: the environment variable ``CELLKIT_MODULES`` names folders, parted as in ``PATH``, that hold
``sources/``, ``formats/``, ``models/`` and so on as the package does.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from cellkit.errors import UserError, nearest

# Kind -> the folder, and what a module of the kind states (one of these).
KINDS = {
    "source": ("sources", ("read",)),
    "reader": ("microscope", ("READER",)),
    "format": ("formats", ("TITLE", "ENDINGS")),
    "competition": ("formats.competitions", ("COLUMNS",)),
    "convention": ("scores", ("WHY",)),
    "backend": ("models", ("TITLE",)),
    "command": ("commands", ("ABOUT",)),
}


def paths_of(kind: str) -> dict[str, Path]:
    """Return the files of all modules of a kind by name, sorted; none of them is imported.

    Examples
    --------
    >>> "dsb2018" in paths_of("source"), "listing" in paths_of("source")
    (True, False)
    """
    folder, marks = KINDS[kind]
    found = {name: path for name, path in _files(folder) if _states(path, path.stat().st_mtime_ns, marks)}
    return dict(sorted(found.items()))


def names_of(kind: str) -> tuple[str, ...]:
    """Return the names of all modules of a kind, sorted; none of them is imported."""
    return tuple(paths_of(kind))


def load(kind: str, name: str) -> ModuleType:
    """Return one module of a kind.

    Raises
    ------
    UserError
        There is none of that name.
    """
    names = names_of(kind)
    if name not in names:
        raise UserError(f"no {kind} '{name}'{nearest(name, names)}", f"choose from {', '.join(names)}")
    return import_module(f"cellkit.{KINDS[kind][0]}.{name}")


def load_all(kind: str) -> dict[str, ModuleType]:
    """Return all modules of a kind by name: by their ``ORDER`` (default 0: first), then by name."""
    modules = {name: load(kind, name) for name in names_of(kind)}
    return dict(sorted(modules.items(), key=lambda item: (getattr(item[1], "ORDER", 0), item[0])))


def optional(module: ModuleType, name: str) -> Callable[..., Any] | None:
    """Return what a module may have and need not, else None."""
    return getattr(module, name, None)


def _files(folder: str) -> Iterator[tuple[str, Path]]:
    for module in pkgutil.iter_modules(import_module(f"cellkit.{folder}").__path__):
        place = Path(module.module_finder.path, module.name)
        yield module.name, place / "__init__.py" if module.ispkg else place.with_suffix(".py")


@cache
def _states(path: Path, changed_ns: int, marks: tuple[str, ...]) -> bool:
    text = path.read_text(encoding="utf-8")
    stated = (rf'^(?:def {mark}\(|{mark}\b[^=\n]*=|__all__ = .*"{mark}")' for mark in marks)
    return any(re.search(statement, text, re.MULTILINE) for statement in stated)
