"""A package of bioimage.io as weights to start from: its tensors are taken in once, and nothing in it is run.

A package is a ZIP with a description (``rdf.yaml``, specification 0.4 or 0.5), weights, and code. Of the weights only tensors are
read: safetensors, or a torch file by ``weights_only``.
"""

from __future__ import annotations

import math
import os
import reprlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellkit.errors import UserError
from cellkit.fetch.archives import unpack
from cellkit.fetch.registry import cache_folder
from cellkit.files import sha256_file
from cellkit.models import weights

DESCRIPTIONS = ("rdf.yaml", "bioimageio.yaml", "model.yaml")
STATE = "pytorch_state_dict"
MOST_BYTES = 2_000_000_000
MOST_TEXT_BYTES = 200_000  # of a description
UNET = "cellpose_unet"
KNOWN = ("diameter_px", "channels", "normalise", "diameter_of", "flow_threshold", "cellprob_threshold", "min_area_px")


def is_package(path: Path) -> bool:
    """Tell whether a file is meant as a package: a ZIP by its name, as torch's own files are not."""
    return path.suffix.lower() == ".zip" and path.is_file()


def weights_of_package(path: Path) -> Path:
    """Return a checkpoint of the weights in a package, with a card; made once, in the user's cache, and known by its bytes.

    Parameters
    ----------
    path : Path
        The ZIP.

    Raises
    ------
    UserError
        A member that is refused, no description, no state dict, other bytes than the description says, anything but tensors, or
        those of another network.
    """
    key = sha256_file(path)
    kept = cache_folder() / "packages" / key[:16] / f"{path.stem}.safetensors"
    if not _whole(kept):
        with tempfile.TemporaryDirectory(prefix="cellkit-package-") as made:
            folder = Path(made) / "package"
            unpack(path, folder, MOST_BYTES)
            about = _description(path, folder)
            tensors = weights.load_tensors(_state(path, folder, about))
            _refuse_others(path, tensors)
            _keep(kept, tensors, about, key)
    return kept


def _whole(kept: Path) -> bool:
    """Tell whether a package was taken in before: a card is written last."""
    if not kept.with_suffix(".json").is_file():
        return False
    weights.read_card(kept)
    return True


def _description(path: Path, folder: Path) -> Mapping[str, Any]:
    """Return what the description of a package says."""
    import yaml

    found = next((folder / name for name in DESCRIPTIONS if (folder / name).is_file()), None)
    if found is None:
        raise UserError(
            f"{path} is no package of bioimage.io: it has no {DESCRIPTIONS[0]}", "give the ZIP as it was downloaded"
        )
    size = found.stat().st_size
    if size > MOST_TEXT_BYTES:
        raise UserError(f"{found.name} of {path} has {size:,} bytes", f"a description has at most {MOST_TEXT_BYTES:,}")
    try:
        about = yaml.safe_load(found.read_text(encoding="utf-8"))
    except (
        yaml.YAMLError,
        UnicodeDecodeError,
        RecursionError,
        ValueError,
        TypeError,
    ) as error:  # ValueError: no such date
        raise UserError(
            f"{found.name} of {path} cannot be read: {str(error).partition(chr(10))[0]}", "get it again"
        ) from error
    if not isinstance(about, dict) or about.get("type", "model") != "model":
        raise UserError(f"{path} is a package of bioimage.io that holds no model", "give the package of a model")
    return about


def _state(path: Path, folder: Path, about: Mapping[str, Any]) -> Path:
    """Return the file of a package's state dict, whose bytes are those that the description names."""
    listed = about.get("weights")
    entry = listed.get(STATE) if isinstance(listed, dict) else None
    if not isinstance(entry, dict) or not isinstance(entry.get("source"), str):
        there = ", ".join(sorted(map(_text, listed))) if isinstance(listed, dict) and listed else "none"
        raise UserError(
            f"{path} has no weights that can be trained on: it needs a {STATE}, and has {there}",
            "take a package with a state dict; TorchScript and ONNX are programs, and are not opened",
        )
    members = {member.resolve() for member in folder.rglob("*") if member.is_file()}
    file = Path(os.path.abspath(folder.resolve() / entry["source"]))
    if file not in members:
        raise UserError(f"the weights of {path} are not in it: {entry['source']}", "give the ZIP as it was downloaded")
    if entry.get("sha256") not in (None, sha256_file(file)):
        raise UserError(f"the weights of {path} are not those of its description (sha256 differs)", "get it again")
    return file


def _refuse_others(path: Path, tensors: Mapping[str, Any]) -> None:
    """Refuse the tensors of another network, before anything is kept."""
    from cellkit.models.unet_network import CellposeUNet, fits, widths_of

    widths = widths_of(tensors)
    wanted = CellposeUNet(widths=widths).state_dict() if widths else {}
    good = widths and all(name in tensors and fits(name, tensors[name], wanted[name]) for name in wanted)
    if not good:
        raise UserError(
            f"{path} holds no two-channel Cellpose U-Net",
            "give a package of a U-Net of Cellpose 1 to 3, or of cellkit export",
        )


def _settings(told: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in a description, each within its limits."""
    from pydantic import ValidationError

    from cellkit.models import backend_module

    try:
        read = backend_module(UNET).Settings(**told)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise UserError(
            f"the description of the package says {where} = {reprlib.repr(fault['input'])}: {fault['msg']}",
            "get it again",
        ) from error
    return read.model_dump(mode="json", include=set(told))


def _text(value: Any) -> str:
    """Return a text; of anything else nothing: YAML may nest it so that written out it fills the memory."""
    return value if isinstance(value, str) else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping; of anything else that a description holds in its place, an empty one."""
    return value if isinstance(value, dict) else {}


def _small(value: Any, depth: int = 3) -> Any:
    """Return a value of few parts as it is, to be checked where it is used; for one that may be huge, what no check takes."""
    if isinstance(value, dict) and depth and len(value) <= 16 and all(isinstance(key, str) for key in value):
        return {key[:40]: _small(part, depth - 1) for key, part in value.items()}
    if isinstance(value, list) and depth and len(value) <= 64:
        return [_small(part, depth - 1) for part in value]
    plain = (
        value is None
        or (isinstance(value, bool | int | float) and math.isfinite(value))
        or (isinstance(value, str) and len(value) <= 200)
    )
    return value if plain else [[]]


def _keep(kept: Path, tensors: Mapping[str, Any], about: Mapping[str, Any], key: str) -> None:
    """Write the tensors and a card: what cellkit itself put into the description, else what a card of others has to say."""
    from cellkit.models.unet_network import WIDTHS, CellposeUNet, widths_of

    widths = widths_of(tensors)
    own = CellposeUNet(widths=widths).state_dict()
    ours = _mapping(_mapping(about.get("config")).get("cellkit"))
    told, before = {**_mapping(ours.get("config")), **_mapping(ours.get("as_trained"))}, ours.get("parents")
    config = _settings({name: told[name] for name in KNOWN if told.get(name) is not None})
    if ours.get("conversion") is not None:
        config["conversion"] = _small(ours["conversion"])
    names = [
        f"{weights.ZOO}{_text(about.get('id'))}"
        if _text(about.get("id"))
        else f"bioimage.io package {_text(about.get('name')) or kept.stem}"
    ]
    parents = [_text(name) for name in before] if isinstance(before, list) else []
    metrics = {"known_as": names[0], "parents": parents, "package_sha256": key}
    weights.save_checkpoint(
        kept,
        {name: tensors[name].reshape(own[name].shape) for name in own},
        UNET,
        config=config | ({} if widths == WIDTHS else {"widths": list(widths)}),
        metrics=metrics,
        licence=_text(about.get("license")),
    )
