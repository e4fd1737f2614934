"""The forecast of folds and of a search, before the first of their trainings; of a search also what it took, afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cellkit.config.sections import Config
from cellkit.errors import UserError, counted
from cellkit.files import write_json
from cellkit.forecast.fits import check_fits
from cellkit.forecast.several import Folds, Search, plans_of_trials
from cellkit.forecast.stages import Forecast, Plan, uncounted
from cellkit.forecast.words import compared, in_words, summed_up, uncounted_in_words, whole
from cellkit.log import LOG
from cellkit.machine import arithmetic, peak_bytes
from cellkit.manifest import MANIFEST, Hasher, hold, read_manifest, release
from cellkit.run.foretold import disk_watched, freed_by_forgetting, size_of, undisturbed_s
from cellkit.run.notebooks import Notebook
from cellkit.run.preflight import check_run
from cellkit.run.stale import stage_states

SEARCHES = "searches"  # in the manifest: section -> forecast of a search, and what it took


def left_to_run(
    folder: Path, cfg: Config, books: list[Notebook], chosen: Sequence[Notebook], forced: bool = False
) -> list[str]:
    """Return the names of the chosen notebooks that a run would execute: all where forced, else those that are not fresh.

    Nothing is told of a run folder that cannot be read; it is refused at its turn.
    """
    if forced:
        return [book.name for book in chosen]
    try:
        states = {one.name: one.state for one in stage_states(folder, cfg, books, read_manifest(folder), Hasher())}
    except UserError:
        return []
    return [book.name for book in chosen if states[book.name] != "fresh"]


def foretell_folds(
    place: Path,
    folds: Mapping[int, Config],
    books: list[Notebook],
    chosen: Sequence[Notebook],
    how: Mapping[str, Any],
) -> None:
    """Say what all folds together take; refuse them where that cannot fit, with nothing written.

    Parameters
    ----------
    place : Path
        Where the runs of the folds lie.
    folds : mapping
        Number of a fold -> its settings.
    books, chosen : sequences of Notebook
        Of the configuration, and those to be run.
    how : mapping
        As for `cellkit.run.runner.run_notebooks`: from_, only, fresh; force = begin although it does not fit.

    Raises
    ------
    UserError
        As `cellkit.forecast.fits.check_fits`.
    """
    forced = any(how.get(name) for name in ("from_", "only", "fresh"))
    own = {k: left_to_run(place / str(k), cfg, books, chosen, forced) for k, cfg in folds.items()}
    first = next((k for k, names in own.items() if names), None)
    if first is None:
        return
    names = [book.name for book in chosen if any(book.name in some for some in own.values())]
    outlook = check_run(folds[first], place / str(first), own[first], room=False)
    if outlook.errors():  # which the run of that fold says
        return
    one = Plan.of(folds[first], names, outlook.records, outlook.instances, sample=outlook.sample)
    left = {f"fold {k}": some for k, some in own.items() if some}
    freed = sum(freed_by_forgetting(place / str(k)) for k in folds) if how.get("fresh") else 0
    _say(counted(len(left), "fold"), Folds(one, left), place, bool(how.get("force")), freed)
    if text := uncounted_in_words(chosen, uncounted(folds[first], names)):
        LOG.info(text)


def took_of_folds(place: Path, folds: int) -> str:
    """Return in a line what the folds were forecast to take and took; "" where that is not noted."""
    told = {}
    for k in range(1, folds + 1):
        own = read_manifest(place / str(k)).get("forecast", {})
        told |= {f"fold {k}, {name}": one for name, one in own.items()}
    return summed_up(told)


def foretell_search(
    folder: Path,
    cfg: Config,
    trials: Sequence[tuple[Mapping[str, Any], Config]],
    section: str,
    rungs: Sequence[tuple[int, float]],
    books: list[Notebook],
    chosen: Sequence[Notebook],
    force: bool = False,
) -> dict[str, Forecast]:
    """Say what a search takes, with the notebooks before it that are left; refuse it where that cannot fit.

    Parameters
    ----------
    trials : sequence of (mapping, Config)
        What each changes of the settings, and the settings with it.
    rungs : sequence of (int, float)
        See `cellkit.evaluate.halving.rungs_of`.
    chosen : sequence of Notebook
        Those that come before the search.

    Returns
    -------
    dict
        Of each notebook and each rung; {} where nothing is known of the images.

    Raises
    ------
    UserError
        As `cellkit.forecast.fits.check_fits`.
    """
    names = left_to_run(folder, cfg, books, chosen)
    outlook = check_run(cfg, folder, names, room=False)
    if outlook.errors():  # which the notebooks before say
        return {}
    before = Plan.of(cfg, names, outlook.records, outlook.instances, sample=outlook.sample)
    plan = Search(before, plans_of_trials(trials, before, section), section, rungs)
    found = _say("the search" + " and the notebooks before it" * bool(names), plan, folder, force)
    return {name: one for name, one in found.items() if name not in names}


def _say(what: str, plan: Folds | Search, place: Path, force: bool, freed_bytes: float = 0) -> dict[str, Forecast]:
    """Say the forecast, refuse what cannot fit, and return it."""
    found = plan.forecast()
    if found:
        LOG.info(f"forecast: {what}, {in_words(found)}")
        for warning in check_fits(found, plan, place, freed_bytes=freed_bytes) if not force else ():
            LOG.info(warning)
    return found


@contextmanager
def noted_search(folder: Path, section: str, place: Path, found: Mapping[str, Forecast]) -> Iterator[None]:
    """Note a search in the manifest: the forecast, and in the end what it took; of one that goes on where it was nothing.

    Parameters
    ----------
    place : Path
        Where the search writes.
    found : mapping
        Its rungs' forecasts.
    """
    if not found or place.exists():
        yield
        return
    told = vars(whole(found)) | {"rungs": {name: vars(one) for name, one in found.items()}}
    began, began_cpu = time.monotonic(), time.process_time()
    with disk_watched(place) as watch:
        yield
    seconds, on = time.monotonic() - began, arithmetic()
    import torch

    entry = {
        "seconds": seconds,
        "processor_s": time.process_time() - began_cpu,
        "arithmetic": {"threads": torch.get_num_threads(), "device": on.device.type},
        "peak_bytes": peak_bytes(),
        "kept_bytes": size_of(place),
    }
    took = entry | {"undisturbed_s": undisturbed_s(entry), "disk_bytes": max(watch.most, entry["kept_bytes"])}
    noted = {section: compared(told, took)}
    try:
        hold(folder, "writer")
        try:
            manifest = read_manifest(folder)
            write_json(folder / MANIFEST, manifest | {SEARCHES: manifest.get(SEARCHES, {}) | noted}, indent=1)
        finally:
            release(folder)
    except UserError as error:  # as another command writes there now: the search itself is done
        LOG.info(f"what the search took is not noted: {error.problem}")
    if text := summed_up(noted):
        LOG.info(f"the search: {text}")
