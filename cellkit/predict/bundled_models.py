"""A model in a bundle, whole: one checkpoint, several fused, or one for each kind of image; written, and opened again.

What is written is a tree of plain values. A leaf names a checkpoint of the bundle (or a backend that needs none) and says how it
is read; ``fuse`` and ``route`` hold others.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cellkit.errors import UserError
from cellkit.files import sha256_file
from cellkit.models.shared.fusion import FusionSettings
from cellkit.modules import own_folders
from cellkit.predict.joined import FusedModel, JoinedModel, RoutedModel, fused_model, routed_model
from cellkit.predict.model import Model, find_model

OF_PREDICTIONS = ("formats", "microscope", "models")  # folders of modules that a prediction may take


def copy_models(model: Model, folder: Path, within: str) -> dict[str, Any]:
    """Copy the files of a model of models, each checkpoint once, and return the tree that `open_models` opens.

    Parameters
    ----------
    folder : Path
        Where the checkpoints go, each into a folder of its own.
    within : str
        What that folder is called in the bundle.

    Raises
    ------
    UserError
        A route by looks: it reads the training images of a run.
    """
    if isinstance(model, FusedModel):
        members = [copy_models(one, folder, within) for one in model.members]
        return {"fuse": members, "weights": list(model.weights), "settings": dict(model.settings)}
    if isinstance(model, RoutedModel):
        if model.like is not None:
            raise UserError(
                f"{model.name} routes by looks (like: {model.like}): its training images fit into no bundle",
                "route by the class of most cells: leave out like, and name a detector",
            )
        router, *others = (copy_models(one, folder, within) for one in model.members)
        return {"route": router, "kinds": dict(zip(model.kinds, others, strict=True)), "otherwise": model.otherwise}
    place = _place_of(model)
    path = copy_files(model, folder / place, f"{within}/{place}")
    return {"model": path, "config": model.config, "own_px": model.own_px}


def copy_files(model: Model, folder: Path, within: str) -> str:
    """Copy the files of one model; return by what name it is opened: a path in the bundle, or a backend that needs no file.

    Raises
    ------
    UserError
        Another file of that name is there.
    """
    first = model.cell_classes or model.checkpoint
    if first is None:
        return model.backend
    folder.mkdir(parents=True, exist_ok=True)
    for path in filter(None, (model.checkpoint, model.cell_classes)):
        for file in (path, _card(path)):
            if file.is_file():
                _copy(file, folder / file.name)
    return f"{within}/{first.name}"


def _place_of(model: Model) -> str:
    """Return the name of the folder of a model's files: another for whatever differs in any of them, cards included."""
    files = [path for path in (model.checkpoint, model.cell_classes) if path]
    told = [(file.name, sha256_file(file)) for path in files for file in (path, _card(path)) if file.is_file()]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


def _card(path: Path) -> Path:
    return path.with_suffix(".json")


def _copy(file: Path, to: Path) -> None:
    """Copy a file; refuse to put it in the place of another."""
    if to.is_file() and sha256_file(to) != sha256_file(file):
        raise UserError(f"{file} would take the place of another {to.name} in the bundle", "rename one of them")
    shutil.copyfile(file, to)


def open_models(tree: Mapping[str, Any], bundle: Path, name: str) -> Model:
    """Return the model of a tree that `copy_models` wrote."""
    if "fuse" in tree:
        members = [open_models(one, bundle, f"{name}, {k}") for k, one in enumerate(tree["fuse"], 1)]
        return fused_model(name, members, tree["weights"], FusionSettings(**tree["settings"]))
    if "route" in tree:
        router = open_models(tree["route"], bundle, f"{name}, the router")
        kinds = {kind: open_models(one, bundle, f"{name}, {kind}") for kind, one in tree["kinds"].items()}
        return routed_model(name, router, kinds, tree["otherwise"])
    path = bundle / tree["model"]
    model = find_model(path if path.is_file() else tree["model"])
    return replace(model, name=name, config=dict(tree["config"]), own_px=tree["own_px"])


def backends_of(model: Model) -> list[str]:
    """Return the names of the backends of a model, sorted; of one that others make, those of all of them."""
    if isinstance(model, JoinedModel):
        return sorted({name for one in model.members for name in backends_of(one)})
    return [model.backend]


def copy_own_modules(folder: Path) -> None:
    """Copy the modules of one's own that a prediction may take (backends, readers, forms) into a copy of the package.

    There they are imported by the same names, without the folder that ``CELLKIT_MODULES`` names.

    Raises
    ------
    UserError
        A file of that name is in the package.
    """
    for own in own_folders():
        files = [*own.glob("*.py"), *(file for part in OF_PREDICTIONS for file in (own / part).rglob("*.py"))]
        for file in sorted(files):
            to = folder / file.relative_to(own)
            if to.is_file() and to.name == "__init__.py":  # the package has its own
                continue
            to.parent.mkdir(parents=True, exist_ok=True)
            _copy(file, to)


def is_joined(model: Model) -> bool:
    """Tell whether a model is made of several."""
    return isinstance(model, JoinedModel)
