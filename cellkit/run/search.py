"""A search over settings of a run: trainings on its training images, compared on others that teach none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellkit.cells.dataset import CellDataset
from cellkit.cells.disjoint import resolve_overlaps
from cellkit.cells.splits import k_folds
from cellkit.config.reading import load_config
from cellkit.config.sections import Config
from cellkit.errors import UserError, counted
from cellkit.evaluate.folds import Fold, run_fold, scores_of
from cellkit.evaluate.halving import (
    PARTS,
    Result,
    Trial,
    combinations_of,
    cost_of,
    rungs_of,
    successive_halving,
    trials_of,
)
from cellkit.fetch.find import SCRATCH, TUNED, locate_weights, with_weights
from cellkit.files import locked, write_frame
from cellkit.formats.coco_reading import read_coco
from cellkit.log import LOG
from cellkit.machine import here
from cellkit.manifest import SEARCH
from cellkit.models import backend_module, check_backend, get_backend
from cellkit.models.gate import Regime, choosers, regime_of, unit_of
from cellkit.run.folder import Run
from cellkit.run.foretold_rounds import foretell_search, noted_search
from cellkit.run.notebooks import notebooks_of
from cellkit.run.preflight import check_base, check_detector
from cellkit.run.preflight_data import Outlook
from cellkit.run.runner import choose_notebooks, run_notebooks
from cellkit.settings import weights_fields

if TYPE_CHECKING:
    import pandas

BEFORE = {"finetune": "02_label_with_cellpose", "maskrcnn": "04_cells_to_coco"}  # the last notebook that a search reads
CHECKS = {"finetune": check_base, "maskrcnn": check_detector}  # what refuses a training of the section
TABLE = "search.csv"


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Attributes
    ----------
    code : int
        The exit code of the notebooks that had to be run first; above 0 nothing was searched.
    table : DataFrame or None
        trial, rung, steps, images, score, goes_on, and a column for each setting.
    results : list of Result
    path : Path
        The table's file.
    who : str
        Which images chose.
    """

    code: int
    table: pandas.DataFrame | None = None
    results: Sequence[Result] = ()
    path: Path = Path()
    who: str = ""

    @property
    def best(self) -> Trial:
        """The trial that won."""
        return next(one.trial for one in reversed(self.results) if one.goes_on)


def run_search(
    config_path: str | Path,
    over: Mapping[str, Sequence[Any]],
    budget: float = 6.0,
    run_dir: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    notebooks: str | Path | None = None,
    force: bool = False,
) -> Searched:
    """Search settings of notebook 03 or 05 by successive halving, see `cellkit.evaluate.halving`.

    The notebooks before are run first, where they are not finished. Trials are compared on the validation images that choose
    (`cellkit.models.gate`); where none does, because they are fewer than twelve, on a fourth of the training images, which then
    teach no trial. Test images are never looked at. Of notebook 03 all labelled images judge where none chooses, and so those
    that compared trials do: this is warned of. A trial that is finished is kept in ``RUN/search``: a search that was killed and
    is repeated goes on.

    Parameters
    ----------
    config_path : str or Path
    over : mapping
        Dotted key -> values, e.g. ``{"maskrcnn.learning_rate": [1e-3, 5e-4]}``; all of one section.
    budget : float
        Most that the search may cost, in whole trainings.
    run_dir, overrides, notebooks
        As for `cellkit.run.runner.run_notebooks`.
    force : bool
        Begin although the forecast fits no memory or disk.

    Raises
    ------
    UserError
        Keys of no section that is trained, of two, or that no training reads; values that are refused; a trial whose training
        cannot begin, as its backend or weights to start from are not here, or it refuses its settings; too few images; or as
        `run_notebooks`.
    """
    section = _section_of(over)
    cfg = load_config(config_path, overrides, notebooks)
    base = {key: _value_at(cfg, key) for key in over}
    trials = trials_of(over, budget, cfg.seed, base)
    own = [
        load_config(config_path, {**(overrides or {}), **trial.changes}, notebooks) for trial in trials
    ]  # refused now
    _refuse_unused(over, section, [getattr(trial, section).backend for trial in own])
    folder = here(run_dir if run_dir is not None else Path("runs") / cfg.name)
    for trial in own:
        _check_training(trial, section, folder)
    _say_left_out(over, base, len(trials) - 1, budget)
    in_steps = all(getattr(getattr(one, section), "steps", 0) > 1 for one in own)
    rungs = rungs_of(len(trials)) if in_steps else [(len(trials), 1.0)]
    books = notebooks_of(cfg, notebooks)
    before = choose_notebooks(books, None, None, False, BEFORE[section])
    told = [(trial.changes, one) for trial, one in zip(trials, own, strict=True)]
    found = foretell_search(folder, cfg, told, section, rungs, books, before, force)
    how = {"overrides": overrides, "notebooks": notebooks, "allow_skips": True, "force": force}
    code = run_notebooks(config_path, folder, until=BEFORE[section], **how)
    if code:
        return Searched(code)
    run = Run(folder)
    settings = {trial.number: with_weights(getattr(one, section), run) for trial, one in zip(trials, own, strict=True)}
    train, held, who = _parts(run, section, cfg.seed)
    LOG.info(
        f"search: {counted(len(trials), 'trial')} for the steps of {cost_of(len(trials)):g} trainings, compared on {who}"
    )
    if any(record.split == "train" for record in held.records) and section == "maskrcnn":
        _warn_seen([one.maskrcnn.start for one in own])
    place = folder / SEARCH / section
    score = partial(_score, settings=settings, train=train, held=held, place=place)
    busy = f"'{place}' is being searched by another process"
    with (
        locked(place.with_name(f".{section}.lock"), busy, "wait for it, or name another run with --run"),
        noted_search(folder, section, place, found),
    ):
        results = successive_halving(trials, score, at_once=not in_steps)
    table = _table(results, settings, list(over), len(held))
    return Searched(0, table, results, write_frame(place / TABLE, table), who)


def _refuse_unused(over: Mapping[str, Any], section: str, backends: Sequence[str]) -> None:
    """Refuse keys that no training of a trial reads: all trials would be the same."""
    fields = {"backend"}.union(*(backend_module(name).TrainSettings.model_fields for name in backends))
    if unused := [key for key in over if "." in key and key.split(".")[1] not in fields]:
        raise UserError(
            f"a search over {unused[0]}: no trial is trained or scored by it",
            f"name settings of the training itself, e.g. {section}.learning_rate, and set {unused[0]} in the configuration",
        )


def _check_training(cfg: Config, section: str, folder: Path) -> None:
    """Refuse a training that cannot begin, as `cellkit check` does.

    Weights that a run makes are looked for when its notebooks are done: until they are here, the backend is not asked.
    """
    config = getattr(cfg, section)
    named = {name: str(getattr(config, name)) for name in weights_fields(type(config))}
    made = [name for name, value in named.items() if (":" in value or "/" in value) and not _is_here(value)]
    if not made:
        CHECKS[section](Outlook(cfg, folder))
        return
    check_backend(config.backend)
    made += [name for name, value in named.items() if value == TUNED]
    with_weights(config.model_copy(update=dict.fromkeys(made, SCRATCH)))


def _is_here(weights: str) -> bool:
    try:
        return bool(locate_weights(weights))
    except UserError:
        return False


def _say_left_out(over: Mapping[str, Sequence[Any]], base: Mapping[str, Any], tried: int, budget: float) -> None:
    """Say how many combinations the budget leaves out, and what all of them cost."""
    if (count := len(combinations_of(over, base))) > tried:
        LOG.warning(
            f"search: {counted(count, 'combination')}, {tried} of them tried (drawn by the seed): --budget is {budget:g}, and "
            f"--budget {cost_of(count + 1):g} tries all"
        )


def _warn_seen(starts: Sequence[str]) -> None:
    """Say that trials which start from the network of notebook 03 are compared on images that it learned from."""
    if TUNED in starts:
        LOG.warning(
            f"search: trials with maskrcnn.start: {TUNED} are compared on training images, which 03's network learned from: that "
            "favours this start, and leaving it as it is (freeze_backbone, unfreeze_after); with twelve validation images some "
            "compare that taught nothing"
        )


def _warn_judging(held: CellDataset, regime: Regime) -> None:
    """Say that images which compare trials judge in notebook 03 too: there, where none chooses, all labelled images do."""
    if judging := sum(record.image_id in regime.judges for record in held.records):
        LOG.warning(
            f"search: {judging} of {counted(len(held), 'image')} that compare trials judge in notebook 03 too, where with fewer "
            "than twelve validation images (groups) with cells all labelled images judge: the gain of its tuned model over the "
            "base is flattered by settings chosen here; test images are not looked at"
        )


def _section_of(over: Mapping[str, Any]) -> str:
    sections = sorted({key.partition(".")[0] for key in over})
    if len(sections) != 1 or sections[0] not in BEFORE:
        raise UserError(
            f"a search over {', '.join(over) or 'nothing'}",
            f"name keys of one section: {' or '.join(BEFORE)}, e.g. maskrcnn.steps",
        )
    return sections[0]


def _parts(run: Run, section: str, seed: int) -> tuple[CellDataset, CellDataset, str]:
    """Return the images that teach the trials, those that compare them, and the latter in words."""
    if section == "finetune":
        labelled = read_coco(run.find("labels"), run.folder).scored()
        train, val = labelled.select("train"), labelled.select("val")
    else:
        train = read_coco(run.find("coco_train"), run.folder)
        vals = run.find_all("coco_val")
        val = read_coco(vals["coco_val"], run.folder) if vals else train.subset([])
    known = val.without_proposed()
    regime = regime_of(labelled) if section == "finetune" else None  # notebook 03 judges by this, no other trains so
    names = set(choosers(known.records) if regime is None else regime.choosers)
    if names:
        held = known.subset([record.image_id in names for record in known.records])
        return train, held, f"the {counted(len(held), 'validation image')} that choose"
    taught = train.without_proposed()
    units = len({unit_of(record) for record in taught.records})
    if units < 2:
        have = counted(units, "labelled training image or group", "labelled training images or groups")
        raise UserError(
            f"{have}, and no validation image chooses",
            "a search needs two, to hold one back, or twelve validation images",
        )
    aside = {unit_of(record) for record in k_folds(taught.records, min(PARTS, units), seed, by="group")[0]}
    held = taught.subset([unit_of(record) in aside for record in taught.records])
    rest = train.subset([unit_of(record) not in aside for record in train.records])
    if regime is not None:
        _warn_judging(held, regime)
    return rest, held, f"{counted(len(held), 'training image')} held back, as no validation image chooses"


def _score(
    trial: Trial,
    rung: int,
    share: float,
    settings: Mapping[int, Any],
    train: CellDataset,
    held: CellDataset,
    place: Path,
) -> float:
    """Train one trial for a share of its steps; return its MAP IoU, overlaps removed."""
    own = settings[trial.number]
    told = ", ".join(f"{key} = {value}" for key, value in trial.changes.items()) or "the configuration as it is"
    fold = Fold(train, held, place / f"trial_{trial.number}" / f"rung_{rung}")
    found = run_fold(get_backend(own.backend), fold, own, share)
    cells = [resolve_overlaps(one)[0] for one in found[max(found)]]
    score = float(scores_of(held, {1.0: cells}).mean())
    LOG.info(f"trial {trial.number}, rung {rung}, {share:.0%} of the steps: {score:.3f} ({told})")
    return score


def _table(
    results: Sequence[Result], settings: Mapping[int, Any], keys: Sequence[str], images: int
) -> pandas.DataFrame:
    import pandas as pd

    rows = []
    for one in results:
        own = settings[one.trial.number]
        steps = getattr(own, "steps", None)
        values = {key: _value_at(own, key.partition(".")[2]) for key in keys}
        rows.append(
            {
                "trial": one.trial.number,
                "rung": one.rung,
                "steps": None if steps is None else round(steps * one.share),
                "images": images,
                "score": one.score,
                "goes_on": one.goes_on,
                **values,
            }
        )
    return pd.DataFrame(rows)


def _value_at(settings: Any, key: str) -> Any:
    """Return the value of a dotted key; None for a key that is none, which is refused where it is set."""
    for name in key.split("."):
        settings = getattr(settings, name, None)
    return settings
