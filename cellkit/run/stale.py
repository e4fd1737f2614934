"""Whether the stages of a run are up to date: by hashes of inputs, section, code and outputs, never by times."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cellkit.config.reading import load_config
from cellkit.config.sections import Config
from cellkit.errors import UserError
from cellkit.machine import here
from cellkit.manifest import Hasher, input_sha256, listed_by, package_sha256, read_manifest
from cellkit.run.folder import fingerprint_of, versions
from cellkit.run.moved import from_run_folder, place_now, renamed, with_old_paths
from cellkit.run.notebooks import Notebook, matches, read_notebooks, taking_part

RUNNING = "running now"


@dataclass(frozen=True)
class StageState:
    """Whether a stage is up to date: state is fresh, stale, missing (never finished) or failed; why says the reason.

    note: what else differs from when it was made, and makes it no stale one: versions of packages.
    """

    name: str
    state: str
    why: str = ""
    note: str = ""


def check(
    run_dir: str | Path,
    config_path: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    notebooks: str | Path | None = None,
) -> list[StageState]:
    """Tell of every stage whether it is up to date, and why not; changes nothing.

    Parameters
    ----------
    run_dir : str or Path
    config_path : str or Path, optional
        By default the configuration and overrides of the last ``cellkit run`` in that folder.
    notebooks : str or Path, optional
        As in `read_notebooks`.

    Raises
    ------
    UserError
        No such run folder; no configuration known; a bad configuration.
    """
    folder = here(run_dir).absolute()
    if not folder.is_dir():
        raise UserError(f"there is no run folder '{run_dir}'", "make one with: cellkit run CONFIG --run FOLDER")
    manifest = read_manifest(folder)
    books = read_notebooks(notebooks)
    if config_path is not None:
        cfg = load_config(config_path, overrides, notebooks)
        return stage_states(folder, cfg, taking_part(books, cfg), manifest, Hasher())
    last_run = manifest.get("run")
    if not manifest.get("stages") and not last_run:
        raise UserError(f"'{run_dir}' is no run folder", "name one, or a configuration: cellkit check FILE.yaml")
    if not last_run:
        raise UserError(f"'{run_dir}' does not tell its configuration", "name the configuration file")
    config, began_in = (from_run_folder(folder, last_run, key) for key in ("config", "folder"))
    with contextlib.chdir(began_in) if os.path.isdir(began_in) else contextlib.nullcontext():  # its relative paths
        cfg = load_config(config, last_run["overrides"], notebooks)
        return stage_states(folder, cfg, taking_part(books, cfg), manifest, Hasher())


def stage_states(
    folder: Path, cfg: Config, books: list[Notebook], manifest: dict[str, Any], hasher: Hasher
) -> list[StageState]:
    """Return the state of every stage; one whose input comes from a stage that is not fresh is stale too."""
    states: dict[str, StageState] = {}
    done: list[tuple[Notebook, StageState]] = []
    for book in books:
        state = stage_state(folder, cfg, book, manifest, hasher)
        for key in manifest["stages"].get(book.name, {}).get("inputs", {}) if state.state == "fresh" else ():
            maker = next((n for n, s in states.items() if s.state != "fresh" and key in _outputs(manifest, n)), None)
            if maker:
                why = f"its input {key} comes from {maker}, which is {states[maker].state}"
                state = replace(state, state="stale", why=why)
                break
        wanted = _not_yet_read(manifest["stages"].get(book.name, {}), done) if state.state == "fresh" else ""
        if wanted:
            state = replace(state, state="stale", why=wanted)
        states[book.name] = state
        done.append((book, state))
    return list(states.values())


def _not_yet_read(entry: Mapping[str, Any], earlier: Iterable[tuple[Notebook, StageState]]) -> str:
    """Say which stage, never finished, is to make an output of a kind that a stage reads all of; "" where none is."""
    for book, state in earlier:
        for pattern in entry.get("patterns", {}) if state.state in ("missing", "failed") else ():
            if any(matches(key, pattern) for key in book.keys):
                return f"it reads {pattern}, which {book.name} is to make, and that is {state.state}"
    return ""


def _outputs(manifest: dict[str, Any], stage: str) -> dict[str, Any]:
    return manifest["stages"].get(stage, {}).get("outputs", {})


def stage_state(folder: Path, cfg: Config, book: Notebook, manifest: dict[str, Any], hasher: Hasher) -> StageState:
    """Return the state of one stage from its own inputs, section, code and outputs."""
    entry, attempt = manifest["stages"].get(book.name), manifest["attempts"].get(book.name)
    if entry is None and attempt is None:
        return StageState(book.name, "missing", "never run")
    if entry is None or entry.get("status") != "finished":
        why = _how_attempt_ended(attempt) if attempt else entry.get("error", "failed")
        return StageState(book.name, "missing" if why.startswith(RUNNING) else "failed", why)
    if lacking := sorted({"config", "inputs", "outputs", "also", "package_sha256", "notebook_sha256"} - set(entry)):
        return StageState(book.name, "stale", f"the manifest does not tell its {', '.join(lacking)}")
    section = fingerprint_of(cfg.section(book.section))
    moved = renamed(entry["config"], section, entry["inputs"])
    reasons = [
        *_section_differences(entry, with_old_paths(section, moved), book.section),
        *(["the notebook changed"] if entry["notebook_sha256"] != book.sha256 else []),
        *(["the cellkit package changed"] if entry["package_sha256"] != package_sha256() else []),
        *[r for key in entry["inputs"] for r in _input_reason(cfg, key, folder, entry["inputs"], moved, hasher)],
        *[r for key, value in entry["outputs"].items() for r in _file_reason("output", key, folder, value, hasher)],
        *[
            reason
            for name, sha in entry["also"].items()
            for reason in _file_reason("file", name, folder, {"path": name, "sha256": sha}, hasher)
        ],
    ]
    listed = listed_by(manifest, book.before, book.name)
    for pattern, keys in entry.get("patterns", {}).items():
        now = sorted(key for key in listed if fnmatchcase(key, pattern))
        reasons += (
            [f"it read {', '.join(keys) or 'no'} {pattern}, now {', '.join(now) or 'none'}"] if now != keys else []
        )
    note = _other_versions(entry.get("versions", {}))
    if reasons:
        return StageState(book.name, "stale", "; ".join(reasons), note)
    ended = _how_attempt_ended(attempt) if attempt else ""
    later = f"a later attempt {'is' if ended.startswith(RUNNING) else 'failed:'} {ended}" if ended else ""
    return StageState(book.name, "fresh", later, note)


def _other_versions(then: Mapping[str, str]) -> str:
    """Say which packages have other versions than those a stage was made with."""
    now = versions()
    return ", ".join(f"{n} {v}, now {now.get(n, 'missing')}" for n, v in then.items() if now.get(n) != v)


def _section_differences(entry: Mapping[str, Any], new: Any, name: str) -> list[str]:
    """Name the keys of a section that differ. A data folder is compared by what is in it, not by its name.

    Keys that the stage noted to be without effect, see `cellkit.under_way.note_no_effect`, are not compared.
    """
    old = entry["config"]
    if any(value.get("by") == "data" for value in entry["inputs"].values()) and {"data"} <= set(old) & set(new):
        old, new = {**old, "data": None}, {**new, "data": None}
    if no_effect := dict.fromkeys(entry.get("no_effect", ())):
        old, new = {**old, **no_effect}, {**new, **no_effect}
    return _differences(old, new, name)


def _input_reason(
    cfg: Config, key: str, folder: Path, inputs: Mapping[str, Any], moved: Mapping[str, str], hasher: Hasher
) -> list[str]:
    """Say how an input differs from what was read: what the configuration and the environment lead to now."""
    value = inputs[key]
    try:
        place = place_now(value, cfg.convert, moved, inputs)
    except UserError as error:
        return [f"input {key}: {str(error).splitlines()[0]}"]
    reasons = _file_reason("input", key, folder, value | {"path": place}, hasher)
    if not reasons or not value.get("outside"):
        return reasons
    before = f", was {value['path']}" if place != value["path"] else ""
    named = _changed_files(value.get("files", {}), hasher.files(Path(place)))
    return [f"{reasons[0].removesuffix(')')}{before}{': ' if named else ''}{named})"]


def _changed_files(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Name the files of a folder that changed, came or went: the first three.

    Examples
    --------
    >>> _changed_files({"a": "1", "b": "2"}, {"a": "9", "c": "3"})
    'a changed, b is gone, c is new'
    """
    if not then:
        return ""
    words = {
        name: "is new" if name not in then else "is gone" if name not in now else "changed" for name in {*then, *now}
    }
    named = sorted(name for name in words if then.get(name) != now.get(name))
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return ", ".join(f"{name} {words[name]}" for name in named[:3]) + more


def _file_reason(kind: str, key: str, folder: Path, value: dict[str, Any], hasher: Hasher) -> list[str]:
    found = input_sha256(folder, value, hasher)
    if found == value["sha256"]:
        return []
    return [f"{kind} {key} {'is missing' if found is None else 'changed'} ({value['path']})"]


def _how_attempt_ended(attempt: dict[str, Any]) -> str:
    if attempt.get("status") != "running":
        return attempt.get("error") or str(attempt.get("status"))
    import psutil

    alive = attempt.get("host") == platform.node() and psutil.pid_exists(attempt.get("pid", -1))
    return f"{RUNNING} (process {attempt['pid']})" if alive else "ended without a message (killed?)"


def _differences(old: Any, new: Any, name: str) -> list[str]:
    """Name the keys that differ: ``finetune.steps 100 -> 200``."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*new, *(key for key in old if key not in new)]
        return [reason for key in keys for reason in _differences(old.get(key), new.get(key), f"{name}.{key}")]
    return [] if old == new else [f"{name} {json.dumps(old)} -> {json.dumps(new)}"]
