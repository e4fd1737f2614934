"""A folder for the Hugging Face Hub: safetensors, their card, and a README whose head machines read.

Any checkpoint can leave so: whoever takes it uses cellkit.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellkit.errors import UserError
from cellkit.export.licences import hub_name, joined_words, licence_of, said_of
from cellkit.export.network import diameter_shown, parents_of, title_of_model
from cellkit.export.texts import measured
from cellkit.files import read_json, write_json, write_text
from cellkit.predict.model import KEPT_CONVERSION, Model

if TYPE_CHECKING:
    from cellkit.models.weights import Card

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
{converted}
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
            config = _config_of(model)
            finds = weights.save_checkpoint(folder / NAME, weights.load_tensors(first), model.backend, config=config)
        if model.cell_classes is not None:
            finds = weights.copy_checkpoint(model.checkpoint, folder / model.checkpoint.stem)
        _as_read(finds, model)
        _keep_conversion(folder / CARD, model)
        cards = [weights.read_card(folder / NAME)]
        if finds.name != NAME and weights.card_file(finds):
            cards.append(weights.read_card(finds))
        words = joined_words([card.licence for card in cards])
        spdx = licence_of(licence, words)
        write_text(folder / "README.md", _page(model, cards, words, spdx))
        if out.exists():
            out.rename(Path(made) / "replaced")
        folder.rename(out)
    return said_of(spdx, words)


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
    from cellkit.models import backend_module, weights

    side, config = weights.card_file(weights_file), _config_of(model)
    if side is None:
        if config:
            raise UserError(
                f"{model.name} gives a class to the cells of {weights_file.name}, which has no card to say what is set for it",
                "export it without --set",
            )
        return
    card, own = read_json(side), backend_module(model.backend).Settings.model_fields
    told = {key: value for key, value in card["config"].items() if key in own and value is not None}
    if told != config:
        kept = {key: value for key, value in card["config"].items() if key not in told} | config
        set_now = {key for key, value in config.items() if told.get(key) != value}
        if lines := kept.get("by_line"):  # what is set holds for every class, see `detector_settings.read_with`
            kept["by_line"] = {line: {k: v for k, v in one.items() if k not in set_now} for line, one in lines.items()}
        write_json(side, card | {"config": kept}, indent=1)


def _config_of(model: Model) -> dict[str, Any]:
    """Return the settings of a model as its card has them: a diameter in px of the pictures it is shown."""
    config = dict(model.config)
    if config.get("diameter_px") is not None:
        config["diameter_px"] = diameter_shown(model, config["diameter_px"])
    return config


def _keep_conversion(side: Path, model: Model) -> None:
    """Let the card that is opened say how files are converted, as in the run that made the model."""
    if model.needed_conversion is not None:
        card = read_json(side)
        told = card["config"] | {KEPT_CONVERSION: model.needed_conversion.to_json()}
        write_json(side, card | {"config": told}, indent=1)


def _converted(model: Model) -> str:
    """Return which channels of the files are shown, where the run that made the model said so."""
    how = model.needed_conversion
    if how is None:
        return ""
    resized = f", resized by {how.scale:g}" if how.scale != 1 else ""
    return f"""
Files are converted as those of its training: {how.text}{resized} (`conversion` above). Others: `--nuclei C` and `--cytoplasm C`.
"""


def _page(model: Model, cards: Sequence[Card], words: str, licence: str | None) -> str:
    """Return the page of a model, whose cards are of what is opened and, where that is another, of what finds the cells."""
    import yaml

    from cellkit.models import title_of

    card = cards[0]
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
        converted=_converted(model),
        parents=", ".join(dict.fromkeys(name for one in cards for name in parents_of(one))) or "not known",
        licence=words or "it names none",
        measured=measured(card.metrics),
    )
