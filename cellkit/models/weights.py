"""Checkpoints and their cards: what they were trained on, and whether the bytes are the right ones."""

from __future__ import annotations

import hashlib
import math
import re
import reprlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from cellkit.errors import UserError, counted
from cellkit.files import read_json, sha256_file, write_json
from cellkit.settings import accepted, schema_of

ZOO = "bioimage.io:"  # before the id of a parent in that collection
WRAPPERS = ("_orig_mod.", "module.")  # before every name in the weights of a compiled or a distributed model
BOUNDS = ("greater_than", "less_than")  # how pydantic calls a number beyond its limits
LEARNT = re.compile(r"(weight|bias|running_mean|running_var|diam_\w+)$")  # names of what has to be finite
COPY = "copy the .json that was written with the weights"
OTHER_USE = {
    "torchvision": "give it as maskrcnn.start, with maskrcnn.backbone: resnet50_fpn_v2",
    "detectron2": "give it as maskrcnn.start, with maskrcnn.backend: maskrcnn_detectron2 and maskrcnn.backbone: resnet50_fpn",
}


class NotFinite(UserError):
    """A checkpoint holds numbers that are not finite, as a training leaves that diverged."""


@dataclass(frozen=True)
class Card:
    """The side file of a checkpoint.

    Parameters
    ----------
    backend : str
        The module under ``cellkit.models`` that reads it.
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

    def told(self, key: str, checkpoint: str | Path) -> Any:
        """Return what the config says of `key`.

        Raises
        ------
        UserError
            Nothing: the card is not as it was written.
        """
        if key not in self.config:
            raise UserError(f"{Path(checkpoint).with_suffix('.json')} does not say {key}", COPY)
        return self.config[key]


def save_checkpoint(
    path: str | Path, tensors: dict, backend: str, *, classes=(), config=None, metrics=None, licence=""
) -> Path:
    """Write weights as safetensors and their card as JSON beside them, the card last: a card means the pair is whole.

    Returns
    -------
    Path
        Of the weights.
    """
    from cellkit.models.training_state import save_tensors

    path = save_tensors(Path(path), tensors, {"backend": backend})
    card = {
        "backend": backend,
        "classes": list(classes),
        "config": {
            key: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
            for key, value in (config or {}).items()
        },
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
        No weights, no card, one that is none, or other bytes than the card says.
    """
    from cellkit.under_way import note_reading

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
        if not all(isinstance(text, str) for text in (card.backend, card.sha256, card.licence, *card.classes)):
            raise TypeError("a text is of another kind")
        if not (isinstance(card.config, dict) and isinstance(card.metrics, dict)):
            raise TypeError("config and metrics have to be tables of keys")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{side} is no card of a checkpoint: {error}", "copy the .json that the training wrote"
        ) from error
    if sha256_file(path) != card.sha256:
        raise UserError(
            f"{path} is not the file its card describes (sha256 differs)", "copy both files again, or train again"
        )
    return card


def card_file(path: str | Path) -> Path | None:
    """Return the file of the card of a checkpoint; None where it has none.

    Only safetensors have a card: a JSON beside a torch file is something else of that name, as the settings of a training.
    """
    side = Path(path).with_suffix(".json")
    return side if Path(path).suffix == ".safetensors" and side.is_file() else None


def card_for(path: str | Path, backend: str) -> Card:
    """Return the card of a checkpoint that a backend is to open; refuse one of another network.

    Raises
    ------
    UserError
        As `read_card` and `refuse_settings`, or naming the backend that reads it.
    """
    card = read_card(path)
    if card.backend != backend:
        remedy = OTHER_USE.get(card.backend, f"open it with backend: {card.backend}")
        raise UserError(f"{path} is a checkpoint of {card.backend}", remedy)
    refuse_settings(card, path, limits=False)
    return card


def refuse_settings(card: Card, checkpoint: str | Path, limits: bool = True) -> None:
    """Refuse a card that says of its backend's settings what none of them may be: somebody changed it.

    Parameters
    ----------
    limits : bool
        Refuse numbers beyond what may be set, too: a training may have measured such a one.

    Raises
    ------
    UserError
        Naming the card, the setting, what it is and what is wanted.
    """
    from cellkit.models import backend_module, is_backend

    if not is_backend(card.backend):
        return
    kind = backend_module(card.backend).Settings
    told = {key: card.config[key] for key in kind.model_fields if card.config.get(key) is not None}
    try:
        kind(**told)
    except ValidationError as error:
        faults = [fault for fault in error.errors() if limits or not fault["type"].startswith(BOUNDS)]
        wrong = [str(fault["loc"][0]) for fault in faults if fault["loc"] and fault["loc"][0] in told]
        if not wrong:
            return
        key, side = wrong[0], Path(checkpoint).with_suffix(".json")
        wanted = accepted(schema_of(kind)["properties"][key])
        raise UserError(f"{side}: {key} is {reprlib.repr(told[key])}, wanted is {wanted}", COPY) from None


def load_tensors(path: str | Path) -> dict:
    """Read tensors from safetensors, or from a torch file of tensors only (``weights_only``); nothing else is opened.

    Raises
    ------
    UserError
        The file is missing, damaged, or holds anything but tensors.
    NotFinite
        It holds NaN, or a weight or statistic that is infinite.
    """
    import torch
    from safetensors.torch import load_file

    from cellkit.under_way import note_reading

    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}", "give a file that exists")
    note_reading(path)
    try:
        if path.suffix == ".safetensors":
            loaded = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()[0][:120]  # torch writes in colours
        raise UserError(
            f"{path} is no checkpoint that can be opened safely: {reason}", "convert it to safetensors"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise UserError(f"{path} holds more than named tensors", "save the model's state_dict alone")
    return unwrapped(_finite(loaded, path))


def _finite(tensors: dict, path: Path) -> dict:
    """Return tensors; refuse numbers that are none, with which a network finds nothing and no error is raised.

    What is no weight and no statistic may be infinite, as a mask of what attention leaves out; what is sparse is not looked at.
    """
    import torch

    wrong = []
    for name, tensor in tensors.items():
        if tensor.layout == torch.strided and tensor.is_floating_point() and tensor.numel():
            ends = torch.aminmax(tensor if tensor.itemsize > 1 else tensor.float())  # fast, and NaN where any is
            finite = bool(ends.min.isfinite() and ends.max.isfinite())
            if not finite and (ends.min.isnan() or LEARNT.search(name)):
                wrong.append(name)
    if wrong:
        raise NotFinite(
            f"{path} holds numbers that are not finite in {len(wrong)} of {counted(len(tensors), 'tensor')}, "
            f"e.g. {wrong[0]}",
            "where its training diverged, take a checkpoint of before that, or other weights",
        )
    return tensors


def numbers_in(path: str | Path) -> int:
    """Return how many numbers a checkpoint holds: of safetensors by the head of the file, else 4 bytes of it are one."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if path.suffix == ".safetensors":
        with suppress(SafetensorError, OSError), safe_open(path, framework="numpy") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  no mapping
    return path.stat().st_size // 4 if path.is_file() else 0


def shapes_in(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in safetensors, by name; their numbers are not read."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  no mapping
    return unwrapped(shapes)


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
    for source, target in ((path, copied), (card_file(path), copied.with_suffix(".json"))):
        if source is not None and source.is_file() and source != target:
            with atomic_path(target) as temporary:
                shutil.copyfile(source, temporary)
    return copied


def add_to_card(path: str | Path, **metrics: Any) -> None:
    """Note more of what was measured in the card of a checkpoint; one without a card stays as it is."""
    side = card_file(path)
    if side is not None:
        fields = read_json(side)
        write_json(side, {**fields, "metrics": {**fields["metrics"], **metrics}}, indent=1)


def hashed(image_ids: Iterable[str]) -> list[str]:
    """Return what stands for images in a card, which is handed to others: no name of a file, and yet an image can be looked for.

    Examples
    --------
    >>> hashed(["HEK_01"]) == hashed(["HEK_01"]), "HEK" in hashed(["HEK_01"])[0], len(hashed(["HEK_01"])[0])
    (True, False, 16)
    """
    return [hashlib.sha256(name.encode()).hexdigest()[:16] for name in image_ids]


def licence_from(base: str | Path) -> str:
    """Return the licence of what is trained from `base`, in words: of the user's images, and of the base as its card has it.

    Parameters
    ----------
    base : path
        A checkpoint; anything that is no file, as "scratch", is no base.
    """
    own, path = "of your images", Path(base)
    if not path.is_file():
        return own
    side = card_file(path)
    of_base = read_json(side).get("licence", "") if side else ""
    return f"{own}, and of {parents_of(path)[0]}, from which it began" + (f": {of_base}" if of_base else "")


def parents_of(base: str | Path) -> list[str]:
    """Return what a training from `base` has to name: that checkpoint, then what it was trained from itself.

    A checkpoint that stands for another, as one taken in from bioimage.io does, is named as its card says.
    """
    side = card_file(base)
    metrics = read_json(side)["metrics"] if side else {}
    return [metrics.get("known_as") or Path(base).stem, *metrics.get("parents", [])]
