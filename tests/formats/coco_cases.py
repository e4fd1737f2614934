"""COCO files that the tests share."""

import json

import numpy as np
import pytest

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.formats.coco_reading import read_coco

SHAPE = (3, 4)

WORKED = {"size": [3, 4], "counts": "327"}

PLACE = {"id": 1, "file_name": "a.png", "height": 3, "width": 4}


def image(image_id, shape=SHAPE, **kwargs):
    return ImageRecord(str(image_id), f"images/{image_id}.png", *shape, **kwargs)


def worked(**kwargs):
    mask = np.zeros(SHAPE, int)
    mask[:2, 1] = 1
    return Instances.from_labels(mask, **kwargs)


def a_file(**changes):
    """One image, one class, the worked mask."""
    data = {
        "images": [{"id": 1, "file_name": "images/a.png", "height": 3, "width": 4}],
        "categories": [{"id": 1, "name": "HEK"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": dict(WORKED), "area": 2, "iscrowd": 0}
        ],
    }
    return data | changes


def annotation(**changes):
    return a_file()["annotations"][0] | changes


def saved(tmp_path, data, name="coco.json"):
    path = tmp_path / name
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def refused(tmp_path, data, read=read_coco):
    path = saved(tmp_path, data)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(path) in str(error.value), "the file is named"
    return str(error.value)
