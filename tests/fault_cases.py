"""How a fault is met: refused in two lines, or skipped with its reason."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cellkit.config.sections import ChannelsConfig, ConvertConfig

RNG = np.random.default_rng(0)

GREY = RNG.integers(0, 4000, (40, 50)).astype(np.uint16)

CELLS = np.zeros((40, 50), np.int32)

CELLS[3:12, 4:15], CELLS[20:31, 10:30], CELLS[35, 40] = 1, 4, 9


# ---- how a fault is met --------------------------------------------------------------------------------------------


@pytest.fixture
def refused(said):
    """Call the command line, check that it refuses in two lines, return them."""

    def call(*arguments) -> str:
        code, out, err = said(*arguments)
        assert (code, out) == (2, "") and len(err.splitlines()) == 2, (code, out, err)
        return err

    return call


def save(path: Path, pixels: np.ndarray = GREY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def config(source: str = "folder", **options) -> ConvertConfig:
    return ConvertConfig(source=source, channels=ChannelsConfig(nuclei=0), **options)


# ---- COCO ----------------------------------------------------------------------------------------------------------

IMAGE = {"id": 1, "file_name": "a.png", "height": 3, "width": 4}

CELL = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": {"size": [3, 4], "counts": [3, 2, 7]}}


def coco_file(path: Path, *annotations: dict) -> Path:
    told = {"images": [IMAGE], "annotations": list(annotations), "categories": [{"id": 1, "name": "cell"}]}
    path.write_text(json.dumps(told))
    return path
