"""Modules that are found by listing: one file for each data set, each reader, each format and each competition.

A file ``cellkit/<kind>_<name>.py`` is the whole of a data set (``source_``), the reader of a microscope's format
(``reader_``), a format of labels (``format_``), a competition (``kaggle_``), a convention of scoring (``scores_``) or a command
(``command_``); no table names it. Files of one's own may lie
elsewhere: in the folders of the environment variable ``CELLKIT_MODULES``, parted as in ``PATH``.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import cellkit
from cellkit.errors import UserError, nearest


def names_of(kind: str) -> tuple[str, ...]:
    """Return the names of all modules of a kind, sorted; none of them is imported.

    Examples
    --------
    >>> "dsb2018" in names_of("source")
    True
    """
    found = {module.name for module in pkgutil.iter_modules(cellkit.__path__)}
    return tuple(sorted(name.removeprefix(f"{kind}_") for name in found if name.startswith(f"{kind}_")))


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
    return import_module(f"cellkit.{kind}_{name}")


def load_all(kind: str) -> dict[str, ModuleType]:
    """Return all modules of a kind by name: by their ``ORDER`` (default 0: first), then by name."""
    modules = {name: load(kind, name) for name in names_of(kind)}
    return dict(sorted(modules.items(), key=lambda item: (getattr(item[1], "ORDER", 0), item[0])))


def optional(module: ModuleType, name: str) -> Callable[..., Any] | None:
    """Return what a module may have and need not, else None."""
    return getattr(module, name, None)
