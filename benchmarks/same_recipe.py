"""A backend for benchmarks: the Cellpose U-Net, trained on drawn nuclei such as its start knows, whatever images are given.

Base and tuned are then two runs of one recipe with other seeds: none of both is better but by chance. How they are read is
searched on the images that are given, as in any adaptation.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.cells.records import ImageRecord
from cellkit.formats.coco import write_coco
from cellkit.formats.coco_reading import read_coco
from cellkit.models import cellpose_unet as unet
from cellkit.models.cellpose_unet import load  # noqa: F401 - an ability of this backend
from cellkit.settings import Number, weights_field

NAME = unet.NAME
TITLE = "Cellpose U-Net, one recipe"
FIELDS, SEED = 24, 815  # drawn fields, of a seed that no starter weights were made with


class TrainSettings(unet.TrainSettings):
    """Settings of a training."""

    start: str = weights_field("starter", "weights that both runs start from", unet.NAME)
    own_fields: str = ""
    fold_steps: Number = 1.0


def own_fields(folder: Path) -> CellDataset:
    """Return drawn nuclei, drawn once into a folder."""
    from PIL import Image

    from cellkit.cells.drawn.pictures import draw

    path = Path(folder) / "own.json"
    if not path.is_file():
        Path(folder).mkdir(parents=True, exist_ok=True)
        pairs = [draw("nuclei", k, SEED) for k in range(FIELDS)]
        pairs = [pair for pair in pairs if len(pair[1]) > 2]
        for k, (image, _) in enumerate(pairs):
            Image.fromarray(image).save(Path(folder) / f"{k}.png")
        records = [
            ImageRecord(f"{k}", f"{k}.png", *image.shape[:2], split="train") for k, (image, _) in enumerate(pairs)
        ]
        write_coco(path, records, [cells for _, cells in pairs], ())
    return read_coco(path, folder)


def train(train: CellDataset, val: CellDataset, config: TrainSettings, out: Path) -> Path:
    """Train on the drawn fields, in an order by seed and names of the given images; search on the given images."""
    names = " ".join(record.image_id for record in train.records)
    seed = int(np.random.default_rng([config.seed, zlib.crc32(names.encode())]).integers(2**31))
    fields, read = own_fields(Path(config.own_fields)), {key: unet.DEFAULTS[key] for key in unet.SEARCHED}
    changed = {"base": config.start, "seed": seed, "diameter_px": None, **read}
    trained = unet.train(fields, fields.subset([]), config.model_copy(update=changed), Path(out) / "drawn")
    return calibrate(train, config.model_copy(update={"base": str(trained)}), Path(out) / "cellpose_tuned")


def calibrate(train: CellDataset, config: TrainSettings, to: Path) -> Path:
    """Copy the weights of the base, read as suits these images."""
    return unet.calibrate(train, config, to)
