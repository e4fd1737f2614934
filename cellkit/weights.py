"""Weights: where they are, what they were trained on, and whether the bytes are the right ones. Offline first."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellkit.errors import UserError, nearest
from cellkit.files import read_json, sha256_file, write_json

PACKAGED = Path(__file__).parent / "starter"
WRAPPERS = ("_orig_mod.", "module.")  # before every name in the weights of a compiled or a distributed model
OTHER_USE = {"torchvision": "give it as maskrcnn.start, with maskrcnn.backbone: resnet50_fpn_v2"}


@dataclass(frozen=True)
class Card:
    """The side file of a checkpoint.

    Parameters
    ----------
    backend : str
        The module under ``cellkit.backends`` that reads it.
    classes : tuple of str
        Class k of a prediction is ``classes[k - 1]``; empty when the model knows none.
    config : dict
        Everything `load` needs: diameter, thresholds, sizes.
    metrics : dict
        Measured when it was made, with the data set and split named.
    licence : str
        Of the training data.
    sha256 : str
        Of the weights file.
    """

    backend: str
    classes: tuple[str, ...]
    config: dict[str, Any]
    metrics: dict[str, Any]
    licence: str
    sha256: str


def save_checkpoint(
    path: str | Path, tensors: dict, backend: str, *, classes=(), config=None, metrics=None, licence=""
) -> Path:
    """Write weights as safetensors and their card as JSON beside them, the card last: a card means the pair is whole.

    Returns
    -------
    Path
        Of the weights.
    """
    from cellkit.training import save_tensors

    path = save_tensors(Path(path), tensors, {"backend": backend})
    card = {
        "backend": backend,
        "classes": list(classes),
        "config": config or {},
        "metrics": metrics or {},
        "licence": licence,
        "sha256": sha256_file(path),
    }
    write_json(path.with_suffix(".json"), card, indent=1)
    return path


def read_card(path: str | Path) -> Card:
    """Read the card of a checkpoint and check the weights' sha256 against it.

    Raises
    ------
    UserError
        No weights, no card, or other bytes than the card says.
    """
    from cellkit.manifest import note_reading

    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}", "give the .safetensors file that a training wrote")
    side = path.with_suffix(".json")
    note_reading(path)
    note_reading(side)
    if not side.is_file():
        raise UserError(f"{path} has no card beside it ({side.name})", "copy the .json together with the .safetensors")
    try:
        fields = read_json(side)
        card = Card(**{**fields, "classes": tuple(fields["classes"])})
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise UserError(
            f"{side} is no card of a checkpoint: {error}", "copy the .json that the training wrote"
        ) from error
    if sha256_file(path) != card.sha256:
        raise UserError(
            f"{path} is not the file its card describes (sha256 differs)", "copy both files again, or train again"
        )
    return card


def card_for(path: str | Path, backend: str) -> Card:
    """Return the card of a checkpoint that a backend is to open; refuse one of another network.

    Raises
    ------
    UserError
        As `read_card`, or naming the backend that reads it.
    """
    card = read_card(path)
    if card.backend != backend:
        remedy = OTHER_USE.get(card.backend, f"open it with backend: {card.backend}")
        raise UserError(f"{path} is a checkpoint of {card.backend}", remedy)
    return card


def load_tensors(path: str | Path) -> dict:
    """Read tensors from safetensors, or from a torch file of tensors only (``weights_only``); nothing else is opened.

    Raises
    ------
    UserError
        The file is missing, damaged, or holds anything but tensors.
    """
    import torch
    from safetensors.torch import load_file

    from cellkit.manifest import note_reading

    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}", "give a file that exists")
    note_reading(path)
    try:
        if path.suffix == ".safetensors":
            return unwrapped(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()[0][:120]  # torch writes in colours
        raise UserError(
            f"{path} is no checkpoint that can be opened safely: {reason}", "convert it to safetensors"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise UserError(f"{path} holds more than named tensors", "save the model's state_dict alone")
    return unwrapped(loaded)


def unwrapped(tensors: dict) -> dict:
    """Return tensors by the names that the network itself gives them: torch.compile and DataParallel put theirs before.

    Examples
    --------
    >>> unwrapped({"_orig_mod.module.a.weight": 1, "_orig_mod.module.b": 2})
    {'a.weight': 1, 'b': 2}
    """
    while tensors:
        prefix = next((p for p in WRAPPERS if all(name.startswith(p) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def find_weights(name: str | Path) -> Path:
    """Return the file of named or given weights; never another one in its place.

    Parameters
    ----------
    name : str or Path
        ``starter`` (shipped with the package), a name of ``cellkit fetch`` (``cyto3``, ...), ``RUN:NAME`` (a checkpoint
        of a finished run), or a path. Nothing is downloaded.

    The weights and their card are noted as inputs of the stage under way.

    Raises
    ------
    UserError
        Nothing there; for weights that can be fetched, with the command and what to carry here by hand.
    """
    from cellkit.manifest import note_reading

    path = locate_weights(name)
    note_reading(path, f"weights {name}", "weights", str(name))
    note_reading(path.with_suffix(".json"), f"card of {name}", "card", str(name))
    return path


def locate_weights(name: str | Path) -> Path:
    """Return what `find_weights` does, and note nothing: to judge a stage, not to read them."""
    from cellkit.config_places import here
    from cellkit.registry import REGISTRY

    text = str(name)
    if here(text).is_file():
        return here(text)
    packaged = sorted(PACKAGED.glob("*.safetensors"))
    for path in packaged:
        if path.stem == text:
            return path
    if text in REGISTRY and REGISTRY[text].kind == "weights":
        from cellkit.fetch import fetched_weights

        return fetched_weights(text)
    run, key = of_a_run(text)
    if run and os.path.isdir(run):
        return _of_run(Path(run), key)
    if not run and is_a_path(text):
        raise UserError(f"no checkpoint at {text}", "give a file that exists")
    if run and "/" in run:
        raise UserError(
            f"'{text}' names a run folder that is not there: {run}", "run `cellkit run CONFIG --run FOLDER` first"
        )
    names = weights_names()
    raise UserError(
        f"no weights '{text}'{nearest(text, names)}",
        f"use {', '.join(names)}, RUN:NAME of a finished run, or the path of a checkpoint",
    )


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
    from cellkit.registry import REGISTRY

    shipped = sorted(path.stem for path in PACKAGED.glob("*.safetensors"))
    listed = [name for name, entry in REGISTRY.items() if entry.kind == "weights" and backend in (None, entry.backend)]
    return [*shipped, *listed]


def _of_run(run: Path, key: str) -> Path:
    """Return the checkpoint that a finished stage of `run` listed as ``<key>`` or ``<key>_checkpoint``."""
    from cellkit.manifest import finished_entries, read_manifest

    manifest = run / "manifest.json"
    if not manifest.is_file():
        raise UserError(
            f"{run} has no manifest.json: no stage of it has finished", "run `cellkit run CONFIG --run FOLDER` first"
        )
    listed: dict[str, str] = {}
    for stage in finished_entries(read_manifest(run)).values():
        listed |= {
            k.removesuffix("_checkpoint"): v["path"] for k, v in stage["outputs"].items() if k.endswith("_checkpoint")
        }
    if key not in listed:
        raise UserError(
            f"{run} has no model '{key}'{nearest(key, listed)}",
            f"its models are: {', '.join(sorted(listed)) or 'none yet'}",
        )
    return run / listed[key]


def copy_checkpoint(path: str | Path, to: str | Path) -> Path:
    """Copy a checkpoint, and its card where it has one, so that a run folder holds the weights it began from.

    Parameters
    ----------
    to : path
        Without suffix: it keeps that of `path`.

    Returns
    -------
    Path
        Of the copied weights.
    """
    import shutil

    from cellkit.files import atomic_path

    path = Path(path)
    copied = Path(f"{to}{path.suffix}")
    for source, target in ((path, copied), (path.with_suffix(".json"), copied.with_suffix(".json"))):
        if source.is_file() and source != target:
            with atomic_path(target) as temporary:
                shutil.copyfile(source, temporary)
    return copied
