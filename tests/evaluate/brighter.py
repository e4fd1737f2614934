"""A backend for tests that learns one number in no time: above how many times the mean a pixel is a cell's."""

from pathlib import Path

import numpy as np
from pydantic import Field

from cellkit.cells.instances import Instances
from cellkit.models import weights
from cellkit.models.shared.contract import Segmenter
from cellkit.models.shared.fine_tuning import map_iou, refuse_untrainable
from cellkit.settings import Frozen

NAME = "brighter"
TITLE = "Brighter"
REQUIRES = ()
BYTES_PER_PX = 20
GRID = (0.6, 1.0, 1.5, 2.5, 4.0)
TRAINED: list[str] = []  # the images of each training, for tests to count


class Settings(Frozen):
    """Nothing changes."""


class TrainSettings(Frozen):
    """What a training may be told."""

    seed: int = 0
    steps: int = 9
    start: float = Field(5.0, description="where a training starts")
    min_train_masks: int = 1
    folds: int = 5
    cache_gb: float = Field(1.0, description="no result depends on it", json_schema_extra={"hash": False})


def _save(path: Path, limit: float) -> Path:
    import torch

    return weights.save_checkpoint(path, {"limit": torch.tensor([limit])}, NAME, config={"steps": 0})


def _find(image: np.ndarray, limit: float) -> Instances:
    from scipy import ndimage

    found = Instances.from_labels(ndimage.label(image.max(axis=2) > limit * image.mean())[0])
    return found[found.areas_px >= 15]


def calibrate(train, config: TrainSettings, to: Path) -> Path:
    """Write the base."""
    return _save(Path(f"{to}.safetensors"), config.start)


def train(train, val, config: TrainSettings, out: Path) -> Path:
    """Take the limit of the grid that scores best on the training images."""
    refuse_untrainable(train, "nothing")
    assert not {record.image_id for record in train.records} & {record.image_id for record in val.records}
    TRAINED.append(f"{config.steps}: {' '.join(record.image_id for record in train.records)}")
    pairs = [train[k] for k in range(len(train))]
    best = max(GRID, key=lambda limit: map_iou([(truth, _find(image, limit)) for image, truth in pairs]))
    return _save(Path(out) / "brighter_tuned.safetensors", best)


def load(checkpoint: Path, settings: Settings | None = None) -> Segmenter:
    """Return a function from images to their cells."""
    weights.card_for(checkpoint, NAME)
    limit = float(weights.load_tensors(checkpoint)["limit"])
    return Segmenter(lambda image, left_out: _find(image, limit), {})
