"""A folder for the Hugging Face Hub: safetensors, their card, and a README whose head machines read.

Any checkpoint can leave so: whoever takes it uses cellkit.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from cellkit.errors import UserError
from cellkit.export.licences import hub_name, licence_of, said_of
from cellkit.export.network import parents_of, title_of_model
from cellkit.export.texts import measured
from cellkit.files import read_json, write_json, write_text
from cellkit.predict.model import Model

NAME, CARD = "model.safetensors", "model.json"
PAGE = """---
{head}---

# {title}

{what}. It finds the cells in a 2D picture{classes}.

```sh
cellkit predict {name} IMAGES -o found.json --labels labels
```

`{name}` are the weights, `{card}` their card: settings, scores, sha256. cellkit refuses weights that are not those of their card.

## How it is read

```json
{config}
```

Trained from: {parents}. Licence of what it learned from, in the words of its card: {licence}.

{measured}"""


def write_folder(model: Model, out: str | Path, licence: str | None) -> list[str]:
    """Write a model as a folder that can be pushed to the Hub as it is; return what is to be said of it.

    Parameters
    ----------
    out : path
        A folder that does not exist, or one that was written so and holds nothing else: it is replaced.
    licence : str or None
        See `cellkit.export.licences.licence_of`.

    Raises
    ------
    UserError
        The model has no weights, or another folder is there.
    """
    from cellkit.models import weights

    out, first = Path(out), model.cell_classes or model.checkpoint
    if first is None:
        raise UserError(f"{model.name} has no weights", "export a model that was trained")
    _refuse_others(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".cellkit-export-", dir=out.parent) as made:
        folder = Path(made) / "model"
        folder.mkdir()
        if first.suffix == ".safetensors":
            finds = weights.copy_checkpoint(first, folder / Path(NAME).stem)
        else:
            finds = weights.save_checkpoint(
                folder / NAME, weights.load_tensors(first), model.backend, config=model.config
            )
        if model.cell_classes is not None:
            finds = weights.copy_checkpoint(model.checkpoint, folder / model.checkpoint.stem)
        _as_read(finds, model)
        card = weights.read_card(folder / NAME)
        spdx = licence_of(licence, card.licence)
        write_text(folder / "README.md", _page(model, card, spdx))
        if out.exists():
            out.rename(Path(made) / "replaced")
        folder.rename(out)
    return said_of(spdx, card.licence)


def _refuse_others(out: Path) -> None:
    """Refuse a folder that holds anything that `write_folder` does not write: it would be lost."""
    if not out.exists():
        return
    from cellkit.models import weights

    try:
        segmenter = str(weights.read_card(out / NAME).config.get("segmenter", NAME))
    except UserError as error:
        raise UserError(
            f"{out} exists and is no model that was exported", "name a folder that does not exist"
        ) from error
    known = {NAME, CARD, "README.md", segmenter, Path(segmenter).with_suffix(".json").name}
    others = sorted(path.name for path in out.iterdir() if path.name not in known)
    if others:
        raise UserError(
            f"{out} holds more than an exported model: {', '.join(others)}", "name a folder that does not exist"
        )


def _as_read(weights_file: Path, model: Model) -> None:
    """Let the card of copied weights say what was set for the export, too."""
    from cellkit.models import backend_module

    side = weights_file.with_suffix(".json")
    if not side.is_file():
        return
    card, own = read_json(side), backend_module(model.backend).Settings.model_fields
    told = {key: value for key, value in card["config"].items() if key in own and value is not None}
    if told != model.config:
        kept = {key: value for key, value in card["config"].items() if key not in told} | model.config
        set_now = {key for key, value in model.config.items() if told.get(key) != value}
        if lines := kept.get("by_line"):  # what is set holds for every class, see `detector_settings.read_with`
            kept["by_line"] = {line: {k: v for k, v in one.items() if k not in set_now} for line, one in lines.items()}
        write_json(side, card | {"config": kept}, indent=1)


def _page(model: Model, card: Any, licence: str | None) -> str:
    import yaml

    from cellkit.models import title_of

    head = {
        "license": hub_name(licence),
        "library_name": "cellkit",
        "pipeline_tag": "image-segmentation",
        "tags": ["biology", "cells", "microscopy", "instance-segmentation", model.backend.replace("_", "-")],
    }
    return PAGE.format(
        head=yaml.safe_dump(head, sort_keys=False),
        title=title_of_model(model.name),
        what=title_of(model.backend),
        classes=f" and says of each which it is: {', '.join(card.classes)}" if card.classes else "",
        name=NAME,
        card=CARD,
        config=json.dumps(card.config, indent=1),
        parents=", ".join(parents_of(card)) or "not known",
        licence=card.licence or "it names none",
        measured=measured(card.metrics),
    )
