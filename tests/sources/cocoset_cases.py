"""COCO files and pictures that the tests of COCO sets share."""

import json
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from cellkit.config.sections import ChannelsConfig, ConvertConfig
from cellkit.modules import load

SQUARE = [[2, 2, 9, 2, 9, 9, 2, 9]]


def config(source, classes=("A", "B"), **options):
    return ConvertConfig(source=source, classes=classes, channels=ChannelsConfig(nuclei=0), **options)


def listed(root, cfg):
    return {item.image_id: item for item in load("source", cfg.source).read(Path(root), cfg)}


def picture(path, shape=(24, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.random.default_rng(len(path.name)).integers(0, 255, shape, dtype=np.uint8)
    tifffile.imwrite(path, grey) if path.suffix == ".tif" else Image.fromarray(grey).save(path)
    return path


def image(number, name, **more):
    return {"id": number, "file_name": name, "height": 24, "width": 32, **more}


def cell(image_id, category=1, segmentation=SQUARE, **more):
    """Return an annotation as LIVECell and others write it, with a float box and area."""
    return {"image_id": image_id, "category_id": category, "segmentation": segmentation, "bbox": [2.0, 2.0, 7.0, 7.0],
            "area": 49.0, "iscrowd": 0, **more}  # fmt: skip


def save(path, images, annotations, categories=("A", "B"), first=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    named = [{"id": k, "name": name} for k, name in enumerate(categories, first)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": named}))
    return path
