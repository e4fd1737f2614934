"""Modules that are found by listing their folder: a new data set, format, model or the like is one new file.

A module is of a kind by what it states at its top level, and no table names it; other files of the folder are helpers. Files
of one's own may lie elsewhere: the environment variable ``CELLKIT_MODULES`` names folders, parted as in ``PATH``, that hold
``sources/``, ``formats/``, ``models/`` and so on as the package does. An installed one is named in full: ``package.module``.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from cellkit.errors import UserError, nearest

VARIABLE = "CELLKIT_MODULES"
SETTLED_NS = 3 * 10**9  # a folder that changed just now may change again within one tick of its clock, 2 s on FAT
MEND = f"mend it, or take its folder out of {VARIABLE}"

# Kind -> the folder, and what a module of the kind states (one of these): a name, or a function with its parameters.
KINDS = {
    "source": ("sources", ("read(root, config)",)),
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
    found = {name: path for name, path, changed_ns in _files(folder) if _states(path, changed_ns, marks)}
    return dict(sorted(found.items()))


def code_sha256(name: str) -> str:
    """Return a hash of the code of a module outside this package, ``package.module``: of all below its first folder; else "".

    Examples
    --------
    >>> code_sha256("threshold"), code_sha256("cellkit.models.threshold"), code_sha256("no.such.module")
    ('', '', '')
    """
    if "." not in name or name.startswith("cellkit."):
        return ""
    try:
        found = find_spec(name.partition(".")[0])
    except (ImportError, ValueError, AttributeError):
        return ""
    if found is None or not found.submodule_search_locations:
        return ""
    folder = Path(next(iter(found.submodule_search_locations)))
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*.py") if "site-packages" not in path.relative_to(folder).parts):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def path_of(kind: str, name: str) -> Path | None:
    """Return the file of one module of a kind, by its name in the list or in full, ``package.module``; None where there is none.

    Of an installed one the packages around it are imported, and not the module itself.

    Raises
    ------
    UserError
        Such a package stops while it is imported.

    Examples
    --------
    >>> path_of("backend", "threshold").name, path_of("backend", "json.decoder"), path_of("backend", "no.such")
    ('threshold.py', None, None)
    """
    if "." not in name:
        return paths_of(kind).get(name)
    try:
        found = find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    except Exception as error:
        problem = f"{kind} '{name}': its package cannot be imported: {type(error).__name__}: {error}"
        raise UserError(problem, f"mend the package, or name another {kind}") from error
    path = Path(found.origin) if found is not None and found.has_location and found.origin else None
    if path is None or path.suffix != ".py" or not _states(path, path.stat().st_mtime_ns, KINDS[kind][1]):
        return None
    return path


def own_folders() -> list[Path]:
    """Return the folders of one's own modules, those that ``CELLKIT_MODULES`` names.

    Raises
    ------
    UserError
        One is no folder.
    """
    folders = [Path(name).expanduser() for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        raise UserError(f"{VARIABLE} names {missing[0]}, no such folder", f"set {VARIABLE} to folders that exist")
    return folders


def names_of(kind: str) -> tuple[str, ...]:
    """Return the names of all modules of a kind, sorted; none of them is imported."""
    return tuple(paths_of(kind))


def load(kind: str, name: str) -> ModuleType:
    """Return one module of a kind.

    Raises
    ------
    UserError
        There is none of that name, or a file of one's own cannot be imported.
    """
    path = path_of(kind, name)
    if path is None:
        raise none_called(kind, name)
    return _imported(kind, name, path)


def none_called(kind: str, name: str) -> UserError:
    """Return what to say of a name that is no module of a kind."""
    if "." in name:
        stated = " or ".join(mark for mark in KINDS[kind][1])
        return UserError(f"no {kind} '{name}'", f"install its package; at its top level the module states {stated}")
    paths = paths_of(kind)
    return UserError(f"no {kind} '{name}'{nearest(name, paths)}", f"choose from {', '.join(paths)}")


def load_all(kind: str) -> dict[str, ModuleType]:
    """Return all modules of a kind by name: by their ``ORDER`` (default 0: first), then by name."""
    modules = {name: _imported(kind, name, path) for name, path in paths_of(kind).items()}
    return dict(sorted(modules.items(), key=lambda item: (getattr(item[1], "ORDER", 0), item[0])))


def by_key(kind: str, keys: Callable[[ModuleType], Iterable[str]]) -> dict[str, ModuleType]:
    """Return the modules of a kind by what each claims, such as the suffixes that it reads.

    Raises
    ------
    UserError
        Two modules claim the same.
    """
    found: dict[str, ModuleType] = {}
    for name, module in load_all(kind).items():
        for key in keys(module):
            if key in found:
                raise UserError(f"the {kind}s {found[key].__name__} and {name} both claim '{key}'", "one of them goes")
            found[key] = module
    return found


def optional(module: ModuleType, name: str) -> Callable[..., Any] | None:
    """Return what a module may have and need not, else None."""
    return getattr(module, name, None)


def _imported(kind: str, name: str, path: Path) -> ModuleType:
    try:
        return import_module(name if "." in name else f"cellkit.{KINDS[kind][0]}.{name}")
    except Exception as error:
        if isinstance(error, UserError) or Path(__file__).parent in path.parents:
            raise
        raise UserError(f"{path} cannot be imported: {type(error).__name__}: {error}", MEND) from error


def _files(folder: str) -> Iterator[tuple[str, Path, int]]:
    """Yield the modules of a folder of the package and of the folders of one's own, no two of one name, with their times."""
    own_folders()
    found: dict[str, Path] = {}
    for place in import_module(f"cellkit.{folder}").__path__:
        here = {}
        for name, path in _candidates(place):
            with suppress(OSError):  # a folder that is no package, a link that leads nowhere
                status = os.stat(path)
                if stat.S_ISREG(status.st_mode):
                    here[name] = (path, status.st_mtime_ns)
        for name, (path, changed_ns) in here.items():
            if name in found:
                raise UserError(f"{path} is called like {found[name]}", "give it a name of its own")
            found[name] = path
            yield name, path, changed_ns


def _candidates(place: str) -> tuple[tuple[str, Path], ...]:
    """Return what may be modules of a folder, a package last of two of one name: some loops ask for each of their files."""
    try:
        changed_ns = os.stat(place).st_mtime_ns
    except OSError:  # a folder of one's own need not have a folder for each kind
        return ()
    settled = time.time_ns() - changed_ns > SETTLED_NS
    try:
        return _listed(place, changed_ns) if settled else _listed.__wrapped__(place, changed_ns)
    except OSError as error:
        raise UserError(f"{place} cannot be listed: {error.strerror or error}", MEND) from error


@cache
def _listed(place: str, changed_ns: int) -> tuple[tuple[str, Path], ...]:
    names = sorted(os.listdir(place))
    plain = [name.removesuffix(".py") for name in names if name.endswith(".py") and name != "__init__.py"]
    packages = [name for name in names if "." not in name and name != "__pycache__"]
    found = [(name, Path(place, f"{name}.py")) for name in plain if "." not in name]
    return tuple(found + [(name, Path(place, name, "__init__.py")) for name in packages])


@cache
def _states(path: Path, changed_ns: int, marks: tuple[str, ...]) -> bool:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}", MEND) from error
    return any(re.search(_statement(mark), text, re.MULTILINE) for mark in marks)


def _statement(mark: str) -> str:
    """Return the expression that finds a mark: ``read(root, config)`` is no `read` of other parameters."""
    name, *parameters = re.findall(r"\w+", mark)
    own = r"\b[^,)]*,\s*".join(parameters)
    return rf'^(?:def {name}\(\s*{own}\b|__all__ = .*"{name}")' if parameters else rf"^{name}\b[^=\n]*="
