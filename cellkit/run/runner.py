"""The runner: makes a run, notebook by notebook, each only if what it depends on changed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from fastcore.basics import store_attr

from cellkit.cluster.opened import cluster_named, cluster_of
from cellkit.cluster.setting import CLUSTER_VARIABLE, NONE
from cellkit.config.reading import load_config
from cellkit.config.sections import Config
from cellkit.errors import UserError, counted, nearest
from cellkit.files import write_json
from cellkit.forecast.stages import uncounted
from cellkit.forecast.words import uncounted_in_words
from cellkit.log import LOG
from cellkit.machine import here
from cellkit.manifest import (
    FORMAT,
    LOCKS,
    MANIFEST,
    RUNNER_VARIABLE,
    UNFINISHED,
    Hasher,
    check_folder,
    clear_place,
    finish_commits,
    finished_entries,
    hold,
    note_attempt,
    owned_files,
    preflight,
    read_manifest,
    release,
    stamp,
)
from cellkit.run.console import INTERRUPTED, Clock, Console, span, verdict
from cellkit.run.copies import clear_unfinished, copies_of, forget_copies, keep_finished, note_unfinished
from cellkit.run.folder import fingerprint_of
from cellkit.run.foretold import Foretold, freed_by_forgetting
from cellkit.run.notebooks import Notebook, code_hashes, notebooks_of
from cellkit.run.preflight_data import Outlook
from cellkit.run.stale import StageState, stage_state, stage_states


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
    until: str | None = None,
    force: bool = False,
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
    until : str, optional
        The last stage to run; those after it are left as they are.
    force : bool
        Begin although memory or disk seem too small, see `cellkit.forecast.fits`.

    Returns
    -------
    int
        0 done; 1 a notebook failed; 2 a notebook refused its input; 3 done with quarantined items; 130 interrupted.

    Raises
    ------
    UserError
        Bad usage or configuration, unwritable folder, another writer: found before any notebook runs.
    """
    cfg = load_config(config_path, overrides, notebooks)
    cluster = cluster_named(cfg.cluster, cfg.workers)
    books = notebooks_of(cfg, notebooks)
    chosen = choose_notebooks(books, from_, only, fresh, until)
    folder = here(run_dir if run_dir is not None else Path("runs") / cfg.name)
    check_folder(folder)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    with _terminating(), cluster_of(NONE):  # each notebook opens its own, none waits while one is trained here
        try:
            preflight(folder)
            hold(folder, "writer")
            outlook, foretold = None, Foretold(folder, cfg, force)
            if fresh:
                names = [book.name for book in chosen] if notebooks is None else []
                outlook = _check_run(cfg, folder, names, force)
                foretold.look(
                    outlook, names, Console().line, freed_bytes=freed_by_forgetting(folder)
                )  # refused with nothing forgotten
                _forget(folder, [book.name for book in books])
            else:
                finish_commits(folder)
            plain = json.loads(json.dumps(dict(overrides or {})))  # plain values only
            given = {"config": str(here(config_path)), "run_dir": str(folder), "overrides": plain}
            look = not fresh and notebooks is None
            forced = bool(from_ or only)
            how = timeout_s, allow_skips, forced, foretold, look, outlook, cluster
            return _Runner(folder, cfg, books, chosen, given, *how).run()
        except KeyboardInterrupt:
            LOG.info("interrupted")
            return INTERRUPTED
        finally:
            release(folder)
            _unmake(made)


def choose_notebooks(
    books: list[Notebook], from_: str | None, only: str | None, fresh: bool, until: str | None = None
) -> list[Notebook]:
    """Return the notebooks to consider, see `run_notebooks`.

    Raises
    ------
    UserError
        Arguments that exclude each other, or the name of no notebook.
    """
    if bool(from_) + bool(only) + bool(fresh) > 1:
        raise UserError("--from, --only and --fresh exclude each other", "give one of them")
    if only and until:
        raise UserError("--only and --until exclude each other", "give one of them")
    end = len(books) if until is None else _place_of(books, until) + 1
    start = _place_of(books, from_ or only) if from_ or only else 0
    if start >= end:
        raise UserError(f"--from {from_} comes after --until {until}", "give them in the order of the notebooks")
    return books[start : start + 1] if only else books[start:end]


def _place_of(books: list[Notebook], wanted: str) -> int:
    """Return the place of a notebook called by its name or number."""
    names = [book.name for book in books]
    hits = [n for n in names if n == wanted or n.split("_")[0] == wanted.zfill(2)]
    if not hits:
        raise UserError(
            f"this configuration runs no notebook called {wanted!r}{nearest(wanted, names)}",
            f"notebooks: {', '.join(names)}; a recipe is run where the configuration names it",
        )
    return names.index(hits[0])


def _check_run(cfg: Config, folder: Path, stages: list[str], room: bool) -> Outlook | None:
    """List everything that is wrong before the stages are run (`cellkit.run.preflight`); refuse to run them for an error.

    room: warn where they do not fit, which is not said elsewhere where that is forced.

    Returns what was seen of the images; None where no stage is to be run.
    """
    if not stages:
        return None
    from cellkit.run.preflight import check_run

    outlook = check_run(cfg, folder, stages, room)
    errors = outlook.errors()
    if errors and len(outlook.findings) == 1:
        raise UserError(errors[0].problem, errors[0].remedy)
    for found in outlook.findings:
        LOG.info(found.to_text())
    if errors:
        count = f"{counted(len(errors), 'error')}, {counted(len(outlook.findings) - len(errors), 'warning')}: nothing is run"
        raise UserError(count, "mend what is named above; `cellkit check CONFIG` lists it again")
    return outlook


def _unmake(made: list[Path]) -> None:
    """Remove the folders that a refused run made, if it wrote nothing into them."""
    if made and not (made[0] / MANIFEST).exists():
        shutil.rmtree(made[0] / LOCKS, ignore_errors=True)
        for place in made:
            with contextlib.suppress(OSError):  # it holds something
                place.rmdir()


def _forget(folder: Path, books: list[str]) -> None:
    """Delete what stages put into the run folder, and their executed notebooks; keep apart what was changed by hand."""
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
    forget_copies(folder, dict.fromkeys([*books, *manifest["stages"], *manifest["attempts"]]))
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    write_json(folder / MANIFEST, {"format": FORMAT, "stages": {}, "attempts": {}})


def import_jsonschema() -> None:
    """Import what checks notebooks, without its check of internationalised addresses, of which a notebook has none.

    That one builds a grammar while it is imported, which takes longer than to import all the rest of Jupyter.
    """
    name = "rfc3987_syntax"
    left_out = name not in sys.modules
    if left_out:
        sys.modules[name] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        import_module("jsonschema")
    finally:
        if left_out:
            del sys.modules[name]


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

    def __init__(
        self, folder, cfg, books, chosen, given, timeout_s, allow_skips, forced, foretold, look, outlook, cluster=None
    ):
        store_attr()
        self.console, self.hasher, self.began = Console(), Hasher(), time.monotonic()
        self.states: dict[str, StageState] = {}

    def run(self) -> int:
        """Run or skip the chosen notebooks; return the exit code."""
        manifest = read_manifest(self.folder)
        self.states = {s.name: s for s in stage_states(self.folder, self.cfg, self.books, manifest, self.hasher)}
        self._keep_earlier(manifest)
        names = [book.name for book in self.chosen if self.forced or self.states[book.name].state != "fresh"]
        outlook = _check_run(self.cfg, self.folder, names, self.foretold.force) if self.look else self.outlook
        if self.look:
            self.foretold.look(outlook, names, self.console.line)
        self.foretold.note_forecast()
        if outlook is not None and (text := uncounted_in_words(self.chosen, uncounted(self.cfg, names))):
            self.console.line(text)
        ran = 0
        for book in self.chosen:
            manifest = read_manifest(self.folder)
            state = stage_state(self.folder, self.cfg, book, manifest, self.hasher)
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
        copy, partial = copies_of(self.folder, book.name)
        if partial.exists() and not copy.exists():  # killed between the manifest and this move
            keep_finished(self.folder, book.name)

    def _run(self, book: Notebook, state: StageState, manifest: dict[str, Any]) -> int:
        """Execute one notebook, record how it ended, return its exit code."""
        import_jsonschema()
        import nbformat

        from cellkit.run.engine import execute

        self.foretold.check_disk(book.name)
        why = f"  because {state.why}" if state.state == "stale" else ""
        self.console.line(f"{self._number(book.name)} {book.name}{why}")
        clock = Clock(self._expected(book, manifest), self._expected_after(book, manifest))
        attempt, began = uuid.uuid4().hex, time.time()
        copy, partial = copies_of(self.folder, book.name)
        manifest["run"] = {**self.given, "config": str(Path(self.given["config"]).absolute()), "folder": os.getcwd()}
        write_json(self.folder / MANIFEST, manifest, indent=1)
        note_attempt(self.folder, book.name, attempt, status="running", started=stamp(began))
        clear_unfinished(self.folder, book.name)
        with self.foretold.watched(book.name):
            outcome = execute(
                nbformat.from_dict(book.content),
                partial,
                self.given,
                self._environment(book, attempt, began),
                lambda cell, cells: self.console.line(self._progress(book, cell, cells, clock)),
                self.console.raw,
                self.timeout_s,
            )
        return self._conclude_outcome(book, attempt, outcome, clock, copy, partial)

    def _environment(self, book: Notebook, attempt: str, began: float) -> dict[str, str]:
        context = {
            "run_dir": str(self.folder.resolve()),
            "pid": os.getpid(),
            "stage": book.name,
            "attempt": attempt,
            "began": began,
            "before": list(book.before),
            "notebooks": str(book.folder.absolute()),
            **code_hashes(book.sha256),
        }
        named = {CLUSTER_VARIABLE: self.cluster} if self.cluster else {}
        return {"CELLKIT_HEADLESS": "1", RUNNER_VARIABLE: json.dumps(context), **named}

    def _conclude_outcome(self, book, attempt, outcome, clock, copy, partial) -> int:
        """Ask the manifest: finished if stage.done was reached in this attempt and nothing failed after it."""
        finish_commits(self.folder)  # a kernel killed within stage.done
        entry = read_manifest(self.folder)["stages"].get(book.name, {})
        reached = entry.get("attempt") == attempt
        expected = fingerprint_of(self.cfg.section(book.section))
        if reached and outcome.ending in ("finished", "exit", "interrupted") and entry["config"] == expected:
            keep_finished(self.folder, book.name)
            self.foretold.note(book.name, read_manifest(self.folder), copy)
            self.console.line(f"{self._number(book.name)} {book.name}  finished in {clock.elapsed()}")
            if outcome.ending == "interrupted":
                self.console.line("interrupted")
            return INTERRUPTED if outcome.ending == "interrupted" else 0
        if reached and outcome.ending in ("finished", "exit", "interrupted"):
            outcome.ending, outcome.error_text = "error", f"it did not start its stage with the section {book.section}"
        code, problem = verdict(outcome, reached)
        note_unfinished(self.folder, book.name)
        if reached:
            manifest = read_manifest(self.folder)
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
            self.console.line("the last lines of the kernel:")
            self.console.line(re.sub(r"(?m)^", "    ", outcome.stderr_tail))
        self.console.line(f"executed so far: {partial}")

    def _progress(self, book: Notebook, cell: int, cells: int, clock: Clock) -> str:
        left = clock.left()
        about = f"  (about {left} left)" if left else ""
        return f"{self._number(book.name)} {book.name}  cell {cell}/{cells}  {clock.elapsed()}{about}"

    def _expected(self, book: Notebook, manifest: dict[str, Any]) -> float | None:
        """Return about how many seconds a notebook takes: by the forecast, else as last time here; None: nobody knows."""
        if (forecast := self.foretold.seconds(book.name)) is not None:
            return forecast
        return manifest["stages"].get(book.name, {}).get("seconds") or None

    def _expected_after(self, book: Notebook, manifest: dict[str, Any]) -> float | None:
        """Return the seconds of the notebooks still to run after this one; None if unknown."""
        later = self.chosen[self.chosen.index(book) + 1 :]
        times = [self._expected(b, manifest) for b in later if self.forced or self.states[b.name].state != "fresh"]
        return None if None in times else sum(times)

    def _conclude(self, ran: int) -> int:
        finished = finished_entries(read_manifest(self.folder))
        names = [book.name for book in self.books if book.name in finished]
        skipped = [(name, item) for name in names for item in finished[name]["quarantined"]]
        if not ran:
            self.console.line(f"nothing to do: every stage of {self.given['run_dir']} is finished and unchanged")
        else:
            self.console.line(f"done: {self.given['run_dir']} in {span(time.monotonic() - self.began)}")
        for name, item in skipped[:20]:
            self.console.line(f"skipped by {name}: {item['item']}: {item['reason']}")
        if len(skipped) > 20:
            self.console.line(f"... and {len(skipped) - 20} more, listed in {self.folder / MANIFEST}")
        return 3 if skipped and not self.allow_skips else 0
