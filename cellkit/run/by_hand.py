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
from cellkit.machine import here
from cellkit.manifest import MANIFEST, read_manifest


def note_configuration(folder: Path, stage: str, section: Any) -> None:
    """Note the file and the overrides that a section was read from in the manifest, as ``cellkit run`` does.

    Nothing is noted of a section that this process read from no file, or that was changed since.
    """
    cfg, config, overrides = last_loaded()
    try:
        same = cfg is not None and cfg.section(stage) == section
    except UserError:  # no stage of a configuration
        return
    if not same:
        return
    manifest = read_manifest(folder)
    before = manifest.get("run") or {}
    others = before.get("overrides") or {} if before.get("config") == config else {}
    kept = {key: value for key, value in others.items() if is_of_another(stage, key)}
    manifest["run"] = {
        "config": config,
        "run_dir": str(folder.absolute()),
        "overrides": kept | json.loads(json.dumps(overrides, default=str)),
        "folder": str(here(".").absolute()),  # from which relative paths count, in a notebook too
    }
    write_json(folder / MANIFEST, manifest, indent=1)


def is_of_another(stage: str, key: str) -> bool:
    """Tell whether a key of overrides is in the section of another stage: each notebook is given its own.

    Examples
    --------
    >>> [is_of_another("03_finetune_cellpose", key) for key in ("finetune.steps", "label.use", "seed", "recipes.mine.steps")]
    [False, True, False, True]
    """
    own = STAGES.get(stage) or f"{RECIPES}.{stage.partition('_')[2]}"
    return key.partition(".")[0] in (*STAGES.values(), RECIPES) and not f"{key}.".startswith(f"{own}.")
