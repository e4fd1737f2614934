"""What a run folder holds: its manifest, its hashes, its lock, and the moves that finish a stage.

A stage's files wait below ``unfinished/<stage>/``; `commit` moves them to their places and lists them last, so a kill
leaves either what was there before or, once the moves are noted, a move that the next writer completes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cellkit.errors import UserError
from cellkit.files import PACKAGE, read_json, sha256_each, sha256_file, sha256_listing, sha256_tree, write_json
from cellkit.log import LOG
from cellkit.modules import own_folders
from cellkit.room import disk_of

MANIFEST = "manifest.json"
FORMAT = 1
UNFINISHED = "unfinished"  # what running, failed and killed stages have written so far
SET_ASIDE = "set_aside"  # files of other origin that stood where an output belongs
NOTEBOOKS = "notebooks"
LABELS = "labels"  # the label images that 02 leaves for people
LOCKS = ".lock"
FOLDS, SEARCH = "folds", "search"  # other runs made beside this one: of `cellkit run --folds`, of `cellkit search`
RESERVED = {MANIFEST, UNFINISHED, SET_ASIDE, NOTEBOOKS, LOCKS, FOLDS, SEARCH}
RUNNER_VARIABLE = "CELLKIT_RUNNER"  # tells a kernel that the runner which started it holds the lock
ORPHAN_WAIT_S = 20.0  # how long the kernel of a killed runner may take to notice
MIN_FREE_BYTES = 200_000_000
LISTED_FILES = 5000  # a larger folder is known by one hash, and what changed in it is not named


# ---- the manifest


def read_manifest(run_dir: Path) -> dict[str, Any]:
    """Return the manifest of a run folder: ``{"format", "stages", "attempts", ...}``; empty when there is none yet.

    Raises
    ------
    UserError
        It is damaged or of another format.
    """
    path = run_dir / MANIFEST
    if not path.exists():
        return {"format": FORMAT, "stages": {}, "attempts": {}}
    try:
        manifest = read_json(path)
        good = manifest["format"] == FORMAT and all(isinstance(one, dict) for one in manifest["attempts"].values())
        good = good and all(_is_entry(entry) for entry in manifest["stages"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise UserError(f"'{path}' is damaged or of another version", "start over with --fresh, or name another --run")
    return manifest


def _is_entry(entry: Any) -> bool:
    """Tell whether an entry of the manifest has the parts that are read of it, each of its kind; raises where one is no table."""
    parts = (entry.get(key, {}) for key in ("inputs", "outputs", "also", "patterns", "versions"))
    inputs, outputs, also, patterns, versions = parts
    places = [*inputs.values(), *outputs.values()]
    texts = [*also.values(), *versions.values(), *(name for names in patterns.values() for name in names)]
    texts += [one["path"] for one in places] + [one.get(key, "") for one in inputs.values() for key in ("by", "named")]
    texts += [name for one in inputs.values() for name in list(one.get("settings_before", ()))]
    return all("sha256" in one for one in places) and all(isinstance(text, str) for text in texts)


def finished_entries(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the entries of finished stages, in the order of their names."""
    return {n: entry for n, entry in sorted(manifest["stages"].items()) if entry.get("status") == "finished"}


def listed_by(
    manifest: dict[str, Any], before: Iterable[str] | None = None, own: str = ""
) -> dict[str, tuple[str, dict[str, str]]]:
    """Return {key: (stage, output)} of the finished stages, except of `own`; only of those `before` it, where given."""
    wanted = None if before is None else set(before)
    return {
        key: (name, output)
        for name, entry in finished_entries(manifest).items()
        if name != own and (wanted is None or name in wanted)
        for key, output in entry.get("outputs", {}).items()
    }


def note_attempt(run_dir: Path, name: str, attempt: str, **facts: Any) -> None:
    """Record how far an attempt at a stage came; the entry of a finished stage stays as it is."""
    manifest = read_manifest(run_dir)
    before = manifest["attempts"].get(name, {})
    known = before if before.get("attempt") == attempt else {"pid": os.getpid(), "host": platform.node()}
    manifest["attempts"][name] = {**known, "attempt": attempt, **facts}
    write_json(run_dir / MANIFEST, manifest, indent=1)


def commit(run_dir: Path, name: str) -> None:
    """Move a stage's files to their places and list them; begun again after a kill, it ends the same."""
    root = run_dir / UNFINISHED / name
    plan, manifest = read_json(root / ".commit.json"), read_manifest(run_dir)
    new = {output["path"] for output in plan["entry"]["outputs"].values()} | set(plan["entry"]["also"])
    owned = owned_files(manifest)
    for old in sorted(set(owned_files({"stages": {name: manifest["stages"].get(name, {})}})) - new):
        if not any(overlap(old, path) for path in new):
            clear_place(run_dir, old, owned)
    for path in plan["moves"]:
        if (root / path).exists():
            clear_place(run_dir, path, owned)
            (run_dir / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(root / path, run_dir / path)
    manifest["stages"][name] = plan["entry"]
    attempt = manifest["attempts"].pop(name, {})
    if "run" in attempt and attempt.get("attempt") == plan["entry"]["attempt"]:  # what it was asked for with, by hand
        manifest["run"] = attempt["run"]
    write_json(run_dir / MANIFEST, manifest, indent=1)
    shutil.rmtree(root)
    with contextlib.suppress(OSError):  # other stages' work waits there
        root.parent.rmdir()


def finish_commits(run_dir: Path) -> None:
    """Complete the moves of a stage that was done but killed before it was listed, and remove incomplete files.

    Only for the process that holds the lock.
    """
    for partial in [*run_dir.glob(".tmp-*"), *run_dir.glob(f"{NOTEBOOKS}/.tmp-*")]:
        partial.unlink()
    for plan in sorted(run_dir.glob(f"{UNFINISHED}/*/.commit.json")):
        commit(run_dir, plan.parent.name)


def owned_files(manifest: dict[str, Any]) -> dict[str, str]:
    """Return {path: sha256} of everything that stages put into the run folder."""
    owned: dict[str, str] = {}
    for entry in manifest["stages"].values():
        owned |= {output["path"]: output["sha256"] for output in entry.get("outputs", {}).values()}
        owned |= entry.get("also", {})
    return owned


def clear_place(run_dir: Path, name: str, owned: Mapping[str, str]) -> None:
    """Clear a place in the run folder: delete what is as a stage left it, keep anything else under `SET_ASIDE`, with a warning.

    Raises
    ------
    UserError
        The place leads out of the run folder.
    """
    path = run_dir / name
    if not os.path.lexists(path):
        return
    if not path.parent.resolve().is_relative_to(run_dir.resolve()):
        raise UserError(f"'{path}' leads out of the run folder", "remove that link")
    if not path.is_symlink() and owned.get(name) == Hasher()(path):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return
    number = 1
    while (run_dir / SET_ASIDE / str(number) / name).exists():
        number += 1
    target = run_dir / SET_ASIDE / str(number) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, target)
    how = f"; to use what you corrected there: label.use: {target}" if name == LABELS else ""
    LOG.warning(f"{path} was changed by hand: kept as {target}{how}")


def files_below(root: Path) -> list[str]:
    """Return the sorted relative names of all files below `root`, hidden ones left out."""
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return [name for name in names if not any(part.startswith(".") for part in name.split("/"))]


def covered(name: str, places: Iterable[str]) -> bool:
    """Tell whether a relative path is one of `places` or lies below one.

    Examples
    --------
    >>> covered("images/a.png", ["images"]), covered("images2", ["images"])
    (True, False)
    """
    return any(name == place or name.startswith(f"{place}/") for place in places)


def overlap(one: str, other: str) -> bool:
    """Tell whether two relative paths are the same or one lies below the other."""
    return covered(one, [other]) or covered(other, [one])


# ---- hashes


class Hasher:
    """sha256 of files and folders, each computed once; None for what is missing."""

    def __init__(self):
        self.known: dict[Path, str | None] = {}
        self.listings: dict[Path, dict[str, str]] = {}

    def __call__(self, path: Path) -> str | None:
        """Return the sha256 of what is at `path`, None if nothing is."""
        if path not in self.known:
            if path.is_dir():
                self.listings[path] = sha256_each(path)
                self.known[path] = sha256_listing(self.listings[path])
            else:
                self.known[path] = sha256_file(path) if path.is_file() else None
        return self.known[path]

    def files(self, path: Path) -> dict[str, str]:
        """Return the names below a folder, as text that can be shown, each with the beginning of its sha256.

        Empty for a file, and for a folder of more than `LISTED_FILES`.
        """
        self(path)
        listing = self.listings.get(path, {})
        if len(listing) > LISTED_FILES:
            return {}
        return {os.fsencode(name).decode("utf-8", "backslashreplace"): sha[:16] for name, sha in listing.items()}


def input_sha256(run_dir: Path, value: Mapping[str, Any], hasher: Hasher) -> str | None:
    """Return the sha256 that an input noted in the manifest has now, None if it is gone."""
    if "settings_before" in value:
        return settings_sha256(run_dir, value["settings_before"])
    return hasher(Path(value["path"]) if value.get("outside") else run_dir / value["path"])


def settings_sha256(run_dir: Path, stages: Iterable[str]) -> str:
    """Return the sha256 of the settings that these stages were run with, as far as they are finished."""
    entries = finished_entries(read_manifest(run_dir))
    return sha256_json({name: entries[name].get("config") for name in sorted(stages) if name in entries})


def sha256_json(value: Any) -> str:
    """Return the sha256 of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def package_sha256() -> str:
    """Return the hash of every file of this package (code, templates, starter weights) and of the modules of one's own."""
    names = [name for name in files_below(PACKAGE) if "__pycache__" not in name and not name.endswith(".pyc")]
    hashes = {name: sha256_tree(PACKAGE / name) for name in names}
    for number, folder in enumerate(own_folders()):
        hashes |= {
            f"{number}: {name}": sha256_tree(folder / name) for name in files_below(folder) if name.endswith(".py")
        }
    return sha256_json(hashes)


def stamp(seconds: float) -> str:
    """Return seconds since 1970 as UTC in ISO 8601.

    Examples
    --------
    >>> stamp(0)
    '1970-01-01T00:00:00+00:00'
    """
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


# ---- the lock: one writer per run folder

_HELD: dict[tuple[Path, str], Any] = {}  # locks of this process; the operating system frees them when it ends


def check_folder(run_dir: Path) -> None:
    """Refuse a folder full of other things.

    Raises
    ------
    UserError
        Naming the first files that are in it.
    """
    known = RESERVED | {".DS_Store"}
    if run_dir.is_dir() and not (run_dir / MANIFEST).exists():
        other = sorted(child.name for child in run_dir.iterdir() if child.name not in known)
        if other:
            raise UserError(
                f"'{run_dir}' is no run folder and holds {', '.join(other[:3])}",
                "name a new folder: --run, or run_dir in a notebook",
            )


def free_bytes(run_dir: Path) -> int:
    """Return the space that is free where a run folder is, or will be."""
    return disk_of("the run folder", run_dir).free_bytes


def check_writable(run_dir: Path) -> None:
    """Refuse, without making it, a run folder that cannot be made or written, or has no room.

    Raises
    ------
    UserError
        With the reason.
    """
    place = run_dir.absolute()
    existing = next(one for one in (place, *place.parents) if os.path.lexists(one))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        why = f"no write access to '{existing}'" if existing.is_dir() else f"'{existing}' is no folder"
        raise UserError(f"run folder '{run_dir}' cannot be written: {why}", "name another folder with --run")
    _check_free(run_dir)


def _check_free(run_dir: Path) -> None:
    free = free_bytes(run_dir)
    if free < MIN_FREE_BYTES:
        raise UserError(
            f"{free // 10**6} MB are free at '{run_dir}', at least {MIN_FREE_BYTES // 10**6} MB are wanted",
            "name another folder with --run",
        )


def preflight(run_dir: Path) -> None:
    """Check that the run folder can be made and written and that the disk has room.

    Raises
    ------
    UserError
        It cannot.
    """
    remedy = "name another folder with --run"
    try:
        (run_dir / LOCKS).mkdir(parents=True, exist_ok=True)
        probe = run_dir / LOCKS / f"probe-{os.getpid()}"
        probe.write_bytes(b"written")
        probe.unlink()
    except OSError as error:
        raise UserError(f"run folder '{run_dir}' cannot be written: {error.strerror or error}", remedy) from None
    _check_free(run_dir)


def hold(run_dir: Path, kind: str, stage: str = "") -> None:
    """Take the writer's lock for this process, or, in a kernel that the runner started, the kernel's.

    Parameters
    ----------
    run_dir : Path
    kind : str
        "writer" or "kernel".
    stage : str, optional
        The stage whose notebook is open in Jupyter and takes it: it is held until that is done or its kernel ends.

    Raises
    ------
    UserError
        Another process holds it.
    """
    from filelock import FileLock, Timeout

    folder = run_dir.resolve() / LOCKS
    note = {"pid": os.getpid(), "host": platform.node(), "since": stamp(time.time()), "stage": stage}
    if (folder, kind) in _HELD:
        if kind == "writer" and stage:
            write_json(folder / "writer.json", note)
        return
    lock = FileLock(folder / kind)
    try:
        lock.acquire(timeout=ORPHAN_WAIT_S if kind == "kernel" else 0)
    except Timeout:
        raise _held_by(run_dir, folder) from None
    except OSError as error:
        raise UserError(f"'{folder}' cannot be locked: {error.strerror or error}", "name another with --run") from None
    _HELD[folder, kind] = lock
    if kind == "writer":
        try:
            hold(run_dir, "kernel")  # waits for the kernel of a killed runner to go
        except UserError:
            release(run_dir)
            raise
        _HELD.pop((folder, "kernel")).release()
        write_json(folder / "writer.json", note)


def release(run_dir: Path) -> None:
    """Give the writer's lock back, if this process holds it."""
    folder = run_dir.resolve() / LOCKS
    lock = _HELD.pop((folder, "writer"), None)
    if lock is not None:
        (folder / "writer.json").unlink(missing_ok=True)
        lock.release()


def _held_by(run_dir: Path, folder: Path) -> UserError:
    """Say who writes in a run folder: a command, which ends, or a notebook in Jupyter, whose kernel does not end by itself."""
    try:
        note = read_json(folder / "writer.json")
        writer, stage = f"process {note['pid']} on {note['host']} since {note['since']}", note.get("stage", "")
    except (OSError, ValueError, KeyError):
        writer, stage = "another process", ""
    if not stage:
        return UserError(
            f"run folder '{run_dir}' is being written by {writer}", "wait for it, or name another with --run"
        )
    return UserError(
        f"run folder '{run_dir}': {stage} is open in Jupyter and not finished ({writer})",
        "run it to its last cell, or restart its kernel; or name another folder",
    )


def runner_context(run_dir: Path) -> dict[str, Any] | None:
    """Return what the runner passed to this kernel, if it runs this very folder."""
    context = json.loads(os.environ.get(RUNNER_VARIABLE, "null"))
    return context if context and Path(context["run_dir"]) == run_dir.resolve() else None
