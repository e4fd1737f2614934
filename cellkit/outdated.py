"""What in a run folder is of another state of the run: told from its manifest alone, without a configuration."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cellkit.errors import UserError
from cellkit.log import LOG
from cellkit.manifest import MANIFEST, finished_entries, listed_by, read_manifest

PREDICTIONS = "predictions_*"


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


def warn_outdated(path: Path) -> None:
    """Say that predictions in a run folder, ``RUN/predictions/NAME.json``, are not of the present state of the run."""
    run_dir = path.resolve().parent.parent
    if path.resolve().parent.name != "predictions" or not (run_dir / MANIFEST).is_file():
        return
    with suppress(UserError):  # a manifest of another version says nothing of its predictions
        if why := unused_models(read_manifest(run_dir)).get(path.resolve().stem, ""):
            LOG.warning(f"{path} is not of the present state of the run: {why}; cellkit run makes it anew")
