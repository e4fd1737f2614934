"""Recipes: notebooks beside the six, each with a section of its own in the configuration.

A recipe is one file, ``notebooks/recipes/<name>.ipynb`` or ``<NN>_<name>.ipynb``. Its section is ``recipes.<name>``; a run has
the recipes that its configuration names. Which settings a section has, the notebook's metadata say: ``cellkit.backend``, the
backend that is trained (its ``TrainSettings``), or ``cellkit.settings``, a class ``module:Class`` of pydantic fields, each with
a default and a description. What its training costs, ``cellkit.costs`` says, a module, else the module of the settings, else
the backend: by ``cost(config, image, truth)`` and what goes with it, see `cellkit.models`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, Field, create_model

from cellkit.config.sections import STAGES, Config, Section
from cellkit.errors import UserError
from cellkit.files import PACKAGE, read_json
from cellkit.machine import here
from cellkit.manifest import NOTEBOOKS, RESERVED, RUNNER_VARIABLE
from cellkit.models import backend_module, is_backend
from cellkit.settings import Frozen

RECIPES = "recipes"
COSTING = ("cost", "TrainSettings", "BYTES_PER_PX")  # what a module states that says what a training costs
NUMBERED = "[0-9][0-9]_*.ipynb"
OUTPUTS = {"coco", "figures", "images", "labels", "microscope", "predictions", "to_correct"}  # folders of a run folder


def notebook_folders(folder: str | Path | None = None) -> list[Path]:
    """Return where notebooks are looked for: the folder given, that of the runner, else beside the package, then here."""
    if folder is None:
        folder = (json.loads(os.environ.get(RUNNER_VARIABLE, "null")) or {}).get("notebooks")
    return [Path(folder)] if folder is not None else [PACKAGE.parent / NOTEBOOKS, here(NOTEBOOKS)]


def recipe_name(stage: str) -> str:
    """Return the name of a recipe without the number of its file.

    Examples
    --------
    >>> recipe_name("11_unet_border"), recipe_name("large_cells")
    ('unet_border', 'large_cells')
    """
    return re.sub("^[0-9][0-9]_", "", stage)


def recipe_paths(folder: str | Path | None = None) -> list[Path]:
    """Return the recipes of a folder of notebooks, sorted by the name of their files.

    Raises
    ------
    UserError
        A name that is no key of a configuration, that of a section or of a folder of the run folder, or that of two files.
    """
    folders = notebook_folders(folder)
    place = next((place for place in folders if any(place.glob(NUMBERED))), folders[0])
    paths = sorted(path for path in (place / RECIPES).glob("*.ipynb") if not path.name.startswith("."))
    seen: dict[str, Path] = {}
    for path in paths:
        name = recipe_name(path.stem)
        named = f"the recipe '{path}' is called {name!r}"
        if not re.fullmatch("[a-z][a-z0-9_]*", name):
            raise UserError(named, "small letters, digits and _, such as unet_border.ipynb or 11_unet_border.ipynb")
        if (other := seen.setdefault(name, path)) is not path:
            raise UserError(f"{named}, as '{other}' is", "give one of them another name")
        if name in RESERVED | OUTPUTS | set(STAGES.values()):
            raise UserError(
                f"{named}, as a section of the configuration or a folder of the run is", "give it another name"
            )
    return paths


def recipe_sections(folder: str | Path | None = None) -> dict[str, type[Section]]:
    """Return the class of the section of every recipe, by the recipe's name.

    Raises
    ------
    UserError
        A file that is no notebook, or metadata that name no settings.
    """
    return {recipe_name(path.stem): _section_of(path) for path in recipe_paths(folder)}


def _section_of(path: Path) -> type[Section]:
    try:
        metadata = read_json(path).get("metadata", {}).get("cellkit", {})
        named = metadata.get("settings") or (
            "backend" in metadata and f"cellkit.models.{metadata['backend']}:TrainSettings"
        )
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"'{path}' is not a notebook (JSON of nbformat 4)", "save it again in Jupyter") from None
    if not named:
        return _section(recipe_name(path.stem), (Section,), None)
    settings = _settings_class(path, named)
    bases = (settings,) if issubclass(settings, Section) else (Section, settings)
    costs = _costs(metadata, named.partition(":")[0])
    return _section(recipe_name(path.stem), bases, metadata.get("backend"), costs)


@lru_cache  # so that two configurations of the same settings are equal
def _section(name: str, bases: tuple[type[BaseModel], ...], backend: str | None, costs: str = "") -> type[Section]:
    more = {} if backend is None else {"backend": (str, Field(backend, description="the backend"))}
    section = create_model(name, __base__=bases, **more)
    section.costs = costs
    return section


def _costs(metadata: Mapping[str, Any], settings_module: str) -> str:
    """Return the module or backend that says what a recipe's training costs; "" where none does.

    Raises
    ------
    UserError
        The metadata name a module that does not.
    """
    if own := metadata.get("costs"):
        if lacks := [name for name in COSTING if not hasattr(costing_module(own), name)]:
            raise UserError(
                f"what a recipe costs is to be told by '{own}', which states no {' and no '.join(lacks)}",
                f"state {', '.join(COSTING)} there, see notebooks/recipes/README.md, or leave cellkit.costs out of its metadata",
            )
        return own
    named = [name for name in (settings_module, metadata.get("backend")) if name]
    return next((name for name in named if all(hasattr(costing_module(name), one) for one in COSTING)), "")


def costing_module(name: str) -> ModuleType:
    """Return the module that says what a training costs: a backend, or another, ``package.module``.

    Raises
    ------
    UserError
        There is no such module.
    """
    if is_backend(name):
        return backend_module(name)
    try:
        return import_module(name)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"what a recipe costs is to be told by '{name}', which is not there: {error}",
            "name a module in its metadata (cellkit.costs), or leave that out",
        ) from None


def _settings_class(path: Path, named: str) -> type[BaseModel]:
    module, _, name = named.partition(":")
    remedy = "name a backend in its metadata (cellkit.backend), or a class of settings (cellkit.settings: module:Class)"
    try:
        settings = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"the settings of the recipe '{path}' are '{named}', which is not there: {error}", remedy
        ) from None
    if not isinstance(settings, type) or not issubclass(settings, BaseModel):
        raise UserError(f"the settings of the recipe '{path}' are '{named}', no class of pydantic fields", remedy)
    return settings


def with_recipes(kind: type[Config], sections: Mapping[str, type[Section]]) -> type[Config]:
    """Return the class of a configuration that has the sections of these recipes; one that is not named is None."""
    return _with_recipes(kind, tuple(sections.items())) if sections else kind


@lru_cache
def _with_recipes(kind: type[Config], sections: tuple[tuple[str, type[Section]], ...]) -> type[Config]:
    fields: dict[str, Any] = {name: (section, Field(None, description=f"recipe {name}")) for name, section in sections}
    recipes = create_model("Recipes", __base__=Frozen, **fields)
    description = kind.model_fields["recipes"].description
    return create_model("Config", __base__=kind, recipes=(recipes, Field(recipes(), description=description)))


# ---- sections by name ------------------------------------------------------------------------------------------------
def section_name(cfg: Config, stage: str) -> str | None:
    """Return the section of a stage, ``finetune`` or ``recipes.<name>``; None where the configuration has none of that name.

    Examples
    --------
    >>> section_name(Config(), "03_finetune_cellpose"), section_name(Config(), "11_unet_border")
    ('finetune', None)
    """
    if stage in STAGES:
        return STAGES[stage]
    name = recipe_name(stage)
    return f"{RECIPES}.{name}" if getattr(cfg.recipes, name, None) is not None else None


def section_at(cfg: Config, name: str) -> Section:
    """Return a section by its name, ``finetune`` or ``recipes.<name>``."""
    return getattr(cfg.recipes, name.removeprefix(f"{RECIPES}.")) if name.startswith(RECIPES) else getattr(cfg, name)


def named_sections(cfg: Config) -> dict[str, Section]:
    """Return all sections that a configuration has, those of the recipes that it names too, by their names."""
    own = {f"{RECIPES}.{name}": section for name, section in cfg.recipes if section is not None}
    return {name: getattr(cfg, name) for name in STAGES.values()} | own


def with_section(cfg: Config, name: str, section: Section) -> Config:
    """Return a configuration with another section of that name."""
    if not name.startswith(RECIPES):
        return cfg.model_copy(update={name: section})
    recipes = cfg.recipes.model_copy(update={name.removeprefix(f"{RECIPES}."): section})
    return cfg.model_copy(update={RECIPES: recipes})
