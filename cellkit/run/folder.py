"""The run folder: what was made, from what, by which code.

Listed means finished. A stage writes below ``unfinished/<stage>/``; ``stage.done`` hashes everything there, moves it to
its place and writes the manifest entry last. A stage that fails or is killed leaves what was there before untouched.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from typing import Any

from cellkit.config.overrides import unread_by
from cellkit.config.sections import ConvertConfig
from cellkit.errors import Quarantined, UserError, nearest
from cellkit.files import read_json, sizes_and_times, write_json
from cellkit.log import LOG
from cellkit.machine import arithmetic_used, device_used, here, peak_bytes, processor_s
from cellkit.manifest import (
    MANIFEST,
    RESERVED,
    UNFINISHED,
    Hasher,
    check_folder,
    commit,
    covered,
    files_below,
    finish_commits,
    finished_entries,
    hold,
    input_sha256,
    listed_by,
    note_attempt,
    overlap,
    owned_files,
    preflight,
    read_manifest,
    release,
    runner_context,
    settings_sha256,
    stamp,
)
from cellkit.modules import code_sha256
from cellkit.outdated import outdated_stages
from cellkit.run.by_hand import asked_for
from cellkit.run.moved import place_now, renamed, with_old_paths
from cellkit.run.notebooks import context_of, maker_of
from cellkit.under_way import measured, note_running

PACKAGES = ("numpy", "scipy", "scikit-image", "pandas", "torch", "torchvision", "cellpose", "pycocotools")


# ---- the run folder, as notebooks see it


class Run:
    """A run folder: finds what finished stages left, starts the next stage.

    Parameters
    ----------
    run_dir : str or Path
        The folder; relative paths as in `cellkit.config.places.here`. Nothing is written before `start`.
    """

    def __init__(self, run_dir: str | Path):
        self.name = str(run_dir)
        self.folder = here(run_dir)
        self._stage: Stage | None = None
        self._hash = Hasher()
        self._outdated: dict[str, str] = {}  # earlier stages, and of which a warning is still to be given

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
            Another process writes in this folder, or the folder cannot be written, or is no run folder and holds other things.
        """
        context = runner_context(self.folder)
        if context and context["stage"] != name:
            raise UserError(f"the notebook {context['stage']} starts the stage {name!r}", "give both the same name")
        if not context:
            check_folder(self.folder)
            preflight(self.folder)
            if keys := unread_by(name):
                LOG.info(f"overrides: this notebook does not read {', '.join(keys)}: give that to those that do")
        hold(self.folder, "kernel" if context else "writer", name)
        finish_commits(self.folder)
        self._hash = Hasher()
        self._outdated = {} if context else outdated_stages(read_manifest(self.folder))
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
            self._stage._entry["patterns"][pattern] = keys
        return {key: self._use(key, *listed[key]) for key in keys}

    def stages(self) -> dict[str, dict[str, Any]]:
        """Return the manifest entries of all finished stages, in order."""
        return finished_entries(read_manifest(self.folder))

    def _listed(self) -> dict[str, tuple[str, dict[str, str]]]:
        """Return what finished stages list, earlier ones only while a stage runs."""
        if not self.folder.is_dir():
            raise UserError(f"there is no run folder '{self.name}'", "make one with: cellkit run CONFIG --run FOLDER")
        return listed_by(read_manifest(self.folder), *(self._stage.earlier if self._stage else ()))

    def _use(self, key: str, stage: str, output: dict[str, str]) -> Path:
        path = self.folder / output["path"]
        found = self._hash(path)
        if found != output["sha256"]:
            what = "is missing" if found is None else f"is not as {stage} left it"
            raise UserError(f"'{key}' ({path}) {what}", f"repeat that stage: cellkit run CONFIG --run {self.name}")
        if self._stage:
            if why := self._outdated.pop(stage, ""):
                repeat = f"cellkit run CONFIG --run {self.name} repeats what is needed"
                LOG.warning(f"'{key}' is of {stage}, which is out of date: {why}; repeat that first ({repeat})")
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
    workers : int
        Processes that share the images, as its section says.
    """

    def __init__(self, run: Run, name: str, section: Any, context: dict[str, Any] | None):
        self.run, self.name = run, name
        self.root = run.folder / UNFINISHED / name
        self.folder = self.root / name
        self._context = context or {"attempt": uuid.uuid4().hex, "began": time.time(), **context_of(name)}
        self._entry: dict[str, Any] = {
            "config": fingerprint_of(section),
            **{key: self._context[key] for key in ("code_sha256", "notebook_sha256", "package_sha256")},
            "attempt": self._context["attempt"],
            "started": stamp(self._context["began"]),
            "inputs": {},
            "patterns": {},
            "quarantined": [],
            "costs": {},
        }
        self.workers: int = getattr(section, "workers", 1)
        self._looks: dict[str, Any] = {}
        self._is_listed = False
        self._convert = section if isinstance(section, ConvertConfig) else None
        self._prepare()
        if not context:
            facts = {"started": self._entry["started"], **asked_for(run.folder, name, section)}
            note_attempt(run.folder, name, self._context["attempt"], status="running", **facts)

    @property
    def settings(self) -> Any:
        """The plain values of its section, as they stand in the manifest."""
        return self._entry["config"]

    @property
    def quarantined(self) -> list[dict[str, str]]:
        """What it skipped so far: item and reason."""
        return self._entry["quarantined"]

    @property
    def earlier(self) -> tuple[list[str] | None, str]:
        """The stages whose outputs this one may read (None = all but its own), and its name."""
        return self._context["before"], self.name

    def path(self, name: str) -> Path:
        """Return the path to write the run folder's file `name` to; its folder is made."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def reads(self, **paths: str | Path | None) -> None:
        """Note files or folders outside the run folder as inputs, by their content; None stands for nothing.

        Raises
        ------
        UserError
            Nothing is at a path.
        """
        for key, path in ((key, path) for key, path in paths.items() if path is not None):
            place = here(path).absolute()
            if not place.exists():
                raise UserError(f"input '{key}': nothing at '{place}'", "name an existing file or folder")
            self.note_reading(Path(path), key)

    def note_reading(self, path: Path, key: str = "", by: str = "", name: str = "") -> None:
        """Note what is about to be read as an input; see `cellkit.under_way.note_reading`."""
        place = here(path).absolute()
        real, run = place.resolve(), self.run.folder.resolve()
        if not self.root.is_dir():  # this stage is done
            return
        if real.is_relative_to(run):
            self._note_own(real.relative_to(run).as_posix())
        elif place.as_posix() not in {value.get("path") for value in self._entry["inputs"].values()} or by == "data":
            key = key or place.as_posix()
            self._looks[key] = (place, sizes_and_times(place))
            value = {"path": place.as_posix(), "sha256": self.run._hash(place), "outside": True}
            files = self.run._hash.files(place)
            about = {"by": by, "named": name or ("" if Path(path).is_absolute() else str(path)), "files": files}
            self._note_input(key, value | {what: words for what, words in about.items() if words})

    def note_settings(self) -> None:
        """Note the settings of the stages before this one as an input: a report tells them."""
        before, own = self.earlier
        names = sorted(set(finished_entries(read_manifest(self.run.folder)) if before is None else before) - {own})
        value = {"settings_before": names, "sha256": settings_sha256(self.run.folder, names)}
        self._note_input("settings", {"path": MANIFEST, **value})

    def note_no_effect(self, keys: Iterable[str]) -> None:
        """Note which settings of its section made no difference; see `cellkit.under_way.note_no_effect`."""
        self._entry["no_effect"] = sorted(keys)

    def _note_own(self, name: str) -> None:
        """Note a place in the run folder: the earlier stage's output that holds it, else the place itself."""
        if name == "." or name.split("/")[0] in RESERVED:
            return
        listed = listed_by(read_manifest(self.run.folder), *self.earlier)
        key, place = next(((k, o["path"]) for k, (_, o) in listed.items() if covered(name, [o["path"]])), (name, name))
        self._note_input(key, {"path": place, "sha256": self.run._hash(self.run.folder / place)})

    def measured(self, model: str) -> AbstractContextManager:
        """Return a context: what is spent within is the training of a model, called as its predictions; see the manifest."""
        return measured(model, "train")

    def note_cost(self, model: str, what: str, seconds: float, processor_s: float, mpx: float = 0.0) -> None:
        """Add to what a model's training or finding ("train", "find") has cost: see `cellkit.under_way.measured`."""
        before = self._entry["costs"].setdefault(model, {}).get(what, {})
        new = {"seconds": seconds, "processor_s": processor_s, "mpx": mpx}
        added = {key: round(before.get(key, 0) + value, 3) for key, value in new.items()}
        self._entry["costs"][model][what] = added | {"peak_bytes": peak_bytes()}

    def quarantine(self, items: Iterable[Quarantined]) -> None:
        """Record items that were skipped; the run ends with exit code 3."""
        for one in items:
            item = {"item": str(one.item), "reason": one.reason}
            self.quarantined.extend([] if item in self.quarantined else [item])  # a cell may be run twice

    def done(self, **outputs: str | Path | None) -> None:
        """Finish: hash everything written, move it to its place, list it in the manifest. The notebook's last call.

        A second call lists the unnamed files of the first again.

        Parameters
        ----------
        outputs : paths
            Files or folders below `root` (moved) or already in place in the run folder (only listed), each under the
            key by which later stages find it; None is not listed. Files below `root` that are not named move along.

        Raises
        ------
        UserError
            An output is missing, lies outside the run folder, or is another stage's; or the stage was run again elsewhere
            since it was done here. Nothing has moved then.
        """
        if os.name == "posix" and self._context.get("pid", os.getppid()) != os.getppid():
            raise UserError(f"the runner of {self.name} has ended", "start cellkit run again")
        if "pid" not in self._context:
            hold(self.run.folder, "writer", self.name)  # again, when the cell is run a second time by hand
        former = self._listed_before()
        listed = {key: self._place(key, Path(path)) for key, path in outputs.items() if path is not None}
        for unfinished in self.root.rglob(".tmp-*"):  # left by a write that was killed
            unfinished.unlink()
        self.run._hash = hasher = Hasher()
        also = [name for name in files_below(self.root) if not covered(name, listed.values())]
        self._check_owners(listed, also)
        news = [*listed.values(), *also]
        former = {name: sha for name, sha in former.items() if not any(overlap(name, new) for new in news)}
        self._settle_inputs([*news, *former])
        self._entry |= {
            "status": "finished",
            "outputs": {key: {"path": name, "sha256": hasher(self._source(name))} for key, name in listed.items()},
            "also": former | {name: hasher(self.root / name) for name in also},
            "versions": versions(),
            "device": device_used(),
            "arithmetic": arithmetic_used(self._entry["config"].get("precision", "auto")),
            "seconds": round(time.time() - self._context["began"], 1),
            "processor_s": round(processor_s(), 1),
            "peak_bytes": peak_bytes(),
            "finished": stamp(time.time()),
        }
        names = list(dict.fromkeys([*listed.values(), *also]))
        outer = [name for name in names if not any(covered(name, [other]) for other in names if other != name)]
        staged = [name for name in outer if (self.root / name).exists()]
        write_json(self.root / ".commit.json", {"entry": self._entry, "moves": staged})
        commit(self.run.folder, self.name)
        self._is_listed = True
        self.run._stage = None
        note_running(None)
        if not runner_context(self.run.folder):
            release(self.run.folder)

    def _listed_before(self) -> dict[str, str]:
        """Return the unnamed files that an earlier call of `done` listed for this very attempt, each with its sha256."""
        if not self._is_listed:
            return {}
        entry = read_manifest(self.run.folder)["stages"].get(self.name, {})
        if entry.get("attempt") != self._entry["attempt"]:
            release(self.run.folder)  # nothing is under way here
            problem = f"{self.name} was run again elsewhere since it was done here"
            raise UserError(problem, "to repeat it here, run this notebook from its first cell")
        return entry["also"]

    def _settle_inputs(self, own: list[str]) -> None:
        """Forget inputs that this stage itself writes; say which were changed by others while it ran."""
        inputs = self._entry["inputs"].items()
        outer = ("outside", "settings_before")
        self._entry["inputs"] = {
            key: value for key, value in inputs if any(o in value for o in outer) or not covered(value["path"], own)
        }
        for key, (path, look) in self._looks.items():
            if sizes_and_times(path) != look:
                problem = f"input {key} changed while {self.name} ran ({path})"
                LOG.warning(f"{problem}: the stage is out of date; repeat the command")

    def _prepare(self) -> None:
        """Keep what an earlier attempt left only if it was made from the same inputs, section and code."""
        note = self.root / ".attempt.json"
        keep = note.is_file() and self._same_ground(read_json(note))
        if not keep and self.root.exists():
            shutil.rmtree(self.root)
        self._entry["resumed"] = keep
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_note()

    def _same_ground(self, note: dict[str, Any]) -> bool:
        """Tell whether an earlier attempt had the same code, section and inputs, wherever these lie now."""
        inputs = note["inputs"]
        moved = renamed(note["config"], self._entry["config"], inputs)
        if note["code_sha256"] != self._entry["code_sha256"]:
            return False
        if note["config"] != with_old_paths(self._entry["config"], moved):
            return False
        try:
            now = [value | {"path": place_now(value, self._convert, moved, inputs)} for value in inputs.values()]
        except UserError:  # what it read is not there any more
            return False
        return all(input_sha256(self.run.folder, value, self.run._hash) == value["sha256"] for value in now)

    def _write_note(self) -> None:
        write_json(self.root / ".attempt.json", {key: self._entry[key] for key in ("config", "code_sha256", "inputs")})

    def _note_input(self, key: str, value: dict[str, Any]) -> None:
        if self._entry["inputs"].get(key) != value:
            self._entry["inputs"][key] = value
            self._write_note()

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


def fingerprint_of(section: Any) -> Any:
    """Return the values of a section that a result depends on, and hashes of the code of a backend or source of one's own."""
    codes = {f"{kind}_code": code_sha256(getattr(section, kind, None) or "") for kind in ("backend", "source")}
    more = {kind: code for kind, code in codes.items() if code}
    if hasattr(section, "fingerprint"):
        return section.fingerprint() | more
    return section.model_dump(mode="json") | more if hasattr(section, "model_dump") else section


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and what its results depend on."""
    found = {"python": platform.python_version()}
    for name in ("cellkit", *PACKAGES):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
