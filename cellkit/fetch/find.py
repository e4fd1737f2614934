"""From a name to a model: the file of its weights, and never another one in its place. Offline first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from cellkit.errors import UserError, nearest
from cellkit.fetch.packages import is_package, weights_of_package
from cellkit.fetch.registry import REGISTRY
from cellkit.files import PACKAGE, sha256_file
from cellkit.machine import here
from cellkit.settings import Frozen, weights_fields

PACKAGED = PACKAGE / "starter"
SCRATCH, TUNED = "scratch", "tuned"
Kind = TypeVar("Kind", bound=Frozen)


def find_weights(name: str | Path, also: Sequence[str] = ()) -> Path:
    """Return the file of named or given weights; never another one in its place.

    Parameters
    ----------
    name : str or Path
        ``starter`` (shipped with the package), a name of ``cellkit fetch`` (``cyto3``, ...), ``RUN:NAME`` (a checkpoint
        of a finished run), or a path, that of a bioimage.io package (.zip) among them. Nothing is downloaded.
    also : sequence of str
        Other names that would do, listed in the error where there are no such weights.

    The weights and their card are noted as inputs of the stage under way.

    Raises
    ------
    UserError
        Nothing there; for weights that can be fetched, with the command and what to carry here by hand.
    """
    from cellkit.under_way import note_reading

    path = locate_weights(name, also)
    note_reading(path, f"weights {name}", "weights", str(name))
    note_reading(path.with_suffix(".json"), f"card of {name}", "card", str(name))
    return path


def locate_weights(name: str | Path, also: Sequence[str] = ()) -> Path:
    """Return what `find_weights` does, and note no input: to check a stage, not to read them.

    Raises
    ------
    UserError
        As `find_weights`.
    """

    text = str(name)
    if here(text).is_file():
        return weights_of_package(here(text)) if is_package(here(text)) else here(text)
    packaged = sorted(PACKAGED.glob("*.safetensors"))
    for path in packaged:
        if path.stem == text:
            return path
    if text in REGISTRY and REGISTRY[text].kind == "weights":
        from cellkit.fetch.fetch import fetched_weights

        return fetched_weights(text)
    run, key = of_a_run(text)
    if run and os.path.isdir(run):
        return _of_run(Path(run), key)
    if os.path.isdir(text):
        raise UserError(f"model '{text}' is a folder", "give a checkpoint file, or RUN:NAME of a finished run")
    if not run and is_a_path(text):
        raise UserError(f"no checkpoint at {text}", "give a file that exists")
    if run and "/" in run:
        raise UserError(
            f"'{text}' names a run folder that is not there: {run}", "run `cellkit run CONFIG --run FOLDER` first"
        )
    names = [*weights_names(), *also]
    raise UserError(
        f"no weights '{text}'{nearest(text, names)}",
        f"use {', '.join(names)}, RUN:NAME of a finished run, or the path of a checkpoint",
    )


def named_for(name: str, backends: Sequence[str]) -> str:
    """Return the name in the registry of what is only called so, as "coco" is, among weights of these backends; else the name.

    Examples
    --------
    >>> named_for("coco", ["torchvision"]), named_for("coco", ["cellpose_unet"]), named_for("starter", ["torchvision"])
    ('maskrcnn_resnet50_fpn_v2', 'coco', 'starter')
    """
    if here(name).is_file():
        return name
    return next((one for one, entry in REGISTRY.items() if entry.called == name and entry.backend in backends), name)


def of_a_run(text: str) -> tuple[str, str]:
    """Return the run folder and the name of ``RUN:NAME``; two empty texts for what is none, as the drive of a path.

    Examples
    --------
    >>> of_a_run("runs/demo:maskrcnn"), of_a_run("C:/models/m.pth"), of_a_run("D:\\\\demo:maskrcnn")
    (('runs/demo', 'maskrcnn'), ('', ''), ('D:\\\\demo', 'maskrcnn'))
    """
    run, _, key = text.rpartition(":")
    return (run, key) if run and not is_a_path(key) else ("", "")


def is_a_path(text: str) -> bool:
    """Tell whether a text is meant as the path of a file, and not as the name of a model."""
    return "/" in text or "\\" in text


def weights_names(backend: str | None = None) -> list[str]:
    """Return the names that `find_weights` knows by itself: those shipped with the package, then those of the registry.

    With `backend`, only those of the registry that it reads.
    """
    shipped = sorted(path.stem for path in PACKAGED.glob("*.safetensors"))
    listed = [name for name, entry in REGISTRY.items() if entry.kind == "weights" and backend in (None, entry.backend)]
    return [*shipped, *listed]


def _of_run(run: Path, key: str) -> Path:
    """Return the checkpoint that a finished stage of `run` listed as ``<key>_checkpoint``, as that stage left it."""
    from cellkit.manifest import finished_entries, read_manifest

    if not (run / "manifest.json").is_file():
        raise UserError(
            f"{run} has no manifest.json: no stage of it has finished", "run `cellkit run CONFIG --run FOLDER` first"
        )
    listed: dict[str, tuple[str, dict[str, str]]] = {}
    for stage, entry in finished_entries(read_manifest(run)).items():
        checkpoints = {name: out for name, out in entry["outputs"].items() if name.endswith("_checkpoint")}
        listed |= {name.removesuffix("_checkpoint"): (stage, out) for name, out in checkpoints.items()}
    if key not in listed:
        raise UserError(
            f"{run} has no model '{key}'{nearest(key, listed)}",
            f"its models are: {', '.join(sorted(listed)) or 'none yet'}",
        )
    stage, output = listed[key]
    path = run / output["path"]
    if not path.is_file() or sha256_file(path) != output["sha256"]:
        what = f"is not as {stage} left it" if path.is_file() else "is missing"
        raise UserError(f"'{key}' ({path}) {what}", f"repeat that stage: cellkit run CONFIG --run {run}")
    return path


def with_weights(config: Kind, run: Any = None) -> Kind:
    """Return the settings of a training with paths where they name weights: a backend is never given a name.

    Parameters
    ----------
    config : TrainSettings, or a section with them
        "scratch" stays as it is; "coco" is a published detector that the backend reads; "tuned" is the checkpoint of this run
        that notebook 03 kept, as no validation image taught it.
    run : cellkit.run.folder.Run, optional
        Where "tuned" is looked up.

    Raises
    ------
    UserError
        As `find_weights`; or notebook 03 is done and has no weights that no validation image taught.
    """
    named = {name: named_for(getattr(config, name), fitting) for name, fitting in weights_fields(type(config)).items()}
    paths = {
        name: _untaught(run, name) if value == TUNED and run is not None else find_weights(value)
        for name, value in named.items()
        if value != SCRATCH
    }
    return config.model_copy(update={name: str(path) for name, path in paths.items()})


def _untaught(run: Any, name: str) -> Path:
    """Return the checkpoint of notebook 03 that no validation image taught, for the setting `name` of the detector."""
    try:
        return run.find("encoder_checkpoint")
    except UserError as error:
        listed = {key for entry in run.stages().values() for key in entry["outputs"]}
        if "encoder_checkpoint" in listed or "cellpose_tuned_checkpoint" not in listed:
            raise
        problem = (
            f"validation images taught all that 03 adapted, so maskrcnn.{name} cannot be tuned: they judge the detector"
        )
        raise UserError(problem, f"set maskrcnn.{name}: starter, or label training images too") from error
