"""Where a run reads: the data folder, what lies in it, and from where a relative path counts."""

from __future__ import annotations

import os
from pathlib import Path

from cellkit.config.sections import Config, ConvertConfig
from cellkit.errors import UserError, nearest
from cellkit.machine import DATA_VARIABLE, here


def names_data(cfg: Config | ConvertConfig) -> bool:
    """Tell whether the configuration or the environment names a folder of real data."""
    return bool(cfg.data or os.environ.get(DATA_VARIABLE))


def data_root(cfg: Config | ConvertConfig) -> Path:
    """Return the folder of real data: ``data:`` of the configuration, else the environment variable CELLKIT_DATA.

    Raises
    ------
    UserError
        Neither is set, or the folder is missing or empty.
    """
    remedy = f"set data: in the config (or --set data=FOLDER), or the environment variable {DATA_VARIABLE}=FOLDER"
    named, origin = (cfg.data, "data") if cfg.data else (os.environ.get(DATA_VARIABLE, ""), DATA_VARIABLE)
    if not named:
        raise UserError("no data folder is set, and this configuration reads real images", remedy)
    root = here(named)
    if not root.is_dir():
        raise UserError(f"{origin} is '{named}', {'not a folder' if root.exists() else 'no such folder'}", remedy)
    if not any(not child.name.startswith(".") for child in root.iterdir()):
        raise UserError(f"{origin} is '{named}', an empty folder", remedy)
    return root


def data_path(cfg: ConvertConfig) -> Path:
    """Return the folder or file that holds the source: `data_root` joined with ``convert.path``.

    Raises
    ------
    UserError
        It is missing, empty, or leads out of the data folder.
    """
    root = data_root(cfg)
    path = root / cfg.path
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"convert.path is '{cfg.path}', which leads out of '{root}'", "point data: at the folder meant")
    if not path.exists():
        choices = sorted(child.name for child in root.iterdir() if not child.name.startswith("."))
        raise UserError(
            f"convert.path is '{cfg.path}', not in the data folder '{root}'{nearest(cfg.path, choices)}",
            f"set convert.path to one of: {', '.join(choices[:12])}",
        )
    if path.is_dir() and not any(not child.name.startswith(".") for child in path.iterdir()):
        raise UserError(f"'{path}' is an empty folder", "put images there, or set data: and convert.path to another")
    return path


def refuse_in_data(run_dir: Path, root: Path) -> None:
    """Refuse a run folder in the folder of its data.

    Raises
    ------
    UserError
        With the data folder.
    """
    if run_dir.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"the run folder lies in the data folder {root}: its pictures would be read as data, and the data would change",
            "put it elsewhere: cellkit run CONFIG --run FOLDER",
        )
