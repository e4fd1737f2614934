"""Where what a stage read lies now: a run folder, its data and its configuration may have moved, to another machine too.

An input is known by its content. Its path is asked of the configuration and the environment as they are now, and where the
configuration names another absolute path than it did, of that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cellkit.config.places import data_path, names_data
from cellkit.config.sections import ConvertConfig
from cellkit.machine import here


def from_run_folder(folder: Path, last_run: Mapping[str, Any], key: str) -> str:
    """Return where the configuration ("config") of the last run lies, or where it began ("folder").

    Where the run folder has moved and both moved along, they lie to it as they did.
    """
    noted, began_in = str(last_run.get(key) or ""), str(last_run.get("folder") or "")
    was = os.path.normpath(os.path.join(began_in, last_run.get("run_dir") or ""))
    if not noted or not os.path.isabs(was) or Path(was) == folder:
        return noted
    now = os.path.normpath(folder / os.path.relpath(noted, was))
    return now if os.path.exists(now) else noted


def renamed(old: Any, new: Any, inputs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return {path of then: path of now} of the settings that name an input by its absolute path, or in full by now, and differ.

    Parameters
    ----------
    old, new : plain values
        A section as it was when the inputs were noted, and as it is.
    inputs : mapping
        As in the manifest: {key: {"path", "sha256", "outside", ...}}.

    Examples
    --------
    >>> renamed({"use": "/a/mine", "model": "m"}, {"use": "/b/mine", "model": "n"}, {"": {"path": "/a/mine"}})
    {'/a/mine': '/b/mine'}
    >>> renamed({"base": "w", "use": "a/b"}, {"base": "/a/w", "use": "./a/b/"}, {"": {"path": "/a/w", "named": "w"}})
    {'w': '/a/w'}
    """
    noted = {one.get("path") for one in inputs.values()} | {one.get("named") for one in inputs.values()}
    return {
        then: now
        for then, now in _differing(old, new)
        if (os.path.normpath(then) == os.path.normpath(now) and os.path.lexists(here(now)))
        or (then in noted and (Path(then).is_absolute() or _is_in_full(now, then)))
    }


def _is_in_full(now: str, then: str) -> bool:
    """Tell whether a path is a relative one written in full: the configuration is used from another folder."""
    return Path(now).is_absolute() and os.path.normpath(now).endswith(f"{os.sep}{os.path.normpath(then)}")


def _differing(old: Any, new: Any) -> Iterator[tuple[str, str]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(set(old) & set(new)):
            yield from _differing(old[key], new[key])
    elif isinstance(old, str) and isinstance(new, str) and old != new and old and new:
        yield old, new


def with_old_paths(new: Any, moved: Mapping[str, str]) -> Any:
    """Return a section with the paths of now replaced by those of then: what else differs is a difference.

    Examples
    --------
    >>> with_old_paths({"use": "/b/mine", "seed": 1}, {"/a/mine": "/b/mine"})
    {'use': '/a/mine', 'seed': 1}
    """
    then = {now: old for old, now in moved.items()}
    if isinstance(new, Mapping):
        return {key: with_old_paths(value, moved) for key, value in new.items()}
    return then.get(new, new) if isinstance(new, str) else new


def place_now(
    value: Mapping[str, Any],
    convert: ConvertConfig | None,
    moved: Mapping[str, str],
    inputs: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return the path of an input as a stage that starts now would find it.

    Parameters
    ----------
    value : mapping
        The input, as in the manifest.
    convert : ConvertConfig or None
        Where the data are; None = not known here, so that they are looked for where they were.
    moved : mapping
        Of `renamed`.
    inputs : mapping
        All inputs: what lay beside weights lies beside them now.

    Raises
    ------
    UserError
        The data folder or weights that are named are not there.
    """
    by, named = value.get("by"), value.get("named", "")
    if by == "data" and convert is not None and names_data(convert):
        return data_path(convert).absolute().as_posix()
    if by in ("weights", "card"):
        return _weights_now(moved.get(named, named), by)
    if named and not by:
        return here(moved.get(named, named)).absolute().as_posix()
    path = value["path"]
    for then, now in moved.items():
        if path == then or path.startswith(f"{then}/"):
            return f"{here(now).absolute().as_posix()}{path.removeprefix(then)}"
    if value.get("outside") and not Path(path).exists():
        for one in inputs.values():
            if one.get("by") == "weights" and Path(one["path"]).parent == Path(path).parent:
                name = moved.get(one["named"], one["named"])
                return (Path(_weights_now(name, "weights")).parent / Path(path).name).as_posix()
    return path


def _weights_now(name: str, by: str) -> str:
    from cellkit.fetch.find import locate_weights

    path = locate_weights(name).absolute()
    return (path if by == "weights" else path.with_suffix(".json")).as_posix()
