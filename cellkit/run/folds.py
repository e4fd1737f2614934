"""Folds of a run: one ordinary run for each part that is held back, and what all of them found out of fold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellkit.cells.dataset import CellDataset
from cellkit.config.reading import load_config
from cellkit.config.sections import Config
from cellkit.errors import UserError, counted
from cellkit.evaluate.evaluation import KEY, predictions_of, read_truths
from cellkit.evaluate.out_of_fold import OUT_OF_FOLD, TEST, FoldFound, fold_table, fused_test, left_out, out_of_fold
from cellkit.files import sha256_file, write_frame, write_json
from cellkit.formats.coco import write_coco
from cellkit.formats.sides import marks_of, skipped_by
from cellkit.log import LOG
from cellkit.machine import here
from cellkit.manifest import FOLDS, check_folder, read_manifest
from cellkit.outdated import JOINED, OF_FOLDS, outdated_of_folds, read_joined, state_of_folds, unused_models
from cellkit.run.folder import Run
from cellkit.run.foretold_rounds import foretell_folds, took_of_folds
from cellkit.run.notebooks import notebooks_of
from cellkit.run.runner import choose_notebooks, run_notebooks

if TYPE_CHECKING:
    import pandas

SET_BY_US = ("convert.folds", "convert.fold")
FOUND, FUSED_TEST = OF_FOLDS
TABLE = "folds.csv"


def folds_folder(run_dir: str | Path, folds: int) -> Path:
    """Return where the runs of so many folds lie: ``RUN/folds/of_5``, in it ``1`` to ``5``.

    Examples
    --------
    >>> folds_folder("runs/demo", 5).as_posix()
    'runs/demo/folds/of_5'
    """
    return Path(run_dir) / FOLDS / f"of_{folds}"


def run_folds(
    config_path: str | Path,
    folds: int,
    run_dir: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    **how: Any,
) -> int:
    """Run the notebooks once for each fold, then score every image by the models that had it held back.

    Each fold is a run of its own, ``RUN/folds/of_K/1`` to ``K``, that ``cellkit check``, ``predict`` and ``score`` take like any
    other: its validation images are the fold, its test images those of every run. What is finished and unchanged is skipped, so
    that a command that was killed and is repeated goes on. In the end ``out_of_fold/<model>.json`` (COCO with scores) holds what
    each model found, ``test/<model>.json`` what its folds, fused, find in the test images, and ``folds.csv`` the scores. Where
    the last notebook is not among those to run, nothing is scored, and what earlier models were joined to is removed.

    Parameters
    ----------
    config_path : str or Path
    folds : int
        2 to 20.
    run_dir : str or Path, optional
        By default ``runs/<name of the configuration>``. A run in it stays as it is.
    overrides : mapping, optional
        As in `load_config`.
    how
        As for `cellkit.run.runner.run_notebooks`: from_, only, until, fresh, notebooks, timeout_s, allow_skips, force; for every
        fold.

    Returns
    -------
    int
        As `run_notebooks`: the first exit code that ends a fold, else 3 where a fold left items out, else 0.

    Raises
    ------
    UserError
        A number of folds that is none, or more than there are images or groups; one of the settings of the folds set by hand;
        or as `run_notebooks`.
    """
    given = dict(overrides or {})
    if not 2 <= folds <= 20:
        raise UserError(f"--folds is {folds}", "give 2 to 20")
    tables = [f"{key}.{name}" for key, value in given.items() if isinstance(value, Mapping) for name in value]
    if by_hand := [key for key in SET_BY_US if key in (*given, *tables)]:
        raise UserError(f"--folds and --set {by_hand[0]}", "give --folds alone: it sets both for every fold")
    cfg = load_config(config_path, given, how.get("notebooks"))
    books = notebooks_of(cfg, how.get("notebooks"))
    chosen = choose_notebooks(books, *(how.get(name) for name in ("from_", "only", "fresh", "until")))
    base = here(run_dir if run_dir is not None else Path("runs") / cfg.name)
    check_folder(base)
    place, codes = folds_folder(base, folds), []
    if cfg.convert.percentiles_of == "batch":
        LOG.warning(
            "convert.percentiles_of is batch: every fold scales images by its own training images, so the models of the folds "
            "cannot be joined to predict others (RUN/folds/of_K:NAME); percentiles_of: image lets them"
        )
    each = {k: _with(overrides, {"convert.folds": folds, "convert.fold": k}) for k in range(1, folds + 1)}
    own = {k: load_config(config_path, given, how.get("notebooks")) for k, given in each.items()}
    foretell_folds(place, own, books, chosen, how)
    _note_joined(place)
    try:
        for fold, given in each.items():
            LOG.info(f"fold {fold} of {folds}: {place / str(fold)}")
            codes.append(run_notebooks(config_path, place / str(fold), overrides=given, **how))
            if codes[-1] not in (0, 3):
                return codes[-1]
        if took := took_of_folds(place, folds):
            LOG.info(f"the folds: {took}")
        if chosen[-1] != books[-1]:
            LOG.info(f"the folds are not scored: {chosen[-1].name} is the last notebook that was run")
            return max(codes)
        table = collect_folds(place, folds, cfg)
    finally:
        drop_outdated(place)
    for line in in_words(table, place):
        LOG.info(line)
    return max(codes)


def _note_joined(place: Path) -> None:
    """Note of what results are made, where an earlier cellkit joined them and did not."""
    if (place / TABLE).is_file() and not (place / JOINED).is_file():
        with suppress(UserError):  # a manifest that is damaged: it is refused, or begun anew, where the fold is run
            _write_joined(place, _models_before(place))


def _write_joined(place: Path, models: Collection[str]) -> None:
    """Note which models were joined, of what, and the files that hold them."""
    files = [place / TABLE, *(place / kind / f"{name}.json" for kind in OF_FOLDS for name in sorted(models))]
    made = {path.relative_to(place).as_posix(): sha256_file(path) for path in files if path.is_file()}
    write_json(place / JOINED, {"models": sorted(models), "of": state_of_folds(place), "files": made})


def drop_outdated(place: Path) -> None:
    """Remove what the folds were joined to before one of them made other predictions, and say so: scores, cells, each model's.

    Parameters
    ----------
    place : Path
        See `folds_folder`.
    """
    try:
        outdated = outdated_of_folds(place)
        joined = read_joined(place) if outdated else {}
    except UserError as error:
        LOG.warning(f"whether {place} holds results of earlier models is not known: {error.problem}")
        return
    if not outdated:
        return
    names = [*(f"{kind}/{name}.json" for kind in OF_FOLDS for name in outdated), TABLE]
    gone = [name for name in names if _is_as_joined(place / name, joined["files"].get(name))]
    for name in gone:
        (place / name).unlink()
    left = [name for name in joined["models"] if name not in outdated]
    rest = {name: sha for name, sha in joined["files"].items() if name not in names}
    write_json(place / JOINED, joined | {"models": left, "files": rest})
    if gone:
        why = next(iter(outdated.values()))
        LOG.warning(
            f"{place}: {', '.join(gone)} removed, as {why}; cellkit run --folds with all notebooks makes them anew"
        )


def _is_as_joined(path: Path, sha256: str | None) -> bool:
    """Tell whether a file is what was joined, and nobody has written another one in its place."""
    return sha256 is not None and path.is_file() and sha256_file(path) == sha256


def _with(overrides: Mapping[str, Any] | None, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the overrides with more of them; how they were written (for messages) is kept."""
    own = type(overrides)() if hasattr(overrides, "written") else {}
    own.update(overrides or {})
    own.update(more)
    if hasattr(overrides, "written"):
        own.written = dict(overrides.written)
    return own


def collect_folds(place: Path, folds: int, cfg: Config) -> pandas.DataFrame:
    """Write what the models found out of fold, what their folds fused find in test images, and the scores; return these.

    Parameters
    ----------
    place : Path
        The folder of the runs, see `folds_folder`; all are finished.
    folds : int
    cfg : Config
        Its ``evaluate`` section says how many draws are behind the intervals.
    """
    found = [_read_fold(place / str(fold), cfg.evaluate.fuse) for fold in range(1, folds + 1)]
    for text in left_out(found):
        LOG.warning(text)
    before = _models_before(place)
    first = Run(place / "1")
    for kind, by_model in ((FOUND, out_of_fold(found)), (FUSED_TEST, fused_test(found))):
        for model, images in by_model.items():
            path = place / kind / f"{model}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            told = marks_of(replace(images, run=first.folder, of_model=False))
            marks = [told.get(record.image_id, {}) for record in images.records]
            skipped = skipped_by(replace(images, run=first.folder)) if kind == FUSED_TEST else []
            rest = {"with_scores": True, "made_by": images.made_by, "marks": marks, "quarantined": skipped}
            write_coco(path, images.records, images.instances, cfg.classes, images.ids, **rest)
        _remove_others(place / kind, by_model, before)
    table = fold_table(found, cfg.evaluate.bootstrap_samples, cfg.evaluate.seed)
    write_frame(place / TABLE, table)
    _write_joined(place, set(table["model"]))
    return table


def _models_before(place: Path) -> set[str]:
    """Return the models that the folds were last scored with; none where they were not."""
    import pandas as pd

    table = place / TABLE
    try:
        return set(pd.read_csv(table, dtype=str, keep_default_na=False)["model"]) if table.is_file() else set()
    except (ValueError, KeyError):  # damaged: it is written anew
        return set()


def _remove_others(folder: Path, models: Collection[str], before: Collection[str]) -> None:
    """Remove the predictions of models that the folds no longer have; name other files there, which may be a person's."""
    for path in sorted(folder.glob("*.json")):
        if path.stem in models:
            continue
        if path.stem in before:
            path.unlink()
            LOG.info(f"{path} removed: the folds have no model {path.stem} any more")
        else:
            LOG.warning(f"{path} is of no model of the folds as they are now")


def _read_fold(folder: Path, fuse_models: Sequence[str]) -> FoldFound:
    run = Run(folder)
    images = CellDataset.of_run(run)
    truths = read_truths(run.find_all("coco_*"), run.folder)
    truth, test_truth = (truths.get(split, images.subset([])) for split in ("val", "test"))
    unused = unused_models(read_manifest(folder))
    paths = {key: path for key, path in run.find_all(f"{KEY}*").items() if path.stem not in unused}
    found = predictions_of(paths, images, fuse_models)
    taught = frozenset(record.image_id for record in images.select("train").records)
    return FoldFound(images.select("val"), truth, found, taught, images.select("test"), test_truth)


def in_words(table: pandas.DataFrame, place: Path) -> list[str]:
    """Return, a line each, what every model scored out of fold, and where it is written."""
    lines = []
    for model, rows in table.groupby("model", sort=False):
        whole = rows[rows["fold"] == OUT_OF_FOLD].iloc[0]
        each = ", ".join(f"{score:.3f}" for score in rows[rows["fold"].str.isdigit()]["score"])
        told = f"{whole['score']:.3f} [{whole['low']:.3f}, {whole['high']:.3f}]"
        test = "".join(f"; test images, folds fused {score:.3f}" for score in rows[rows["fold"] == TEST]["score"])
        lines.append(f"{model}: out of fold {told} on {counted(int(whole['images']), 'image')}; folds {each}{test}")
    return [*lines, f"written: {place / TABLE}, {place / FOUND}, {place / FUSED_TEST}"]
