"""The run folder: what was made, from what, by which code; and the runner that makes it, notebook by notebook.

Listed means finished. A stage writes below ``unfinished/<stage>/``; ``stage.done`` hashes everything there, moves it to
its place and writes the manifest entry last. A stage that fails or is killed leaves what was there before untouched.
Whether a stage is up to date is decided by content hashes of inputs, section, code and outputs, never by times.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cellkit.config import Config
from cellkit.config_places import data_path, here, names_data
from cellkit.config_reading import load_config
from cellkit.errors import Quarantined, UserError, nearest, place_fault
from cellkit.files import look_of, read_json, write_json
from cellkit.manifest import (
    FORMAT,
    LOCKS,
    MANIFEST,
    NOTEBOOKS,
    RESERVED,
    RUNNER_VARIABLE,
    UNFINISHED,
    Hasher,
    check_folder,
    clear_place,
    commit,
    covered,
    files_below,
    finish_commits,
    finished_entries,
    hold,
    input_sha256,
    note_attempt,
    note_running,
    overlap,
    owned_files,
    preflight,
    read_manifest,
    release,
    runner_context,
    settings_sha256,
    stamp,
)
from cellkit.notebooks import Notebook, code_hashes, code_of, maker_of, package_sha256, read_notebooks

PACKAGES = ("numpy", "scipy", "scikit-image", "pandas", "torch", "torchvision", "cellpose", "pycocotools")
INTERRUPTED = 130


# ---- the run folder, as notebooks see it


class Run:
    """A run folder: finds what finished stages left, starts the next stage.

    Parameters
    ----------
    run_dir : str or Path
        The folder; relative paths as in `cellkit.config_places.here`. Nothing is written before `start`.
    """

    def __init__(self, run_dir: str | Path):
        self.name = str(run_dir)
        self.folder = here(run_dir)
        self._stage: Stage | None = None
        self._hash = Hasher()

    def start(self, name: str, section: Any) -> Stage:
        """Begin a stage: take the lock, make a place for its files, note from here on what it reads.

        Parameters
        ----------
        name : str
            The notebook's name, '03_finetune_cellpose'.
        section : Section
            Its section of the configuration; hashed, so that a change makes the stage stale.

        Raises
        ------
        UserError
            Another process writes in this folder, or the folder cannot be written.
        """
        context = runner_context(self.folder)
        if context and context["stage"] != name:
            raise UserError(f"the notebook {context['stage']} starts the stage {name!r}", "give both the same name")
        if not context:
            preflight(self.folder)
        hold(self.folder, "kernel" if context else "writer")
        finish_commits(self.folder)
        self._hash = Hasher()
        self._stage = Stage(self, name, section, context)
        note_running(self._stage)
        return self._stage

    def find(self, key: str) -> Path:
        """Return the path of an output that an earlier, finished stage lists under `key`, verified by its hash.

        While a stage runs, the path and its sha256 are noted as an input of it.

        Raises
        ------
        UserError
            No such folder or output, or the output is not as it was left.
        """
        listed = self._listed()
        if key not in listed:
            raise self._not_listed(key, listed)
        return self._use(key, *listed[key])

    def find_all(self, pattern: str = "*") -> dict[str, Path]:
        """Return the outputs whose key matches a pattern such as ``predictions_*``, sorted by key; noted as in `find`.

        An empty dict when none does.
        """
        listed = self._listed()
        keys = sorted(key for key in listed if fnmatchcase(key, pattern))
        if self._stage:
            self._stage._note_pattern(pattern, keys)
        return {key: self._use(key, *listed[key]) for key in keys}

    def stages(self) -> dict[str, dict[str, Any]]:
        """Return the manifest entries of all finished stages, in order."""
        return finished_entries(read_manifest(self.folder))

    def _listed(self) -> dict[str, tuple[str, dict[str, str]]]:
        """Return what finished stages list, earlier ones only while a stage runs."""
        if not self.folder.is_dir():
            raise UserError(f"there is no run folder '{self.name}'", "make one with: cellkit run CONFIG --run FOLDER")
        return _listed_before(read_manifest(self.folder), self._stage.name if self._stage else None)

    def _use(self, key: str, stage: str, output: dict[str, str]) -> Path:
        path = self.folder / output["path"]
        found = self._hash(path)
        if found != output["sha256"]:
            what = "is missing" if found is None else f"is not as {stage} left it"
            raise UserError(f"'{key}' ({path}) {what}", f"repeat that stage: cellkit run CONFIG --run {self.name}")
        if self._stage:
            self._stage._note_input(key, {"path": output["path"], "sha256": found})
        return path

    def _not_listed(self, key: str, listed: Mapping[str, Any]) -> UserError:
        finished = ", ".join(self.stages()) or "none"
        maker = maker_of(key)
        if maker:
            problem = f"{self.name} has no '{key}' yet; run {maker} (finished: {finished})"
            return UserError(problem, f"cellkit run CONFIG --run {self.name} runs what is missing, in order")
        problem = f"{self.name} has no '{key}'{nearest(key, listed)} (finished: {finished})"
        return UserError(problem, f"listed there: {', '.join(sorted(listed)) or 'nothing'}")


class Stage:
    """A stage under way. Files written below its folders take their place in the run folder when it is done.

    Attributes
    ----------
    root : Path
        ``<run>/unfinished/<stage>``: stands for the run folder until the stage is done; ``root / "records.csv"``
        becomes ``<run>/records.csv``. Kept after a kill, so that training resumes if nothing it depends on changed.
    folder : Path
        ``root / <stage>``: for checkpoints; becomes ``<run>/<stage>/``.
    """

    def __init__(self, run: Run, name: str, section: Any, context: dict[str, Any] | None):
        self.run, self.name = run, name
        self.root = run.folder / UNFINISHED / name
        self.folder = self.root / name
        self._context = context or {"attempt": uuid.uuid4().hex, "began": time.time(), **code_of(name)}
        self._entry: dict[str, Any] = {
            "config": _fingerprint(section),
            **{key: self._context[key] for key in ("code_sha256", "notebook_sha256", "package_sha256")},
            "attempt": self._context["attempt"],
            "started": stamp(self._context["began"]),
            "inputs": {},
            "patterns": {},
            "quarantined": [],
        }
        self._looks: dict[str, Any] = {}
        self._prepare()
        if not context:
            note_attempt(run.folder, name, self._context["attempt"], status="running", started=self._entry["started"])

    def path(self, name: str) -> Path:
        """Return the path to write the run folder's file `name` to; its folder is made."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def reads(self, **paths: str | Path) -> None:
        """Note files or folders outside the run folder as inputs, by their content.

        Raises
        ------
        UserError
            Nothing is at a path.
        """
        for key, path in paths.items():
            place = here(path).absolute()
            if not place.exists():
                raise UserError(f"input '{key}': nothing at '{place}'", "name an existing file or folder")
            self.note_reading(Path(path), key)

    def note_reading(self, path: Path, key: str = "", by: str = "", name: str = "") -> None:
        """Note what is about to be read as an input; see `cellkit.manifest.note_reading`."""
        place = here(path).absolute()
        real, run = place.resolve(), self.run.folder.resolve()
        if not self.root.is_dir():  # this stage is done
            return
        if real.is_relative_to(run):
            self._note_own(real.relative_to(run).as_posix())
        elif place.as_posix() not in {value.get("path") for value in self._entry["inputs"].values()} or by == "data":
            key = key or place.as_posix()
            self._looks[key] = (place, look_of(place))
            value = {"path": place.as_posix(), "sha256": self.run._hash(place), "outside": True}
            files = self.run._hash.files(place)
            told = {"by": by, "named": name or ("" if Path(path).is_absolute() else str(path)), "files": files}
            self._note_input(key, value | {what: words for what, words in told.items() if words})

    def note_settings(self) -> None:
        """Note the settings of the stages before this one as an input: a report tells them."""
        value = {"settings_before": self.name, "sha256": settings_sha256(self.run.folder, self.name)}
        self._note_input("settings", {"path": MANIFEST, **value})

    def _note_own(self, name: str) -> None:
        """Note a place in the run folder: the earlier stage's output that holds it, else the place itself."""
        if name == "." or name.split("/")[0] in RESERVED:
            return
        listed = _listed_before(read_manifest(self.run.folder), self.name)
        key, place = next(((k, o["path"]) for k, (_, o) in listed.items() if covered(name, [o["path"]])), (name, name))
        self._note_input(key, {"path": place, "sha256": self.run._hash(self.run.folder / place)})

    def quarantine(self, items: Iterable[Quarantined]) -> None:
        """Record items that were set aside; the run ends with exit code 3."""
        self._entry["quarantined"] += [{"item": str(item.item), "reason": item.reason} for item in items]

    def done(self, **outputs: str | Path) -> None:
        """Finish: hash everything written, move it to its place, list it in the manifest. The notebook's last call.

        Parameters
        ----------
        outputs : paths
            Files or folders below `root` (moved) or already in place in the run folder (only listed), each under the
            key by which later stages find it. Files below `root` that are not named move along.

        Raises
        ------
        UserError
            An output is missing, lies outside the run folder, or is another stage's; nothing has moved then.
        """
        if os.name == "posix" and self._context.get("pid", os.getppid()) != os.getppid():
            raise UserError(f"the runner of {self.name} has ended", "start cellkit run again")
        if "pid" not in self._context:
            hold(self.run.folder, "writer")  # again, when the cell is run a second time by hand
        listed = {key: self._place(key, Path(path)) for key, path in outputs.items()}
        for torn in self.root.rglob(".tmp-*"):  # left by a write that was killed
            torn.unlink()
        self.run._hash = hasher = Hasher()
        also = [name for name in files_below(self.root) if not covered(name, listed.values())]
        self._check_owners(listed, also)
        self._settle_inputs([*listed.values(), *also])
        self._entry |= {
            "status": "finished",
            "outputs": {key: {"path": name, "sha256": hasher(self._source(name))} for key, name in listed.items()},
            "also": {name: hasher(self.root / name) for name in also},
            "versions": _versions(),
            "device": _device(),
            "arithmetic": _arithmetic(),
            "seconds": round(time.time() - self._context["began"], 1),
            "finished": stamp(time.time()),
        }
        names = list(dict.fromkeys([*listed.values(), *also]))
        outer = [name for name in names if not any(covered(name, [other]) for other in names if other != name)]
        staged = [name for name in outer if (self.root / name).exists()]
        write_json(self.root / ".commit.json", {"entry": self._entry, "moves": staged})
        commit(self.run.folder, self.name)
        self.run._stage = None
        note_running(None)
        if not runner_context(self.run.folder):
            release(self.run.folder)

    def _settle_inputs(self, own: list[str]) -> None:
        """Forget inputs that this stage itself writes; say which were changed by others while it ran."""
        inputs = self._entry["inputs"].items()
        outer = ("outside", "settings_before")
        self._entry["inputs"] = {
            key: value for key, value in inputs if any(o in value for o in outer) or not covered(value["path"], own)
        }
        for key, (path, look) in self._looks.items():
            if look_of(path) != look:
                told = f"input {key} changed while {self.name} ran ({path})"
                print(f"{told}: the stage is out of date; repeat the command", file=sys.stderr, flush=True)

    def _prepare(self) -> None:
        """Keep what an earlier attempt left only if it was made from the same inputs, section and code."""
        note = self.root / ".attempt.json"
        keep = note.is_file() and self._same_ground(read_json(note))
        if not keep and self.root.exists():
            shutil.rmtree(self.root)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_note()

    def _same_ground(self, note: dict[str, Any]) -> bool:
        if any(note.get(key) != self._entry[key] for key in ("config", "code_sha256")):
            return False
        return all(input_sha256(self.run.folder, i, self.run._hash) == i["sha256"] for i in note["inputs"].values())

    def _write_note(self) -> None:
        write_json(self.root / ".attempt.json", {key: self._entry[key] for key in ("config", "code_sha256", "inputs")})

    def _note_input(self, key: str, value: dict[str, Any]) -> None:
        if self._entry["inputs"].get(key) != value:
            self._entry["inputs"][key] = value
            self._write_note()

    def _note_pattern(self, pattern: str, keys: list[str]) -> None:
        self._entry["patterns"][pattern] = keys

    def _source(self, name: str) -> Path:
        return self.root / name if (self.root / name).exists() else self.run.folder / name

    def _place(self, key: str, path: Path) -> str:
        """Return an output's final name relative to the run folder."""
        path, run = here(path).resolve(), self.run.folder.resolve()
        staging = (run / UNFINISHED / self.name).resolve()
        remedy = f"write it to stage.path('{path.name}')"
        if not path.is_relative_to(run):
            raise UserError(f"output '{key}' is '{path}', outside the run folder '{self.run.name}'", remedy)
        name = path.relative_to(staging if path.is_relative_to(staging) else run).as_posix()
        if not path.exists() and not (run / name).exists():
            raise UserError(f"output '{key}': nothing was written to '{path}'", remedy)
        if name == "." or name.split("/")[0] in RESERVED:
            raise UserError(f"output '{key}' is '{path}', a place the run folder keeps for itself", remedy)
        return name

    def _check_owners(self, listed: dict[str, str], also: list[str]) -> None:
        """Refuse keys and places that belong to other stages."""
        entries = read_manifest(self.run.folder)["stages"].items()
        for other, entry in ((name, entry) for name, entry in entries if name != self.name):
            keys, taken = set(entry["outputs"]), owned_files({"stages": {other: entry}})
            remedy = "choose another key and name"
            for key in sorted(keys & set(listed)):
                raise UserError(f"output '{key}' is already listed by {other}", remedy)
            for place in [*listed.values(), *also]:
                if any(overlap(place, path) for path in taken):
                    raise UserError(f"'{place}' already belongs to {other}", remedy)


def _listed_before(manifest: dict[str, Any], stage: str | None) -> dict[str, tuple[str, dict[str, str]]]:
    """Return {key: (stage, output)} of the finished stages before `stage`, of all when it is None."""
    entries = {name: entry for name, entry in finished_entries(manifest).items() if stage is None or name < stage}
    return {key: (name, output) for name, entry in entries.items() for key, output in entry["outputs"].items()}


def _fingerprint(section: Any) -> Any:
    """Return the plain values of a section that a result depends on."""
    if hasattr(section, "fingerprint"):
        return section.fingerprint()
    return section.model_dump(mode="json") if hasattr(section, "model_dump") else section


def _versions() -> dict[str, str]:
    """Return the versions of Python, this package and what its results depend on."""
    from importlib import metadata

    found = {"python": platform.python_version()}
    for name in ("cellkit", *PACKAGES):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _device() -> str:
    """Return what the stage ran on: 'cpu', or the GPU that torch saw if torch was used."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name(0)}"
    return "cpu"


def _arithmetic() -> dict[str, Any]:
    """Return what decides the last digits of a result: number type, instructions, threads; {} if torch was not used."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    from cellkit.machine import device_and_dtype

    device, dtype = device_and_dtype()
    return {
        "device": device.type,
        "number_type": str(dtype).removeprefix("torch."),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


# ---- staleness


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
        return _states(folder, load_config(config_path, overrides), books, manifest, Hasher())
    told = manifest.get("run")
    if not told:
        raise UserError(f"'{run_dir}' does not tell its configuration", "name the configuration file")
    began_in = told.get("folder", "")
    with contextlib.chdir(began_in) if os.path.isdir(began_in) else contextlib.nullcontext():  # its relative paths
        return _states(folder, load_config(told["config"], told["overrides"]), books, manifest, Hasher())


def _states(
    folder: Path, cfg: Config, books: list[Notebook], manifest: dict[str, Any], hasher: Hasher
) -> list[StageState]:
    """Judge every stage; one whose input comes from a stage that is not fresh is stale too."""
    states: dict[str, StageState] = {}
    for book in books:
        state = _judge(folder, cfg, book, manifest, hasher)
        for key in manifest["stages"].get(book.name, {}).get("inputs", {}) if state.state == "fresh" else ():
            maker = next((n for n, s in states.items() if s.state != "fresh" and key in _keys(manifest, n)), None)
            if maker:
                why = f"its input {key} comes from {maker}, which is {states[maker].state}"
                state = replace(state, state="stale", why=why)
                break
        states[book.name] = state
    return list(states.values())


def _keys(manifest: dict[str, Any], stage: str) -> dict[str, Any]:
    return manifest["stages"].get(stage, {}).get("outputs", {})


def _judge(folder: Path, cfg: Config, book: Notebook, manifest: dict[str, Any], hasher: Hasher) -> StageState:
    """Judge one stage by its own inputs, section, code and outputs."""
    entry, attempt = manifest["stages"].get(book.name), manifest["attempts"].get(book.name)
    if entry is None and attempt is None:
        return StageState(book.name, "missing", "never run")
    if entry is None or entry.get("status") != "finished":
        return StageState(book.name, "failed", _how_attempt_ended(attempt) if attempt else entry.get("error", "failed"))
    reasons = [
        *_section_differences(entry, _fingerprint(cfg.section(book.section)), book.section),
        *(["the notebook changed"] if entry["notebook_sha256"] != book.sha256 else []),
        *(["the cellkit package changed"] if entry["package_sha256"] != package_sha256() else []),
        *[r for key, value in entry["inputs"].items() for r in _input_reason(cfg, key, folder, value, hasher)],
        *[r for key, value in entry["outputs"].items() for r in _file_reason("output", key, folder, value, hasher)],
        *[
            reason
            for name, sha in entry["also"].items()
            for reason in _file_reason("file", name, folder, {"path": name, "sha256": sha}, hasher)
        ],
    ]
    listed = _listed_before(manifest, book.name)
    for pattern, keys in entry.get("patterns", {}).items():
        now = sorted(key for key in listed if fnmatchcase(key, pattern))
        reasons += (
            [f"it read {', '.join(keys) or 'no'} {pattern}, now {', '.join(now) or 'none'}"] if now != keys else []
        )
    note = _other_versions(entry.get("versions", {}))
    if reasons:
        return StageState(book.name, "stale", "; ".join(reasons), note)
    later = f"a later attempt failed: {_how_attempt_ended(attempt)}" if attempt else ""
    return StageState(book.name, "fresh", later, note)


def _other_versions(then: Mapping[str, str]) -> str:
    """Say which packages have other versions than those a stage was made with."""
    now = _versions()
    return ", ".join(f"{n} {v}, now {now.get(n, 'missing')}" for n, v in then.items() if now.get(n) != v)


def _section_differences(entry: Mapping[str, Any], new: Any, name: str) -> list[str]:
    """Name the keys of a section that differ. A data folder is judged by what is in it, not by its name."""
    old = entry["config"]
    if any(value.get("by") == "data" for value in entry["inputs"].values()) and {"data"} <= set(old) & set(new):
        old, new = {**old, "data": None}, {**new, "data": None}
    return _differences(old, new, name)


def _input_reason(cfg: Config, key: str, folder: Path, value: dict[str, Any], hasher: Hasher) -> list[str]:
    """Say how an input differs from what was read: what the configuration and the environment lead to now."""
    try:
        place = _place_now(cfg, value)
    except UserError as error:
        return [f"input {key}: {str(error).splitlines()[0]}"]
    reasons = _file_reason("input", key, folder, value | {"path": place}, hasher)
    if not reasons or not value.get("outside"):
        return reasons
    moved = f", was {value['path']}" if place != value["path"] else ""
    named = _changed_files(value.get("files", {}), hasher.files(Path(place)))
    return [f"{reasons[0].removesuffix(')')}{moved}{': ' if named else ''}{named})"]


def _place_now(cfg: Config, value: Mapping[str, Any]) -> str:
    """Return the path of an input as a stage that starts now would find it."""
    by, named = value.get("by"), value.get("named", "")
    if by == "data" and names_data(cfg.convert):
        return data_path(cfg.convert).absolute().as_posix()
    if by in ("weights", "card"):
        from cellkit.weights import locate_weights

        path = locate_weights(named).absolute()
        return (path if by == "weights" else path.with_suffix(".json")).as_posix()
    return here(named).absolute().as_posix() if named and not by else value["path"]


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
    return f"running now (process {attempt['pid']})" if alive else "ended without a word (killed?)"


def _differences(old: Any, new: Any, name: str) -> list[str]:
    """Name the keys that differ: ``finetune.steps 100 -> 200``."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*new, *(key for key in old if key not in new)]
        return [reason for key in keys for reason in _differences(old.get(key), new.get(key), f"{name}.{key}")]
    return [] if old == new else [f"{name} {json.dumps(old)} -> {json.dumps(new)}"]


# ---- the runner


def run_notebooks(
    config_path: str | Path,
    run_dir: str | Path | None = None,
    from_: str | None = None,
    only: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    fresh: bool = False,
    notebooks: str | Path | None = None,
    timeout_s: float | None = None,
    allow_skips: bool = False,
) -> int:
    """Run the notebooks in order, each only if its inputs, section, code or outputs changed.

    Parameters
    ----------
    config_path : str or Path
    run_dir : str or Path, optional
        By default ``runs/<name of the configuration>``.
    from_, only : str, optional
        A stage ('03' or its name) to repeat with all after it, or alone; earlier ones are kept as they are.
    overrides : mapping, optional
        As in `load_config`.
    fresh : bool
        Forget the run: delete what its manifest lists and its executed notebooks, then run everything.
    notebooks : str or Path, optional
        As in `read_notebooks`.
    timeout_s : float, optional
        Most seconds one cell may take.
    allow_skips : bool
        Return 0 instead of 3 when items were quarantined.

    Returns
    -------
    int
        0 done; 1 a notebook failed; 2 a notebook refused its input; 3 done with quarantined items; 130 interrupted.

    Raises
    ------
    UserError
        Bad usage or configuration, unwritable folder, another writer: found before any notebook runs.
    """
    cfg = load_config(config_path, overrides)
    books = read_notebooks(notebooks)
    chosen = _choose(books, from_, only, fresh)
    folder = here(run_dir if run_dir is not None else Path("runs") / cfg.name)
    check_folder(folder)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    preflight(folder)
    with _terminating():
        try:
            hold(folder, "writer")
            if fresh:
                _look_ahead(cfg, folder, [book.name for book in chosen] if notebooks is None else [])
                _forget(folder)
            else:
                finish_commits(folder)
            told = json.loads(json.dumps(dict(overrides or {})))  # plain values only
            given = {"config": str(here(config_path)), "run_dir": str(folder), "overrides": told}
            look = not fresh and notebooks is None
            return _Runner(folder, cfg, books, chosen, given, timeout_s, allow_skips, bool(from_ or only), look).run()
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            return INTERRUPTED
        finally:
            release(folder)
            _unmake(made)


def _choose(books: list[Notebook], from_: str | None, only: str | None, fresh: bool) -> list[Notebook]:
    """Return the notebooks to consider."""
    if bool(from_) + bool(only) + bool(fresh) > 1:
        raise UserError("--from, --only and --fresh exclude each other", "give one of them")
    wanted = from_ or only
    if not wanted:
        return books
    names = [book.name for book in books]
    hits = [n for n in names if n == wanted or n.split("_")[0] == wanted.zfill(2)]
    if not hits:
        raise UserError(f"no notebook is called {wanted!r}{nearest(wanted, names)}", f"notebooks: {', '.join(names)}")
    start = names.index(hits[0])
    return books[start:] if from_ else books[start : start + 1]


def _look_ahead(cfg: Config, folder: Path, stages: list[str]) -> None:
    """Tell everything that is wrong before the stages are run (`cellkit.preflight`); refuse to run them for an error."""
    if not stages:
        return
    from cellkit.preflight import look_ahead

    outlook = look_ahead(cfg, folder, stages)
    errors = outlook.errors()
    if errors and len(outlook.findings) == 1:
        raise UserError(errors[0].problem, errors[0].remedy)
    for found in outlook.findings:
        print(found.told(), file=sys.stderr, flush=True)
    if errors:
        count = f"{len(errors)} error(s), {len(outlook.findings) - len(errors)} warning(s): nothing is run"
        raise UserError(count, "mend what is named above; `cellkit check CONFIG` lists it again")


def _unmake(made: list[Path]) -> None:
    """Remove the folders that a refused run made, if it wrote nothing into them."""
    if made and not (made[0] / MANIFEST).exists():
        shutil.rmtree(made[0] / LOCKS, ignore_errors=True)
        for place in made:
            with contextlib.suppress(OSError):  # it holds something
                place.rmdir()


def _forget(folder: Path) -> None:
    """Delete what stages put into the run folder, and its executed notebooks; set aside what was changed by hand."""
    try:
        manifest = read_manifest(folder)
    except UserError:  # damaged: what it listed cannot be told from what is not ours
        manifest = {"format": FORMAT, "stages": {}, "attempts": {}}
    for entry in manifest["stages"].values():
        entry |= {"status": "failed", "error": "forgotten (--fresh)"}  # should the deleting be cut short
    write_json(folder / MANIFEST, manifest, indent=1)
    owned = owned_files(manifest)
    for name in sorted(owned):
        clear_place(folder, name, owned)
        with contextlib.suppress(OSError):  # a folder that still holds something stays
            (folder / name).parent.rmdir()
    for name in (UNFINISHED, NOTEBOOKS):
        shutil.rmtree(folder / name, ignore_errors=True)
    write_json(folder / MANIFEST, {"format": FORMAT, "stages": {}, "attempts": {}})


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Runner:
    """One call of `run_notebooks`, from the lock on."""

    def __init__(self, folder, cfg, books, chosen, given, timeout_s, allow_skips, forced, look=False):
        self.folder, self.cfg, self.books, self.chosen = folder, cfg, books, chosen
        self.given, self.timeout_s, self.allow_skips, self.forced = given, timeout_s, allow_skips, forced
        self.look = look
        self.console, self.hasher, self.began = _Console(), Hasher(), time.monotonic()
        self.states: dict[str, StageState] = {}

    def run(self) -> int:
        """Run or skip the chosen notebooks; return the exit code."""
        manifest = read_manifest(self.folder)
        self.states = {s.name: s for s in _states(self.folder, self.cfg, self.books, manifest, self.hasher)}
        self._keep_earlier(manifest)
        names = [book.name for book in self.chosen if self.forced or self.states[book.name].state != "fresh"]
        _look_ahead(self.cfg, self.folder, names if self.look else [])
        ran = 0
        for book in self.chosen:
            manifest = read_manifest(self.folder)
            state = _judge(self.folder, self.cfg, book, manifest, self.hasher)
            if state.state == "fresh" and not self.forced:
                self._skip(book)
                continue
            code = self._run(book, state, manifest)
            self.hasher = Hasher()
            ran += 1
            if code:
                return code
        return self._conclude(ran)

    def _keep_earlier(self, manifest: dict[str, Any]) -> None:
        """With --from and --only, earlier stages must be finished; say which are kept although they are stale."""
        earlier = self.books[: self.books.index(self.chosen[0])] if self.forced else []
        for state in (self.states[book.name] for book in earlier):
            if state.name not in finished_entries(manifest):
                raise UserError(
                    f"{self.given['run_dir']} has no finished {state.name} before {self.chosen[0].name} ({state.why})",
                    "leave --from and --only out: what is missing runs, in order",
                )
            note = "" if state.state == "fresh" else f", although it is {state.state}: {state.why}"
            self.console.line(f"{self._number(state.name)} keep {state.name}{note}")

    def _number(self, name: str) -> str:
        return f"[{[book.name for book in self.books].index(name) + 1}/{len(self.books)}]"

    def _skip(self, book: Notebook) -> None:
        self.console.line(f"{self._number(book.name)} skip {book.name} (unchanged)")
        copy, partial = self._copies(book)
        if partial.exists() and not copy.exists():  # killed between the manifest and this move
            os.replace(partial, copy)

    def _copies(self, book: Notebook) -> tuple[Path, Path]:
        folder = self.folder / NOTEBOOKS
        return folder / f"{book.name}.ipynb", folder / f"{book.name}.unfinished.ipynb"

    def _run(self, book: Notebook, state: StageState, manifest: dict[str, Any]) -> int:
        """Execute one notebook, record how it ended, return its exit code."""
        import nbformat

        from cellkit.engine import execute

        why = f"  because {state.why}" if state.state == "stale" else ""
        self.console.line(f"{self._number(book.name)} {book.name}{why}")
        clock = _Clock(self._expected(book, manifest), self._expected_after(book, manifest))
        attempt, began = uuid.uuid4().hex, time.time()
        copy, partial = self._copies(book)
        manifest["run"] = {**self.given, "config": str(Path(self.given["config"]).absolute()), "folder": os.getcwd()}
        write_json(self.folder / MANIFEST, manifest, indent=1)
        note_attempt(self.folder, book.name, attempt, status="running", started=stamp(began))
        outcome = execute(
            nbformat.from_dict(book.content),
            partial,
            self.given,
            self._environment(book, attempt, began),
            lambda cell, cells: self.console.line(self._progress(book, cell, cells, clock)),
            self.console.raw,
            self.timeout_s,
        )
        return self._judge_outcome(book, attempt, outcome, clock, copy, partial)

    def _environment(self, book: Notebook, attempt: str, began: float) -> dict[str, str]:
        context = {
            "run_dir": str(self.folder.resolve()),
            "pid": os.getpid(),
            "stage": book.name,
            "attempt": attempt,
            "began": began,
            **code_hashes(book.sha256),
        }
        return {"CELLKIT_HEADLESS": "1", RUNNER_VARIABLE: json.dumps(context)}

    def _judge_outcome(self, book, attempt, outcome, clock, copy, partial) -> int:
        """Ask the manifest: finished if stage.done was reached in this attempt and nothing failed after it."""
        finish_commits(self.folder)  # a kernel killed within stage.done
        manifest = read_manifest(self.folder)
        entry = manifest["stages"].get(book.name, {})
        reached = entry.get("attempt") == attempt
        expected = _fingerprint(self.cfg.section(book.section))
        if reached and outcome.ending in ("finished", "exit", "interrupted") and entry["config"] == expected:
            os.replace(partial, copy)
            self.console.line(f"{self._number(book.name)} {book.name}  finished in {clock.elapsed()}")
            if outcome.ending == "interrupted":
                self.console.line("interrupted")
            return INTERRUPTED if outcome.ending == "interrupted" else 0
        if reached and outcome.ending in ("finished", "exit", "interrupted"):
            outcome.ending, outcome.error_text = "error", f"it did not start its stage with the section {book.section}"
        code, problem = _verdict(outcome, reached)
        if reached:
            manifest["stages"][book.name] |= {"status": "failed", "error": problem}
            write_json(self.folder / MANIFEST, manifest, indent=1)
        note_attempt(
            self.folder,
            book.name,
            attempt,
            status="interrupted" if code == INTERRUPTED else "failed",
            finished=stamp(time.time()),
            error=problem,
            cell=outcome.cell,
            kernel_exit=outcome.kernel_exit,
            notebook=partial.relative_to(self.folder).as_posix(),
        )
        self._report(book, outcome, code, problem, partial)
        return code

    def _report(self, book, outcome, code: int, problem: str, partial: Path) -> None:
        """Say what went wrong, where, and where to look."""
        where = f"{self._number(book.name)} {book.name}  cell {outcome.cell}/{outcome.cells}"
        if code == 2:
            self.console.line(problem)
            return
        self.console.line(f"{where}  {problem}")
        if code == INTERRUPTED:
            return
        for line in outcome.traceback[-14:]:
            self.console.line(f"    {line}")
        if outcome.stderr_tail and outcome.ending == "died":
            self.console.line("the kernel's last words:")
            self.console.line(re.sub(r"(?m)^", "    ", outcome.stderr_tail))
        self.console.line(f"executed so far: {partial}")

    def _progress(self, book: Notebook, cell: int, cells: int, clock: _Clock) -> str:
        left = clock.left()
        about = f"  (about {left} left)" if left else ""
        return f"{self._number(book.name)} {book.name}  cell {cell}/{cells}  {clock.elapsed()}{about}"

    def _expected(self, book: Notebook, manifest: dict[str, Any]) -> float | None:
        """Return about how many seconds a notebook takes: as last time here, else as its metadata says."""
        seconds = manifest["stages"].get(book.name, {}).get("seconds")
        return seconds if seconds else book.minutes * 60 if book.minutes else None

    def _expected_after(self, book: Notebook, manifest: dict[str, Any]) -> float | None:
        """Return the seconds of the notebooks still to run after this one; None if unknown."""
        later = self.chosen[self.chosen.index(book) + 1 :]
        times = [self._expected(b, manifest) for b in later if self.forced or self.states[b.name].state != "fresh"]
        return None if None in times else sum(times)

    def _conclude(self, ran: int) -> int:
        finished = finished_entries(read_manifest(self.folder))
        names = [book.name for book in self.books if book.name in finished]
        set_aside = [(name, item) for name in names for item in finished[name]["quarantined"]]
        if not ran:
            self.console.line(f"nothing to do: every stage of {self.given['run_dir']} is finished and unchanged")
        else:
            self.console.line(f"done: {self.given['run_dir']} in {_span(time.monotonic() - self.began)}")
        for name, item in set_aside[:20]:
            self.console.line(f"set aside by {name}: {item['item']}: {item['reason']}")
        if len(set_aside) > 20:
            self.console.line(f"... and {len(set_aside) - 20} more, listed in {self.folder / MANIFEST}")
        return 3 if set_aside and not self.allow_skips else 0


def _verdict(outcome: Any, reached: bool) -> tuple[int, str]:
    """Return exit code and problem of a notebook that did not end well."""
    after = " after stage.done" if reached else ""
    if outcome.ending == "interrupted":
        return INTERRUPTED, f"interrupted in cell {outcome.cell}"
    if outcome.ending == "error" and outcome.error_name == "UserError":
        return 2, outcome.error_text
    if outcome.ending == "error" and (told := _place_told(outcome.error_text)):
        return 2, str(told)
    if outcome.ending == "error":
        name = f"{outcome.error_name}: " if outcome.error_name else ""
        return 1, f"failed{after}: {name}{outcome.error_text}"
    if outcome.ending == "timeout":
        return 1, f"stopped{after}: the cell took longer than the time allowed"
    if outcome.ending == "died":
        return 1, f"the kernel died{after}{_exit_words(outcome.kernel_exit)}"
    if outcome.ending == "exit":
        return 1, "a cell called exit() before stage.done"
    return 1, "ended without stage.done"


def _place_told(text: str) -> UserError | None:
    """Return what to say when a cell failed because of the disk or folder it wrote to; None for another error.

    Examples
    --------
    >>> print(_place_told("[Errno 28] No space left on device: '/runs/a/x.csv'"))
    '/runs/a/x.csv': the disk is full
    free space there, or name another place, then repeat the command: what is done is kept
    """
    found = re.match(r"\[Errno (\d+)\] [^:]*(?:: '(.*)')?$", text, re.S)
    return place_fault(OSError(int(found[1]), "", found[2])) if found else None


def _exit_words(status: int | None) -> str:
    """Say what an exit status means.

    Examples
    --------
    >>> _exit_words(-9)
    ' (exit code 137, SIGKILL: often the machine ran out of memory)'
    >>> _exit_words(1)
    ' (exit code 1)'
    """
    if status is None:
        return ""
    if status >= 0:
        return f" (exit code {status})"
    hint = ": often the machine ran out of memory" if status == -9 else ""
    with contextlib.suppress(ValueError):
        return f" (exit code {128 - status}, {signal.Signals(-status).name}{hint})"
    return f" (exit code {128 - status})"


class _Console:
    """Lines of the runner and what notebooks print, on stderr, never two on one line."""

    def __init__(self):
        self.fresh_line = True

    def line(self, text: str) -> None:
        print(("" if self.fresh_line else "\n") + text, file=sys.stderr, flush=True)
        self.fresh_line = True

    def raw(self, text: str) -> None:
        if text:
            print(text, end="", file=sys.stderr, flush=True)
            self.fresh_line = text.endswith("\n")


class _Clock:
    """Time since a notebook began, and about how long until all are done."""

    def __init__(self, this_s: float | None, later_s: float | None):
        self.began, self.this_s, self.later_s = time.monotonic(), this_s, later_s

    def elapsed(self) -> str:
        return _span(time.monotonic() - self.began)

    def left(self) -> str:
        """Return the time left in words, empty when it cannot be told."""
        if self.this_s is None or self.later_s is None:
            return ""
        left = max(0.0, self.this_s - (time.monotonic() - self.began)) + self.later_s
        return _span(left) if left >= 1 else ""


def _span(seconds: float) -> str:
    """Return a time span in short words.

    Examples
    --------
    >>> _span(7.6), _span(72), _span(300), _span(3720)
    ('8s', '1m12s', '5m', '1h02m')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s" if whole % 60 else f"{whole // 60}m"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
