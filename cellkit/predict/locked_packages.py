"""The packages that a prediction takes: which, at which version, and wheels of them that are the files of the lock."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from cellkit.errors import UserError, counted
from cellkit.files import PACKAGE, sha256_file
from cellkit.log import LOG
from cellkit.models import INSTALLED_AS, required_by

WHEELS, REQUIRED = "wheels", "requirements.txt"
NOT_TO_PREDICT = (
    "ipykernel",
    "ipywidgets",
    "jinja2",
    "jupyter-client",
    "jupyterlab",
    "nbclient",
    "nbformat",
    "papermill",
)


class Locked:
    """A package of a lock: its version, its hashes, and its lines as they stand there."""

    def __init__(self, version: str, text: str):
        self.version, self.text = version, text
        self.hashes = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", text))


def lock_file(lock: str | Path | None) -> Path:
    """Return the file of locked packages: the one given, else the repository's.

    Raises
    ------
    UserError
        It is not there, as where the package was installed without the repository.
    """
    path = Path(lock) if lock is not None else PACKAGE.parent / "requirements" / "lock.txt"
    if not path.is_file():
        raise UserError(f"no lock of packages at {path}", "give requirements/lock.txt of the repository: --lock FILE")
    return path


def read_lock(path: Path) -> dict[str, Locked]:
    """Return the packages of a lock that this Python takes, by name.

    Raises
    ------
    UserError
        The file is no text.
    """
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, Locked] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text", "give requirements/lock.txt of the repository: --lock FILE"
        ) from error
    for block in re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"(?m)^\s*#.*\n?", "", text)):
        head = block.split(" \\", 1)[0].strip()
        try:
            wanted = Requirement(head)
        except InvalidRequirement:
            continue
        version = next((one.version for one in wanted.specifier if one.operator == "=="), "")
        if version and (wanted.marker is None or wanted.marker.evaluate()):
            found[canonicalize_name(wanted.name)] = Locked(version, f"{block.strip()}\n")
    return found


def packages_to_predict() -> list[str]:
    """Return the packages that a prediction takes, sorted: those cellkit needs but for notebooks, and what those need here.

    Raises
    ------
    UserError
        cellkit is not installed: nothing tells what it needs.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        own = importlib.metadata.requires("cellkit") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError("cellkit is not installed as a package", "make setup, or pip install .") from error
    todo = [
        (canonicalize_name(r.name), r.extras)
        for r in map(Requirement, own)
        if r.marker is None or r.marker.evaluate({"extra": ""})
    ]
    return sorted(_with_theirs([one for one in todo if one[0] not in NOT_TO_PREDICT]))


def packages_of(backends: Iterable[str]) -> list[str]:
    """Return the packages that backends state they need, sorted, and what those need here; also such as are not here.

    Of a backend that is installed, ``package.module``, its own package is one of them.
    """
    from packaging.utils import canonicalize_name

    names = {package for name in backends for package in required_by(name)}
    names |= {name.partition(".")[0] for name in backends if "." in name}
    known = importlib.metadata.packages_distributions()
    own = {canonicalize_name(known.get(name, [INSTALLED_AS.get(name, name)])[0]) for name in names}
    return sorted(own | _with_theirs([(name, ()) for name in own]))


def version_here(package: str) -> str:
    """Return a package with the version that is installed here, as pip takes it; its name alone where there is none."""
    try:
        return f"{package}=={importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package


def _with_theirs(todo: list[tuple[str, Iterable[str]]]) -> set[str]:
    """Return packages, given with their extras, and all that those need here; not what is not installed, nor cellkit."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    todo, found = [one for one in todo if one[0] != "cellkit"], set()
    while todo:
        name, extras = todo.pop()
        if name in found:
            continue
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        found.add(name)
        for wanted in map(Requirement, requires):
            if wanted.name == "cellkit":  # a backend of a package: the bundle has its code
                continue
            if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                todo.append((canonicalize_name(wanted.name), wanted.extras))
    return found


def copy_wheels(source: Path, folder: Path, locked: Mapping[str, Locked]) -> list[str]:
    """Copy the wheels of the lock that lie in a folder, and return their names; say which packages have none there.

    Raises
    ------
    UserError
        No such folder, a file that is no wheel, or one that is not as the lock says.
    """
    from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

    if not source.is_dir():
        raise UserError(f"no folder of wheels at {source}", f"make one: {download_line(REQUIRED)}")
    folder.mkdir()
    copied: dict[str, str] = {}
    for path in sorted(source.glob("*.whl")):
        try:
            name, version, _, _ = parse_wheel_filename(path.name)
        except InvalidWheelFilename as error:
            raise UserError(f"{path} is no wheel: {error}", "remove it from the folder") from error
        package = canonicalize_name(name)
        if package not in locked or str(version) != locked[package].version:
            LOG.info(f"{path.name}: not of the lock, left out")
            continue
        if sha256_file(path) not in locked[package].hashes:
            raise UserError(f"{path} is not the file of the lock (sha256 differs)", "download it again")
        shutil.copyfile(path, folder / path.name)
        copied[package] = path.name
    missing = [package for package in locked if package not in copied]
    if missing:
        LOG.info(f"no wheel of {counted(len(missing), 'package')} there: {', '.join(missing)}")
    return list(copied.values())


def download_line(requirements: str) -> str:
    """Return the command that fetches the wheels of a list, on a machine with a network."""
    return f"pip download --no-deps --only-binary :all: --require-hashes -r {requirements} -d {WHEELS}"
