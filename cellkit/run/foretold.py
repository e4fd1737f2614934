"""The forecast of a run while it is made: told, refused where it cannot fit, compared with what each stage took, learned from."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cellkit.cells.dataset import CellDataset
from cellkit.config.recipes import section_at, section_name
from cellkit.config.sections import Config
from cellkit.errors import UserError
from cellkit.files import write_json
from cellkit.forecast.fits import check_fits, check_stage_disk
from cellkit.forecast.learned import learn
from cellkit.forecast.stages import Forecast, Plan, remarks, uncounted
from cellkit.forecast.words import NOT_TIMED, compared, in_words, noted, uncounted_in_words
from cellkit.manifest import MANIFEST, NOTEBOOKS, RUNNER_VARIABLE, UNFINISHED, owned_files, read_manifest
from cellkit.run.notebooks import notebooks_of
from cellkit.run.preflight_data import Outlook

LOOK_EVERY_S = 1.0  # at the files that a stage has written so far
LEAST_PAUSE = 30  # times what the look before took: of very many files, looking is work too


def describe_forecast(settings: Config, images: CellDataset) -> str:
    """Return what the notebooks after 01 take on this computer, a line each.

    Where a person steps through notebooks their backends are timed by a step each, once, for half a minute; the runner has
    done so before, or was not asked for more.

    Parameters
    ----------
    settings : Config
    images : CellDataset
        As converted, with their splits and labels.
    """
    books = notebooks_of(settings)
    names = [book.name for book in books if book.name != "01_convert"]
    used = images.subset([bool(record.split) for record in images.records])
    instances = [own if by == "truth" else None for own, by in zip(used.instances, used.made_by, strict=True)]
    timed = "before" if RUNNER_VARIABLE in os.environ else True
    try:
        plan = Plan.of(settings, names, used.records, instances, timed)
        found = plan.forecast()
    except (UserError, ImportError) as error:  # weights or a package that are not here yet: no fault of this notebook
        return f"cannot be told: {error}"
    if not found:
        return "nothing can be told without images"
    lines = [
        f"all that follows: {in_words(found)}",
        *(f"{name}: {in_words({name: one})}" for name, one in found.items()),
    ]
    if timed == "before" and not plan.speeds:
        lines = [line.replace(NOT_TIMED, "not timed here; ") for line in lines]
        lines.append("`cellkit doctor CONFIG` times what is long enough")
    counted = uncounted_in_words(books, uncounted(settings, names))
    return "\n".join([*lines, *([counted] if counted else [])])


class Foretold:
    """What a run was said to take.

    Parameters
    ----------
    folder : Path
        Of the run.
    cfg : Config
    force : bool
        Begin although the forecast does not fit.
    """

    def __init__(self, folder: Path, cfg: Config, force: bool = False):
        self.folder, self.cfg, self.force = folder, cfg, force
        self.found: dict[str, Forecast] = {}
        self.plan: Plan | None = None
        self.most = 0

    def look(
        self, outlook: Outlook | None, names: Sequence[str], say: Callable[[str], None], freed_bytes: float = 0
    ) -> None:
        """Say what these stages will take; refuse what cannot fit, with nothing written.

        Parameters
        ----------
        outlook : Outlook or None
            None where no stage is to be run.
        freed_bytes : float
            Of the run's own files, which are deleted before it begins.

        Raises
        ------
        UserError
            As `cellkit.forecast.fits.check_fits`, unless forced.
        """
        if outlook is None:
            return
        self.plan = Plan.of(self.cfg, names, outlook.records, outlook.instances, sample=outlook.sample)
        self.found = self.plan.forecast()
        if not self.found:
            return
        cluster = self.cfg.cluster
        among = "" if cluster.is_none else f"; images shared among workers of {cluster.kind}, as fast as this computer"
        say(f"forecast: {in_words(self.found)}{among}")
        for remark in remarks(self.cfg) if self.plan.speeds else ():
            say(remark)
        if not self.force:
            for warning in check_fits(self.found, self.plan, self.folder, freed_bytes=freed_bytes):
                say(warning)

    def note_forecast(self) -> None:
        """Note the forecast in the manifest, where there is one."""
        if self.found:
            manifest = read_manifest(self.folder)
            manifest["forecast"] = manifest.get("forecast", {}) | noted(self.found)
            write_json(self.folder / MANIFEST, manifest, indent=1)

    def seconds(self, name: str) -> float | None:
        """Return the seconds of a stage; None where they are not forecast."""
        return self.found[name].seconds if name in self.found else None

    def check_disk(self, name: str) -> None:
        """Refuse to begin a stage for which the disk has no room any more.

        Raises
        ------
        UserError
            As `cellkit.forecast.fits.check_stage_disk`, unless forced.
        """
        if name in self.found and not self.force:
            check_stage_disk(name, self.found[name], self.folder)

    @contextmanager
    def watched(self, name: str) -> Iterator[None]:
        """Look, while a stage is under way, at how much it has written."""
        self.most = 0
        with disk_watched(self.folder / UNFINISHED / name) as watch:
            yield
        self.most = watch.most

    def note(self, name: str, manifest: dict[str, Any], copy: Path) -> None:
        """Note beside the forecast of a stage what it took, and let the next forecast on this machine know."""
        if name not in self.found:
            return
        entry = manifest["stages"][name]
        places = [one["path"] for one in entry["outputs"].values()] + list(entry["also"])
        kept = size_of(copy) + sum(size_of(self.folder / place) for place in outermost(places))
        one_process = self.cfg.cluster.is_none and self._workers(name) == 1
        alone_s = undisturbed_s(entry) if one_process else entry["seconds"]  # those of several processes do not add up
        took = {
            **entry,
            "undisturbed_s": alone_s,
            "kept_bytes": kept,
            "disk_bytes": max(kept, self.most + size_of(copy)),
        }
        manifest["forecast"][name] = compared(manifest["forecast"][name], took)
        write_json(self.folder / MANIFEST, manifest, indent=1)
        if not self.plan.speeds:  # too little was done to learn from
            return
        learn(name, self.cfg, self._before_correction(name), took | {"seconds": alone_s})

    def _before_correction(self, name: str) -> dict[str, float]:
        """Return the forecast of a stage as it was counted, of what can be compared: memory of one process alone."""
        by, told = self.plan.factors.get(name, {}), self.found[name]
        keys = ["seconds", "disk_bytes"] + ["peak_bytes"] * (self._workers(name) == 1)
        values = {key: getattr(told, key) for key in keys}
        return {key: value / by.get(key, 1) for key, value in values.items() if value}

    def _workers(self, name: str) -> int:
        return section_at(self.cfg, section_name(self.cfg, name)).workers


class Watch:
    """The most bytes that were seen below a folder."""

    most = 0


@contextmanager
def disk_watched(place: Path) -> Iterator[Watch]:
    """Look, while something is under way, at how much it has written below a folder."""
    ended, watch = threading.Event(), Watch()

    def look() -> None:
        pause_s = LOOK_EVERY_S
        while not ended.wait(pause_s):
            began = time.monotonic()
            watch.most = max(watch.most, size_of(place))
            pause_s = max(LOOK_EVERY_S, LEAST_PAUSE * (time.monotonic() - began))

    watcher = threading.Thread(target=look, name="disk of a stage", daemon=True)
    watcher.start()
    try:
        yield watch
    finally:
        ended.set()
        watcher.join()


def undisturbed_s(entry: Mapping[str, Any]) -> float:
    """Return the seconds that a stage would take where nothing else runs: on one thread of a processor its own.

    Examples
    --------
    >>> undisturbed_s({"seconds": 90.0, "processor_s": 30.0, "arithmetic": {"threads": 1, "device": "cpu"}})
    30.0
    >>> undisturbed_s({"seconds": 90.0, "processor_s": 150.0, "arithmetic": {"threads": 2, "device": "cpu"}})
    90.0
    """
    computed = entry.get("arithmetic", {})
    alone = computed.get("threads", 1) == 1 and computed.get("device", "cpu") == "cpu"
    return entry.get("processor_s") or entry["seconds"] if alone else entry["seconds"]


def size_of(place: Path) -> int:
    """Return the bytes of a file, or of all below a folder; files that go meanwhile count nothing."""
    if place.is_file():
        return place.stat().st_size
    total = 0
    for folder, _, names in os.walk(place):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:  # it has gone
                continue
    return total


def freed_by_forgetting(folder: Path) -> int:
    """Return the bytes of a run's own files, which ``--fresh`` deletes; what else lies in its folder stays."""
    try:
        owned = owned_files(read_manifest(folder))
    except UserError:  # damaged: what it listed cannot be told from what is not ours
        owned = {}
    return sum(size_of(folder / place) for place in (*outermost(list(owned)), UNFINISHED, NOTEBOOKS))


def outermost(places: list[str]) -> list[str]:
    """Return the places that lie below no other.

    Examples
    --------
    >>> outermost(["images", "images/a.png", "records.csv"])
    ['images', 'records.csv']
    """
    return [one for one in dict.fromkeys(places) if not any(one.startswith(f"{other}/") for other in places)]
