"""A look ahead: every problem of data, labels, classes, splits and settings at once, before anything is run.

The stages' own functions are asked: images are listed and opened by the code of notebook 01, which here reads the headers of
pictures only (`file_info.headers_only`) and goes on after a refusal (`errors.collected`), so that what is told here and what a
stage does cannot differ. Label images are read whole. What only the pixels of pictures tell (copies,
blur) is found by the stages.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cellkit.config.reading import load_config
from cellkit.config.sections import STAGES, Config
from cellkit.errors import UserError, collected
from cellkit.log import heard
from cellkit.machine import here
from cellkit.run.outlook import ERROR, WARNING, Finding, Outlook
from cellkit.run.preflight_data import check_counts, check_disk, check_place, images_of_run, list_source, open_headers
from cellkit.run.preflight_models import (
    check_base,
    check_cells,
    check_detector,
    check_evaluation,
    check_label_model,
    check_labels,
    check_model_memory,
    check_profile,
    check_recipes,
)


# ---- all of it -----------------------------------------------------------------------------------------------------
def preflight(cfg: Config) -> list[Finding]:
    """Return everything that is wrong with a configuration and what it reads, errors first; nothing is written.

    Parameters
    ----------
    cfg : Config
        From `load_config`.
    """
    return look_ahead(cfg).findings


def look_ahead(cfg: Config, run_dir: str | Path | None = None, stages: Iterable[str] = STAGES) -> Outlook:
    """Do what `preflight` does, and say what would be run.

    Parameters
    ----------
    run_dir : path, optional
        Where it would be written; default ``runs/<name>``.
    stages : iterable of str
        The notebooks that would run. Without the first the images are those that the run folder lists.
    """
    outlook = Outlook(cfg, here(run_dir if run_dir is not None else Path("runs") / cfg.name))
    stages = set(stages)
    images = OF_DATA if "01_convert" in stages else (images_of_run,)
    with tempfile.TemporaryDirectory(prefix="cellkit-") as folder:
        outlook.root = Path(folder)  # where blank files stand in for drawn ones
        for check in (
            check_place,
            check_recipes,
            *images,
            *(check for check, stage in OF_SETTINGS if stage in stages),
        ):
            _ask(outlook, check)
    _without_consequences(outlook)
    outlook.findings.sort(key=lambda one: one.severity != ERROR)
    return outlook


def look_at(config: str | Path, overrides: Mapping[str, Any], run_dir: str | Path | None = None) -> Outlook:
    """Do what `look_ahead` does for a YAML file; where that is no configuration, say all that is wrong with it alone.

    Raises
    ------
    UserError
        There is no such file, or it is no YAML.
    """
    with collected() as noted:
        try:
            outlook = look_ahead(load_config(config, overrides), run_dir)
        except UserError:
            if not noted:
                raise
            outlook = Outlook(Config(), Path())
    for error in noted:
        outlook.add(ERROR, *str(error).split("\n", 1))
    outlook.findings.sort(key=lambda one: one.severity != ERROR)
    return outlook


def _ask(outlook: Outlook, check: Callable[[Outlook], None]) -> None:
    """Let one check look; what it refuses is an error, what it warns of a warning."""
    with collected() as noted, heard() as said:
        try:
            check(outlook)
        except UserError as error:
            noted.append(error)
    for error in noted:
        problem, _, remedy = str(error).partition("\n")
        outlook.add(ERROR, problem, "; ".join(remedy.splitlines()))
    for line in said:
        problem, _, remedy = line.rpartition("; ")
        outlook.add(WARNING, problem or remedy, remedy if problem else "nothing is to be done where that is meant")


def _without_consequences(outlook: Outlook) -> None:
    """Where the channels of images lie in files of their own, drop what is said of each file taken for an image."""
    if any("seem to be the channels of one image" in one.problem for one in outlook.errors()):
        outlook.findings = [one for one in outlook.findings if not any(part in one.problem for part in OF_PARTS)]


OF_PARTS = ("is no channel of ", "no image is called so", "none is called after an image")


OF_DATA = (list_source, open_headers, check_counts, check_disk)


OF_SETTINGS = (
    (check_labels, "02_label_with_cellpose"),
    (check_label_model, "02_label_with_cellpose"),
    (check_model_memory, "02_label_with_cellpose"),
    (check_base, "03_finetune_cellpose"),
    (partial(check_cells, section="finetune"), "03_finetune_cellpose"),
    (check_detector, "05_train_maskrcnn"),
    (partial(check_cells, section="maskrcnn"), "05_train_maskrcnn"),
    (check_evaluation, "06_evaluate_map_iou"),
    (check_profile, "06_evaluate_map_iou"),
)
