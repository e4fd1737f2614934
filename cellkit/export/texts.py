"""What a person has to know who runs an exported network: what it is shown, and how its maps become masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cellkit.export.network import Exported
from cellkit.files import decoded
from cellkit.models.unet_maps import FRAME_PX

SHOWN = {
    "both": "cytoplasm, then nuclei",
    "cytoplasm": "cytoplasm, then a channel of zeros",
    "nuclei": "a channel of zeros, then nuclei",
}
KIND = "is a Cellpose U-Net"
READING = """## What it is shown

A float32 tensor (pictures, 2, height, width): {channels}.{converted} For each picture:

1. Scale it so that its cells are {cell_px:g} px wide. {scaled} What becomes smaller is scaled by
   area, what becomes larger bilinearly.
2. Bring the percentiles {low:g} and {high:g} of each channel of the whole picture to 0 and 1; nothing is cut off above or
   below. A channel of one value becomes 0.
3. Put {frame_px} px of zeros around it, and as many more at the right and below as make height and width multiples of 8.
4. Of the answer, cut off what step 3 put on.

A picture of more than 1,120 px (1,152 with the zeros of step 3) is shown in tiles of 1,024 px that overlap by 128, and the maps
are blended where they do.

## What it answers

A float32 tensor (pictures, 3, height, width): flow down and flow to the right, both times 5, and the cell probability as a
logit. The style of the picture is computed inside.

## From maps to masks

Pixels whose logit is above {cellprob_threshold:g} follow the flows; those that meet are a cell. A mask is dropped if its flows
are off by more than {flow_threshold:g} (0 = none is), or if it is smaller than {min_area_px} px of the picture. The package
cellpose (4.2) does it, in Python:

```python
from cellpose.dynamics import resize_and_compute_masks

masks = resize_and_compute_masks(
    maps[:2],
    maps[2],
    cellprob_threshold={cellprob_threshold:g},
    flow_threshold={flow_threshold:g},
    min_size={min_area_px},
    max_size_fraction=1.0,
    resize=(height, width),  # of the picture; masks are (height, width), 0 = background
)
```

How well it did on pictures that it was not trained on is below.
"""
MEASURED = """## Validation

Measured when it was made:

```json
{metrics}
```

Count on your own pictures: draw the outlines of some, and compare. cellkit does that with `cellkit score TRUTH FOUND`.
"""
CONVERTED = """ In the files of its training, {channels}; of several z planes, {projection}.
Of each channel, {levels} became 0 and 255 before step 1, and what lay beyond was cut off. Lengths and areas on this page are in
px of such files{resized}."""
ONE_DIAMETER = """The cells of the training are {diameter_px:.3g} px wide:
   those pictures are scaled by {scale:.3g}."""
OWN_DIAMETER = """Their size differed from picture to picture in the training, so each was
   scaled by {cell_px:g} over the diameter of its own cells: measure that of each picture. cellkit takes {diameter_px:.3g} px
   first, then the diameter of the cells found so (between a half and twice that one), and once more with that where it is another
   again."""


def reading(model: Exported) -> str:
    """Return, in Markdown, how a network's maps are made and read, with the numbers of its card."""
    used = model.used
    px = {"cell_px": model.cell_px, "diameter_px": used["diameter_px"], "scale": model.cell_px / used["diameter_px"]}
    return READING.format(
        channels=SHOWN[used["channels"]],
        converted=_converted(model),
        cell_px=model.cell_px,
        scaled=(OWN_DIAMETER if used["diameter_of"] == "image" else ONE_DIAMETER).format(**px),
        low=used["normalise"][0],
        high=used["normalise"][1],
        frame_px=FRAME_PX,
        cellprob_threshold=used["cellprob_threshold"],
        flow_threshold=used["flow_threshold"],
        min_area_px=used["min_area_px"],
    )


def _converted(model: Exported) -> str:
    """Return which channels of the files were shown in the training, and how they were made pictures; "" where nobody knows."""
    how = model.conversion
    if how is None:
        return ""
    levels = (
        "the values as they are" if how.percentiles is None else "percentiles {:g} and {:g}".format(*how.percentiles)
    )
    if how.limits:
        levels = ", ".join(f"in {colour} {low:g} and {high:g}" for colour, (low, high) in how.limits.items())
    planes = {"max": "the brightest values", "mean": "the means", "focus": "the sharpest plane"}
    return CONVERTED.format(
        channels=how.text,
        projection=planes.get(how.projection, f"plane {how.projection}"),
        levels=levels,
        resized=f", which cellkit resized by {how.scale:g} first" if how.scale != 1 else "",
    )


def measured(metrics: dict[str, Any]) -> str:
    """Return, in Markdown, what the card of a model says of its scores."""
    return MEASURED.format(metrics=json.dumps(metrics or {"nothing": "said in the card"}, indent=1))


def about(model: Exported) -> dict[str, Any]:
    """Return what the metadata of an exported file say: what it is read with, its scores and licence.

    Where the run that made it converted its files: how, and what is another number in px of the pictures that came of it.
    """
    from cellkit import __version__

    card = model.card
    return {
        "made_by": f"cellkit {__version__}",
        "name": model.title,
        "backend": "cellpose_unet",
        "config": {**model.used, "widths": list(model.network.widths), "cell_px": model.cell_px},
        "metrics": card.metrics if card else {},
        "licence": card.licence if card else "",
        **({"conversion": model.conversion.to_json()} if model.conversion else {}),
        **({"as_trained": dict(model.as_trained)} if model.as_trained else {}),
    }


def page(model: Exported, about: dict[str, Any], name: str) -> str:
    """Return all that is to be known of an exported network, in Markdown; `name` is its file."""
    size = sum(tensor.numel() for tensor in model.network.parameters())
    parents = ", ".join(model.parents) or "not known"
    head = f"# {model.title}\n\n`{name}` {KIND} of {size:,} parameters. Trained from: {parents}.\n"
    return "\n".join([head, reading(model), measured(about["metrics"])])


def is_page(path: Path, of: str = "") -> bool:
    """Tell whether a file is a page that an export wrote; with a file name, whether it is about that file."""
    return f"{f'`{of}' if of else ''}` {KIND} of " in decoded(path.read_bytes(), errors="replace")
