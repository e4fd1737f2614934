"""What is noted of a stage that is begun in a notebook, not by `cellkit run`: the configuration it was asked for with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cellkit.config.overrides import last_loaded
from cellkit.config.recipes import RECIPES
from cellkit.config.sections import STAGES
from cellkit.errors import UserError
from cellkit.files import write_json
from cellkit.log import LOG
from cellkit.machine import here
from cellkit.manifest import MANIFEST, read_manifest


def asked_for(folder: Path, stage: str, section: Any) -> dict[str, Any]:
    """Return {"run": ...}: the file and the overrides that a section was read from, to be noted as ``cellkit run`` does.

    They go with the attempt that begins, and are noted of the run when its stage is done (`cellkit.manifest.commit`). Overrides
    of other stages stay; so do those of no section (seed, data, precision) that ``cellkit run`` was given, and this process not.
    Nothing is returned for a section that this process read from no file, or that was changed since.
    """
    cfg, config, overrides = last_loaded()
    try:
        same = cfg is not None and cfg.section(stage) == section
    except UserError:  # no stage of a configuration
        return {}
    if not same:
        return {}
    manifest = read_manifest(folder)
    before = manifest.get("run") or {}
    others = before.get("overrides") or {} if before.get("config") == config else {}
    of_run = {key for key in others if is_of_all(key)} - set(before.get("by_hand", ())) - set(overrides)
    if of_run:
        LOG.info(
            f"overrides: cellkit run was given {', '.join(sorted(of_run))} here, this notebook not: that stays noted"
        )
    kept = {key: value for key, value in others.items() if is_of_another(stage, key) or key in of_run}
    asked = {
        "config": config,
        "run_dir": str(folder.absolute()),
        "overrides": kept | json.loads(json.dumps(overrides, default=str)),
        "folder": str(here(".").absolute()),  # from which relative paths count, in a notebook too
        "by_hand": sorted(filter(is_of_all, overrides)),
    }
    if not before:  # of a run that begins, there is nothing else to go by
        write_json(folder / MANIFEST, manifest | {"run": asked}, indent=1)
    return {"run": asked}


def is_of_all(key: str) -> bool:
    """Tell whether a key of overrides is in no section: it counts for every stage.

    Examples
    --------
    >>> [is_of_all(key) for key in ("seed", "channels.nuclei", "finetune.steps", "recipes.mine.steps")]
    [True, True, False, False]
    """
    return key.partition(".")[0] not in (*STAGES.values(), RECIPES)


def is_of_another(stage: str, key: str) -> bool:
    """Tell whether a key of overrides is in the section of another stage: each notebook is given its own.

    Examples
    --------
    >>> [is_of_another("03_finetune_cellpose", key) for key in ("finetune.steps", "label.use", "seed", "recipes.mine.steps")]
    [False, True, False, True]
    """
    own = STAGES.get(stage) or f"{RECIPES}.{stage.partition('_')[2]}"
    return not is_of_all(key) and not f"{key}.".startswith(f"{own}.")
