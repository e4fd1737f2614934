"""What in a run folder is of another state of the run: told from its manifest alone, without a configuration."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cellkit.errors import UserError
from cellkit.files import read_stored
from cellkit.log import LOG
from cellkit.manifest import FOLDS, MANIFEST, finished_entries, listed_by, read_manifest

PREDICTIONS, LABELLED = "predictions_*", "coco_"
JOINED = "folds.json"  # beside the results of folds: what they are made of
OF_FOLDS = ("out_of_fold", "test")


def outdated_stages(manifest: dict[str, Any]) -> dict[str, str]:
    """Return the finished stages that read what another stage has written anew since, or what such a stage made, and why.

    By the hashes that the manifest holds; files are not read. `cellkit.run.stale` tells more, of a configuration.

    Examples
    --------
    >>> old, new = ({"path": "records.csv", "sha256": sha} for sha in ("1", "2"))
    >>> outdated_stages({"stages": {
    ...     "01_convert": {"status": "finished", "outputs": {"records": new}},
    ...     "05_train": {"status": "finished", "inputs": {"records": old}, "outputs": {"model": old}},
    ...     "06_evaluate": {"status": "finished", "inputs": {"model": old}}}})
    {'05_train': 'it read another records than 01_convert has written since', '06_evaluate': 'it read model of 05_train'}
    """
    entries, outdated, before = finished_entries(manifest), {}, None
    while before != len(outdated):  # a recipe may be read by a stage whose number is smaller
        before = len(outdated)
        for name, entry in entries.items():
            if name not in outdated and (why := _why_outdated(entry, listed_by(manifest, own=name), outdated)):
                outdated[name] = why
    return outdated


def _why_outdated(
    entry: dict[str, Any], listed: dict[str, tuple[str, dict[str, str]]], outdated: Collection[str]
) -> str:
    """Say what a stage read that is no more so; "" where all is."""
    for key, value in entry.get("inputs", {}).items():
        if key not in listed or value.get("outside") or "settings_before" in value:
            continue
        maker, output = listed[key]
        if value["sha256"] != output["sha256"]:
            return f"it read another {key} than {maker} has written since"
        if maker in outdated:
            return f"it read {key} of {maker}"
    return ""


def unused_models(
    manifest: dict[str, Any], under_way: str | None = None, before: Collection[str] | None = None
) -> dict[str, str]:
    """Return the models whose predictions are not of the present state of a run, and why.

    These are the models of `outdated_stages`, and of stages that the evaluation left out. While a stage is under way, they are
    those of stages that it may not read: what it does read, it was told to.

    Parameters
    ----------
    under_way : str, optional
        The stage.
    before : collection of str, optional
        The stages that it may read; by default all.
    """
    outdated, entries = outdated_stages(manifest), finished_entries(manifest)
    readers = [e for name, e in entries.items() if PREDICTIONS in e.get("patterns", {}) and name not in outdated]
    unused = {}
    for key, (maker, output) in listed_by(manifest, own=under_way or "").items():
        why = ""
        if under_way is not None:
            why = f"{maker} is left out" if before is not None and maker not in before else ""
        elif maker in outdated:
            why = f"{maker} is outdated: {outdated[maker]}"
        elif readers and key not in (*readers[-1]["patterns"][PREDICTIONS], *readers[-1].get("outputs", {})):
            earlier = entries[maker].get("finished", "") < readers[-1].get("started", "")
            why = f"{maker} was left out when the run was evaluated" if earlier else ""
        if why and fnmatchcase(key, PREDICTIONS):
            unused[Path(output["path"]).stem] = why
    return unused


def state_of_folds(place: Path) -> dict[str, dict[str, str]]:
    """Return {fold: {what: sha256}} of all that the folds in a folder are joined from: models in use, and labels."""
    state = {}
    for run in sorted(path for path in place.glob("[0-9]*") if path.name.isdigit()):
        manifest = read_manifest(run)
        unused, listed = unused_models(manifest), listed_by(manifest)
        made = {
            Path(one["path"]).stem: one["sha256"] for key, (_, one) in listed.items() if fnmatchcase(key, PREDICTIONS)
        }
        state[run.name] = {name: sha for name, sha in made.items() if name not in unused}
        state[run.name] |= {key: one["sha256"] for key, (_, one) in listed.items() if key.startswith(LABELLED)}
    return state


def outdated_of_folds(place: Path) -> dict[str, str]:
    """Return the models whose results of folds are of earlier predictions or labels, and why; none where nothing was joined.

    Parameters
    ----------
    place : Path
        ``RUN/folds/of_K``; its `JOINED` says which models were joined, and of what (`state_of_folds`).

    Raises
    ------
    UserError
        As `read_joined`, or a fold's manifest is damaged.
    """
    if not (place / JOINED).is_file():
        return {}
    joined, now = read_joined(place), state_of_folds(place)
    before, outdated = joined["of"], {}
    for name in joined["models"]:
        is_own = any(name in state for state in before.values())  # else it is a fusion of others
        for fold in sorted(before.keys() & now.keys()):  # of results that were copied alone nothing is known
            was, is_now = (
                {k: sha for k, sha in one.get(fold, {}).items() if not is_own or k == name or k.startswith(LABELLED)}
                for one in (before, now)
            )
            if was != is_now:
                outdated.setdefault(name, f"fold {fold} has other predictions or labels since")
    return outdated


def read_joined(place: Path) -> dict[str, Any]:
    """Return what `JOINED` says: models, of what they were joined ("of"), and the files with their sha256.

    Raises
    ------
    UserError
        It is damaged, or another program's.
    """
    joined = read_stored(place / JOINED, {"models": list, "of": dict, "files": dict}, ("models", "of", "files"))
    if not all(isinstance(state, dict) for state in joined["of"].values()):
        raise UserError(f"{place / JOINED} is damaged: 'of' holds no folds", "run the folds again")
    return joined


def warn_outdated(path: Path) -> None:
    """Say that predictions are not of the present state of a run: ``RUN/predictions/NAME.json``, or those joined of folds."""
    place = path.resolve().parent
    run_dir, name, why = place.parent, path.resolve().stem, ""
    with suppress(UserError):  # a manifest of another version says nothing of its predictions
        if place.name == "predictions" and (run_dir / MANIFEST).is_file():
            why = unused_models(read_manifest(run_dir)).get(name, "")
        elif place.name in OF_FOLDS and run_dir.parent.name == FOLDS:
            why = outdated_of_folds(run_dir).get(name, "")
    if why:
        whole = "run" if place.name == "predictions" else "folds"
        again = "cellkit run" if place.name == "predictions" else "cellkit run CONFIG --folds K"
        LOG.warning(f"{path} is not of the present state of the {whole}: {why}; {again} makes it anew")
