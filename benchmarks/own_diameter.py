"""What it is worth to scale each image by the diameter of its own cells: with no label, and with labels to search settings on.

    python benchmarks/own_diameter.py --base starter_light

Start weights as they are, nothing trained. **Proposals** are those of notebook 02: the diameter is estimated on eight images that
are not scored, and no label is looked at. **Labelled**: as the gate reads its base, diameter and thresholds from ten labelled
images. Each with one diameter for all images (`diameter_of: batch`), and as cellkit has it unless set: each image's own, where
those of the few images differ. Scores are of the same other images: MAP IoU (kaggle), and TP / (TP + FP + FN) at IoU 0.5.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import real_sets

from cellkit.cells.dataset import CellDataset
from cellkit.config.sections import LabelConfig
from cellkit.fetch.find import find_weights
from cellkit.labelling.annotate import with_diameter
from cellkit.models import cellpose_unet as unet

LABELLED = 10
WAYS = {"one for all": "batch", "as cellkit has it": None}


class _With:
    """The U-Net, read with these settings."""

    def __init__(self, settings: unet.Settings | None):
        self.settings = settings

    def load(self, checkpoint: Path) -> Any:
        return unet.load(checkpoint, self.settings)


def images_of(name: str, given: argparse.Namespace) -> tuple[CellDataset, CellDataset, Any]:
    """Return labelled images, images that are scored, and the section finetune."""
    sizes = (10**6, given.tested)
    train, test, config, _ = real_sets.images_of(name, Path(given.data), given.work, *sizes, given.packed, given.base)
    return train, test, config.finetune


def row_of(title: str, checkpoint: Path, settings: unet.Settings | None, test: CellDataset) -> str:
    """Return the row of one way to read start weights."""
    used = unet.load(checkpoint, settings).settings
    scores = real_sets.scores_of(_With(settings), checkpoint, test)
    numbers = " | ".join(f"{np.mean(scores[metric]):.3f}" for metric in ("map_iou", "ap50"))
    return f"| {title} | {used['diameter_px']:.0f}, {used['diameter_of']} | {numbers} |"


def rows(name: str, given: argparse.Namespace) -> Iterator[str]:
    """Yield the rows of a set."""
    base = Path(given.base) if Path(given.base).is_file() else find_weights(given.base)
    train, test, section = images_of(name, given)
    hidden = train.with_records([replace(record, split="train") for record in train.records])
    some = train.subset(np.sort(np.random.default_rng(0).permutation(len(train))[:LABELLED]))
    for way, whose in WAYS.items():
        told = LabelConfig(model=given.base, channels=section.channels, precision="float32", diameter_of=whose)
        yield row_of(
            f"{name}, {len(test)} images, proposals, {way}", base, with_diameter(told, unet, base, hidden), test
        )
    for way, whose in WAYS.items():
        config = section.model_copy(update={"base": str(base), "precision": "float32", "diameter_of": whose})
        with tempfile.TemporaryDirectory() as folder:
            read = unet.calibrate(some, config, Path(folder) / "read")
            yield row_of(f"{name}, {len(test)} images, {len(some)} labelled, {way}", read, None, test)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=tuple(real_sets.SETS), default=["dsb2018", "two_lines", "dkfz"])
    parser.add_argument("--base", default="starter_light", help="weights: a name or a path")
    parser.add_argument("--tested", type=int, default=22, help="most images of a set that are scored (default 22)")
    parser.add_argument("--work", type=Path, default=Path("runs/real_sets"), help="folder of converted images")
    real_sets.add_arguments(parser)
    given = parser.parse_args()
    jobs.prepare("cpu")
    print("| start weights as they are | diameter (px), whose | MAP IoU | AP at 0.5 |\n|---|---|---:|---:|", flush=True)
    for name in given.sets:
        for row in rows(name, given):
            print(row, flush=True)


if __name__ == "__main__":
    main()
